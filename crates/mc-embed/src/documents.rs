//! An index over the text files of a folder: which chunks they have, which are new, and which one answers a question.
//!
//! The second time only what has changed is embedded. Knows no model: whoever calls brings what counts tokens and what
//! makes vectors of texts.

mod chunks;
mod walk;

pub use chunks::{Chunk, Chunking, chunks};
pub use walk::{SkipReason, Skipped};

use crate::{
    EmbeddingModel, EncodeOptions, Prompt,
    index::{Error, IndexConfig, Lock, NewRows, Result, Source, VectorDtype, VectorIndex},
};
use candle_core::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write,
    path::{Path, PathBuf},
};
use walk::{TextFile, walk};

/// What is text, by the end of its name.
const EXTENSIONS: &[&str] = &["adoc", "asciidoc", "markdown", "md", "mdx", "org", "rst", "text", "txt"];
const MARKDOWN: &[&str] = &["markdown", "md", "mdx"];
/// Chunks that are embedded at a time, between two reports.
const AT_A_TIME: usize = 256;
/// Chunks after which what is done is written.
const SAVED: usize = 16 * 1024;

/// Which documents an index is of; fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentsConfig {
    /// The folder, by its whole path.
    pub folder: PathBuf,
    /// Ends of names, in lower case and without a dot.
    pub extensions: Vec<String>,
    /// How texts are cut.
    pub chunking: Chunking,
}

impl DocumentsConfig {
    /// Text and Markdown files in a folder, cut as is usual.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn new(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let whole = folder.canonicalize().map_err(Error::io(folder))?;
        if !whole.is_dir() {
            return Err(Error::argument(format!("{} is a file", folder.display()), "name the folder it is in"));
        }
        let extensions = EXTENSIONS.iter().map(ToString::to_string).collect();
        Ok(Self { folder: whole, extensions, chunking: Chunking::default() })
    }
}

/// What a model does for an index, in functions.
pub struct TextModel<'a> {
    /// How errors and the index call it.
    pub name: &'a str,
    /// The number of tokens in a text, with those that the model adds to any.
    pub tokens: CountTokens<'a>,
    /// How many of them it reads.
    pub limit: usize,
    /// The vectors of texts, one after the other.
    pub embed: Embed<'a>,
}

impl<'a> TextModel<'a> {
    /// Those of a model, for documents.
    pub fn new(name: &'a str, model: &'a EmbeddingModel) -> Self {
        Self {
            name,
            tokens: Box::new(|text| Ok(model.count_tokens(text, Prompt::Document)?)),
            limit: model.max_tokens(),
            embed: Box::new(|texts| {
                let options = EncodeOptions { prompt: Prompt::Document, ..EncodeOptions::default() };
                let vectors = model.encode_with(texts, &options, &mut |_| {})?.vectors;
                Ok(vectors.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
            }),
        }
    }
}

/// A text in, how many tokens it has out.
pub type CountTokens<'a> = Box<dyn Fn(&str) -> Result<usize, Failure> + 'a>;

/// Texts in, their vectors out.
pub type Embed<'a> = Box<dyn Fn(&[&str]) -> Result<Vec<f32>, Failure> + 'a>;

/// What a function of a [`TextModel`] says when it fails.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

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

/// A chunk that answers a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The cosine of its vector and the query's, −1 to 1.
    pub score: f32,
    /// The file, in the folder of the index.
    pub path: PathBuf,
    /// Where it starts in that file, from 1.
    pub first_line: usize,
    /// The line it ends in.
    pub last_line: usize,
    /// What it said when it was indexed.
    pub text: String,
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

/// What the index keeps of a chunk.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    path: std::borrow::Cow<'a, str>,
    first: usize,
    last: usize,
    text: std::borrow::Cow<'a, str>,
}

/// The text whose vector is the fingerprint of a model; long enough that models differ on it.
const FINGERPRINT: &str = "What is found here was measured twice: 17 red kites over the old harbour, before the rain.";

/// A [`VectorIndex`] over the chunks of documents.
///
/// ```
/// use mc_embed::{documents::{DocumentIndex, DocumentsConfig, TextModel}, index::VectorDtype};
/// let dir = tempfile::tempdir()?;
/// std::fs::create_dir(dir.path().join("notes"))?;
/// std::fs::write(dir.path().join("notes/a.md"), "# Tides\n\nThe sea rises twice a day.\n")?;
/// // In place of a real model: how often two letters occur.
/// let count = |text: &str, letter| text.matches(letter).count() as f32;
/// let model = TextModel {
///     name: "letters",
///     tokens: Box::new(|text| Ok(text.split_whitespace().count())),
///     limit: 256,
///     embed: Box::new(|texts| Ok(texts.iter().flat_map(|t| [count(t, 'a'), count(t, 's')]).collect())),
/// };
/// let documents = DocumentsConfig::new(dir.path().join("notes"))?;
/// let mut index = DocumentIndex::create(dir.path().join("index"), documents, VectorDtype::F16, &model)?;
/// assert_eq!(index.update(&model, &mut |_| {})?.added, 1);
/// assert_eq!(index.update(&model, &mut |_| {})?.unchanged, 1);
/// let found = index.search(&[1., 1.], 5)?;
/// assert_eq!((found[0].first_line, found[0].text.as_str()), (1, "# Tides\n\nThe sea rises twice a day."));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DocumentIndex {
    index: VectorIndex,
    documents: DocumentsConfig,
    saved: usize,
}

