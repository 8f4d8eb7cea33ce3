//! Reranking: a model reads a query and a document together and says how well they fit.

use crate::{
    ModelSource, Result,
    batches::{Plan, finite},
    directory::{Directory, Object},
    modules::{OTHER_ACTIVATION, Reading, of_torch, settings_of_reranker},
    prompts::Prompts,
    tokens::Tokens,
};
use candle_core::{DType, Device};
use mc_checkpoint::ModelDir;
use mc_models::{Classifier, ModelLoader, Texts, open_model};
use mc_text::Encoded;

/// A model that scores pairs of texts.
///
/// ```no_run
/// use candle_core::Device;
/// use mc_embed::CrossEncoder;
/// let model = CrossEncoder::from_pretrained("cross-encoder/ms-marco-MiniLM-L6-v2", Device::Cpu)?;
/// let scores = model.score("which metal is warm?", &["Copper conducts heat.", "The harbour froze."])?;
/// assert_eq!(scores.len(), 2);
/// # Ok::<(), mc_embed::Error>(())
/// ```
#[derive(Debug)]
pub struct CrossEncoder {
    classifier: Classifier,
    tokens: Tokens,
    /// Stands before each query.
    prompt: String,
    activation: Activation,
}

#[derive(Clone, Copy, Debug)]
enum Activation {
    Sigmoid,
    Identity,
}

/// A document's place among others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Which document it is, from 0 in the order they were given.
    pub index: usize,
    /// How well it fits: from 0 to 1 unless the model's settings name another activation.
    pub score: f32,
}

impl CrossEncoder {
    /// The model that a name means, an id on the hub or a directory.
    ///
    /// # Errors
    /// If there is no such model, its files are not what they should be, or it gives more than one score.
    pub fn from_pretrained(model: impl Into<ModelSource>, device: Device) -> Result<Self> {
        Self::load(model, &ModelLoader::new().with_device(device))
    }

    /// As [`CrossEncoder::from_pretrained`], with the device and dtype of a loader.
    ///
    /// # Errors
    /// As [`CrossEncoder::from_pretrained`].
    pub fn load(model: impl Into<ModelSource>, loader: &ModelLoader) -> Result<Self> {
        Self::from_dir(&open_model(model.into().0, &mut |_| {})?, loader)
    }

    /// The model of an opened directory.
    ///
    /// # Errors
    /// If its files are not what they should be, or it gives more than one score.
    pub fn from_dir(dir: &ModelDir, loader: &ModelLoader) -> Result<Self> {
        let directory = Directory::new(dir.clone());
        let classifier = loader.load_classifier_dir(dir)?;
        if classifier.labels() != 1 {
            let problem = format!("the model gives {} scores, expected one", classifier.labels());
            let hint = Some("a reranker has one label; a classifier with several is something else");
            return Err(directory.error("config.json", &problem, hint));
        }
        // As sentence-transformers has it: of another directory than one that it wrote itself, only what transformers reads.
        let settings = settings_of_reranker(&directory)?;
        let (reading, prompts) = match &settings {
            Some(config) => {
                let reading = Reading::read(&directory, ["sequence-classification", "logits", "scores"])?;
                (reading, Prompts::read(config, &[])?)
            }
            None => Default::default(),
        };
        let tokens = Tokens::read(&directory, reading, &**classifier.encoder())?;
        let config = directory.object("config.json")?;
        let activation = activation(&config, settings.as_ref())?;
        Ok(Self { classifier, tokens, prompt: prompts.unasked().into(), activation })
    }

    /// How many tokens of a pair are read, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.tokens.limit
    }

    /// How well each document fits the query: higher is better, and between 0 and 1 unless the model says otherwise.
    ///
    /// The model's default prompt, if it has one, stands before the query. A pair of more than [`CrossEncoder::max_tokens`] is
    /// cut, of its longer text first; how many were is a warning of `tracing`.
    ///
    /// # Errors
    /// If a text cannot be tokenized, a score is not finite, or a computation fails.
    pub fn score<S: AsRef<str> + Sync>(&self, query: &str, documents: &[S]) -> Result<Vec<f32>> {
        mc_backend::in_pool(|| {
            let encoded = self.tokens.of_pairs(&format!("{}{query}", self.prompt), documents)?;
            let cut = encoded.iter().filter(|pair| pair.cut).count();
            if cut > 0 {
                tracing::warn!("{cut} of {} pairs are cut at {} tokens", documents.len(), self.tokens.limit);
            }
            let lengths: Vec<usize> = encoded.iter().map(|pair| pair.ids.len()).collect();
            let plan = Plan::new(self.classifier.encoder().device(), None);
            let mut scores = vec![0f32; documents.len()];
            finite(
                &lengths,
                plan,
                |pairs| self.logits(&encoded, pairs),
                |pairs, logits| {
                    for (pair, logit) in pairs.iter().zip(logits) {
                        scores[*pair] = match self.activation {
                            Activation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
                            Activation::Identity => *logit,
                        };
                    }
                },
            )?;
            Ok(scores)
        })
    }

    /// The scores of a batch of pairs, before the activation.
    fn logits(&self, encoded: &[Encoded], batch: &[usize]) -> Result<Vec<f32>> {
        let ids: Vec<u32> = batch.iter().flat_map(|pair| &encoded[*pair].ids).copied().collect();
        let types: Vec<u32> = batch.iter().flat_map(|pair| &encoded[*pair].type_ids).copied().collect();
        let lengths: Vec<usize> = batch.iter().map(|pair| encoded[*pair].ids.len()).collect();
        let token_types = (self.tokens.types > 0 && types.iter().any(|t| *t != 0)).then_some(types.as_slice());
        let logits = self.classifier.logits(&Texts { ids: &ids, lengths: &lengths, token_types })?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    /// The `top_k` documents that fit the query best, the best first; of equal ones in their order.
    ///
    /// # Errors
    /// As [`CrossEncoder::score`].
    pub fn rank<S: AsRef<str> + Sync>(&self, query: &str, documents: &[S], top_k: usize) -> Result<Vec<Ranked>> {
        let scores = self.score(query, documents)?;
        let mut ranked: Vec<_> = scores.into_iter().enumerate().map(|(index, score)| Ranked { index, score }).collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked.truncate(top_k);
        Ok(ranked)
    }
}

/// What is done to a score, by the first file that says it; for one label a sigmoid.
fn activation(config: &Object, settings: Option<&Object>) -> Result<Activation> {
    let nested = config.object("sentence_transformers")?;
    let places = [
        settings.map(|settings| (settings, "activation_fn", "")),
        Some((&nested, "activation_fn", "sentence_transformers.")),
        Some((config, "sbert_ce_default_activation_function", "")),
    ];
    for (object, field, of) in places.into_iter().flatten() {
        let Some(path) = object.text(field)? else { continue };
        // Sentence-transformers passes over those of other programs, with a warning.
        return match of_torch(path) {
            Some("Sigmoid") => Ok(Activation::Sigmoid),
            Some("Identity") => Ok(Activation::Identity),
            _ => Err(object.unsupported(
                &format!("{of}{field}"),
                &path.into(),
                "Sigmoid or Identity of torch.nn",
                OTHER_ACTIVATION,
            )),
        };
    }
    Ok(Activation::Sigmoid)
}
