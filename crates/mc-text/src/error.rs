//! The one error type of this crate. Every message is one line; advice is apart, in `hint`.

use std::path::PathBuf;

/// What went wrong with a tokenizer, a chat template, or a text given to them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file asked for.
        file: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file is larger than any honest one of its kind.
    #[error("{}: {bytes} bytes, expected at most {limit}", file.display())]
    TooLarge {
        /// The file asked for.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}", file.display())]
    Malformed {
        /// The file at fault.
        file: PathBuf,
        /// What is wrong with it, in one line.
        reason: String,
    },
    /// A field holds something else than it should.
    #[error("{}: `{field}` is {found}, expected {expected}", file.display())]
    Field {
        /// The file at fault.
        file: PathBuf,
        /// The field, dotted.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// A chat template does not parse.
    #[error("{template}: line {line}: {reason}")]
    TemplateSyntax {
        /// The template's file, and the field in it.
        template: String,
        /// Line in the template, from 1.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A chat template refused the conversation by `raise_exception`.
    #[error("{template}: the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's file, and the field in it.
        template: String,
        /// The template's own words.
        message: String,
    },
    /// A chat template failed on the conversation.
    #[error("{template}: line {line}: cannot render this conversation: {reason}")]
    TemplateRender {
        /// The template's file, and the field in it.
        template: String,
        /// Line in the template, from 1.
        line: usize,
        /// What failed.
        reason: String,
    },
    /// There is no template of the wanted name.
    #[error("no chat template `{name}`; there are: {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// What an assistant said cannot be found again in the rendered conversation.
    #[error("{template}: message {message}: cannot tell which text the assistant wrote: {reason}")]
    AssistantRange {
        /// The template's file, and the field in it.
        template: String,
        /// Index of the message, from 0.
        message: usize,
        /// Which comparison failed.
        reason: &'static str,
    },
    /// The tokenizer failed on a text.
    #[error("{}: cannot encode: {reason}", file.display())]
    Encode {
        /// The tokenizer's file.
        file: PathBuf,
        /// What it says.
        reason: String,
    },
    /// The tokenizer failed on ids.
    #[error("{}: cannot decode: {reason}", file.display())]
    Decode {
        /// The tokenizer's file.
        file: PathBuf,
        /// What it says.
        reason: String,
    },
}

impl Error {
    /// What the user can do about it, lower-case, no period.
    ///
    /// ```
    /// let error = mc_text::Tokenizer::load("no/such/model").unwrap_err();
    /// assert_eq!(error.hint().as_deref(), Some("a model directory holds tokenizer.json; is this the right directory?"));
    /// ```
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { file, source }
                if source.kind() == std::io::ErrorKind::NotFound && file.ends_with("tokenizer.json") =>
            {
                "a model directory holds tokenizer.json; is this the right directory?"
            }
            Self::Malformed { .. } => "the file may be truncated, download it again",
            Self::Encode { .. } | Self::Decode { .. } => "the tokenizer's files may be damaged, download them again",
            Self::TemplateRaised { .. } | Self::TemplateRender { .. } => {
                "the template decides which roles, orders and fields a conversation may have"
            }
            Self::AssistantRange { .. } => {
                "put {% generation %} … {% endgeneration %} around the assistant's text in the chat template"
            }
            _ => return None,
        };
        Some(hint.to_string())
    }
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Words of another library, made one line.
pub(crate) fn one_line(error: impl std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
