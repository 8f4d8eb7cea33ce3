//! The seams of this crate: what a trainer, a generator and an adapter see of a model.

use crate::{KVCache, ModelConfig};
use candle_core::{DType, Device, Result, Tensor};
use mc_backend::{Computation, Weight, ops};
use std::{fmt, ops::Range, sync::Arc};

/// A loaded model: immutable, shared by everybody who uses it.
pub type Model = Arc<dyn CausalLM>;

/// The place of a projection in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its number among the model's sites, from 0, in the order of the forward pass.
    pub index: usize,
    /// Its path as in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Width of what it reads.
    pub in_features: usize,
    /// Width of what it writes; for keys and values of grouped-query attention less than for queries.
    pub out_features: usize,
}

/// A frozen projection at its site.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Where it is.
    pub site: Site,
    /// `(out, in)`
    pub weight: Weight,
    /// `(out)`
    pub bias: Option<Tensor>,
}

impl Projection {
    /// `x·Wᵀ + bias`: x `(…, in)` → `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }

    /// The projection with what an adapter adds, for an op.
    pub(crate) fn with<'a>(&'a self, addition: &'a Addition) -> ops::Linear<'a> {
        ops::Linear { weight: &self.weight, bias: self.bias.as_ref(), lora: addition.lora() }
    }
}

/// What is added to a model's projections: LoRA, DoRA, several adapters in one batch.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use mc_models::{Adapter, Projection};
///
/// /// Adds nothing.
/// struct Nothing;
/// impl Adapter for Nothing {
///     fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
///         group.iter().map(|projection| projection.forward(x)).collect()
///     }
/// }
/// ```
pub trait Adapter: Send + Sync {
    /// The projections of a group that read the same `x` `(b, t, in)`, such as q, k and v: one `(b, t, out)` each,
    /// the frozen projection plus what this adapter adds at its site.
    fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>>;

    /// What it adds at a projection, said so that a block of the model can be one op.
    ///
    /// Where every projection of a half of a block is said, [`Adapter::project`] is not asked there. The default says
    /// nothing, which is always right.
    ///
    /// # Errors
    /// If the adapter is for another model.
    fn addition(&self, projection: &Projection) -> Result<Addition> {
        let _ = projection;
        Ok(Addition::Other)
    }
}

/// What an adapter adds at a projection.
#[derive(Clone, Debug)]
pub enum Addition {
    /// Nothing: the projection is the frozen one.
    Nothing,
    /// `scale·(dropout(x)·Aᵀ)·Bᵀ`; see [`ops::Lora`].
    LowRank {
        /// `(rank, in)`
        a: Tensor,
        /// `(out, rank)`
        b: Tensor,
        /// What the product is multiplied with.
        scale: f64,
        /// What is dropped before `A`.
        dropout: Option<ops::Dropout>,
    },
    /// Something else, which [`Adapter::project`] computes.
    Other,
}

impl Addition {
    fn lora(&self) -> Option<ops::Lora<'_>> {
        match self {
            Self::LowRank { a, b, scale, dropout } => Some(ops::Lora { a, b, scale: *scale, dropout: dropout.clone() }),
            Self::Nothing | Self::Other => None,
        }
    }
}

/// What a forward pass is given beside tokens. The default is the whole sequence, no adapter, no padding.
#[derive(Default)]
pub struct Pass<'a> {
    /// Keys and values of the tokens before these; the pass appends its own.
    pub cache: Option<&'a mut KVCache>,
    /// What to add to the projections.
    pub adapter: Option<&'a dyn Adapter>,
    /// Per row, how many of the first positions (those in the cache included) are padding: nobody attends to them,
    /// and positions count from the first token after them. Padding at the end of a row needs no word, since no
    /// token before it attends to it.
    pub left_padding: Option<&'a [usize]>,
    /// Texts that lie one after the other in the one row and fill it: tokens attend to those of their own text alone, and
    /// positions begin anew with each. Without padding, and with an empty cache if any.
    pub segments: Option<&'a [Range<usize>]>,
}

