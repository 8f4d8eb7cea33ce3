//! One block of a decoder: norm → attention → norm → gated feed-forward, each added to the residual stream.

use crate::{Addition, ModelConfig, Pass, Projection, model::Site};
use candle_core::{DType, Result, Tensor};
use mc_backend::ops::{self, Attention, FeedForward, Rope, SelfAttention, Side};
use std::{ops::Range, sync::Arc};

/// A block's frozen weights; names are those of the checkpoint.
#[derive(Clone, Debug)]
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
        let x = self.attention(config, x, pass)?;
        let ([gate, up], [down]) = (&self.gate_up, &self.down_proj);
        let project = |side, x: &Tensor| match side {
            Side::In => project(&self.gate_up, x, pass),
            Side::Out => project(&self.down_proj, x, pass),
        };
        let additions = additions([gate, up, down], pass)?;
        let [for_gate, for_up, for_down] = &additions;
        let block = FeedForward {
            norm: &self.post_attention_layernorm,
            eps: config.rms_norm_eps,
            gate: gate.with(for_gate),
            up: up.with(for_up),
            down: down.with(for_down),
            project: additions.iter().any(|a| matches!(a, Addition::Other)).then_some(&project),
        };
        ops::feed_forward(&x, &block)
    }

    fn attention(&self, config: &ModelConfig, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let before = pass.cache.as_ref().map_or(0, |c| c.layer_len(self.index));
        let positions = match pass.segments {
            Some(segments) => segments.iter().flat_map(|s| 0..s.len() as u32).collect(),
            None => positions(before, (b, t), pass.left_padding),
        };
        let segments = pass.segments.map(Arc::from);
        let valid: Option<Arc<[Range<usize>]>> =
            pass.left_padding.map(|left| left.iter().map(|pad| *pad.min(&(before + t))..before + t).collect());

        let mut cache = pass.cache.take();
        let ([q, k, v], [o]) = (&self.qkv, &self.o_proj);
        let project = |side, x: &Tensor| match side {
            Side::In => project(&self.qkv, x, pass),
            Side::Out => project(&self.o_proj, x, pass),
        };
        let out = additions([q, k, v, o], pass).and_then(|additions| {
            let [for_q, for_k, for_v, for_o] = &additions;
            let block = SelfAttention {
                norm: &self.input_layernorm,
                eps: config.rms_norm_eps,
                q: q.with(for_q),
                k: k.with(for_k),
                v: v.with(for_v),
                o: o.with(for_o),
                head_norms: self.q_norm.as_ref().zip(self.k_norm.as_ref()).map(|(q, k)| [q, k]),
                head_dim: config.head_dim,
                rope: &self.rope,
                positions: &positions,
                how: Attention { causal: true, window: self.window, valid, segments, ..Attention::default() },
                project: additions.iter().any(|a| matches!(a, Addition::Other)).then_some(&project),
            };
            match &mut cache {
                Some(cache) => ops::self_attention(x, &block, Some(&mut |k, v| cache.append(self.index, k, v))),
                None => ops::self_attention(x, &block, None),
            }
        });
        pass.cache = cache;
        out
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

/// What the pass's adapter adds at these projections.
fn additions<const N: usize>(projections: [&Projection; N], pass: &Pass) -> Result<[Addition; N]> {
    let addition = |p: &Projection| pass.adapter.map_or(Ok(Addition::Nothing), |adapter| adapter.addition(p));
    let all: Vec<Addition> = projections.into_iter().map(addition).collect::<Result<_>>()?;
    all.try_into().map_err(|_| candle_core::Error::msg("as many additions as projections"))
}

/// The projections of one group, through the adapter if there is one.
fn project(group: &[Projection], x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
    let out = match pass.adapter {
        Some(adapter) => adapter.project(group, x)?,
        None => group.iter().map(|p| p.forward(x)).collect::<Result<_>>()?,
    };
    if out.len() != group.len() {
        candle_core::bail!("an adapter returned {} projections for {}", out.len(), group.len())
    }
    Ok(out)
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
