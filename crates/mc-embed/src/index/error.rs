//! What can go wrong with an index or the documents in it, in one line each, and how to mend it.

use super::manifest::{FORMAT, VERSION};
use std::path::PathBuf;

/// The result of what this module and [`crate::documents`] do.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the file or the argument; [`Error::hint`] says how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the index is missing, damaged, or cannot be read or written.
    #[error(transparent)]
    File(#[from] mc_checkpoint::Error),
    /// Another version made the index.
    #[error("{}: format {found}, expected `{FORMAT}` {VERSION}", file.display())]
    Version {
        /// Its `index.json`.
        file: PathBuf,
        /// Its format and version.
        found: String,
    },
    /// There is no index in that directory.
    #[error("{}: no index there: {what}", dir.display())]
    NoIndex {
        /// Where it was looked for.
        dir: PathBuf,
        /// What is there instead.
        what: &'static str,
    },
    /// The directory holds something already.
    #[error("{}: {what}", dir.display())]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// What it holds.
        what: &'static str,
    },
    /// The index was made for something else.
    #[error("{}: the index has {field} {found}, expected {expected}", dir.display())]
    Mismatch {
        /// The index.
        dir: PathBuf,
        /// What differs, as `model`.
        field: &'static str,
        /// What the index says.
        found: String,
        /// What it was asked for.
        expected: String,
    },
    /// Somebody else writes the index, or has written it since it was opened.
    #[error("{}: {what}", dir.display())]
    Busy {
        /// The index.
        dir: PathBuf,
        /// What happened.
        what: &'static str,
    },
    /// A setting that is out of range.
    #[error("`{field}` is {found}, expected {expected}")]
    Setting {
        /// The setting's name.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What it may be.
        expected: String,
    },
    /// An argument that is out of range or does not fit the index.
    #[error("{what}")]
    Argument {
        /// What was found and what was expected.
        what: String,
        /// How to mend it.
        hint: &'static str,
    },
    /// The model failed on texts of the documents.
    #[error("{what}: {source}")]
    Model {
        /// Which texts.
        what: String,
        /// What the model says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernels refused.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// How to mend it, where that can be said: one line in lower case without a period.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            // What is damaged is not worth getting again: it can be made anew.
            Self::File(e) => match e {
                mc_checkpoint::Error::Io { .. } => return e.hint(),
                _ => "the index is damaged; remove its directory and make it anew".into(),
            },
            Self::Version { .. } => "another version made it; remove its directory and make it anew".into(),
            Self::NoIndex { .. } => "an index is a directory with index.json; make one first".into(),
            Self::Occupied { what: "holds an index already", .. } => {
                "run this again to bring that index up to date".into()
            }
            Self::Occupied { .. } => "name a directory that is empty or does not exist".into(),
            Self::Mismatch { field: "model", .. } => {
                "vectors of different models cannot be compared; use the model of the index, or make another index"
                    .into()
            }
            Self::Mismatch { field: "folder", .. } => "one index is of one folder; make another index".into(),
            Self::Mismatch { .. } => "leave that option out to go on as before, or make another index".into(),
            Self::Busy { .. } => "wait until the other run has ended, and run this again".into(),
            Self::Argument { hint, .. } => (*hint).into(),
            Self::Setting { .. } | Self::Model { .. } | Self::Tensor(_) => return None,
        })
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::File(mc_checkpoint::Error::Io { path, source })
    }

    pub(crate) fn invalid(file: &std::path::Path, what: impl Into<String>) -> Self {
        Self::File(mc_checkpoint::Error::Invalid { file: file.display().to_string(), what: what.into() })
    }

    pub(crate) fn argument(what: impl Into<String>, hint: &'static str) -> Self {
        Self::Argument { what: what.into(), hint }
    }
}
