//! What both halves of a block share: their projections, what may compute those instead, and the ops that a half is made
//! of where it is not fused.

use super::{Attention, Gelu, Linear, Rope, activation, attention, lora, norm, rope};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Which projections of a half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those that read its normalised input: q, k and v, or gate and up.
    In,
    /// The one back to the residual stream: o, or down.
    Out,
}

/// Computes the projections of one side in place of the op that is given it: their input → one output each.
pub type Project<'a> = dyn Fn(Side, &Tensor) -> Result<Vec<Tensor>> + 'a;

/// The ops of a half that is not fused.
pub(super) struct Ops {
    pub(super) norm: fn(&Tensor, &Tensor, f64) -> Result<Tensor>,
    pub(super) rope: fn(&Tensor, &Rope, &Arc<[u32]>) -> Result<Tensor>,
    pub(super) attention: fn(&Tensor, &Tensor, &Tensor, &Attention) -> Result<Tensor>,
    pub(super) swiglu: fn(&Tensor, &Tensor) -> Result<Tensor>,
    pub(super) layer_norm: fn(&Tensor, &Tensor, Option<&Tensor>, f64) -> Result<Tensor>,
    pub(super) gelu: fn(&Tensor, Gelu) -> Result<Tensor>,
    pub(super) geglu: fn(&Tensor, &Tensor) -> Result<Tensor>,
    project: fn(&Tensor, &Linear) -> Result<Tensor>,
}

/// Each takes its own best path.
pub(super) const FINER: Ops = Ops {
    norm: norm::rms_norm,
    rope: rope::rope,
    attention: attention::attention,
    swiglu: activation::swiglu,
    layer_norm: norm::layer_norm,
    gelu: activation::gelu,
    geglu: activation::geglu,
    project: lora::project,
};

/// Each of plain candle ops.
pub(super) const PLAIN: Ops = Ops {
    norm: norm::rms_norm_composed,
    rope: rope::composed,
    attention: attention::composed,
    swiglu: activation::swiglu_composed,
    layer_norm: norm::layer_norm_composed,
    gelu: activation::gelu_composed,
    geglu: activation::geglu_composed,
    project: lora::project_composed,
};

impl Ops {
    /// The outputs of one side, by what replaces the projections or one by one.
    pub(super) fn project(
        &self,
        instead: Option<&Project>,
        side: Side,
        linears: &[&Linear],
        x: &Tensor,
    ) -> Result<Vec<Tensor>> {
        match instead {
            Some(instead) => instead(side, x),
            None => linears.iter().map(|linear| (self.project)(x, linear)).collect(),
        }
    }
}

/// A and B of every trained part, in order.
pub(super) fn trained<'a>(linears: &[&Linear<'a>]) -> Vec<&'a Tensor> {
    linears.iter().filter_map(|l| l.lora.as_ref()).flat_map(|l| [l.a, l.b]).collect()
}
