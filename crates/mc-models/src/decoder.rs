//! A stack of blocks between an embedding and a head: every supported architecture is one of these.

use crate::{CausalLM, ModelConfig, Pass, Projection, Result, layers::Block, loading::Loading, model::Site};
use candle_core::{DType, Device, Tensor};
use mc_backend::{Weight, ops};
use mc_checkpoint::WeightSource;
use std::sync::Arc;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// A decoder-only transformer with its frozen weights.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    embed_tokens: Weight,
    blocks: Vec<Block>,
    norm: Tensor,
    /// `None`: the embedding is the head.
    lm_head: Option<Weight>,
    sites: Vec<Site>,
}

impl Decoder {
    /// Loads the weights of `config` from `source` onto `device`.
    ///
    /// With a `dtype` the matrices are converted to it, else they stay as in the source. Activations are `f32` on the
    /// CPU, and of that dtype (or the device's default) elsewhere. On the CPU, products with `bf16` matrices round their
    /// inputs to `bf16` and sum in `f32` where the CPU does that faster than `f32` ([`mc_backend::Arithmetic::fastest_for_bf16`]),
    /// and training keeps gate and up in `bf16`; if `dtype` is `f32` nothing is rounded, and matrices of less precision stay
    /// as they are, since they widen exactly.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(config: ModelConfig, source: &dyn WeightSource, device: &Device, dtype: Option<DType>) -> Result<Self> {
        let mut loading = Loading::new(source, device, dtype);
        let activations = loading.activations;
        let c = &config;
        let (hidden, head_dim) = (c.hidden_size, c.head_dim);
        let (q_width, kv_width) = (c.num_attention_heads * head_dim, c.num_key_value_heads * head_dim);
        let rope = ops::Rope::new(c.rope.inverse_frequencies(head_dim), device);
        let embed_tokens = loading.weight(EMBEDDING, (c.vocab_size, hidden))?;
        let mut blocks = Vec::with_capacity(c.num_hidden_layers);
        for index in 0..c.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{index}.{name}");
            let head_norm = |loading: &Loading, name: &str| {
                c.qk_norm.then(|| loading.norm(&at(&format!("self_attn.{name}.weight")), head_dim)).transpose()
            };
            blocks.push(Block {
                index,
                input_layernorm: loading.norm(&at("input_layernorm.weight"), hidden)?,
                qkv: [
                    loading.projection(at("self_attn.q_proj"), (q_width, hidden), c.qkv_bias)?,
                    loading.projection(at("self_attn.k_proj"), (kv_width, hidden), c.qkv_bias)?,
                    loading.projection(at("self_attn.v_proj"), (kv_width, hidden), c.qkv_bias)?,
                ],
                q_norm: head_norm(&loading, "q_norm")?,
                k_norm: head_norm(&loading, "k_norm")?,
                o_proj: [loading.projection(at("self_attn.o_proj"), (hidden, q_width), c.o_bias)?],
                post_attention_layernorm: loading.norm(&at("post_attention_layernorm.weight"), hidden)?,
                gate_up: [
                    loading.projection(at("mlp.gate_proj"), (c.intermediate_size, hidden), c.mlp_bias)?,
                    loading.projection(at("mlp.up_proj"), (c.intermediate_size, hidden), c.mlp_bias)?,
                ],
                down_proj: [loading.projection(at("mlp.down_proj"), (hidden, c.intermediate_size), c.mlp_bias)?],
                rope: Arc::clone(&rope),
                window: c.sliding_windows[index],
            });
        }
        let norm = loading.norm("model.norm.weight", hidden)?;
        // A file that does not say whether the head is tied says it by leaving the head out.
        let tied = c.tie_word_embeddings.unwrap_or_else(|| !source.contains(HEAD));
        let lm_head = if tied { None } else { Some(loading.weight(HEAD, (c.vocab_size, hidden))?) };
        let sites = blocks.iter().flat_map(Block::sites).cloned().collect();
        Ok(Self { device: device.clone(), dtype: activations, embed_tokens, blocks, norm, lm_head, sites, config })
    }

    /// The model as another device would hold it: activations, biases and matrices are plain tensors of `dtype`. On the
    /// CPU each op then takes its composed path, which is how tests see what such a device runs.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn plain(mut self, dtype: DType) -> candle_core::Result<Self> {
        self.dtype = dtype;
        self.embed_tokens = self.embed_tokens.plain(dtype)?;
        self.lm_head = self.lm_head.map(|head| head.plain(dtype)).transpose()?;
        self.blocks.iter_mut().try_for_each(|block| block.make_plain(dtype))?;
        Ok(self)
    }
}

impl CausalLM for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn projection(&self, index: usize) -> Option<&Projection> {
        let per_block = self.sites.len() / self.blocks.len().max(1);
        self.blocks.get(index / per_block.max(1))?.projections().nth(index % per_block.max(1))
    }

    fn embed(&self, ids: &[u32], (b, t): (usize, usize)) -> candle_core::Result<Tensor> {
        ops::embedding(ids, &[b, t], &self.embed_tokens, self.dtype)
    }

    fn block(&self, index: usize, x: &Tensor, pass: &mut Pass) -> candle_core::Result<Tensor> {
        match self.blocks.get(index) {
            Some(block) => block.forward(&self.config, x, pass),
            None => candle_core::bail!("block {index} of a model with {}", self.blocks.len()),
        }
    }

    fn norm(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        ops::rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }

    fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}
