//! Keys and values of the tokens a model has read.
//!
//! One buffer per layer, `(b, kv_heads, capacity, head_dim)`: only the grouped heads are stored, and growing doubles it.
//! Each head's tokens lie one after the other, so that a product of matrices can read them where they are. On the CPU they are kept in
//! `f16` where products round to `bf16` (docs/adr/0013-caches-in-f16.md). A layer with numbers that are too large for that goes on in `f32`, with
//! all that is in it, rows beside that one and whatever follows a [`KVCache::truncate`] included.
//! Between passes all layers hold the same tokens; a pass that finds it otherwise is refused.

use crate::ModelConfig;
use candle_core::{DType, Device, Result, Tensor, bail};
use mc_backend::{
    computation::Products,
    ops::{cache_dtype, to_f16},
};

/// What the buffers of a cache may take at most: 1 TiB, so that a mistaken size is an error and no product overflows.
const MAX_BYTES: usize = 1 << 40;

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

impl KVCacheConfig {
    /// For an answer to a prompt of so many tokens: a usual one fits in, and a longer one, up to the model's context, makes it grow.
    pub fn for_answer(model: &dyn crate::CausalLM, prompt: usize, max_tokens: usize) -> Self {
        let initial_capacity = prompt.saturating_add(max_tokens.min(256));
        Self { batch_size: 1, initial_capacity, max_length: model.config().max_position_embeddings }
    }
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
    /// If a size is 0, or the buffers would exceed 1 TiB or what the device has.
    pub fn new(model: &dyn crate::CausalLM, config: KVCacheConfig) -> Result<Self> {
        let products =
            (0..model.sites().len()).filter_map(|i| Some(model.projection(i)?.weight.computation().products));
        // If one rounds nothing, the cache does not either.
        let products = products.reduce(|all, one| if one == Products::BF16 { all } else { one });
        let dtype = cache_dtype(model.dtype(), products.unwrap_or(Products::F32), model.device());
        Self::with_sizes(model.config(), dtype, model.device(), config)
    }

    fn with_sizes(model: &ModelConfig, dtype: DType, device: &Device, config: KVCacheConfig) -> Result<Self> {
        let capacity = config.initial_capacity.min(config.max_length);
        if config.batch_size == 0 || capacity == 0 {
            bail!("a cache needs a batch size and a capacity of at least 1, got {config:?}")
        }
        let shape = (config.batch_size, model.num_key_value_heads, capacity, model.head_dim);
        check_size(model.num_hidden_layers, shape, dtype)?;
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
        self.layer_len(0)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of the batch.
    pub fn batch_size(&self) -> usize {
        self.config.batch_size
    }

    /// Tokens of each row that may ever be in it.
    pub fn max_length(&self) -> usize {
        self.config.max_length
    }

    /// Bytes that its buffers take.
    pub fn size_in_bytes(&self) -> usize {
        self.layers.iter().map(|l| 2 * l.k.elem_count() * l.k.dtype().size_in_bytes()).sum()
    }

    /// Forgets the tokens from `len` on; the buffers stay.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|l| l.len = l.len.min(len));
    }

    /// Refuses a cache of another depth: its spare layers would never be read, or a later one be missing.
    pub(crate) fn check_depth(&self, layers: usize) -> Result<()> {
        if self.layers.len() != layers {
            bail!("the cache is of a model with {} layers, expected {layers}", self.layers.len())
        }
        Ok(())
    }

