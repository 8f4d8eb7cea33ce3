//! One block of a decoder: norm → attention → norm → gated feed-forward, each added to the residual stream.

use crate::{ModelConfig, Pass, Projection, model::Site};
use candle_core::{DType, Result, Tensor};
use mc_backend::ops::{self, Attention, Rope};
use std::{ops::Range, sync::Arc};

/// A block's frozen weights; names are those of the checkpoint.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) index: usize,
    pub(crate) input_layernorm: Tensor,
    /// q, k, v: they read the same input.
    pub(crate) qkv: [Projection; 3],
    pub(crate) q_norm: Option<Tensor>,
    pub(crate) k_norm: Option<Tensor>,
    pub(crate) o_proj: [Projection; 1],
    pub(crate) post_attention_layernorm: Tensor,
    /// gate, up: they read the same input.
    pub(crate) gate_up: [Projection; 2],
    pub(crate) down_proj: [Projection; 1],
    pub(crate) rope: Arc<Rope>,
    pub(crate) window: Option<usize>,
}

impl Block {
    pub(crate) fn forward(&self, config: &ModelConfig, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let eps = config.rms_norm_eps;
        let h = ops::rms_norm(x, &self.input_layernorm, eps)?;
        let x = (x + self.attention(config, &h, pass)?)?;
        let h = ops::rms_norm(&x, &self.post_attention_layernorm, eps)?;
        let [gate, up] = project(&self.gate_up, &h, pass)?;
        let [down] = project(&self.down_proj, &ops::swiglu(&gate, &up)?, pass)?;
        x + down
    }

    fn attention(&self, config: &ModelConfig, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let [q, k, v] = project(&self.qkv, x, pass)?;
        let norm = |x: Tensor, weight: &Option<Tensor>| match weight {
            Some(weight) => ops::rms_norm(&x, weight, config.rms_norm_eps),
            None => Ok(x),
        };
        let q = norm(q.reshape((b, t, heads, d))?, &self.q_norm)?;
        let k = norm(k.reshape((b, t, kv_heads, d))?, &self.k_norm)?;
        let v = v.reshape((b, t, kv_heads, d))?;

        let before = pass.cache.as_ref().map_or(0, |c| c.layer_len(self.index));
        let positions = positions(before, (b, t), pass.left_padding);
        let q = ops::rope(&q, &self.rope, &positions)?;
        let k = ops::rope(&k, &self.rope, &positions)?;
        let (k, v) = match &mut pass.cache {
            Some(cache) => cache.append(self.index, &k, &v)?,
            None => (k, v),
        };
        let valid: Option<Arc<[Range<usize>]>> =
            pass.left_padding.map(|left| left.iter().map(|pad| *pad.min(&(before + t))..before + t).collect());
        let how = Attention { scale: None, causal: true, window: self.window, valid };
        let out = ops::attention(&q, &k, &v, &how)?; // (b, t, heads, d)
        let [out] = project(&self.o_proj, &out.reshape((b, t, heads * d))?, pass)?;
        Ok(out)
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.qkv.iter().chain(&self.o_proj).chain(&self.gate_up).chain(&self.down_proj)
    }

    /// Makes biases and matrices plain tensors of `dtype`.
    pub(crate) fn make_plain(&mut self, dtype: DType) -> Result<()> {
        let groups = self.qkv.iter_mut().chain(&mut self.o_proj).chain(&mut self.gate_up).chain(&mut self.down_proj);
        for projection in groups {
            projection.weight = projection.weight.plain(dtype)?;
            if let Some(bias) = &mut projection.bias {
                *bias = bias.to_dtype(dtype)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.projections().map(|p| &p.site)
    }
}

/// The projections of one group, through the adapter if there is one.
fn project<const N: usize>(group: &[Projection; N], x: &Tensor, pass: &Pass) -> Result<[Tensor; N]> {
    let out = match pass.adapter {
        Some(adapter) => adapter.project(group, x)?,
        None => group.iter().map(|p| p.forward(x)).collect::<Result<_>>()?,
    };
    out.try_into().map_err(|out: Vec<Tensor>| {
        candle_core::Error::msg(format!("an adapter returned {} projections for {N}", out.len()))
    })
}

/// Positions of `t` new tokens after `before` others: one list for all rows, or one per row where they are padded.
fn positions(before: usize, (b, t): (usize, usize), left_padding: Option<&[usize]>) -> Arc<[u32]> {
    let range = before..before + t;
    match left_padding {
        None => range.map(|p| p as u32).collect(),
        Some(left) => {
            let row = |pad: usize| range.clone().map(move |p| p.saturating_sub(pad) as u32);
            (0..b).flat_map(|r| row(left.get(r).copied().unwrap_or(0))).collect()
        }
    }
}
