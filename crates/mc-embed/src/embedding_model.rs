//! Texts to vectors: prompt, tokens, batches, encoder, pooling, what follows it, in the order of the texts.

use crate::{
    Error, ModelSource, Result,
    batches::{Plan, finite},
    directory::Directory,
    known::EmbeddingModelType,
    modules::{Recipe, Step, normalized},
    tokens::Tokens,
};
use candle_core::{DType, Device, Tensor};
use mc_checkpoint::ModelDir;
use mc_models::{ModelLoader, TextEncoder, Texts, open_model};
use mc_text::Encoded;

/// A model that makes one vector of a text.
///
/// ```no_run
/// use candle_core::Device;
/// use mc_embed::{EmbeddingModel, EmbeddingModelType};
/// let model = EmbeddingModel::from_pretrained(EmbeddingModelType::AllMiniLmL6V2, Device::Cpu)?;
/// let vectors = model.encode(&["metal candle", "Kerze aus Metall"])?; // (2, 384), f32
/// # Ok::<(), mc_embed::Error>(())
/// ```
#[derive(Debug)]
pub struct EmbeddingModel {
    name: String,
    encoder: TextEncoder,
    tokens: Tokens,
    recipe: Recipe,
    width: usize,
}

/// What stands before each text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// The model's default prompt, if it has one.
    #[default]
    Default,
    /// The model's prompt for queries, if it has one.
    Query,
    /// The model's prompt for documents or passages, if it has one.
    Document,
    /// The model's prompt of this name.
    Named(&'a str),
    /// This text; empty for none.
    Text(&'a str),
}

/// How texts are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions<'a> {
    /// What stands before each text.
    pub prompt: Prompt<'a>,
    /// How many of the first dimensions are kept, at least 1 (Kusupati et al., "Matryoshka Representation Learning", 2022);
    /// `None` is what the model was saved with, or all.
    /// Vectors of a model that gives them length 1 have it afterwards too.
    pub dimensions: Option<usize>,
    /// How many tokens are computed at once, by all threads together, which bounds memory; a longer text is alone. `None` is
    /// what suits the device.
    pub batch_tokens: Option<usize>,
}

/// The vectors of texts, and what was done to get them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Embedded {
    /// `(texts, dimensions)`, `f32`, on the model's device.
    pub vectors: Tensor,
    /// How many texts were longer than the model reads, and were cut.
    pub truncated: usize,
    /// Tokens of all texts together.
    pub tokens: usize,
}

/// How far an encoding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Texts that are done.
    pub texts: usize,
    /// All texts.
    pub of: usize,
}

impl EmbeddingModel {
    /// The model that a name means: a known one, an id on the hub, or a directory, of sentence-transformers or of a bare
    /// encoder, whose tokens are averaged. It computes in the dtype of its file; [`EmbeddingModel::load`] takes another.
    ///
    /// # Errors
    /// If there is no such model, or its files are not what they should be.
    pub fn from_pretrained(model: impl Into<ModelSource>, device: Device) -> Result<Self> {
        Self::load(model, &ModelLoader::new().with_device(device))
    }

    /// As [`EmbeddingModel::from_pretrained`], with the device and dtype of a loader.
    ///
    /// # Errors
    /// As [`EmbeddingModel::from_pretrained`].
    pub fn load(model: impl Into<ModelSource>, loader: &ModelLoader) -> Result<Self> {
        Self::from_dir(&open_model(model.into().0, &mut |_| {})?, loader)
    }

    /// The model of an opened directory.
    ///
    /// # Errors
    /// If its files are not what they should be.
    pub fn from_dir(dir: &ModelDir, loader: &ModelLoader) -> Result<Self> {
        let directory = Directory::new(dir.clone());
        let mut recipe = Recipe::read(&directory)?;
        if recipe.prompts.named.iter().all(|(_, prompt)| prompt.is_empty())
            && let Some(known) = EmbeddingModelType::from_id(dir.name()).map(EmbeddingModelType::prompts)
            && !known.is_empty()
        {
            recipe.prompts.named = known.iter().map(|(name, prompt)| ((*name).into(), (*prompt).into())).collect();
        }
        let transformer = recipe.transformer.dir()?;
        let encoder = loader.load_encoder_dir(&transformer)?;
        let files = Directory::new(transformer);
        let tokens = Tokens::read(&files, recipe.reading, &*encoder)?;
        let model = Self { name: dir.name().into(), encoder, tokens, width: 0, recipe };
        let width = model.recipe.pooling.modes.len() * model.encoder.hidden_size();
        let width = model.recipe.steps.iter().try_fold(width, |width, step| step.width(width))?;
        let model = Self { width, ..model };
        tracing::info!("{}", model.describe());
        Ok(model)
    }

