//! Bytes on disk for transformers: safetensors, model directories, adapters, training state, the Hugging Face hub.
//!
//! Knows names and tensors, no architecture: which tensor of which shape a model wants is said by whoever asks.
//! Nothing that a file says is believed before it is checked, and nothing is written but whole (see [`write_atomic`]).

mod atomic;
mod error;
pub mod hub;
mod lock;
mod model_dir;
pub mod peft;
mod read;
pub mod safetensors;
mod source;
pub mod state;

pub use atomic::write_atomic;
pub use error::{Error, Result};
pub use lock::Lock;
pub use model_dir::{GenerationConfig, ModelDir};
pub use peft::{PeftAdapter, PeftConfig, TargetModules};
pub use read::read_limited;
pub use safetensors::{SafeTensors, save_safetensors, stream_safetensors};
pub use source::{MemorySource, WeightSource};
pub use state::TrainingState;
