//! Transformer architectures: one file each, loaded from any [`mc_checkpoint::WeightSource`], run with or without a
//! cache and an adapter.
//!
//! A model is immutable and shared. Everything else is an argument of a forward pass ([`Pass`]): the caller owns the
//! cache and the adapter. Knows nothing of text, training or sampling.
//!
//! ```no_run
//! use mc_models::{CausalLM, ModelLoader, Pass};
//! let model = ModelLoader::new().load("models/qwen2.5-coder-0.5b-instruct")?; // or a hub id, with the feature `hub` of mc-checkpoint
//! let hidden = model.hidden(&[1, 2, 3], (1, 3), &mut Pass::default())?; // (1, 3, hidden size)
//! let logits = model.logits(&hidden)?; // (1, 3, vocabulary)
//! # Ok::<(), mc_models::Error>(())
//! ```

mod bert;
mod cache;
mod classifier;
mod config;
mod decoder;
mod distilbert;
mod encoder;
mod error;
mod fields;
mod layers;
mod llama;
mod loader;
mod loading;
mod mistral;
mod model;
mod modernbert;
mod mpnet;
mod post_norm;
mod qwen2;
mod qwen3;
mod rope;
mod xlm_roberta;

pub use cache::{KVCache, KVCacheConfig};
pub use classifier::Classifier;
pub use config::{ENCODERS, ModelConfig, SUPPORTED};
pub use decoder::Decoder;
pub use encoder::{Encoder, TextEncoder, Texts};
pub use error::{Error, Result};
pub use loader::{ModelLoader, open_model};
pub use model::{Adapter, Addition, CausalLM, Model, Pass, Projection, Site};
pub use rope::{RopeConfig, RopeScaling};

/// A Qwen2, Qwen2.5 or Qwen2.5-Coder model (and every other decoder: they share one implementation).
pub type Qwen = Decoder;
