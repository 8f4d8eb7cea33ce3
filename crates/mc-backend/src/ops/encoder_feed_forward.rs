//! The feed-forward half of an encoder's layer as one op: up, activation, down, residual, with a layer norm before or after.
//!
//! Fused, a block of rows goes through all of it on one thread. Where a gradient is wanted, it is the ops that it is made
//! of, each with its own.

use super::{
    Gelu, LayerNorm, Side,
    block::{FINER, Ops, PLAIN},
    encoder_attention::{Norm, block_rows, check_norms, normed, packed, project},
    projections::{Input, Packed, Projections},
};
use crate::kernels::{self, rows, scratch::Scratch, tile::Start};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// What is between up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// See [`super::gelu`].
    Gelu(Gelu),
    /// The first half of the columns through an exact gelu, times the second; see [`super::geglu`].
    Geglu,
}

/// `after(x + down(activation(up(before(x)))))`: all but x.
#[derive(Clone, Debug)]
pub struct EncoderFeedForward<'a> {
    /// The norm of what is projected.
    pub before: Option<LayerNorm<'a>>,
    /// `d → inner`, or twice that for a gated activation.
    pub up: &'a Projections,
    /// What is between.
    pub activation: Activation,
    /// `inner → d`
    pub down: &'a Projections,
    /// The norm of the sum.
    pub after: Option<LayerNorm<'a>>,
}

/// `after(x + down(activation(up(before(x)))))`: x `(…, d)` → `(…, d)` (Vaswani et al., "Attention Is All You Need", 2017,
/// section 3.3). The gradient goes to `x` alone.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn encoder_feed_forward(x: &Tensor, f: &EncoderFeedForward) -> Result<Tensor> {
    check(x, f)?;
    match packed(x, [f.before, f.after], [f.up, f.down])? {
        Some([up, down]) => fused(x, f, up, down),
        None => unfused(x, f, &FINER),
    }
}

/// [`encoder_feed_forward`] of plain candle ops.
pub fn composed(x: &Tensor, f: &EncoderFeedForward) -> Result<Tensor> {
    check(x, f)?;
    unfused(x, f, &PLAIN)
}

fn unfused(x: &Tensor, f: &EncoderFeedForward, ops: &Ops) -> Result<Tensor> {
    let project = |side, projections: &Projections, x: &Tensor| {
        projections
            .unfused(ops, side, x)?
            .into_iter()
            .next()
            .ok_or_else(|| candle_core::Error::msg("a feed-forward half without a projection"))
    };
    let up = project(Side::In, f.up, &normed(x, f.before, ops)?)?;
    let act = match f.activation {
        Activation::Gelu(form) => (ops.gelu)(&up, form)?,
        Activation::Geglu => {
            let inner = up.dim(D::Minus1)? / 2;
            let half = |i: usize| up.narrow(D::Minus1, i * inner, inner)?.contiguous();
            (ops.geglu)(&half(0)?, &half(1)?)?
        }
    };
    normed(&(x + project(Side::Out, f.down, &act)?)?, f.after, ops)
}

fn check(x: &Tensor, f: &EncoderFeedForward) -> Result<()> {
    let d = x.dim(D::Minus1)?;
    let (up, down): (Vec<_>, Vec<_>) = (f.up.widths().collect(), f.down.widths().collect());
    let factor = if f.activation == Activation::Geglu { 2 } else { 1 };
    match (up.as_slice(), down.as_slice()) {
        ([up], [(inner, to)]) if *up == (d, factor * inner) && *to == d => {
            if d == 0 || *inner == 0 {
                bail!("a feed-forward half of widths {d} and {inner} computes nothing")
            }
            check_norms(d, &[f.before, f.after])
        }
        _ => bail!("a feed-forward half of {up:?} and {down:?} cannot read {:?}", x.shape()),
    }
}

