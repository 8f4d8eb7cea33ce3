//! What can go wrong when a model is loaded.

/// A model that cannot be loaded, or a pass that cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration is missing, out of range or at odds with another.
    #[error("{file}: `{field}` {problem}")]
    Config {
        /// The file as a user would name it.
        file: String,
        /// The field's name.
        field: String,
        /// What is wrong with it, found against expected.
        problem: String,
    },
    /// An architecture that this crate has no file for.
    #[error("{file}: `model_type` is `{found}`, supported are {}", crate::SUPPORTED.join(", "))]
    Architecture {
        /// The file as a user would name it.
        file: String,
        /// The architecture asked for.
        found: String,
    },
    /// An architecture that cannot be used as an encoder.
    #[error(
        "{file}: `model_type` is `{found}`, supported are {}, {}",
        crate::ENCODERS.join(", "),
        crate::SUPPORTED.join(", ")
    )]
    Encoder {
        /// The file as a user would name it.
        file: String,
        /// The architecture asked for.
        found: String,
    },
    /// The name of a model means neither a directory nor a repository.
    #[error("model `{0}` is neither a directory nor a hub id like `owner/name`")]
    Name(String),
    /// A `.gguf` file: not a format of this version.
    #[error("{0}: GGUF models are not supported yet")]
    Gguf(String),
    /// The files cannot be read or are not what they claim to be.
    #[error(transparent)]
    Checkpoint(#[from] mc_checkpoint::Error),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// What a user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Architecture { found, .. } if crate::ENCODERS.contains(&found.as_str()) => {
                Some("it makes vectors of texts and no text: metal-candle embed and index read it".into())
            }
            Self::Architecture { .. } | Self::Encoder { .. } => {
                Some("convert the model, or choose one of a supported architecture".into())
            }
            Self::Config { .. } => {
                Some("if the file is complete and unedited, this version does not support the model".into())
            }
            Self::Name(_) => Some("check the path, or pass an id as on the Hugging Face hub".into()),
            Self::Gguf(_) => Some("use the model's safetensors directory".into()),
            Self::Checkpoint(e) => e.hint(),
            Self::Tensor(_) => None,
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
