//! An index over the text files of a folder: which chunks they have, which are new, and which one answers a question.
//!
//! The second time only what has changed is embedded. Knows no model: whoever calls brings what counts tokens and what
//! makes vectors of texts.

mod chunks;
mod model;
mod update;
mod walk;

pub use chunks::{Chunk, Chunking, chunks};
pub use model::{CountTokens, Embed, Failure, TextModel};
pub use update::{Progress, Update};
pub use walk::{SkipReason, Skipped};

use crate::index::{Error, IndexConfig, Result, VectorDtype, VectorIndex};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is text, by the end of its name.
const EXTENSIONS: &[&str] = &["adoc", "asciidoc", "markdown", "md", "mdx", "org", "rst", "text", "txt"];
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

/// What the index keeps of a chunk.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    path: std::borrow::Cow<'a, str>,
    first: usize,
    last: usize,
    text: std::borrow::Cow<'a, str>,
}

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
        documents.chunking.check(model.count_tokens("", model.name)?, model.limit)?;
        let fingerprint = model.fingerprint()?;
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
        self.index.check_model(model.name, &model.fingerprint()?)
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

    fn path(&self, name: &str) -> PathBuf {
        name.split('/').fold(self.documents.folder.clone(), |path, name| path.join(name))
    }
}
