//! Text generation: a prompt is read once, then one token after the other comes from the cached model.
//!
//! [`Generator`] turns text into text; below it, [`generate_tokens`] turns token ids into token ids. The model is
//! shared and never changed; the adapter is an argument, so swapping it is passing another one. Knows nothing of
//! training, architectures or the terminal.
//!
//! ```no_run
//! use candle_core::Device;
//! use mc_infer::Generator;
//!
//! let generator = Generator::from_pretrained("models/qwen2.5-0.5b", Device::Cpu)?;
//! println!("{}", generator.generate("The quick brown fox")?.text);
//! # Ok::<(), mc_infer::Error>(())
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
