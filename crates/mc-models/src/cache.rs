//! Keys and values of the tokens a model has read.
//!
//! One buffer per layer, `(b, capacity, kv_heads, head_dim)`: only the grouped heads are stored, and growing doubles it.

use crate::ModelConfig;
use candle_core::{DType, Device, Result, Tensor, bail};

/// How a cache is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KVCacheConfig {
    /// Rows of the batch.
    pub batch_size: usize,
    /// Tokens that fit before the first growth.
    pub initial_capacity: usize,
    /// Tokens that may ever be in it; a pass that would exceed this is refused.
    pub max_length: usize,
}

impl Default for KVCacheConfig {
    fn default() -> Self {
        Self { batch_size: 1, initial_capacity: 256, max_length: 1 << 20 }
    }
}

/// Keys and values of every layer; owned by the caller of a pass.
///
/// ```
/// # use mc_models::*;
/// # fn example(model: &dyn CausalLM, prompt: &[u32]) -> candle_core::Result<()> {
/// let mut cache = KVCache::new(model, KVCacheConfig::default())?;
/// let hidden = model.hidden(prompt, (1, prompt.len()), &mut Pass { cache: Some(&mut cache), ..Pass::default() })?;
/// assert_eq!(cache.len(), prompt.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KVCache {
    layers: Vec<Layer>,
    config: KVCacheConfig,
}

#[derive(Debug)]
struct Layer {
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl KVCache {
    /// An empty cache for `model`.
    ///
    /// # Errors
    /// If a size is 0, or the device has no memory for the initial capacity.
    pub fn new(model: &dyn crate::CausalLM, config: KVCacheConfig) -> Result<Self> {
        Self::with_sizes(model.config(), model.dtype(), model.device(), config)
    }

    fn with_sizes(model: &ModelConfig, dtype: DType, device: &Device, config: KVCacheConfig) -> Result<Self> {
        let capacity = config.initial_capacity.min(config.max_length);
        if config.batch_size == 0 || capacity == 0 {
            bail!("a cache needs a batch size and a capacity of at least 1, got {config:?}")
        }
        let shape = (config.batch_size, capacity, model.num_key_value_heads, model.head_dim);
        let layer =
            || Ok(Layer { k: Tensor::zeros(shape, dtype, device)?, v: Tensor::zeros(shape, dtype, device)?, len: 0 });
        let layers = (0..model.num_hidden_layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self { layers, config })
    }

    /// A copy with buffers of its own, such as for two continuations of one prompt.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn try_clone(&self) -> Result<Self> {
        // Not `Clone`: a cloned tensor shares its buffer, and both caches would append to the same one.
        let copy = |l: &Layer| Ok(Layer { k: l.k.copy()?, v: l.v.copy()?, len: l.len });
        let layers = self.layers.iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { layers, config: self.config.clone() })
    }

    /// How many tokens of each row are in it.
    pub fn len(&self) -> usize {
        self.layers.last().map_or(0, |l| l.len)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of the batch.
    pub fn batch_size(&self) -> usize {
        self.config.batch_size
    }

    /// Bytes that its buffers take.
    pub fn size_in_bytes(&self) -> usize {
        self.layers.iter().map(|l| 2 * l.k.elem_count() * l.k.dtype().size_in_bytes()).sum()
    }

    /// Forgets the tokens from `len` on; the buffers stay.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|l| l.len = l.len.min(len));
    }

    pub(crate) fn layer_len(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |l| l.len)
    }

    /// Appends k and v `(b, t, kv_heads, d)` to a layer; returns views of all its keys and values.
    pub(crate) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let max_length = self.config.max_length;
        let Some(layer) = self.layers.get_mut(layer) else { bail!("the cache is of a model with fewer layers") };
        let (b, t, heads, d) = k.dims4()?;
        let (cache_b, capacity, cache_heads, cache_d) = layer.k.dims4()?;
        if (b, heads, d) != (cache_b, cache_heads, cache_d) {
            bail!("keys {:?} do not fit a cache of {:?}", k.shape(), layer.k.shape())
        }
        let len = layer.len + t;
        if len > max_length {
            bail!("{len} tokens exceed the cache's maximum of {max_length}")
        }
        if len > capacity {
            let capacity = len.max(2 * capacity).min(max_length);
            for buffer in [&mut layer.k, &mut layer.v] {
                let grown = Tensor::zeros((b, capacity, heads, d), buffer.dtype(), buffer.device())?;
                if layer.len > 0 {
                    grown.slice_set(&buffer.narrow(1, 0, layer.len)?.contiguous()?, 1, 0)?;
                }
                *buffer = grown;
            }
        }
        layer.k.slice_set(&k.detach().contiguous()?, 1, layer.len)?;
        layer.v.slice_set(&v.detach().contiguous()?, 1, layer.len)?;
        layer.len = len;
        Ok((layer.k.narrow(1, 0, len)?, layer.v.narrow(1, 0, len)?))
    }
}
