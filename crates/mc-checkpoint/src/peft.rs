//! LoRA adapters in the format of Hugging Face PEFT: a configuration and named tensors. Knows no model to put them on.

mod config;

pub use config::{PeftConfig, TargetModules};

use crate::{Error, Result, SafeTensors, WeightSource, read_limited, save_safetensors, write_atomic};
use candle_core::{DType, Device, Tensor};
use std::{collections::BTreeMap, fs, io::Write, path::Path};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
pub(crate) const MLX_WEIGHTS: &str = "adapters.safetensors";
/// What PEFT says of the file: written by pytorch.
const FORMAT: (&str, &str) = ("format", "pt");

/// A PEFT adapter as its directory holds it; keys are PEFT's, such as `base_model.model.….q_proj.lora_A.weight`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_checkpoint::{PeftAdapter, PeftConfig, TargetModules};
/// let a = Tensor::new(&[[0.5f32, -1.]], &Device::Cpu)?;
/// let b = Tensor::new(&[[2f32], [3.]], &Device::Cpu)?;
/// let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
/// let adapter = PeftAdapter {
///     config: PeftConfig { r: 1, target_modules: TargetModules::Names(vec!["q_proj".into()]), ..Default::default() },
///     tensors: [(format!("{prefix}.lora_A.weight"), a), (format!("{prefix}.lora_B.weight"), b)].into(),
///     metadata: Default::default(),
/// };
/// let dir = tempfile::tempdir()?;
/// adapter.write(dir.path())?;
/// assert_eq!(PeftAdapter::read(dir.path(), &Device::Cpu)?.config, adapter.config);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    /// What `adapter_config.json` says.
    pub config: PeftConfig,
    /// The tensors of `adapter_model.safetensors`, by its keys.
    pub tensors: BTreeMap<String, Tensor>,
    /// What `adapter_model.safetensors` says beside them, without its `format`.
    pub metadata: BTreeMap<String, String>,
}

impl PeftAdapter {
    /// Reads an adapter's directory; tensors keep their dtype.
    ///
    /// # Errors
    /// If it is not an adapter in PEFT's format, or is of a kind that cannot be applied.
    pub fn read(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let missing = |what: &str, hint: Option<&str>| Error::Missing {
            path: dir.display().to_string(),
            what: what.into(),
            hint: hint.map(Into::into),
        };
        let path = dir.join(ADAPTER_CONFIG);
        let Some(text) = read_limited(&path)? else {
            match dir.metadata() {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    return Err(missing("not a directory", Some("pass the directory that holds adapter_config.json")));
                }
                Err(_) => return Err(missing("no such directory", None)),
            }
            if dir.join(MLX_WEIGHTS).is_file() {
                return Err(config::mlx(&dir.display().to_string()));
            }
            let model = dir.join("config.json").is_file();
            return Err(missing("no adapter_config.json", model.then_some("this is a model; pass it with --model")));
        };
        let config = PeftConfig::from_json(&path.display().to_string(), &text)?;
        let weights = dir.join(ADAPTER_WEIGHTS);
        if !weights.try_exists().map_err(Error::io(&weights))? {
            let pickled = dir.join("adapter_model.bin").is_file();
            let hint = pickled.then_some("adapter_model.bin is pytorch's own format; save it again as safetensors");
            return Err(missing("no adapter_model.safetensors", hint));
        }
        let source = SafeTensors::open(weights)?;
        let mut metadata = source.metadata().clone();
        metadata.remove(FORMAT.0);
        Ok(Self { config, tensors: read_all(&source, device)?, metadata })
    }

    /// Writes the adapter into a directory, which is made if it is not there.
    ///
    /// Each file is replaced as a whole. The configuration comes last, and an older one that says something else goes
    /// first, so that a directory with a configuration is a complete adapter.
    ///
    /// # Errors
    /// If the configuration is not valid or a file cannot be written.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let path = dir.join(ADAPTER_CONFIG);
        let file = path.display().to_string();
        self.config.check(&file)?;
        let mut text = serde_json::to_vec_pretty(&self.config).map_err(Error::json(&file))?;
        text.push(b'\n');
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        if read_limited(&path)?.is_some_and(|old| old != text) {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        let metadata = self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        save_safetensors(dir.join(ADAPTER_WEIGHTS), &self.tensors, metadata.chain([FORMAT]))?;
        write_atomic(&path, |out| out.write_all(&text))
    }
}

/// All tensors of a source, each in its own dtype.
pub(crate) fn read_all(source: &SafeTensors, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let read = |name: String| {
        let shape = source.shape(&name).unwrap_or_default();
        let dtype = source.dtype(&name).unwrap_or(DType::F32);
        let tensor = source.tensor(&name, &shape, device, dtype)?;
        Ok((name, tensor))
    };
    source.names().into_iter().map(read).collect()
}
