//! From a name to a model: a directory, a hub id, or files in memory.

use crate::{Decoder, Error, Model, ModelConfig, Result};
use candle_core::{DType, Device};
use mc_checkpoint::{ModelDir, hub};
use std::{path::Path, sync::Arc};

/// Loads models.
///
/// ```no_run
/// use candle_core::{DType, Device};
/// use mc_models::ModelLoader;
/// let model = ModelLoader::new().with_device(Device::Cpu).with_dtype(DType::BF16).load("models/qwen")?;
/// println!("{} projections can carry an adapter", model.sites().len());
/// # Ok::<(), mc_models::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelLoader {
    device: Device,
    dtype: Option<DType>,
}

impl Default for ModelLoader {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelLoader {
    /// A loader onto the CPU that keeps the dtype of the files.
    pub fn new() -> Self {
        Self { device: Device::Cpu, dtype: None }
    }

    /// Loads onto this device.
    pub fn with_device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Converts matrices to this dtype; on devices other than the CPU activations have it too.
    ///
    /// On the CPU `f32` asks for `f32` arithmetic and leaves matrices of less precision as they are, while `bf16` matrices,
    /// converted or not, round what they are multiplied with to `bf16` and sum in `f32`.
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// The model that a directory or a hub id names.
    ///
    /// # Errors
    /// If there is no such model, or its files are not what they should be.
    pub fn load(&self, name: impl AsRef<Path>) -> Result<Model> {
        self.load_dir(&open_model(name, &mut |_| {})?)
    }

    /// The model of an opened directory, which may be in memory.
    ///
    /// # Errors
    /// If the files are not what they should be.
    pub fn load_dir(&self, dir: &ModelDir) -> Result<Model> {
        let config = ModelConfig::read(dir)?;
        tracing::debug!(?config, "loading {}", dir.name());
        let weights = dir.weights()?;
        if self.device.is_cpu() {
            weights.read_ahead();
        }
        Ok(Arc::new(Decoder::load(config, &*weights, &self.device, self.dtype)?))
    }
}

/// Opens the directory that a path or a hub id means; a hub id is downloaded if it is not in the cache, and
/// `progress` hears how far that is.
///
/// # Errors
/// If the name means neither, or the download fails.
pub fn open_model(name: impl AsRef<Path>, progress: &mut dyn FnMut(hub::Progress<'_>)) -> Result<ModelDir> {
    let path = name.as_ref();
    let text = path.to_string_lossy();
    if path.is_dir() {
        return Ok(ModelDir::open(path)?);
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Err(Error::Gguf(text.into()));
    }
    if path.exists() || !hub::is_repo_id(&text) {
        return Err(Error::Name(text.into()));
    }
    let snapshot = hub::fetch(&hub::HubConfig::from_env(), &text, None, progress)?;
    Ok(ModelDir::open(snapshot)?.with_name(text))
}
