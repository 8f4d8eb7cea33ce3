//! What can go wrong with an embedding model.

/// An embedding model that cannot be loaded, or a request that it cannot answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model's directory is missing or does not say what it must.
    #[error("{file}: {problem}")]
    Directory {
        /// The file as a user would name it.
        file: String,
        /// What was found, and what was expected.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A prompt that the model does not have.
    #[error("the model has no prompt `{name}`")]
    Prompt {
        /// What was asked for.
        name: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// A number of dimensions that a vector cannot be cut to.
    #[error("cannot cut vectors of {width} dimensions to {asked}")]
    Dimensions {
        /// What was asked for.
        asked: usize,
        /// What there is.
        width: usize,
    },
    /// An encoder that is not of this model.
    #[error("the encoder has {what} {found}, expected {expected}")]
    Encoder {
        /// What of it does not fit.
        what: &'static str,
        /// What it is.
        found: usize,
        /// What it is in the model.
        expected: usize,
    },
    /// A token that the model has no row for.
    #[error("text {text}: token id {id} is not below the model's vocabulary of {vocab_size}")]
    TokenId {
        /// Which text, from 0.
        text: usize,
        /// The token.
        id: u32,
        /// Rows of the model's embedding.
        vocab_size: usize,
    },
    /// A part of a pair that the model cannot tell from the other.
    #[error("text {text}: token type {found} is not below the {rows} of the model")]
    TokenType {
        /// Which document of a query, from 0.
        text: usize,
        /// The type.
        found: u32,
        /// Rows of the model's table of types.
        rows: usize,
    },
    /// A text of which the model makes no numbers.
    #[error("text {text}: what the model makes of it is not finite")]
    NotFinite {
        /// Which text, or which document of a query, from 0.
        text: usize,
    },
    /// Tokenizer files that cannot be read, or a text that cannot be tokenized.
    #[error(transparent)]
    Text(#[from] mc_text::Error),
    /// The files cannot be read or are not what they claim to be.
    #[error(transparent)]
    Checkpoint(#[from] mc_checkpoint::Error),
    /// The model below cannot be loaded.
    #[error(transparent)]
    Model(#[from] mc_models::Error),
    /// An index, for functions that embed and search.
    #[error(transparent)]
    Index(Box<crate::index::Error>),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<crate::index::Error> for Error {
    fn from(error: crate::index::Error) -> Self {
        Self::Index(Box::new(error))
    }
}

impl Error {
    /// What a user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Directory { hint, .. } => hint.clone(),
            Self::Prompt { known, .. } if known.is_empty() => Some("it has none; leave the name out".into()),
            Self::Prompt { known, .. } => Some(format!("it has {}", known.join(", "))),
            Self::Dimensions { width, .. } => Some(format!("ask for 1 to {width}")),
            Self::Encoder { .. } => Some("pass one of the same weights, such as `model.encoder().plain(dtype)`".into()),
            Self::TokenId { .. } => Some("the tokenizer is of another model, or one of the two was changed".into()),
            Self::TokenType { .. } => Some(
                "the tokenizer is of another model, or should say that it gives no types: `model_input_names` in \
                 tokenizer_config.json without token_type_ids"
                    .into(),
            ),
            Self::NotFinite { .. } => Some("its weights may be damaged; or try it in f32".into()),
            Self::Text(e) => e.hint(),
            Self::Checkpoint(e) => e.hint(),
            Self::Model(e) => e.hint(),
            Self::Index(e) => e.hint(),
            Self::Tensor(_) => None,
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
