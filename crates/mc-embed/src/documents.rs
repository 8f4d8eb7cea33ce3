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
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    time::Duration,
};

/// What is text, by the end of its name.
const EXTENSIONS: &[&str] = &["adoc", "asciidoc", "markdown", "md", "mdx", "org", "rst", "text", "txt"];
/// Chunks after which what is done is written.
const SAVED: usize = 16 * 1024;
/// Time after which it is too, while they are embedded.
const INTERVAL: Duration = Duration::from_mins(1);

/// Which documents an index is of; fixed once it has rows.
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
    /// If there is no such folder, or its path is not UTF-8.
    pub fn new(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let whole = folder.canonicalize().map_err(Error::io(folder))?;
        if !whole.is_dir() {
            return Err(Error::argument(format!("{} is a file", folder.display()), "name the folder it is in"));
        }
        if whole.to_str().is_none() {
            let what = format!("the path {} is not UTF-8", whole.display());
            return Err(Error::argument(
                what,
                "rename the folder, or reach it by another name: an index keeps paths as text",
            ));
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
    path: Cow<'a, str>,
    first: usize,
    last: usize,
    text: Cow<'a, str>,
}

impl Record<'_> {
    /// From the record of a row.
    fn read(index: &VectorIndex, row: usize, record: &str) -> Result<Self> {
        serde_json::from_str(record).map_err(|e| Error::invalid(index.dir(), format!("record {row}: {e}")))
    }

    fn write(&self, file: &Path) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::invalid(file, e.to_string()))
    }
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
/// let mut index = DocumentIndex::open_or_create(dir.path().join("index"), documents, VectorDtype::F16, &model)?;
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
    interval: Duration,
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
        Self::of(VectorIndex::create(dir, config(documents, vectors, model)?)?)
    }

    /// Opens an index over documents.
    ///
    /// # Errors
    /// As [`VectorIndex::open`], or if its rows come from elsewhere.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::of(VectorIndex::open(dir)?)
    }

    /// The index in a directory; where there is none, an empty one as [`DocumentIndex::create`] makes it. One that has no
    /// rows yet takes these settings and this model.
    ///
    /// # Errors
    /// As [`DocumentIndex::open`], [`DocumentIndex::check_settings`] or [`DocumentIndex::create`].
    pub fn open_or_create(
        dir: impl AsRef<Path>,
        documents: DocumentsConfig,
        vectors: VectorDtype,
        model: &TextModel,
    ) -> Result<Self> {
        let index = match VectorIndex::open(&dir) {
            Err(Error::NoIndex { .. }) => return Self::create(dir, documents, vectors, model),
            index => index?,
        };
        let mut this = Self::of(index)?;
        if !this.index.is_empty() {
            this.check_settings(&documents, vectors, this.index.config().dimensions)?;
            return Ok(this);
        }
        this.index.configure(config(documents.clone(), vectors, model)?)?;
        Ok(Self { documents, ..this })
    }

    fn of(index: VectorIndex) -> Result<Self> {
        match index.config().documents.clone() {
            Some(documents) => Ok(Self { index, documents, saved: SAVED, interval: INTERVAL }),
            None => Err(Error::NoIndex { dir: index.dir().into(), what: "its vectors are not of documents" }),
        }
    }

    /// The same, and after so many chunks [`DocumentIndex::update`] writes what is done, as it does after each minute of
    /// embedding: an interrupted run loses no more, except for the file that it is at.
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

    /// Checks that the index is of these documents and keeps its vectors so, with as many numbers in each.
    ///
    /// # Errors
    /// If not: these are fixed once an index has rows.
    pub fn check_settings(&self, documents: &DocumentsConfig, vectors: VectorDtype, dimensions: usize) -> Result<()> {
        let settings = |documents: &DocumentsConfig, vectors: VectorDtype, dimensions: usize| {
            [
                ("folder", documents.folder.display().to_string()),
                ("extensions", documents.extensions.join(",")),
                ("chunk size", documents.chunking.size.to_string()),
                ("chunk overlap", documents.chunking.overlap.to_string()),
                ("vectors", vectors.to_string()),
                ("dimensions", dimensions.to_string()),
            ]
        };
        let own = self.index.config();
        let of_index = settings(&self.documents, own.vectors, own.dimensions);
        match of_index.into_iter().zip(settings(documents, vectors, dimensions)).find(|(found, asked)| found != asked) {
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
            let record = Record::read(&self.index, hit.row, self.index.record(hit.row)?)?;
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

/// Of an index over these documents by this model.
fn config(documents: DocumentsConfig, vectors: VectorDtype, model: &TextModel) -> Result<IndexConfig> {
    documents.chunking.check(model.count_tokens("", model.name)?, model.limit)?;
    let fingerprint = model.fingerprint()?;
    let (model, dimensions) = (model.name.into(), fingerprint.len());
    Ok(IndexConfig { model, dimensions, fingerprint, vectors, documents: Some(documents) })
}