fn fused(x: &Tensor, f: &EncoderFeedForward, up: &Packed, down: &Packed) -> Result<Tensor> {
    let (d, inner, outer) = (up.inner, down.inner, up.outer);
    let n = x.elem_count() / d.max(1);
    let (before, after) = (Norm::new(f.before)?, Norm::new(f.after)?);
    let x = x.contiguous()?;
    let x_slice = kernels::slice(&x)?;
    let mut y = vec![0f32; n * d];
    let (rows, at_once) = (n, block_rows(n) * d);
    y.par_chunks_mut(at_once.max(1)).zip(x_slice.par_chunks(at_once.max(1))).for_each(|(y, x)| {
        let n = x.len() / d;
        // Whole tiles are read.
        let tiles = n.next_multiple_of(kernels::tile::ROWS);
        let mut wide = Scratch::new(tiles * outer);
        // A gelu is done where the product is; a gate needs both halves of the columns.
        let (gelu, mut gated) = match f.activation {
            Activation::Gelu(form) => (Some(form), None),
            Activation::Geglu => (None, Some(vec![0f32; inner])),
        };
        project(before.as_ref(), (up, gelu), x, rows, &mut wide.f32()[..n * outer]);
        let mut input = down.room(n);
        for (i, row) in wide.f32()[..n * outer].chunks_exact_mut(outer).enumerate() {
            if let Some(gated) = &mut gated {
                rows::geglu_row(&row[..inner], &row[inner..2 * inner], gated);
                row[..inner].copy_from_slice(gated);
            }
            if let Some(input) = &mut input {
                down.fill(input, i, &row[..inner]);
            }
        }
        let input = input.unwrap_or_else(|| Input::InPlace(wide.numbers(), outer));
        down.run_input(n, rows, &input, Start::Matrix(x, d), None, (y, d));
        down.add_bias(y);
        if let Some(norm) = &after {
            norm.run(y);
        }
    });
    Tensor::from_vec(y, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weight;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() -> Result<()> {
        let weight = |seed, shape| Weight::from_tensor(&random(seed, shape, DType::F64));
        let (norm, bias) = (random(4, 3, DType::F64), random(5, 3, DType::F64));
        let up = Projections::new(vec![(weight(1, (10, 3))?, Some(random(2, 10, DType::F64)))]);
        let (down, half) = (weight(3, (3, 10))?, weight(3, (3, 5))?);
        let down = Projections::new(vec![(down, Some(bias.clone()))]);
        let half = Projections::new(vec![(half, None)]);
        let norm = Some(LayerNorm { weight: &norm, bias: Some(&bias), eps: 1e-3 });
        let activation = Activation::Gelu(Gelu::Exact);
        let after = EncoderFeedForward { before: None, up: &up, activation, down: &down, after: norm };
        let activation = Activation::Geglu;
        let before = EncoderFeedForward { before: norm, up: &up, activation, down: &half, after: None };
        for f in [after, before] {
            gradcheck("encoder_feed_forward", &[random(6, (2, 3, 3), DType::F64)], |x| encoder_feed_forward(&x[0], &f));
        }
        Ok(())
    }

    #[test]
    fn a_width_of_zero_is_said() -> Result<()> {
        for (d, inner) in [(0, 4), (6, 0), (0, 0)] {
            let weight = |shape| Weight::from_tensor(&random(1, shape, DType::F32));
            let up = Projections::new(vec![(weight((inner, d))?, None)]);
            let down = Projections::new(vec![(weight((d, inner))?, None)]);
            let activation = Activation::Gelu(Gelu::Exact);
            let half = EncoderFeedForward { before: None, up: &up, activation, down: &down, after: None };
            let error = encoder_feed_forward(&random(2, (1, 3, d), DType::F32), &half)
                .map_or_else(|error| error.to_string(), |_| String::new());
            assert!(error.contains("computes nothing"), "{d} {inner}: {error}");
        }
        Ok(())
    }
}
