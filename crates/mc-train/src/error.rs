//! What can go wrong in training, in one line each, and how to mend it. Knows nothing of where it is shown.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the file or the field; [`Error::hint`] says how to mend it.
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
    /// Data that cannot be trained on.
    #[error("{place}: {what}")]
    Data {
        /// The file, and the line in it from 1 where one line is at fault: `train.jsonl:3`.
        place: String,
        /// What was found and what was expected.
        what: String,
        /// How to mend it.
        hint: String,
    },
    /// A record that the tokenizer or the chat template refuses.
    #[error("{place}: {source}")]
    Record {
        /// The file and the line in it, from 1.
        place: String,
        /// What they say.
        source: Box<mc_text::Error>,
    },
    /// A setting that is out of range or at odds with another.
    #[error("training configuration: `{field}` is {found}, expected {expected}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A batch that the machine has no memory for.
    #[error("a batch of {tokens} tokens takes at least {short}")]
    Memory {
        /// Its tokens, padding included.
        tokens: usize,
        /// How much memory that is, and how much there is.
        short: String,
    },
    /// Parameters that a loss does not depend on: training would leave them as they are without a word.
    #[error("no gradient reaches {}", list(names))]
    NoGradient {
        /// Their names.
        names: Vec<String>,
    },
    /// Several steps in a row whose loss or gradient was not a finite number.
    #[error(
        "step {step}: the loss or its gradient was not finite for {in_a_row} steps in a row, the state of step {kept} is kept{}",
        saved.as_ref().map(|p| format!(" in {}", p.display())).unwrap_or_default()
    )]
    NonFinite {
        /// The last of those steps, from 1.
        step: u64,
        /// How many they were.
        in_a_row: u32,
        /// How many steps the kept state has done.
        kept: u64,
        /// Where it was saved, if there is an output directory.
        saved: Option<PathBuf>,
    },
    /// A run that cannot go on with what it is given.
    #[error("{}: {what}", path.display())]
    Resume {
        /// The state's file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A file of the run.
    #[error(transparent)]
    Checkpoint(#[from] mc_checkpoint::Error),
    /// The adapter.
    #[error(transparent)]
    LoRA(Box<mc_lora::Error>),
    /// A computation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<mc_lora::Error> for Error {
    fn from(error: mc_lora::Error) -> Self {
        Self::LoRA(Box::new(error))
    }
}

impl Error {
    /// How to mend it, where that can be said: one line in lower case without a period.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data { hint, .. } => Some(hint.clone()),
            Self::Record { source, .. } => source.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::LoRA(e) => e.hint(),
            Self::NoGradient { .. } => Some("the objective must depend on every parameter of the adapter".into()),
            Self::NonFinite { .. } => Some("try a lower learning rate, or clip gradients by a smaller norm".into()),
            Self::Resume { .. } => Some(
                "model, data, seed, batches and adapter must be those of the start; steps and learning rate may differ"
                    .into(),
            ),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Some("check the path".into()),
                std::io::ErrorKind::PermissionDenied => Some("check who may read and write there".into()),
                std::io::ErrorKind::StorageFull => Some("free some space on that disk".into()),
                _ => None,
            },
            Self::Memory { .. } => Some(
                "take fewer records at a time, or cut them shorter; accumulating gradients makes up for small batches"
                    .into(),
            ),
            Self::Config { .. } | Self::Tensor(_) => None,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    pub(crate) fn config(field: &'static str, found: impl std::fmt::Debug, expected: &'static str) -> Self {
        Self::Config { field, found: format!("{found:?}"), expected }
    }
}

/// The first few names, and how many more there are.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(3).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
