//! Tokenizers, chat templates and incremental detokenization. No tensors here.
//!
//! ```
//! use mc_text::{ChatOptions, ChatTemplate, Message};
//!
//! let template = ChatTemplate::from_source(
//!     "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}",
//!     [("eos_token", "</s>")],
//! )?;
//! let text = template.apply(&[Message::new("user", "hello")], &ChatOptions::default())?;
//! assert_eq!(text, "<|user|>hello</s>");
//! # Ok::<(), mc_text::Error>(())
//! ```

mod assistant_ranges;
mod chat;
mod class;
mod config;
mod detokenizer;
mod error;
mod files;
mod guard;
mod jinja;
mod json;
mod stop;
mod tokenizer;
mod tokenizer_json;

pub use chat::{ChatOptions, ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use files::TokenizerFiles;
pub use stop::{StopScan, StopStrings};
pub use tokenizer::{CutSide, Encoded, Tokenizer};
