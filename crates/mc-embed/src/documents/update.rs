//! Brings an index to what is in its folder: what is new or has changed is embedded, what is gone disappears.

use super::{
    Chunk, DocumentIndex, DocumentsConfig, Record, SkipReason, Skipped, TextModel, chunks,
    walk::{self, Stamp, TextFile, walk},
};
use crate::index::{Error, Lock, NewRows, Result, Row, Source, VectorIndex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write,
    ops::Range,
    path::Path,
    time::Instant,
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
    /// Those of the files added or changed that were moved or copied: their content was in the index by another name, so
    /// nothing was embedded.
    pub moved: usize,
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
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
    chunks: usize,
}

impl DocumentIndex {
    /// Brings the index to what is in the folder now. Files of the same size and times (on Unix the inode too), or of the same
    /// content, stay as they are; chunks of files that have changed are replaced, those of files that are gone disappear, and
    /// those of files that cannot be read now stay. A file that has the content of another takes over its vectors. The index
    /// takes the model's name, if that is another one for the same model.
    ///
    /// What is done is written from time to time, so a run that is interrupted goes on where it was: files whose chunks were
    /// embedded more than a minute before are kept.
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
        let mut batch = Batch::new(self.known()?);
        for file in files {
            progress.files += 1;
            let before = known.get(&file.name);
            if before.is_none_or(|k| k.stamp != file.stamp) {
                let (content, sha256) = match read(&file) {
                    Ok(content) => content,
                    Err(reason) => {
                        update.skipped.push(Skipped { path: file.path, reason });
                        continue;
                    }
                };
                if before.is_none_or(|k| k.sha256 != sha256) {
                    *if before.is_none() { &mut update.added } else { &mut update.changed } += 1;
                    if batch.reuse(&self.index, &file, &sha256)? {
                        update.moved += 1;
                    } else {
                        progress.of_chunks += batch.add(&file, &content, sha256, &self.documents, model)?;
                    }
                    kept.insert(file.name);
                    if batch.records.len() >= self.saved {
                        update.truncated += batch.truncated;
                        self.save(&lock, &mut batch, model, &mut progress, observe, None)?;
                        batch = Batch::new(self.known()?);
                    }
                    continue;
                }
                batch.touched.insert(file.name.clone(), file.stamp);
            }
            update.unchanged += 1;
            kept.insert(file.name);
            observe(progress);
        }
        let unreadable: Vec<_> = update
            .skipped
            .iter()
            .filter(|s| matches!(s.reason, SkipReason::Unreadable(_) | SkipReason::IgnoreFile(_)))
            .map(|s| &s.path)
            .collect();
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
            self.save(&lock, &mut batch, model, &mut progress, observe, Some(&kept))?;
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
        batch: &mut Batch,
        model: &TextModel,
        progress: &mut Progress,
        observe: &mut dyn FnMut(Progress),
        kept: Option<&HashSet<String>>,
    ) -> Result<()> {
        let mut saved = Instant::now();
        for first in (0..batch.texts.len()).step_by(AT_A_TIME) {
            if first > 0 && saved.elapsed() >= self.interval {
                self.write(lock, batch, None)?;
                saved = Instant::now();
            }
            let texts: Vec<&str> = batch.texts[first..].iter().take(AT_A_TIME).map(String::as_str).collect();
            let vectors = model.vectors(&texts, self.index.config().dimensions);
            progress.chunks += texts.len();
            batch.vectors.extend(vectors.map_err(|e| self.with_place(e, batch, first))?);
            observe(*progress);
        }
        self.write(lock, batch, kept)
    }

    /// Makes the files of a batch part of the index whose chunks are all embedded; the others stay in the batch.
    fn write(&mut self, lock: &Lock, batch: &mut Batch, kept: Option<&HashSet<String>>) -> Result<()> {
        let embedded = batch.vectors.len() / self.index.config().dimensions;
        // No row of the index is left in the batch, so that its rows may get other numbers.
        let is_there = |vector: &Source| !matches!(vector, Source::New(i) if *i >= embedded);
        let (new, rest): (Vec<_>, _) =
            batch.files.drain(..).partition(|(_, rows)| batch.rows[rows.clone()].iter().all(is_there));
        batch.files = rest;
        if new.is_empty() && kept.is_none() {
            return Ok(());
        }
        let replaced: BTreeSet<&str> = new.iter().map(|(k, _)| k.name.as_str()).collect();
        let (mut plan, mut files, mut row) = (vec![], vec![], 0);
        for mut known in self.known()? {
            let rows = row..row + known.chunks;
            row = rows.end;
            if !replaced.contains(known.name.as_str()) && kept.is_none_or(|kept| kept.contains(&known.name)) {
                plan.extend(rows.map(Source::Old).map(Row::of));
                known.stamp = batch.touched.get(&known.name).copied().unwrap_or(known.stamp);
                files.push(known);
            }
        }
        for (known, rows) in new {
            plan.extend(rows.map(|row| Row { vector: batch.rows[row], record: Source::New(row) }));
            files.push(known);
        }
        let notes = serde_json::to_vec(&files).map_err(|e| Error::invalid(self.index.dir(), e.to_string()))?;
        self.index.rewrite(lock, &plan, &NewRows { vectors: &batch.vectors, records: &batch.records }, &notes)
    }

    /// The error of a model with the place of the text that it names, one of a batch from `first` on.
    fn with_place(&self, error: Error, batch: &Batch, first: usize) -> Error {
        use crate::Error::{NotFinite, TokenId};
        let Error::Model { source, .. } = &error else { return error };
        let Some(NotFinite { text } | TokenId { text, .. }) = source.downcast_ref() else { return error };
        let row = batch.rows.iter().position(|vector| *vector == Source::New(first + text));
        let record = row.and_then(|row| serde_json::from_str::<Record>(&batch.records[row]).ok());
        let Some(record) = record else { return error };
        let source = source.to_string().replacen(&format!("text {text}: "), "", 1);
        let what = format!("{}, line {}", self.path(&record.path).display(), record.first);
        Error::Model { what, source: source.into() }
    }
}

