//! The state of a training run, so that a resumed run equals the uninterrupted one. Knows tensors by name, no trainer.
//!
//! One safetensors file: the tensors, and all else as JSON in its metadata. It has no checksum: it is written whole or
//! not at all ([`write_atomic`](crate::write_atomic)), a cut copy fails the length check of the format, and a flipped
//! bit on the disk would harm the model's own files, which have none, as well.

use crate::{Error, Result, SafeTensors, peft::read_all, save_safetensors};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

/// The only version there is; another layout of the file gets another number.
pub const VERSION: u32 = 1;

/// The metadata entry that holds the JSON.
const KEY: &str = "metal_candle_training_state";

/// Where a training run is: what it has to know to go on as if it had not stopped.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_checkpoint::TrainingState;
/// let state = TrainingState {
///     step: 12,
///     seed: u64::MAX,
///     tensors: [("q_proj.lora_A".to_string(), Tensor::new(&[0.1f32, -3.], &Device::Cpu)?)].into(),
///     ..Default::default()
/// };
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("state.safetensors");
/// state.save(&path)?;
/// let again = TrainingState::load(&path, &Device::Cpu)?;
/// assert_eq!((again.step, again.seed, again.tensors.len()), (12, u64::MAX, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainingState {
    /// Optimizer steps done.
    pub step: u64,
    /// Whole epochs done.
    pub epoch: u64,
    /// Batches done in the epoch under way.
    pub batch: u64,
    /// The run's seed, from which every random stream follows.
    pub seed: u64,
    /// Whatever else the trainer must find again; numbers keep every bit, but JSON has no NaN and no infinities.
    pub meta: serde_json::Value,
    /// Parameters and moments, under names that the trainer chooses; dtypes are kept.
    #[serde(skip)]
    pub tensors: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    state: T,
}

impl TrainingState {
    /// Writes the state atomically; equal states give equal bytes.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let json = serde_json::to_string(&Versioned { version: VERSION, state: self });
        let json = json.map_err(Error::json(&path.display().to_string()))?;
        save_safetensors(path, &self.tensors, Some((KEY, json.as_str())))
    }

    /// Reads a state back, its tensors onto `device`.
    ///
    /// # Errors
    /// If the file is not a training state, is not whole, or is of another version.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = path.as_ref();
        let file = path.display().to_string();
        let source = SafeTensors::open(path)?;
        let Some(json) = source.metadata().get(KEY) else {
            return Err(Error::invalid(&file, format!("not a training state: no metadata `{KEY}`")));
        };
        // Before the rest: another version may have other fields.
        let Version { version } = serde_json::from_str(json).map_err(Error::json(&file))?;
        if version != VERSION {
            return Err(Error::Unsupported {
                file,
                what: format!("training state of version {version}, expected {VERSION}"),
                hint: "resume with the release that wrote it, or start from its adapter with --init-adapter".into(),
            });
        }
        let state: Self = serde_json::from_str(json).map_err(Error::json(&file))?;
        Ok(Self { tensors: read_all(&source, device)?, ..state })
    }
}