/// A decoder-only language model: embed → blocks → norm → head, shown one by one so that a trainer can walk them.
///
/// Tensors are `(b, t, hidden size)` in [`CausalLM::dtype`].
pub trait CausalLM: Send + Sync {
    /// Sizes and settings.
    fn config(&self) -> &ModelConfig;
    /// Where the weights are and passes run.
    fn device(&self) -> &Device;
    /// The dtype of activations.
    fn dtype(&self) -> DType;
    /// The places of all projections inside the blocks, by index.
    fn sites(&self) -> &[Site];
    /// The projection at a site; `None` past the last index.
    fn projection(&self, index: usize) -> Option<&Projection>;
    /// Embeddings of `ids`, `b·t` of them row by row → `(b, t, hidden size)`.
    fn embed(&self, ids: &[u32], shape: (usize, usize)) -> Result<Tensor>;
    /// How many blocks there are.
    fn num_blocks(&self) -> usize {
        self.config().num_hidden_layers
    }
    /// Block `index` of the model.
    fn block(&self, index: usize, x: &Tensor, pass: &mut Pass) -> Result<Tensor>;
    /// The norm after the last block.
    fn norm(&self, x: &Tensor) -> Result<Tensor>;
    /// The output matrix `(vocabulary, hidden size)`; the embedding where they are tied.
    fn head(&self) -> &Weight;

    /// In what projections are computed: the head.
    fn computation(&self) -> Computation {
        self.head().computation()
    }

    /// Embed, all blocks, norm: what the head reads.
    ///
    /// # Errors
    /// If the cache is of another model, arguments do not fit, or a computation fails; then the cache is as before.
    fn hidden(&self, ids: &[u32], shape: (usize, usize), pass: &mut Pass) -> Result<Tensor> {
        let before = match &pass.cache {
            Some(cache) => {
                cache.check_depth(self.config().num_hidden_layers)?;
                cache.len()
            }
            None => 0,
        };
        let run = |pass: &mut Pass| {
            let mut x = self.embed(ids, shape)?;
            for index in 0..self.num_blocks() {
                x = self.block(index, &x, pass)?;
            }
            self.norm(&x)
        };
        let hidden = run(pass);
        if let (Err(_), Some(cache)) = (&hidden, &mut pass.cache) {
            // Some layers have read the tokens, others have not.
            cache.truncate(before);
        }
        hidden
    }

    /// `hidden·headᵀ`: `(…, hidden size)` → `(…, vocabulary)`. For a few positions: training never makes whole logits.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        ops::linear(hidden, self.head(), None)
    }
}

/// So that a [`Model`] is one too.
impl<M: CausalLM + ?Sized> CausalLM for Arc<M> {
    fn config(&self) -> &ModelConfig {
        (**self).config()
    }
    fn device(&self) -> &Device {
        (**self).device()
    }
    fn dtype(&self) -> DType {
        (**self).dtype()
    }
    fn sites(&self) -> &[Site] {
        (**self).sites()
    }
    fn projection(&self, index: usize) -> Option<&Projection> {
        (**self).projection(index)
    }
    fn embed(&self, ids: &[u32], shape: (usize, usize)) -> Result<Tensor> {
        (**self).embed(ids, shape)
    }
    fn num_blocks(&self) -> usize {
        (**self).num_blocks()
    }
    fn block(&self, index: usize, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        (**self).block(index, x, pass)
    }
    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        (**self).norm(x)
    }
    fn head(&self) -> &Weight {
        (**self).head()
    }
    fn computation(&self) -> Computation {
        (**self).computation()
    }
    fn hidden(&self, ids: &[u32], shape: (usize, usize), pass: &mut Pass) -> Result<Tensor> {
        (**self).hidden(ids, shape, pass)
    }
    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        (**self).logits(hidden)
    }
}

impl fmt::Debug for dyn CausalLM {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.config();
        write!(f, "{}({} blocks of {}, vocabulary {}", c.model_type, self.num_blocks(), c.hidden_size, c.vocab_size)?;
        write!(f, "; {:?}, {:?})", self.head().dtype(), self.device().location())
    }
}
