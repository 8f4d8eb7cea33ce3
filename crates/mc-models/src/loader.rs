//! From a name to a model: a directory, a hub id, or files in memory.

use crate::{
    Classifier, Decoder, Error, Model, ModelConfig, Result, SUPPORTED, TextEncoder, bert,
    decoder::{EMBEDDING, HEAD},
    distilbert,
    encoder::{Causal, Renamed},
    fields::Fields,
    modernbert::{self, ModernBert},
    mpnet,
    post_norm::{self, PostNorm},
    xlm_roberta,
};
use candle_core::{DType, Device};
use mc_checkpoint::{ModelDir, WeightSource, hub};
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
    /// converted or not, round what they are multiplied with to `bf16` and sum in `f32` where that is faster, those of encoders
    /// both sides to other sixteen bits ([`mc_backend::ops::Projections::with_sixteen_bits`]).
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
        let mut config = ModelConfig::read(dir)?;
        tracing::debug!(?config, "loading {}", dir.name());
        let weights = dir.weights()?;
        if self.device.is_cpu() {
            weights.read_ahead();
        }
        if config.tie_word_embeddings == Some(true) && has_own_head(&config, &*weights)? {
            tracing::warn!(
                "{}: `tie_word_embeddings` is true, but `{HEAD}` is not `{EMBEDDING}`: it is used",
                dir.name()
            );
            config.tie_word_embeddings = Some(false);
        }
        Ok(Arc::new(Decoder::load(config, &*weights, &self.device, self.dtype)?))
    }

    /// The encoder that a directory or a hub id names; a decoder too, whose hidden states know the tokens before them.
    ///
    /// # Errors
    /// If there is no such model, or its files are not what they should be.
    pub fn load_encoder(&self, name: impl AsRef<Path>) -> Result<TextEncoder> {
        self.load_encoder_dir(&open_model(name, &mut |_| {})?)
    }

    /// The encoder of an opened directory; see [`ModelLoader::load_encoder`].
    ///
    /// # Errors
    /// If the files are not what they should be.
    pub fn load_encoder_dir(&self, dir: &ModelDir) -> Result<TextEncoder> {
        self.encoder(dir, &*dir.weights()?)
    }

    /// The encoder of an opened directory with the head that scores whole texts: bert, xlm-roberta, roberta or camembert.
    ///
    /// # Errors
    /// If the files are not what they should be, or the architecture is another one.
    pub fn load_classifier_dir(&self, dir: &ModelDir) -> Result<Classifier> {
        let weights = dir.weights()?;
        let encoder = self.encoder(dir, &*weights)?;
        if !matches!(encoder.model_type(), "bert" | "xlm-roberta" | "roberta" | "camembert") {
            let problem = format!("is \"{}\", whose head is not supported", encoder.model_type());
            return Err(Error::Config { file: dir.file_name("config.json"), field: "model_type".into(), problem });
        }
        Classifier::load(encoder, &*weights, &self.device, self.dtype)
    }

    fn encoder(&self, dir: &ModelDir, weights: &dyn WeightSource) -> Result<TextEncoder> {
        if self.device.is_cpu() {
            weights.read_into_cache();
        }
        let (file, json) = (dir.file_name("config.json"), dir.config_json()?);
        let fields = Fields::new(&file, &json)?;
        let found = fields.text("model_type")?;
        let (configure, names): (fn(&Fields, String) -> Result<post_norm::Config>, _) = match found.as_str() {
            "bert" => (bert::configure, bert::NAMES),
            "mpnet" => (mpnet::configure, mpnet::NAMES),
            "xlm-roberta" | "roberta" | "camembert" => (xlm_roberta::configure, xlm_roberta::NAMES),
            "distilbert" => (distilbert::configure, distilbert::NAMES),
            "modernbert" => {
                let config = modernbert::configure(&fields)?;
                return Ok(Arc::new(ModernBert::load(config, weights, &self.device, self.dtype)?));
            }
            decoder if SUPPORTED.contains(&decoder) => {
                let weights = Renamed::headless(weights);
                let mut config = ModelConfig::read(dir)?;
                // Nobody asks for logits, and the head may be left out.
                config.tie_word_embeddings = Some(true);
                return Ok(Arc::new(Causal(Decoder::load(config, &weights, &self.device, self.dtype)?)));
            }
            _ => return Err(Error::Encoder { file, found }),
        };
        let config = configure(&fields, found)?;
        tracing::debug!(?config, "loading {}", dir.name());
        Ok(Arc::new(PostNorm::load(config, &names, weights, &self.device, self.dtype)?))
    }
}

/// Whether the head is there and not the embedding, as after it was trained. Then transformers 5.23 does not tie them either.
fn has_own_head(config: &ModelConfig, weights: &dyn WeightSource) -> Result<bool> {
    if !weights.contains(HEAD) {
        return Ok(false);
    }
    let [head, embedding] =
        [HEAD, EMBEDDING].map(|name| weights.weight(name, (config.vocab_size, config.hidden_size), &Device::Cpu, None));
    Ok(!head?.has_numbers_of(&embedding?))
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