    /// The same model with another encoder below, such as one made [plain](mc_models::Encoder::plain).
    ///
    /// # Errors
    /// If the other one has hidden states of another width, or reads fewer ids or fewer tokens.
    pub fn with_encoder(self, encoder: TextEncoder) -> Result<Self> {
        let (width, words, tokens) = (encoder.hidden_size(), encoder.vocab_size(), encoder.max_tokens());
        let wrong = |what, found, expected| Err(Error::Encoder { what, found, expected });
        if width != self.encoder.hidden_size() {
            return wrong("hidden states of width", width, self.encoder.hidden_size());
        }
        if words < self.encoder.vocab_size() {
            return wrong("a vocabulary of", words, self.encoder.vocab_size());
        }
        if tokens < self.tokens.limit {
            return wrong("a context of", tokens, self.tokens.limit);
        }
        Ok(Self { encoder, ..self })
    }

    /// The encoder below.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// How many dimensions a vector has if no other number is asked for: all, or as many as the model was saved to give.
    pub fn dimensions(&self) -> usize {
        self.recipe.dimensions.map_or(self.width, |saved| saved.min(self.width))
    }

    /// How many dimensions a vector has where none are left out.
    pub fn max_dimensions(&self) -> usize {
        self.width
    }

    /// What it was opened as: a directory, or an id on the hub.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many tokens a text has behind a prompt, special ones included. Of more than [`EmbeddingModel::max_tokens`] the
    /// rest is not read.
    ///
    /// # Errors
    /// If the model has no such prompt, or the text cannot be tokenized.
    pub fn count_tokens(&self, text: &str, prompt: Prompt) -> Result<usize> {
        self.tokens.count(text, self.prompt(prompt)?)
    }

