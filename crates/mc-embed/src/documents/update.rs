//! Brings an index to what is in its folder: what is new or has changed is embedded, what is gone disappears.

use super::{
    Chunk, DocumentIndex, DocumentsConfig, Record, SkipReason, Skipped, TextModel, chunks,
    walk::{self, TextFile, walk},
};
use crate::index::{Error, Lock, NewRows, Result, Source};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write,
};

/// Ends of names of Markdown, which is cut at headings.
const MARKDOWN: &[&str] = &["markdown", "md", "mdx"];
/// Chunks that are embedded at a time, between two reports.
const AT_A_TIME: usize = 256;

/// How far an update is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Files looked at.
    pub files: usize,
    /// Files there are.
    pub of_files: usize,
    /// Chunks embedded.
    pub chunks: usize,
    /// Chunks to embed in the files looked at.
    pub of_chunks: usize,
}

/// What an update did.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Files that were not in the index.
    pub added: usize,
    /// Files whose content was another.
    pub changed: usize,
    /// Files that are no longer there, or no longer text.
    pub removed: usize,
    /// Files that were in the index as they are.
    pub unchanged: usize,
    /// Chunks that were embedded.
    pub embedded: usize,
    /// Those of them that have more tokens than the model reads, and were cut: one letter can be more tokens than fit.
    pub truncated: usize,
    /// What was left out.
    pub skipped: Vec<Skipped>,
}

/// What the index keeps of a file, to know whether it has changed. In the order of rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    name: String,
    size: u64,
    modified: u64,
    sha256: String,
    chunks: usize,
}

impl DocumentIndex {
    /// Brings the index to what is in the folder now. Files of the same size and time, or of the same content, stay as they
    /// are; chunks of files that have changed are replaced, those of files that are gone disappear, and those of files that
    /// cannot be read now stay. The index takes the model's name, if that is another one for the same model.
    ///
    /// What is done is written from time to time, so a run that is interrupted goes on where it was.
    ///
    /// # Errors
    /// If the folder cannot be read or has lost all its texts, the model is another one or fails, or the index is damaged
    /// or cannot be written.
    pub fn update(&mut self, model: &TextModel, observe: &mut dyn FnMut(Progress)) -> Result<Update> {
        let lock = self.index.lock()?;
        self.check_model(model)?;
        let (files, skipped) = walk(&self.documents.folder, &self.documents.extensions, self.index.dir())?;
        let mut update = Update { skipped, ..Update::default() };
        let mut progress = Progress { files: 0, of_files: files.len(), ..Progress::default() };
        let known: HashMap<String, Known> = self.known()?.into_iter().map(|k| (k.name.clone(), k)).collect();
        let renamed = model.name != self.index.config().model;
        self.index.rename_model(model.name);
        let mut kept = HashSet::new();
        let mut batch = Batch::default();
        for file in files {
            progress.files += 1;
            let before = known.get(&file.name);
            let untouched = before.is_some_and(|k| (k.size, k.modified) == (file.size, file.modified));
            if !untouched {
                let (content, sha256) = match read(&file) {
                    Ok(content) => content,
                    Err(reason) => {
                        update.skipped.push(Skipped { path: file.path, reason });
                        continue;
                    }
                };
                if before.is_none_or(|k| k.sha256 != sha256) {
                    *if before.is_none() { &mut update.added } else { &mut update.changed } += 1;
                    progress.of_chunks += batch.add(&file, &content, sha256, &self.documents, model)?;
                    kept.insert(file.name);
                    if batch.records.len() >= self.saved {
                        update.truncated += batch.truncated;
                        self.save(&lock, &batch, model, &mut progress, observe, None)?;
                        batch = Batch::default();
                    }
                    continue;
                }
                batch.touched.insert(file.name.clone(), file.modified);
            }
            update.unchanged += 1;
            kept.insert(file.name);
            observe(progress);
        }
        let unreadable: Vec<_> =
            update.skipped.iter().filter(|s| matches!(s.reason, SkipReason::Unreadable(_))).map(|s| &s.path).collect();
        let for_now = |name: &&String| unreadable.iter().any(|path| self.path(name).starts_with(path));
        kept.extend(known.keys().filter(for_now).cloned());
        if kept.is_empty() && !known.is_empty() {
            let what = format!("{}: none of the files in the index is left", self.documents.folder.display());
            let hint = "look whether the folder is whole; to give the index up, remove its directory";
            return Err(Error::argument(what, hint));
        }
        update.removed = known.keys().filter(|name| !kept.contains(*name)).count();
        update.truncated += batch.truncated;
        if !batch.files.is_empty() || !batch.touched.is_empty() || update.removed > 0 || renamed {
            self.save(&lock, &batch, model, &mut progress, observe, Some(&kept))?;
        }
        update.embedded = progress.chunks;
        Ok(update)
    }