    pub(crate) fn layer_len(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |l| l.len)
    }

    /// Appends k and v `(b, t, kv_heads, d)` to a layer; returns views `(b, tokens, kv_heads, d)` of all
    /// its keys and values, in the dtype that they are kept in.
    pub(crate) fn append(&mut self, index: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (max_length, layers) = (self.config.max_length, self.layers.len());
        if index >= layers {
            bail!("layer {index} of a cache with {layers}")
        }
        let (b, t, heads, d) = k.dims4()?;
        let before = self.layer_len(index);
        for (i, layer) in self.layers.iter().enumerate() {
            let expected = if i < index { before + t } else { before };
            if layer.len != expected {
                let found = layer.len;
                bail!("layer {i} of the cache holds {found} tokens, expected {expected}: a pass was not finished")
            }
        }
        let layer = &mut self.layers[index];
        let (cache_b, cache_heads, capacity, cache_d) = layer.k.dims4()?;
        if (b, heads, d) != (cache_b, cache_heads, cache_d) {
            bail!("keys {:?} do not fit a cache of {:?}", k.shape(), layer.k.shape())
        }
        let len = layer.len + t;
        if len > max_length {
            bail!("{len} tokens exceed the cache's maximum of {max_length}")
        }
        if len > capacity {
            let capacity = len.max(2 * capacity).min(max_length);
            check_size(layers, (b, heads, capacity, d), layer.k.dtype())?;
            let grow = |buffer: &Tensor| {
                let grown = Tensor::zeros((b, heads, capacity, d), buffer.dtype(), buffer.device())?;
                if before > 0 {
                    grown.slice_set(&buffer.narrow(2, 0, before)?.contiguous()?, 2, 0)?;
                }
                Ok::<_, candle_core::Error>(grown)
            };
            // Both or neither: their capacities must stay equal.
            (layer.k, layer.v) = (grow(&layer.k)?, grow(&layer.v)?);
        }
        // Of a single token this is no copy.
        let by_head = |x: &Tensor| x.detach().transpose(1, 2)?.contiguous();
        let (mut k, mut v) = (by_head(k)?, by_head(v)?);
        if layer.k.dtype() == DType::F16 && k.dtype() == DType::F32 {
            if let (Some(halves_of_k), Some(halves_of_v)) = (to_f16(&k)?, to_f16(&v)?) {
                (k, v) = (halves_of_k, halves_of_v);
            } else {
                check_size(layers, layer.k.dims4()?, DType::F32)?;
                (layer.k, layer.v) = (layer.k.to_dtype(DType::F32)?, layer.v.to_dtype(DType::F32)?);
                tracing::warn!("keys or values of layer {index} are too large for f16: the cache keeps it in f32");
            }
        }
        layer.k.slice_set(&k, 2, layer.len)?;
        layer.v.slice_set(&v, 2, layer.len)?;
        layer.len = len;
        let by_token = |buffer: &Tensor| buffer.narrow(2, 0, len)?.transpose(1, 2);
        Ok((by_token(&layer.k)?, by_token(&layer.v)?))
    }
}

