//! Vectors in a directory, and the nearest of them: a small manifest and one memory-mapped file of rows.
//!
//! A change writes a new file of rows and then replaces the manifest, which names it; so at every moment, a crash included,
//! the directory holds the index before or after the change, and whoever has it open keeps what they opened. A change
//! costs what writing all rows costs. Knows nothing of texts or models: a row is a vector and a record, which is a string.

mod error;
mod manifest;
mod rows;

pub use error::{Error, Result};
pub use mc_backend::search::{Hit, top_k};

pub(crate) use mc_checkpoint::Lock;
pub(crate) use rows::{NewRows, Row, Source};

use manifest::Manifest;
use rows::Rows;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The most numbers in a vector.
const WIDEST: usize = 1 << 16;
/// The least cosine between the fingerprints of one model: what another dtype or device may make of it.
const SAME_MODEL: f32 = 0.999;

/// How an index keeps its vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VectorDtype {
    /// 4 bytes per number: exact.
    F32,
    /// 2 bytes per number: scores are off by less than 0.001.
    #[default]
    F16,
    /// 3 bytes per number, of which a search reads 1: the best of 4·k + 16 candidates by bytes, scored as in [`Self::F16`].
    Int8,
}

impl FromStr for VectorDtype {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            _ => Err(Error::argument(format!("vectors `{name}`, expected f32, f16 or int8"), "int8 is read fastest")),
        }
    }
}

impl fmt::Display for VectorDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        })
    }
}

/// What an index is of; fixed when it is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IndexConfig {
    /// The name of the model that made the vectors: a hub id or a directory.
    pub model: String,
    /// What that model makes of one text that is always the same, by which it is known again; may be empty.
    pub fingerprint: Vec<f32>,
    /// Numbers in a vector, 1 to 65,536.
    pub dimensions: usize,
    /// How vectors are kept.
    pub vectors: VectorDtype,
    /// Where the rows come from, if they are chunks of documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents: Option<crate::documents::DocumentsConfig>,
}

impl IndexConfig {
    fn check_argument(&self) -> Result<()> {
        self.check(|what| Error::argument(what, "take the dimensions from the model"))
    }

    fn check(&self, error: impl FnOnce(String) -> Error) -> Result<()> {
        let (d, f) = (self.dimensions, self.fingerprint.len());
        if d == 0 || d > WIDEST {
            return Err(error(format!("`dimensions` is {d}, expected 1 to {WIDEST}")));
        }
        if f != 0 && f != d {
            return Err(error(format!("`fingerprint` has {f} numbers, expected {d}")));
        }
        Ok(())
    }
}

/// Vectors with a record each, in a directory. Scores are cosines: vectors are brought to length 1 when they come in.
///
/// ```
/// use mc_embed::index::{IndexConfig, VectorDtype, VectorIndex};
/// let dir = tempfile::tempdir()?;
/// let config = IndexConfig { dimensions: 2, vectors: VectorDtype::Int8, ..IndexConfig::default() };
/// let mut index = VectorIndex::create(dir.path().join("index"), config)?;
/// index.append(&[2., 0., 0., 5., 3., 4.], &["east".into(), "north".into(), "between".into()])?;
/// let hits = index.search(&[0., 9.], 2)?;
/// assert_eq!((index.record(hits[0].row)?, index.record(hits[1].row)?), ("north", "between"));
/// assert!((hits[1].score - 0.8).abs() < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VectorIndex {
    dir: PathBuf,
    manifest: Manifest,
    rows: Rows,
}

impl VectorIndex {
    /// An empty index in a directory that is empty or does not exist.
    ///
    /// # Errors
    /// If the configuration is out of range, something is in the directory, or it cannot be written.
    pub fn create(dir: impl AsRef<Path>, config: IndexConfig) -> Result<Self> {
        let dir = dir.as_ref();
        config.check_argument()?;
        let _lock = manifest::make_directory(dir)?;
        let manifest = Manifest::new(config);
        let (d, dtype) = (manifest.config.dimensions, manifest.config.vectors);
        let nothing = NewRows { vectors: &[], records: &[] };
        rows::write(&manifest.rows_file(dir), (d, dtype), &[], None, &nothing, &[])?;
        Self::publish(dir, manifest)
    }