    fn known(&self) -> Result<Vec<Known>> {
        let notes = self.index.notes()?;
        let damaged = |what: String| Error::invalid(self.index.dir(), format!("list of files: {what}"));
        if notes.is_empty() {
            return Ok(vec![]);
        }
        let known: Vec<Known> = serde_json::from_slice(notes).map_err(|e| damaged(e.to_string()))?;
        let chunks = known.iter().fold(0usize, |sum, k| sum.saturating_add(k.chunks));
        if chunks != self.index.len() {
            return Err(damaged(format!("{chunks} chunks, expected {}", self.index.len())));
        }
        Ok(known)
    }

    /// Embeds a batch and makes it part of the index, in place of what the index had of its files; with the files that are
    /// kept, drops all others.
    fn save(
        &mut self,
        lock: &Lock,
        batch: &Batch,
        model: &TextModel,
        progress: &mut Progress,
        observe: &mut dyn FnMut(Progress),
        kept: Option<&HashSet<String>>,
    ) -> Result<()> {
        let mut vectors = Vec::with_capacity(batch.texts.len() * self.index.config().dimensions);
        for texts in batch.texts.chunks(AT_A_TIME) {
            let first = vectors.len() / self.index.config().dimensions.max(1);
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let embedded = model.vectors(&texts, self.index.config().dimensions);
            vectors.extend(embedded.map_err(|e| self.with_place(e, &batch.records[first..]))?);
            progress.chunks += texts.len();
            observe(*progress);
        }
        let replaced: BTreeSet<&str> = batch.files.iter().map(|k| k.name.as_str()).collect();
        let (mut plan, mut files, mut row) = (vec![], vec![], 0);
        for mut known in self.known()? {
            let rows = row..row + known.chunks;
            row = rows.end;
            if !replaced.contains(known.name.as_str()) && kept.is_none_or(|kept| kept.contains(&known.name)) {
                plan.extend(rows.map(Source::Old));
                known.modified = batch.touched.get(&known.name).copied().unwrap_or(known.modified);
                files.push(known);
            }
        }
        plan.extend((0..batch.records.len()).map(Source::New));
        files.extend(batch.files.iter().cloned());
        let notes = serde_json::to_vec(&files).map_err(|e| Error::invalid(self.index.dir(), e.to_string()))?;
        self.index.rewrite(lock, &plan, &NewRows { vectors: &vectors, records: &batch.records }, &notes)
    }

    /// The error of a model with the place of the text that it names, one of these records.
    fn with_place(&self, error: Error, records: &[String]) -> Error {
        use crate::Error::{NotFinite, TokenId};
        let Error::Model { source, .. } = &error else { return error };
        let Some(NotFinite { text } | TokenId { text, .. }) = source.downcast_ref() else { return error };
        let record = records.get(*text).and_then(|record| serde_json::from_str::<Record>(record).ok());
        let Some(record) = record else { return error };
        let source = source.to_string().replacen(&format!("text {text}: "), "", 1);
        let what = format!("{}, line {}", self.path(&record.path).display(), record.first);
        Error::Model { what, source: source.into() }
    }
}

/// Files that are cut and not yet embedded.
#[derive(Default)]
struct Batch {
    files: Vec<Known>,
    texts: Vec<String>,
    records: Vec<String>,
    /// How many of the texts are longer than the model reads.
    truncated: usize,
    /// Files that have another time and the same content, with that time.
    touched: HashMap<String, u64>,
}

impl Batch {
    fn add(
        &mut self,
        file: &TextFile,
        content: &str,
        sha256: String,
        documents: &DocumentsConfig,
        model: &TextModel,
    ) -> Result<usize> {
        let tokens = |text: &str| model.count_tokens(text, &file.path.display().to_string());
        let extension = file.path.extension().and_then(|e| e.to_str()).map(str::to_lowercase).unwrap_or_default();
        let parts = chunks(content, MARKDOWN.contains(&extension.as_str()), documents.chunking, &tokens)?;
        self.files.push(Known {
            name: file.name.clone(),
            size: file.size,
            modified: file.modified,
            sha256,
            chunks: parts.len(),
        });
        for Chunk { text, first_line, last_line, tokens } in &parts {
            self.truncated += usize::from(*tokens > model.limit);
            let record =
                Record { path: (&*file.name).into(), first: *first_line, last: *last_line, text: (*text).into() };
            self.records.push(serde_json::to_string(&record).map_err(|e| Error::invalid(&file.path, e.to_string()))?);
            self.texts.push((*text).into());
        }
        Ok(parts.len())
    }
}

/// The text of a file and the hash of its bytes.
fn read(file: &TextFile) -> Result<(String, String), SkipReason> {
    let bytes = file.read()?;
    let text = walk::text(&bytes)?.to_string();
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(&bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok((text, hex))
}
