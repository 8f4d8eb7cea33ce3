//! What can go wrong when an adapter is made, loaded or saved: one line each, and how to mend it.

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the field or tensor; [`Error::hint`] says how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration is out of range, or not a regular expression where it must be one.
    #[error("`{field}` {problem}")]
    Config {
        /// The field.
        field: &'static str,
        /// What was found and what was expected.
        problem: String,
    },
    /// A field names something that the model does not have.
    #[error("`{field}`: `{name}` matches none of the model's {what}")]
    Unmatched {
        /// The field.
        field: &'static str,
        /// What it names.
        name: String,
        /// Of what kind it should be: projections, layers.
        what: &'static str,
        /// What there is.
        available: Vec<String>,
    },
    /// A part of the model that no adapter of this version can change.
    #[error("`{field}`: `{name}` cannot be adapted in this version")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// The part.
        name: String,
        /// What can be adapted.
        available: Vec<String>,
    },
    /// The tensors of an adapter are not those that its configuration and the model ask for.
    #[error("{file}: {}", listed(problems))]
    Tensors {
        /// The file.
        file: String,
        /// Each problem, naming its tensor.
        problems: Vec<String>,
        /// What the problems have in common.
        hint: String,
    },
    /// One of the above in a configuration that was read from a file.
    #[error("{file}: {source}")]
    InFile {
        /// The file.
        file: String,
        /// What is wrong there.
        source: Box<Error>,
    },
    /// What an adapter's file says about itself is not what this crate writes there.
    #[error("{file}: metadata `{key}`: {source}")]
    Metadata {
        /// The file.
        file: String,
        /// The entry.
        key: &'static str,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// The files cannot be read or written, or are not what they claim to be.
    #[error(transparent)]
    Checkpoint(#[from] mc_checkpoint::Error),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// How to mend it, where that can be said: one line in lower case without a period.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unmatched { available, .. } => Some(format!("the model has {}", available.join(", "))),
            Self::Unsupported { available, .. } => Some(format!("choose among {}", available.join(", "))),
            Self::InFile { source, .. } => source.hint(),
            Self::Tensors { hint, .. } => Some(hint.clone()),
            Self::Metadata { .. } => Some("the file was written by another version or program".into()),
            Self::Checkpoint(e) => e.hint(),
            Self::Config { .. } | Self::Tensor(_) => None,
        }
    }

    pub(crate) fn config(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Config { field, problem: problem.into() }
    }

    /// The same error of PEFT's configuration file, which calls two fields otherwise.
    pub(crate) fn in_file(self, file: &str) -> Self {
        let source = match self {
            Self::Config { field: "rank", problem } => Self::Config { field: "r", problem },
            Self::Config { field: "alpha", problem } => Self::Config { field: "lora_alpha", problem },
            other => other,
        };
        Self::InFile { file: file.into(), source: Box::new(source) }
    }
}

/// The first three, and how many more there are.
fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = problems.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}