    /// Opens an index. Files are mapped, so only what is used is read; whether what they say is still what was written is
    /// looked at when the index is changed.
    ///
    /// # Errors
    /// If there is none, it is of another version, or a file of it is missing or damaged.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut manifest = Manifest::read(dir)?;
        loop {
            match Self::with(dir, manifest.clone()) {
                Ok(index) => return Ok(index),
                Err(error) => {
                    // Between the two reads the index may have changed, and the file of its rows been removed.
                    let now = Manifest::read(dir)?;
                    if now.generation == manifest.generation {
                        return Err(error);
                    }
                    manifest = now;
                }
            }
        }
    }

    fn with(dir: &Path, manifest: Manifest) -> Result<Self> {
        let IndexConfig { dimensions, vectors, .. } = manifest.config;
        let rows = Rows::open(manifest.rows_file(dir), manifest.rows, dimensions, vectors)?;
        Ok(Self { dir: dir.into(), manifest, rows })
    }

    /// Makes a manifest true whose rows are written.
    fn publish(dir: &Path, mut manifest: Manifest) -> Result<Self> {
        manifest.checksum = Self::with(dir, manifest.clone())?.rows.checksum()?;
        manifest.write(dir)?;
        Self::with(dir, manifest)
    }

    /// Removes the files of the index, damaged ones too; its directory stays, and what else may be in it.
    ///
    /// # Errors
    /// If another process writes it, has changed it since it was opened, or a file cannot be removed.
    pub fn delete(self) -> Result<()> {
        manifest::delete(&self.dir, self.lock_as_opened()?)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is of.
    pub fn config(&self) -> &IndexConfig {
        &self.manifest.config
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.manifest.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `k` rows nearest to `query` by cosine, best first, the lower row first of equal ones; fewer if there are fewer.
    ///
    /// # Errors
    /// If the query has another number of dimensions, or a number that is not finite.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        let d = self.config().dimensions;
        if query.len() != d {
            let what = format!("the query has {} dimensions, expected {d}", query.len());
            return Err(Error::argument(what, "make the query with the model of the index"));
        }
        self.rows.search(&unit_vectors(query, d)?, k)
    }

    /// The record of a row.
    ///
    /// # Errors
    /// If there is no such row, or the file is damaged there.
    pub fn record(&self, row: usize) -> Result<&str> {
        self.check_rows(&[row])?;
        self.rows.record(row)
    }

    /// Adds rows `(n, dimensions)` at the end, each with its record; no records at all are empty ones.
    ///
    /// # Errors
    /// As [`VectorIndex::replace`].
    pub fn append(&mut self, vectors: &[f32], records: &[String]) -> Result<()> {
        let new = vectors.len() / self.config().dimensions;
        let plan: Vec<_> = (0..self.len()).map(Source::Old).chain((0..new).map(Source::New)).map(Row::of).collect();
        self.change(&plan, vectors, records)
    }

    /// Removes rows; those after them move up.
    ///
    /// # Errors
    /// As [`VectorIndex::replace`].
    pub fn remove(&mut self, rows: &[usize]) -> Result<()> {
        self.check_rows(rows)?;
        let gone: BTreeSet<_> = rows.iter().collect();
        let plan: Vec<_> = (0..self.len()).filter(|row| !gone.contains(row)).map(Source::Old).map(Row::of).collect();
        self.change(&plan, &[], &[])
    }

    /// Replaces `rows`, in their order, by `vectors` `(rows, dimensions)` and their records.
    ///
    /// # Errors
    /// If there are no such rows, a vector has a number that is not finite, numbers of rows, vectors and records differ, the
    /// rows are those of documents, another process has changed the index since it was opened, a byte of it has changed since
    /// it was written, or it cannot be written.
    pub fn replace(&mut self, rows: &[usize], vectors: &[f32], records: &[String]) -> Result<()> {
        self.check_rows(rows)?;
        let new: HashMap<_, _> = rows.iter().enumerate().map(|(i, row)| (*row, i)).collect();
        if new.len() != rows.len() || vectors.len() != rows.len() * self.config().dimensions {
            let what = format!("{} numbers for {} different rows", vectors.len(), new.len());
            return Err(Error::argument(what, "pass one vector for each row, and each row once"));
        }
        let source = |row| Row::of(new.get(&row).map_or(Source::Old(row), |i| Source::New(*i)));
        let plan: Vec<_> = (0..self.len()).map(source).collect();
        self.change(&plan, vectors, records)
    }

    fn check_rows(&self, rows: &[usize]) -> Result<()> {
        match rows.iter().find(|row| **row >= self.len()) {
            Some(row) => Err(Error::argument(format!("no row {row} of {}", self.len()), "rows are counted from 0")),
            None => Ok(()),
        }
    }

    fn change(&mut self, plan: &[Row], vectors: &[f32], records: &[String]) -> Result<()> {
        if self.config().documents.is_some() {
            let what = format!("{}: the rows are chunks of documents", self.dir.display());
            return Err(Error::argument(what, "change the documents and update the index"));
        }
        let rows = vectors.len() / self.config().dimensions;
        if !records.is_empty() && records.len() != rows {
            let what = format!("{} records for {rows} vectors", records.len());
            return Err(Error::argument(what, "pass one record for each vector, or none"));
        }
        let lock = self.lock()?;
        self.rewrite(&lock, plan, &NewRows { vectors, records }, &[])
    }

    /// The right to change the index as it was opened, and as it was written: what is damaged would be copied.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let lock = self.lock_as_opened()?;
        if self.rows.checksum()? != self.manifest.checksum {
            return Err(Error::invalid(
                &self.manifest.rows_file(&self.dir),
                "not what was written: bytes have changed",
            ));
        }
        Ok(lock)
    }

    fn lock_as_opened(&self) -> Result<Lock> {
        let lock = manifest::lock(&self.dir)?;
        if Manifest::read(&self.dir)?.generation != self.manifest.generation {
            return Err(Error::Busy { dir: self.dir.clone(), what: "another run has changed this index meanwhile" });
        }
        Ok(lock)
    }

    /// Makes an index without rows one of another configuration.
    pub(crate) fn configure(&mut self, config: IndexConfig) -> Result<()> {
        config.check_argument()?;
        if self.manifest.config == config {
            return Ok(());
        }
        let lock = self.lock()?;
        self.manifest.config = config;
        self.rewrite(&lock, &[], &NewRows { vectors: &[], records: &[] }, &[])
    }

    /// What the model is called from the next change on.
    pub(crate) fn rename_model(&mut self, name: &str) {
        self.manifest.config.model = name.into();
    }

    /// Makes `plan` the rows, and `notes` what is kept about all of them.
    pub(crate) fn rewrite(&mut self, _: &Lock, plan: &[Row], new: &NewRows, notes: &[u8]) -> Result<()> {
        let IndexConfig { dimensions, vectors: dtype, .. } = *self.config();
        if !new.vectors.len().is_multiple_of(dimensions) {
            let what = format!("{} numbers are no vectors of {dimensions} dimensions", new.vectors.len());
            return Err(Error::argument(what, "make the vectors with the model of the index"));
        }
        let vectors = unit_vectors(new.vectors, dimensions)?;
        let new = NewRows { vectors: &vectors, records: new.records };
        let manifest = self.manifest.next(plan.len());
        rows::write(&manifest.rows_file(&self.dir), (dimensions, dtype), plan, Some(&self.rows), &new, notes)?;
        *self = Self::publish(&self.dir, manifest)?;
        self.manifest.sweep(&self.dir);
        Ok(())
    }

    /// What [`VectorIndex::rewrite`] was told to keep.
    pub(crate) fn notes(&self) -> Result<&[u8]> {
        self.rows.notes()
    }

    /// Whether a model that makes `fingerprint` of the text of the index's own is the one that made the index.
    ///
    /// # Errors
    /// If it is not; `model` is what the error calls it.
    pub fn check_model(&self, model: &str, fingerprint: &[f32]) -> Result<()> {
        let IndexConfig { model: own, fingerprint: known, dimensions: d, .. } = self.config();
        let (found, expected) = if fingerprint.len() != *d {
            (format!("`{own}` with {d} dimensions"), format!("`{model}` with {}", fingerprint.len()))
        } else if known.is_empty() {
            return Ok(());
        } else {
            let (a, b) = (unit_vectors(known, *d)?, unit_vectors(fingerprint, *d)?);
            let cosine: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            if cosine >= SAME_MODEL {
                return Ok(());
            }
            let differ = format!("whose vectors differ (cosine {cosine:.3} of a text that both know)");
            (format!("`{own}`"), format!("`{model}`, {differ}"))
        };
        if own == model {
            let what =
                format!("{}: the files of its model `{model}` have changed since it was made", self.dir.display());
            return Err(Error::argument(what, "index the documents again, into another directory"));
        }
        Err(Error::Mismatch { dir: self.dir.clone(), field: "model", found, expected })
    }
}

impl fmt::Debug for VectorIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VectorIndex({}, {} rows)", self.dir.display(), self.len())
    }
}

/// Vectors of length 1; those of length 0 stay as they are.
fn unit_vectors(vectors: &[f32], dimensions: usize) -> Result<Vec<f32>> {
    if let Some(i) = vectors.iter().position(|x| !x.is_finite()) {
        let what = format!("vector {} has a number that is not finite: {}", i / dimensions, vectors[i]);
        return Err(Error::argument(what, "look at what the model was given"));
    }
    let mut vectors = vectors.to_vec();
    for vector in vectors.chunks_exact_mut(dimensions) {
        let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            for x in vector {
                *x = (f64::from(*x) / length) as f32;
            }
        }
    }
    Ok(vectors)
}