/// Refuses keys and values of `layers` whose size exceeds [`MAX_BYTES`].
fn check_size(layers: usize, (b, heads, capacity, d): (usize, usize, usize, usize), dtype: DType) -> Result<()> {
    let factors = [2, layers, b, heads, capacity, d, dtype.size_in_bytes()];
    match factors.into_iter().try_fold(1usize, usize::checked_mul) {
        Some(bytes) if bytes <= MAX_BYTES => Ok(()),
        _ => bail!("a cache for {b} rows of {capacity} tokens in {layers} layers exceeds 1 TiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::IndexOp;
    use mc_testkit::{Warnings, random};
    use serde_json::json;

    fn cache(config: KVCacheConfig) -> Result<KVCache> {
        cache_in(DType::F32, config)
    }

    fn cache_in(dtype: DType, config: KVCacheConfig) -> Result<KVCache> {
        let model = json!({"model_type": "llama", "vocab_size": 9, "hidden_size": 24, "intermediate_size": 9,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2});
        let model = ModelConfig::from_json("config.json", &model).unwrap();
        KVCache::with_sizes(&model, dtype, &Device::Cpu, config)
    }

    /// Keys or values of `t` tokens: `(2 rows, t, 2 heads, 4)`.
    fn tokens(seed: u64, t: usize) -> Tensor {
        random(seed, (2, t, 2, 4), DType::F32)
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_is_appended_stays_through_growth() -> Result<()> {
        for initial_capacity in 1..8 {
            let mut cache = cache(KVCacheConfig { batch_size: 2, initial_capacity, max_length: 20 })?;
            let (mut keys, mut all_values) = (vec![], vec![]);
            for (seed, t) in [3, 1, 1, 5, 2].into_iter().enumerate() {
                let (k, v) = (tokens(seed as u64, t), tokens(100 + seed as u64, t));
                keys.push(k.clone());
                all_values.push(v.clone());
                for layer in 0..2 {
                    let (all_k, all_v) = cache.append(layer, &k, &v)?;
                    assert_eq!(values(&all_k), values(&Tensor::cat(&keys, 1)?));
                    assert_eq!(values(&all_v), values(&Tensor::cat(&all_values, 1)?));
                }
            }
            assert_eq!(cache.len(), 12);
        }
        Ok(())
    }

    /// A layer whose numbers are too large for it goes on in f32, which is said, and no number becomes infinite.
    #[test]
    fn halves_where_they_do() -> Result<()> {
        let warnings = Warnings::default();
        let _guard = tracing::subscriber::set_default(warnings.clone());
        for large in [None, Some(0), Some(1)] {
            let mut cache = cache_in(DType::F16, KVCacheConfig { batch_size: 2, initial_capacity: 4, max_length: 20 })?;
            let halves = |t: &Tensor| t.to_dtype(DType::F16)?.to_dtype(DType::F32);
            let (first, second) = (tokens(1, 3), tokens(2, 3));
            for layer in 0..2 {
                let (k, v) = cache.append(layer, &first, &second)?;
                assert_eq!((k.dtype(), v.dtype()), (DType::F16, DType::F16));
                assert_eq!(values(&k.to_dtype(DType::F32)?), values(&halves(&first)?));
                assert_eq!(values(&v.to_dtype(DType::F32)?), values(&halves(&second)?));
            }
            let mut copy = cache.try_clone()?;
            let size = cache.size_in_bytes();
            assert_eq!(copy.size_in_bytes(), size);
            assert_eq!(size, 2 * 2 * 2 * 4 * 2 * 4 * 2);
            // With growth on the way.
            let mut next = [tokens(3, 2), tokens(4, 2)];
            if let Some(which) = large {
                next[which] = (&next[which] * 1e6)?;
            }
            for layer in 0..2 {
                let (k, v) = cache.append(layer, &next[0], &next[1])?;
                let expected = if large.is_some() { DType::F32 } else { DType::F16 };
                assert_eq!((k.dtype(), v.dtype()), (expected, expected));
                for (found, before, next) in [(k, &first, &next[0]), (v, &second, &next[1])] {
                    let next = if large.is_some() { next.clone() } else { halves(next)? };
                    let all = Tensor::cat(&[&halves(before)?, &next], 1)?;
                    assert_eq!(values(&found.to_dtype(DType::F32)?), values(&all), "{large:?} {layer}");
                }
            }
            for layer in 0..2 {
                let (k, _) = copy.append(layer, &second, &second)?;
                let all = Tensor::cat(&[&halves(&first)?, &halves(&second)?], 1)?;
                assert_eq!((k.dtype(), values(&k.to_dtype(DType::F32)?)), (DType::F16, values(&all)));
            }
            assert_eq!(cache.size_in_bytes(), if large.is_some() { 4 * size } else { 2 * size });
            let said = warnings.take();
            assert_eq!(said.len(), if large.is_some() { 2 } else { 0 }, "{said:?}");
            assert!(said.iter().all(|line| line.contains("the cache keeps it in f32")), "{said:?}");
        }
        Ok(())
    }

    #[test]
    fn strided_tokens_are_stored_in_order() -> Result<()> {
        let mut cache = cache(KVCacheConfig { batch_size: 2, initial_capacity: 4, max_length: 4 })?;
        let heads_first = random(1, (2, 2, 3, 4), DType::F32).transpose(1, 2)?;
        let (k, _) = cache.append(0, &heads_first, &heads_first)?;
        assert_eq!(values(&k), values(&heads_first));
        Ok(())
    }

    #[test]
    fn bytes_are_those_of_the_grouped_heads() -> Result<()> {
        let cache = cache(KVCacheConfig { batch_size: 3, initial_capacity: 5, max_length: 7 })?;
        // Keys and values of 2 layers, 3 rows, 5 tokens, 2 of 6 heads, width 4, in f32.
        assert_eq!(cache.size_in_bytes(), 2 * 2 * 3 * 5 * 2 * 4 * 4);
        Ok(())
    }

    #[test]
    fn forgotten_tokens_are_overwritten() -> Result<()> {
        let mut cache = cache(KVCacheConfig { batch_size: 2, initial_capacity: 8, max_length: 8 })?;
        let (first, second) = (tokens(1, 5), tokens(2, 2));
        for layer in 0..2 {
            cache.append(layer, &first, &first)?;
        }
        cache.truncate(9);
        assert_eq!(cache.len(), 5, "there is nothing to forget past the end");
        cache.truncate(3);
        let (k, _) = cache.append(0, &second, &second)?;
        assert_eq!(values(&k), values(&Tensor::cat(&[&first.i((.., ..3))?, &second], 1)?));
        cache.truncate(0);
        assert!(cache.is_empty());
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() -> Result<()> {
        for (batch_size, initial_capacity, max_length) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            let error = cache(KVCacheConfig { batch_size, initial_capacity, max_length }).unwrap_err().to_string();
            assert!(error.contains("at least 1"), "{error}");
        }
        for (batch_size, initial_capacity) in [(usize::MAX, 256), (1 << 40, 1), (1, usize::MAX), (1 << 32, 1 << 32)] {
            let error = cache(KVCacheConfig { batch_size, initial_capacity, max_length: usize::MAX }).unwrap_err();
            assert!(error.to_string().contains("exceeds 1 TiB"), "{error}");
        }
        let mut cache = cache(KVCacheConfig { batch_size: 2, initial_capacity: 100, max_length: 4 })?;
        assert_eq!(cache.size_in_bytes(), 2 * 2 * 2 * 4 * 2 * 4 * 4, "no more than may ever be in it");
        for layer in 0..2 {
            cache.append(layer, &tokens(1, 3), &tokens(1, 3))?;
        }
        let error = cache.append(0, &tokens(1, 2), &tokens(1, 2)).unwrap_err().to_string();
        assert!(error.contains("5 tokens exceed the cache's maximum of 4"), "{error}");
        for shape in [(1, 1, 2, 4), (2, 1, 3, 4), (2, 1, 2, 6)] {
            let wrong = random(1, shape, DType::F32);
            assert!(cache.append(0, &wrong, &wrong).is_err(), "{shape:?}");
        }
        assert!(cache.append(2, &tokens(1, 1), &tokens(1, 1)).is_err(), "a third layer");
        assert_eq!((cache.layer_len(0), cache.layer_len(1)), (3, 3));
        Ok(())
    }

    #[test]
    fn layers_at_odds_are_refused() -> Result<()> {
        let check = |cache: &mut KVCache, layer, tokens: &Tensor, message: &str| {
            let error = cache.append(layer, tokens, tokens).unwrap_err().to_string();
            assert_eq!(error.lines().next(), Some(format!("{message}: a pass was not finished").as_str()));
        };
        let mut cache = cache(KVCacheConfig { batch_size: 2, initial_capacity: 8, max_length: 8 })?;
        let (three, two) = (tokens(1, 3), tokens(2, 2));
        check(&mut cache, 1, &three, "layer 0 of the cache holds 0 tokens, expected 3");
        cache.append(0, &three, &three)?;
        check(&mut cache, 0, &three, "layer 1 of the cache holds 0 tokens, expected 3");
        check(&mut cache, 1, &two, "layer 0 of the cache holds 3 tokens, expected 2");
        assert_eq!((cache.len(), cache.layer_len(1)), (3, 0));
        // Rolled back to what all layers hold, it is whole again.
        cache.truncate(0);
        for layer in 0..2 {
            assert_eq!(values(&cache.append(layer, &two, &two)?.0), values(&two));
        }
        Ok(())
    }
}