/// Files that are cut and not yet in the index.
struct Batch {
    /// Which rows have the chunks of a content that was cut as Markdown, or not: those of the index, then those from here.
    contents: HashMap<(String, bool), Range<usize>>,
    /// Rows of the index.
    of_index: usize,
    /// With their rows here.
    files: Vec<(Known, Range<usize>)>,
    /// The records of the rows, and where their vectors come from.
    records: Vec<String>,
    rows: Vec<Source>,
    /// What is to embed, and the vectors of those that are.
    texts: Vec<String>,
    vectors: Vec<f32>,
    /// How many of the texts are longer than the model reads.
    truncated: usize,
    /// Files that the system says something else of, and that have the same content.
    touched: HashMap<String, Stamp>,
}

impl Batch {
    /// Of an index with these files.
    fn new(known: Vec<Known>) -> Self {
        let mut row = 0;
        let mut contents = HashMap::new();
        for Known { name, sha256, chunks, .. } in known {
            if chunks > 0 {
                contents.insert((sha256, is_markdown(&name)), row..row + chunks);
            }
            row += chunks;
        }
        Self {
            contents,
            of_index: row,
            files: vec![],
            records: vec![],
            rows: vec![],
            texts: vec![],
            vectors: vec![],
            truncated: 0,
            touched: HashMap::new(),
        }
    }

    /// Adds a file by the chunks of another of the same content, if there is one.
    fn reuse(&mut self, index: &VectorIndex, file: &TextFile, sha256: &str) -> Result<bool> {
        let Some(rows) = self.contents.get(&(sha256.to_string(), is_markdown(&file.name))) else { return Ok(false) };
        let first = self.records.len();
        for row in rows.clone() {
            let (record, vector) = match row.checked_sub(self.of_index) {
                None => (index.record(row)?, Source::Old(row)),
                Some(row) => (self.records[row].as_str(), self.rows[row]),
            };
            let record = Record { path: (&*file.name).into(), ..Record::read(index, row, record)? };
            let record = record.write(&file.path)?;
            self.records.push(record);
            self.rows.push(vector);
        }
        self.end(file, sha256.into(), first);
        Ok(true)
    }

    /// Cuts a file, and says in how many chunks.
    fn add(
        &mut self,
        file: &TextFile,
        content: &str,
        sha256: String,
        documents: &DocumentsConfig,
        model: &TextModel,
    ) -> Result<usize> {
        let tokens = |text: &str| model.count_tokens(text, &file.path.display().to_string());
        let parts = chunks(content, is_markdown(&file.name), documents.chunking, &tokens)?;
        let first = self.records.len();
        for Chunk { text, first_line, last_line, tokens } in &parts {
            self.truncated += usize::from(*tokens > model.limit);
            let record =
                Record { path: (&*file.name).into(), first: *first_line, last: *last_line, text: (*text).into() };
            self.records.push(record.write(&file.path)?);
            self.rows.push(Source::New(self.texts.len()));
            self.texts.push((*text).into());
        }
        self.end(file, sha256, first);
        Ok(parts.len())
    }

    /// Ends a file whose rows start there.
    fn end(&mut self, file: &TextFile, sha256: String, first: usize) {
        let rows = first..self.records.len();
        if !rows.is_empty() {
            let place = self.of_index + rows.start..self.of_index + rows.end;
            self.contents.insert((sha256.clone(), is_markdown(&file.name)), place);
        }
        self.files.push((Known { name: file.name.clone(), stamp: file.stamp, sha256, chunks: rows.len() }, rows));
    }
}

fn is_markdown(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    extension.is_some_and(|extension| MARKDOWN.contains(&extension.as_str()))
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

#[cfg(test)]
mod tests;
