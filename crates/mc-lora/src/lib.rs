//! LoRA and DoRA adapters: which projections of a model they are for, their parameters, what they add, PEFT's format.
//!
//! An adapter never changes a model. It is passed to a forward pass ([`mc_models::Pass`]), so one model serves any
//! number of adapters, from any number of threads. Knows nothing of data, losses or optimizers.
//!
//! ```no_run
//! use mc_lora::{LoRAAdapter, LoRAAdapterConfig, TargetModule};
//! use mc_models::{ModelLoader, Pass};
//! let model = ModelLoader::new().load("models/qwen")?;
//! let target_modules = vec![TargetModule::QProj, TargetModule::VProj];
//! let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig { rank: 4, target_modules, ..Default::default() })?;
//! let mut pass = Pass { adapter: Some(&adapter), ..Default::default() };
//! let hidden = model.hidden(&[1, 2, 3], (1, 3), &mut pass)?; // (1, 3, hidden size)
//! adapter.with_base_model("models/qwen").save("adapters/first")?; // a directory that PEFT reads
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod checkpoint;
mod config;
mod error;
mod layer;
mod peft;
mod targets;

pub use adapter::{FrozenAdapter, LoRAAdapter, TrainingPass};
pub use checkpoint::{CheckpointMetadata, load_checkpoint, save_checkpoint};
pub use config::{LoRAAdapterConfig, LoRAConfig, TargetModule};
pub use error::{Error, Result};
pub use layer::LoRALayer;