impl DocumentIndex {
    /// An empty index in a directory that is empty or does not exist; [`DocumentIndex::update`] fills it.
    ///
    /// # Errors
    /// As [`VectorIndex::create`], or if the model fails or reads less than a chunk.
    pub fn create(
        dir: impl AsRef<Path>,
        documents: DocumentsConfig,
        vectors: VectorDtype,
        model: &TextModel,
    ) -> Result<Self> {
        documents.chunking.check(count_tokens(model, "", model.name)?, model.limit)?;
        let fingerprint = fingerprint(model)?;
        let config = IndexConfig {
            model: model.name.into(),
            dimensions: fingerprint.len(),
            fingerprint,
            vectors,
            documents: Some(documents.clone()),
        };
        Ok(Self { index: VectorIndex::create(dir, config)?, documents, saved: SAVED })
    }

    /// Opens an index over documents.
    ///
    /// # Errors
    /// As [`VectorIndex::open`], or if its rows come from elsewhere.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let index = VectorIndex::open(dir)?;
        match index.config().documents.clone() {
            Some(documents) => Ok(Self { index, documents, saved: SAVED }),
            None => Err(Error::NoIndex { dir: index.dir().into(), what: "its vectors are not of documents" }),
        }
    }

    /// The same, and after so many chunks [`DocumentIndex::update`] writes what is done: an interrupted run loses no more.
    /// It is 16,384 where nothing else is said; each time costs what writing the whole index costs.
    #[must_use]
    pub fn saved_every(self, chunks: usize) -> Self {
        Self { saved: chunks.max(1), ..self }
    }

    /// Removes the files of the index; its directory stays, and what else may be in it.
    ///
    /// # Errors
    /// As [`VectorIndex::delete`].
    pub fn delete(self) -> Result<()> {
        self.index.delete()
    }

    /// The vectors of the chunks.
    pub fn vectors(&self) -> &VectorIndex {
        &self.index
    }

    /// Which documents it is of.
    pub fn documents(&self) -> &DocumentsConfig {
        &self.documents
    }

    /// Checks that the index is of these documents and keeps its vectors so.
    ///
    /// # Errors
    /// If not: these are fixed when an index is made.
    pub fn check_settings(&self, documents: &DocumentsConfig, vectors: VectorDtype) -> Result<()> {
        let settings = |documents: &DocumentsConfig, vectors: VectorDtype| {
            [
                ("folder", documents.folder.display().to_string()),
                ("extensions", documents.extensions.join(",")),
                ("chunk size", documents.chunking.size.to_string()),
                ("chunk overlap", documents.chunking.overlap.to_string()),
                ("vectors", vectors.to_string()),
            ]
        };
        let of_index = settings(&self.documents, self.index.config().vectors);
        match of_index.into_iter().zip(settings(documents, vectors)).find(|(found, asked)| found != asked) {
            Some(((field, found), (_, expected))) => {
                Err(Error::Mismatch { dir: self.index.dir().into(), field, found, expected })
            }
            None => Ok(()),
        }
    }

    /// Checks that this model made the vectors.
    ///
    /// # Errors
    /// If it did not, or fails.
    pub fn check_model(&self, model: &TextModel) -> Result<()> {
        self.index.check_model(model.name, &fingerprint(model)?)
    }

    /// The `k` chunks nearest to the vector of a question, best first.
    ///
    /// # Errors
    /// As [`VectorIndex::search`], or if a record is damaged.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<Found>> {
        let found = |hit: crate::index::Hit| {
            let damaged = |e: serde_json::Error| Error::invalid(self.index.dir(), format!("record {}: {e}", hit.row));
            let record: Record = serde_json::from_str(self.index.record(hit.row)?).map_err(damaged)?;
            Ok(Found {
                score: hit.score,
                path: self.path(&record.path),
                first_line: record.first,
                last_line: record.last,
                text: record.text.into_owned(),
            })
        };
        self.index.search(query, k)?.into_iter().map(found).collect()
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

    fn path(&self, name: &str) -> PathBuf {
        name.split('/').fold(self.documents.folder.clone(), |path, name| path.join(name))
    }

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
            let embedded = embed(model, &texts, self.index.config().dimensions);
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
        let tokens = |text: &str| count_tokens(model, text, &file.path.display().to_string());
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

fn count_tokens(model: &TextModel, text: &str, what: &str) -> Result<usize> {
    (model.tokens)(text).map_err(|source| Error::Model { what: what.into(), source })
}

fn fingerprint(model: &TextModel) -> Result<Vec<f32>> {
    (model.embed)(&[FINGERPRINT]).map_err(|source| Error::Model { what: format!("`{}`", model.name), source })
}

fn embed(model: &TextModel, texts: &[&str], dimensions: usize) -> Result<Vec<f32>> {
    let vectors = (model.embed)(texts).map_err(|source| Error::Model { what: format!("`{}`", model.name), source })?;
    if vectors.len() == texts.len() * dimensions {
        return Ok(vectors);
    }
    let what = format!("`{}` made {} numbers of {} texts", model.name, vectors.len(), texts.len());
    Err(Error::argument(what, "a model makes as many numbers for each text"))
}
