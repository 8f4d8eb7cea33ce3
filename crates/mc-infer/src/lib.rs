//! Text generation: a prompt is read once, then one token after the other comes from the cached model.
//!
//! [`Generator`] turns text into text; below it, [`generate_tokens`] turns token ids into token ids. The model is
//! shared and never changed; the adapter is an argument, so swapping it is passing another one. Knows nothing of
//! training, architectures or the terminal.
//!
//! ```no_run
//! use mc_checkpoint::ModelDir;
//! use mc_infer::{Generator, GeneratorConfig};
//! use mc_models::ModelLoader;
//! use mc_text::Tokenizer;
//!
//! let dir = ModelDir::open("models/qwen2.5-0.5b")?;
//! let model = ModelLoader::new().load_dir(&dir)?;
//! let tokenizer = Tokenizer::load("models/qwen2.5-0.5b")?;
//! let config = GeneratorConfig {
//!     max_tokens: 64,
//!     temperature: 0.7,
//!     eos_token_ids: dir.generation_config()?.eos_token_ids,
//!     ..GeneratorConfig::default()
//! };
//! let generator = Generator::new(model, tokenizer, config)?;
//! let generation = generator.generate("The quick brown fox")?;
//! assert!(generation.tokens.len() <= 64);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod engine;
mod error;
mod generator;
mod repetition;
mod sampler;

pub use engine::{FinishReason, TokenOptions, TokenRun, generate_tokens};
pub use error::{Error, Result};
pub use generator::{Generation, Generator, GeneratorConfig, StreamToken};
pub use mc_models::{KVCache, KVCacheConfig};
pub use repetition::RepetitionPenalty;
pub use sampler::{SamplingStrategy, sample_token};
