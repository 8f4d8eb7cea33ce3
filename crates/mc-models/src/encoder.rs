//! What an embedder sees of a model: texts in, a hidden state for each of their tokens out.

use crate::{CausalLM, Decoder, Pass};
use candle_core::{DType, Device, Result, Tensor, bail};
use mc_backend::Computation;
use mc_checkpoint::{Error as SourceError, WeightSource};
use std::{fmt, ops::Range, sync::Arc};

/// A loaded encoder: immutable, shared by everybody who uses it.
pub type TextEncoder = Arc<dyn Encoder>;

/// Tokenized texts, one after the other and without padding.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// The ids of all texts.
    pub ids: &'a [u32],
    /// How many of them each text has; at least one.
    pub lengths: &'a [usize],
    /// Which part of a pair a token is of, as many as ids; `None` is 0 for all.
    pub token_types: Option<&'a [u32]>,
}

impl Texts<'_> {
    /// Where each text lies among the ids.
    pub fn segments(&self) -> Vec<Range<usize>> {
        let starts = self.lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n)));
        starts.zip(self.lengths).map(|(start, n)| start..start + n).collect()
    }

    /// Fails where texts do not fill the ids, or one is empty or longer than `max_tokens`.
    pub(crate) fn check(&self, max_tokens: usize) -> Result<()> {
        if self.lengths.iter().sum::<usize>() != self.ids.len() {
            bail!("texts of {} tokens do not fill {} ids", self.lengths.iter().sum::<usize>(), self.ids.len())
        }
        if let Some(n) = self.lengths.iter().find(|n| **n == 0 || **n > max_tokens) {
            bail!("a text of {n} tokens for a model that reads 1 to {max_tokens}")
        }
        match self.token_types {
            Some(types) if types.len() != self.ids.len() => {
                bail!("{} token types for {} ids", types.len(), self.ids.len())
            }
            _ => Ok(()),
        }
    }
}

/// A model that gives each token of a text its hidden state, computed for several texts at once and without padding.
///
/// A text's states do not depend on the other texts.
pub trait Encoder: Send + Sync {
    /// The architecture, as `config.json` calls it.
    fn model_type(&self) -> &str;
    /// Width of a hidden state.
    fn hidden_size(&self) -> usize;
    /// Rows of the embedding: ids are below it.
    fn vocab_size(&self) -> usize;
    /// The most tokens that a text may have.
    fn max_tokens(&self) -> usize;
    /// Rows of the table of token types, which are below it; 0 if there is none.
    fn token_types(&self) -> usize {
        0
    }
    /// Where the weights are and passes run.
    fn device(&self) -> &Device;
    /// The dtype of hidden states.
    fn dtype(&self) -> DType;
    /// In what projections are computed: those of the first layer's feed-forward half. Attention may be in `f32`.
    fn computation(&self) -> Computation;
    /// The hidden states of all tokens, `(tokens, hidden size)`.
    ///
    /// # Errors
    /// If the texts do not fill the ids, one is empty or too long, an id is not below the vocabulary, or a token type
    /// not below their number.
    fn hidden(&self, texts: &Texts) -> Result<Tensor>;
    /// The encoder as another device would hold it: activations, biases and matrices are plain tensors of `dtype`. On the
    /// CPU each op then takes its composed path, which is how tests see what such a device runs.
    ///
    /// # Errors
    /// If the device has no memory for it.
    fn plain(&self, dtype: DType) -> Result<TextEncoder>;
}

impl fmt::Debug for dyn Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of width {}, vocabulary {}", self.model_type(), self.hidden_size(), self.vocab_size())?;
        write!(f, " ({:?})", self.device().location())
    }
}

/// A decoder whose hidden states are used: each token's knows the tokens before it.
pub(crate) struct Causal(pub(crate) Decoder);

impl Encoder for Causal {
    fn model_type(&self) -> &str {
        &self.0.config().model_type
    }

    fn hidden_size(&self) -> usize {
        self.0.config().hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.0.config().vocab_size
    }

    fn max_tokens(&self) -> usize {
        self.0.config().max_position_embeddings
    }

    fn device(&self) -> &Device {
        self.0.device()
    }

    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn computation(&self) -> Computation {
        self.0.computation()
    }

    fn hidden(&self, texts: &Texts) -> Result<Tensor> {
        texts.check(self.max_tokens())?;
        if texts.token_types.is_some_and(|types| types.iter().any(|t| *t != 0)) {
            bail!("a {} has no token types", self.model_type())
        }
        let segments = texts.segments();
        let mut pass = Pass { segments: Some(&segments), ..Pass::default() };
        self.0.hidden(texts.ids, (1, texts.ids.len()), &mut pass)?.squeeze(0)
    }

    fn plain(&self, dtype: DType) -> Result<TextEncoder> {
        Ok(Arc::new(Self(self.0.clone().plain(dtype)?)))
    }
}

/// A source whose tensors are asked for by other names than it has.
pub(crate) struct Renamed<'a> {
    source: &'a dyn WeightSource,
    /// What stands before the names.
    prefix: String,
    /// What does not stand before them though it is asked for.
    cut: &'static str,
}

impl<'a> Renamed<'a> {
    /// The weights of an encoder, of which `first` is one: they may stand under one of these prefixes.
    pub(crate) fn prefixed(source: &'a dyn WeightSource, prefixes: &[&str], first: &str) -> Self {
        let prefix = prefixes.iter().find(|p| source.contains(&format!("{p}{first}"))).copied();
        Self { source, prefix: prefix.unwrap_or_default().into(), cut: "" }
    }

    /// The weights of a decoder, which were saved with or without its head.
    pub(crate) fn headless(source: &'a dyn WeightSource) -> Self {
        let whole = source.contains("model.embed_tokens.weight");
        Self { source, prefix: String::new(), cut: if whole { "" } else { "model." } }
    }

    fn name(&self, name: &str) -> String {
        let found = format!("{}{}", self.prefix, name.strip_prefix(self.cut).unwrap_or(name));
        // Checkpoints from before 2019 call scale and shift of a norm by the letters of its paper.
        let old = found.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        if old != found && !self.source.contains(&found) && self.source.contains(&old) { old } else { found }
    }
}

type SourceResult<T> = std::result::Result<T, SourceError>;

impl WeightSource for Renamed<'_> {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(&self.name(name))
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.source.dtype(&self.name(name))
    }

    fn weight(
        &self,
        name: &str,
        shape: (usize, usize),
        device: &Device,
        dtype: Option<DType>,
    ) -> SourceResult<mc_backend::Weight> {
        self.source.weight(&self.name(name), shape, device, dtype)
    }

    fn tensor(&self, name: &str, shape: &[usize], device: &Device, dtype: DType) -> SourceResult<Tensor> {
        self.source.tensor(&self.name(name), shape, device, dtype)
    }
}
