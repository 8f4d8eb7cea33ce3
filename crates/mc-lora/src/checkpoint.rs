//! Adapters with a note on the training run that they come from. Knows nothing of how the run is resumed.

use crate::{
    Error, LoRAAdapter, Result,
    peft::{WEIGHTS, read},
};
use candle_core::Device;
use mc_checkpoint::PeftAdapter;
use mc_models::CausalLM;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The entry in the metadata of `adapter_model.safetensors`; other readers of the format pass over it.
const KEY: &str = "metal_candle_checkpoint";

/// Where in its training an adapter was saved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointMetadata {
    /// Optimizer steps taken.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// The loss there, a mean over tokens, in nats.
    pub loss: Option<f64>,
    /// The learning rate of the last step.
    pub learning_rate: Option<f64>,
}

/// Writes an adapter as a directory in PEFT's format, with a note on its training if there is one.
///
/// # Errors
/// If a file cannot be written.
///
/// ```no_run
/// use mc_lora::{CheckpointMetadata, LoRAAdapter, load_checkpoint, save_checkpoint};
/// # fn run(model: &dyn mc_models::CausalLM, adapter: &LoRAAdapter) -> mc_lora::Result<()> {
/// save_checkpoint(adapter, "adapters/shell", Some(CheckpointMetadata { step: 100, ..Default::default() }))?;
/// let (adapter, metadata) = load_checkpoint(model, "adapters/shell")?;
/// # Ok(())
/// # }
/// ```
pub fn save_checkpoint(
    adapter: &LoRAAdapter,
    dir: impl AsRef<Path>,
    metadata: Option<CheckpointMetadata>,
) -> Result<()> {
    let dir = dir.as_ref();
    let mut peft = adapter.to_peft(adapter.base_model().unwrap_or_default())?;
    if let Some(metadata) = metadata {
        let text = serde_json::to_string(&metadata).map_err(invalid(dir))?;
        peft.metadata.insert(KEY.into(), text);
    }
    Ok(peft.write(dir)?)
}

/// The adapter of a directory in PEFT's format, and the note on its training if it has one.
///
/// # Errors
/// If it cannot be read, or does not fit the model.
pub fn load_checkpoint(
    model: &dyn CausalLM,
    dir: impl AsRef<Path>,
) -> Result<(LoRAAdapter, Option<CheckpointMetadata>)> {
    let dir = dir.as_ref();
    let peft = PeftAdapter::read(dir, &Device::Cpu)?;
    let metadata = peft.metadata.get(KEY).map(|text| serde_json::from_str(text).map_err(invalid(dir))).transpose()?;
    Ok((read(model, &peft, dir)?, metadata))
}

fn invalid(dir: &Path) -> impl Fn(serde_json::Error) -> Error {
    |source| Error::Metadata { file: dir.join(WEIGHTS).display().to_string(), key: KEY, source }
}
