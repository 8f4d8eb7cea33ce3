//! The one error type of this crate. Every message is one line; advice is apart, in `hint`.

/// What went wrong with a request for text, or on the way to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is out of its range.
    #[error("`{option}` is {found}, expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value given.
        found: String,
        /// The values it may have.
        expected: &'static str,
    },
    /// A model's makers recommend a setting that is out of its range.
    #[error("{file}: {problem}")]
    Recommended {
        /// The model's `generation_config.json`.
        file: String,
        /// What is wrong with it.
        problem: Box<Self>,
    },
    /// There is nothing to go on from.
    #[error("the prompt is empty, and no token that begins a text is known")]
    EmptyPrompt,
    /// The prompt does not fit into the model's context, or into the cache.
    #[error("the prompt has {tokens} tokens, expected at most {limit}")]
    PromptTooLong {
        /// Tokens of the prompt, those in the cache included.
        tokens: usize,
        /// The model's `max_position_embeddings`, or the cache's maximum if that is less.
        limit: usize,
    },
    /// The prompt has a token that the model does not.
    #[error("the prompt has token id {id}, expected ids below the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// The model's `vocab_size`.
        vocab_size: usize,
    },
    /// The model computed something that is no number, so there is nothing to choose by.
    #[error("the logits are not finite: that of token {id} is {value}")]
    NotFinite {
        /// The first such token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// There are no logits to choose from.
    #[error("there are no logits: the vocabulary is empty")]
    NoLogits,
    /// A conversation was given, but no template to write it down with.
    #[error("the model has no chat template, and this prompt is a conversation")]
    NoChatTemplate,
    /// The model could not be loaded.
    #[error(transparent)]
    Model(#[from] mc_models::Error),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] mc_text::Error),
    /// The model failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// What the user can do about it, lower-case, no period.
    ///
    /// ```
    /// let error = mc_infer::Error::PromptTooLong { tokens: 5000, limit: 4096 };
    /// assert_eq!(error.to_string(), "the prompt has 5000 tokens, expected at most 4096");
    /// assert_eq!(error.hint().as_deref(), Some("shorten the prompt: the model's context, or the cache, holds no more"));
    /// ```
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Recommended { .. } => "correct the file, or make the generator of model, tokenizer and settings",
            Self::EmptyPrompt => "write at least one character",
            Self::PromptTooLong { .. } => "shorten the prompt: the model's context, or the cache, holds no more",
            Self::UnknownToken { .. } => "model and tokenizer must be of the same directory",
            Self::NotFinite { .. } => "the weights may be damaged, or overflow in this dtype: try f32",
            Self::NoChatTemplate => "a base model has none: pass plain text, or use an instruct model",
            Self::Model(error) => return error.hint(),
            Self::Text(error) => return error.hint(),
            Self::Option { .. } | Self::NoLogits | Self::Tensor(_) => return None,
        };
        Some(hint.to_string())
    }
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;
