//! LoRA training: data, batches, the loss, the optimizer, and runs that can be stopped and resumed.
//!
//! A [`Trainer`] owns a model and an adapter and trains the adapter on a [`Dataset`]; [`Observer`]s hear how it goes.
//! Knows no architecture and no terminal.
//!
//! ```no_run
//! use mc_lora::{LoRAAdapter, LoRAAdapterConfig};
//! use mc_models::ModelLoader;
//! use mc_text::Tokenizer;
//! use mc_train::{Dataset, DatasetOptions, LRScheduler, Trainer, TrainingConfig};
//!
//! let model = ModelLoader::new().load("models/qwen2.5-0.5b")?;
//! let tokenizer = Tokenizer::load("models/qwen2.5-0.5b")?;
//! let data = Dataset::load("data/train.jsonl", &tokenizer, &DatasetOptions::default())?;
//! let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig::default())?;
//! let config = TrainingConfig { lr_scheduler: LRScheduler::constant(1e-4), ..Default::default() };
//! let mut trainer = Trainer::new(model, adapter, config)?;
//! println!("loss {:?}", trainer.train(&data)?.loss);
//! trainer.save("adapters/mine")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adamw;
mod backward;
mod batch;
mod config;
mod data;
#[cfg(test)]
mod dispatches;
mod error;
mod evaluate;
mod fingerprint;
mod objective;
mod observer;
mod parameters;
mod record;
mod room;
mod run;
mod schedule;
mod trainer;

pub use adamw::{AdamW, AdamWConfig};
pub use backward::{Differentiated, backward, checkpointed_backward};
pub use batch::Batch;
pub use config::TrainingConfig;
pub use data::{DataFiles, DataReport, Dataset, DatasetOptions, Example};
pub use error::{Error, Result};
pub use evaluate::{EvalMetrics, evaluate};
pub use mc_backend::peak_memory_bytes;
pub use objective::{Objective, Supervised, cross_entropy_loss};
pub use observer::{Best, JsonLines, Observer, RunStart, StepMetrics, TrainingMetrics};
pub use run::RunFiles;
pub use schedule::LRScheduler;
pub use trainer::Trainer;