    /// How many tokens of a text are read, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.tokens.limit
    }

    /// The model's prompts by name.
    pub fn prompts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.recipe.prompts.named.iter().map(|(name, prompt)| (name.as_str(), prompt.as_str()))
    }

    /// Whether the directory names no pooling, so that one is assumed.
    pub fn assumes_pooling(&self) -> bool {
        self.recipe.bare
    }

    /// How the model's makers compare its vectors, as `config_sentence_transformers.json` has it (`dot`, `euclidean`, `manhattan`),
    /// where that ranks otherwise than the cosine may.
    pub fn other_similarity(&self) -> Option<&str> {
        // Of vectors of length 1 the dot product is the cosine, and the Euclidean distance ranks as it does.
        let unit = matches!(self.recipe.steps.last(), Some(Step::Normalize));
        let same = |name: &str| name == "cosine" || unit && ["dot", "dot_product", "euclidean"].contains(&name);
        self.recipe.similarity.as_deref().filter(|name| !same(name))
    }

    /// What the model does to a text, in one line.
    pub fn describe(&self) -> String {
        let modes: Vec<_> = self.recipe.pooling.modes.iter().map(|mode| mode.name()).collect();
        let mut line = format!("{}: {}, {} pooling", self.name, self.encoder.model_type(), modes.join(" + "));
        if self.recipe.bare {
            line += " (its directory names none)";
        }
        for step in &self.recipe.steps {
            line += match step {
                Step::Dense(_) => ", dense",
                Step::Normalize => ", normalize",
            };
        }
        let cut = if self.dimensions() < self.width { format!(" of {}", self.width) } else { String::new() };
        format!("{line}; {}{cut} dimensions, at most {} tokens", self.dimensions(), self.tokens.limit)
    }

    /// The vectors of texts behind the model's default prompt, `(texts, dimensions)` in `f32`.
    ///
    /// A text that is too long is cut; how many were is a warning of `tracing`, and a number in what
    /// [`EmbeddingModel::encode_with`] gives. An empty text is what the tokenizer makes of it, and zeros if that is nothing. No
    /// texts give `(0, dimensions)`.
    ///
    /// # Errors
    /// If a text cannot be tokenized, its vector is not finite, or a computation fails.
    pub fn encode<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Tensor> {
        self.encode_behind(texts, Prompt::Default)
    }

    /// As [`EmbeddingModel::encode`], behind the prompt `query`, or none if the model does not have it.
    ///
    /// # Errors
    /// As [`EmbeddingModel::encode`].
    pub fn encode_query<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Tensor> {
        self.encode_behind(texts, Prompt::Query)
    }

    /// As [`EmbeddingModel::encode`], behind the prompt `document`, `passage` or `corpus`, the first that the model has.
    ///
    /// # Errors
    /// As [`EmbeddingModel::encode`].
    pub fn encode_document<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Tensor> {
        self.encode_behind(texts, Prompt::Document)
    }

    /// For those who do not ask how many texts were cut.
    fn encode_behind<S: AsRef<str> + Sync>(&self, texts: &[S], prompt: Prompt) -> Result<Tensor> {
        let embedded = self.encode_with(texts, &EncodeOptions { prompt, ..EncodeOptions::default() }, &mut |_| {})?;
        if embedded.truncated > 0 {
            let (n, limit) = (texts.len(), self.tokens.limit);
            tracing::warn!("{} of {n} texts are cut at {limit} tokens", embedded.truncated);
        }
        Ok(embedded.vectors)
    }

    /// The vectors of texts as `options` say; `observer` hears of every batch that is done.
    ///
    /// A text's vector does not depend on the other texts.
    ///
    /// # Errors
    /// If the model has no such prompt or not so many dimensions, a text cannot be tokenized, its vector is not finite, or a
    /// computation fails.
    pub fn encode_with<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
        observer: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Embedded> {
        let width = options.dimensions.unwrap_or(self.dimensions());
        if width == 0 || width > self.width {
            return Err(Error::Dimensions { asked: width, width: self.width });
        }
        let prompt = self.prompt(options.prompt)?;
        mc_backend::in_pool(|| {
            let encoded = self.tokens.of_texts(texts, prompt)?;
            let truncated = encoded.iter().filter(|text| text.cut).count();
            let prompt = if self.recipe.pooling.include_prompt { 0 } else { self.tokens.of_prompt(prompt)? };
            let lengths: Vec<usize> = encoded.iter().map(|text| text.ids.len()).collect();
            let mut vectors = vec![0f32; texts.len() * width];
            let plan = Plan::new(self.encoder.device(), options.batch_tokens);
            let mut done = 0;
            let compute = |batch: &[usize]| self.vectors(&encoded, batch, prompt, width);
            finite(&lengths, plan, compute, |batch, rows| {
                for (text, row) in batch.iter().zip(rows.chunks_exact(width)) {
                    vectors[text * width..(text + 1) * width].copy_from_slice(row);
                }
                done += batch.len();
                observer(Progress { texts: done, of: texts.len() });
            })?;
            let vectors = Tensor::from_vec(vectors, (texts.len(), width), self.encoder.device())?;
            Ok(Embedded { vectors, truncated, tokens: lengths.iter().sum() })
        })
    }

    /// The vectors of a batch of texts, one after the other.
    fn vectors(&self, encoded: &[Encoded], batch: &[usize], prompt: usize, width: usize) -> Result<Vec<f32>> {
        let ids: Vec<u32> = batch.iter().flat_map(|text| &encoded[*text].ids).copied().collect();
        let lengths: Vec<usize> = batch.iter().map(|text| encoded[*text].ids.len()).collect();
        let hidden = self.encoder.hidden(&Texts { ids: &ids, lengths: &lengths, token_types: None })?;
        let hidden = hidden.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let pooled = self.recipe.pooling.pool(&hidden, self.encoder.hidden_size(), &lengths, prompt);
        let mut x = Tensor::from_vec(pooled, (batch.len(), ()), &Device::Cpu)?;
        for step in &self.recipe.steps {
            x = step.run(&x)?;
        }
        if width < self.width {
            x = x.narrow(1, 0, width)?;
            if matches!(self.recipe.steps.last(), Some(Step::Normalize)) {
                x = normalized(&x)?;
            }
        }
        Ok(x.flatten_all()?.to_vec1()?)
    }

    /// What stands before each text; empty where the model has no such prompt for queries or documents.
    ///
    /// # Errors
    /// If a prompt is asked for by a name that the model does not have.
    pub fn prompt<'a>(&'a self, prompt: Prompt<'a>) -> Result<&'a str> {
        let find = |name: &str| self.recipe.prompts.get(name);
        let missing = |name: &str| {
            let known = self.prompts().map(|(name, _)| name.to_string()).collect();
            Error::Prompt { name: name.into(), known }
        };
        match prompt {
            Prompt::Default => Ok(self.recipe.prompts.unasked()),
            Prompt::Query => Ok(find("query").unwrap_or_default()),
            Prompt::Document => Ok(["document", "passage", "corpus"].into_iter().find_map(find).unwrap_or_default()),
            Prompt::Named(name) => find(name).ok_or_else(|| missing(name)),
            Prompt::Text(text) => Ok(text),
        }
    }
}
