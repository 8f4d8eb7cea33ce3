//! What can go wrong with bytes on disk, in one line each, and how to mend it. Knows nothing of where it is shown.

use candle_core::DType;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the file and the field; [`Error::hint`] says how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or directory that must be there is not.
    #[error("{path}: {what}")]
    Missing {
        /// Where it was looked for.
        path: String,
        /// What is not there.
        what: String,
        /// How to mend it.
        hint: Option<String>,
    },
    /// A file that is not JSON, or whose JSON has another form than it must.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field, a header or a whole file that says something impossible.
    #[error("{file}: {what}")]
    Invalid {
        /// The file.
        file: String,
        /// What was found and what was expected.
        what: String,
    },
    /// Something that is well formed and not supported.
    #[error("{file}: {what}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A tensor of another shape than the one asked for.
    #[error("{file}: tensor `{tensor}` is {}, expected {}", shape(found), shape(expected))]
    Shape {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape asked for.
        expected: Vec<usize>,
    },
    /// A tensor of a dtype that cannot be read as the one asked for.
    #[error("{file}: tensor `{tensor}` has dtype {found}, expected {expected}")]
    Dtype {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Its dtype, as the file writes it.
        found: String,
        /// The dtypes that can be read.
        expected: String,
    },
    /// A tensor that the file does not have.
    #[error("{file}: no tensor `{tensor}`")]
    MissingTensor {
        /// The file.
        file: String,
        /// The name asked for.
        tensor: String,
        /// Up to three names that the file has and that look alike.
        close: Vec<String>,
    },
    /// The way to the hub, or the hub itself, fails: the same request may succeed at another time.
    #[error("{what}")]
    Unreachable {
        /// Which repository or address, and what happened.
        what: String,
        /// What to look at.
        hint: String,
    },
    /// The hub does not give what was asked for.
    #[error("{what}")]
    Hub {
        /// Which repository or address, and what happened.
        what: String,
        /// How to mend it.
        hint: Option<String>,
    },
    /// A device could not take or give a tensor.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl Error {
    /// How to mend it, where that can be said: one line in lower case without a period.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { hint, .. } => {
                Some(hint.clone().unwrap_or_else(|| "check the path, and whether the directory is complete".into()))
            }
            Self::Hub { hint, .. } => hint.clone(),
            Self::Unsupported { hint, .. } | Self::Unreachable { hint, .. } => Some(hint.clone()),
            Self::MissingTensor { close, .. } if !close.is_empty() => Some(format!("it has {}", close.join(", "))),
            Self::Shape { .. } | Self::MissingTensor { .. } => {
                Some("the weights belong to another model or configuration".into())
            }
            Self::Dtype { .. } => Some("use a checkpoint whose weights are f32, f16 or bf16".into()),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Some("check the path".into()),
                std::io::ErrorKind::PermissionDenied => Some("check who may read and write there".into()),
                std::io::ErrorKind::StorageFull => Some("free some space on that disk".into()),
                _ => None,
            },
            Self::Invalid { .. } | Self::Json { .. } => {
                Some("the file may be incomplete, damaged or edited; get it again".into())
            }
            Self::Device(_) => None,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    pub(crate) fn json(file: &str) -> impl FnOnce(serde_json::Error) -> Self {
        let file = file.to_string();
        |source| Self::Json { file, source }
    }

    pub(crate) fn invalid(file: &str, what: impl Into<String>) -> Self {
        Self::Invalid { file: file.into(), what: what.into() }
    }

    pub(crate) fn missing_tensor<'a>(file: &str, tensor: &str, names: impl Iterator<Item = &'a str>) -> Self {
        let mut close: Vec<_> =
            names.map(|n| (strsim::normalized_levenshtein(n, tensor), n)).filter(|(s, _)| *s > 0.6).collect();
        close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let close = close.into_iter().take(3).map(|(_, n)| n.to_string()).collect();
        Self::MissingTensor { file: file.into(), tensor: tensor.into(), close }
    }

    pub(crate) fn dtype(file: &str, tensor: &str, found: impl std::fmt::Debug, expected: DType) -> Self {
        let expected = if expected.is_float() { "a float".into() } else { format!("{expected:?}") };
        Self::Dtype { file: file.into(), tensor: tensor.into(), found: format!("{found:?}"), expected }
    }
}

/// `(8, 896)`.
fn shape(dims: &[usize]) -> String {
    format!("({})", dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}
