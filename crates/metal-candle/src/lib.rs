//! LoRA training, text generation and sentence embeddings for transformers in pure Rust on [Candle](candle_core): Apple Silicon first, every
//! CPU, CUDA behind a feature.
//!
//! This crate has no logic of its own. It shows the crates of the workspace as modules, so that a program needs one
//! dependency; pick the crates themselves if you need only some.
//!
//! ```no_run
//! use metal_candle::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::new_with_fallback(0); // Metal, then CUDA, then CPU
//! let model = ModelLoader::new().with_device(device).load("models/qwen2.5-coder-0.5b-instruct")?;
//! let adapter = LoRAAdapter::new(&model, LoRAAdapterConfig { rank: 8, alpha: 16.0, ..Default::default() })?;
//! println!("{} trainable parameters", adapter.num_parameters());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! - `metal`: Apple GPUs. `cuda`: NVIDIA GPUs. `accelerate`: Apple's BLAS for matrix products that Candle computes.
//! - `embeddings` (default): sentence embeddings, reranking, search.
//! - `hub`: models by their id on the Hugging Face hub.
//!
//! # Threads
//! Candle's own threads spin while they wait, on cores that our kernels need. A program sets `CANDLE_BARRIER_POOL_SPIN_LIMIT=0` in its
//! environment, or calls the `unsafe` [`backend::let_candle_wait_asleep`] as the first thing in `main`, before there is another thread:
//!
//! ```
//! // SAFETY: the first statement of `main`; no other thread runs.
//! unsafe { metal_candle::backend::let_candle_wait_asleep() };
//! ```
//!
//! # Panics
//! Bad input is an error. The `tokenizers` crate panics over some files: the first tokenizer puts a hook before the process's panic hook, so that such
//! a panic, which becomes an error, is not printed; all others go on to the hook that was there. Built with `panic = "abort"`, such a file
//! ends the process.

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(all(doctest, feature = "embeddings"))]
#[doc = include_str!("../../../docs/embeddings.md")]
struct Embeddings;

pub use candle_core;

/// Devices, frozen weights, differentiable ops.
#[doc(inline)]
pub use mc_backend as backend;
/// Files: safetensors, adapters, training state, model directories, hub.
#[doc(inline)]
pub use mc_checkpoint as checkpoint;
/// Sentence embeddings, reranking, search.
#[doc(inline)]
#[cfg(feature = "embeddings")]
pub use mc_embed as embeddings;
/// Text generation.
#[doc(inline)]
pub use mc_infer as inference;
/// LoRA and DoRA adapters.
#[doc(inline)]
pub use mc_lora as lora;
/// Architectures.
#[doc(inline)]
pub use mc_models as models;
/// Tokenizers and chat templates.
#[doc(inline)]
pub use mc_text as text;
/// LoRA training.
#[doc(inline)]
pub use mc_train as training;

/// The names that most programs need.
pub mod prelude {
    pub use candle_core::{DType, Device, Tensor};
    pub use mc_backend::{DeviceExt, TensorExt};
    #[cfg(feature = "embeddings")]
    pub use mc_embed::{CrossEncoder, EmbeddingModel, EmbeddingModelType};
    pub use mc_infer::{Generator, GeneratorConfig};
    pub use mc_lora::{LoRAAdapter, LoRAAdapterConfig, TargetModule, load_checkpoint, save_checkpoint};
    pub use mc_models::{CausalLM, Model, ModelLoader};
    pub use mc_text::{Message, Tokenizer};
    pub use mc_train::{Dataset, DatasetOptions, LRScheduler, Trainer, TrainingConfig};
}
