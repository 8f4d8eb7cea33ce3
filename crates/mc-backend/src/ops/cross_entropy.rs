//! The output head and its cross-entropy in one op: logits of a whole batch never exist.

use crate::{
    Weight,
    graft::{Value, graft},
    kernels::{
        self,
        operand::{Matrix, Panels, Part, Rows, round},
        scratch::Scratch,
        softmax,
        tile::{Arithmetic, LANES, Start},
    },
};
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Parts of the vocabulary that threads take. Fixed, so that no sum depends on the number of threads.
const PARTS: usize = 16;
/// Rows of the head that are packed at a time, at most.
const BLOCK: usize = 512;
/// Positions whose logits of a block exist at a time: 264 × 512 numbers stay in the L2 cache.
const TILE: usize = 264;
/// Numbers of the gradient that all parts hold at one time: 64 MB. Each thread has, beside, a block of the head, packed twice.
const SUMS: usize = 16 << 20;

/// Σ over the supervised positions of `ln Σ exp(h·Wᵀ) − (h·Wᵀ)[target]`, a scalar in `f32`, or in `f64` for `f64` input.
///
/// `hidden` is `(…, d)`, `head` `(vocabulary, d)`; `positions[i]` is a row of `hidden` seen as `(n, d)` and
/// `targets[i]` the token that it should give. Rows that are not named cost nothing. The gradient to `hidden` is
/// computed in the same pass as the loss, and only if `hidden` is tracked.
///
/// The gradient at a position is `Σ p·W − W[target]`, the softmax-weighted sum of the rows that gave the logits. So this is
/// attention with the head as keys and values, and computed like it (Milakov & Gimelshein, "Online normalizer calculation
/// for softmax", 2018): block by block of the vocabulary, each read once, rescaled where a larger logit appears.
///
/// # Errors
/// If a position or a target is out of range, or there is not one target for each position.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Weight, positions: &[u32], targets: &[u32]) -> Result<Tensor> {
    let d = check(hidden, head, positions, targets)?;
    let Some(elements) = head.elements().filter(|_| kernels::serve(hidden)) else {
        return composed(hidden, head, positions, targets);
    };
    let dense = hidden.detach().contiguous()?;
    let h = kernels::slice(&dense)?;
    let head = Head { matrix: Matrix::new(elements, d), arithmetic: head.arithmetic(), size: (head.rows(), d) };
    let wants_gradient = hidden.track_op();
    let mut gradient = vec![0f32; if wants_gradient { h.len() } else { 0 }];
    let mut loss = 0f64;
    let in_chunk = (SUMS / (PARTS * d)).max(1);
    for (positions, targets) in positions.chunks(in_chunk).zip(targets.chunks(in_chunk)) {
        let x: Vec<f32> = positions.iter().flat_map(|p| &h[*p as usize * d..(*p as usize + 1) * d]).copied().collect();
        let rows = Rows::of(head.arithmetic, &x, d);
        let mut parts: Vec<_> =
            head.parts().into_par_iter().map(|part| head.softmax(part, &rows, targets, wants_gradient)).collect();
        let (whole, others) = parts.split_at_mut(1);
        let Some(whole) = whole.first_mut() else { continue };
        for part in others {
            whole.join(part, d);
        }
        loss += whole.sums.iter().map(|s| f64::from(s.sum.ln() + s.top - s.at_target)).sum::<f64>();
        if wants_gradient {
            let sums = whole.gradient.f32().chunks_exact(d).zip(&whole.sums);
            for ((p, target), (dx, s)) in positions.iter().zip(targets).zip(sums) {
                let row = &mut gradient[*p as usize * d..(*p as usize + 1) * d];
                let (inverse, target) = (1.0 / s.sum, head.matrix.from(*target as usize * d).elements);
                for (j, (g, dx)) in row.iter_mut().zip(dx).enumerate() {
                    *g += dx * inverse - target.get(j);
                }
            }
        }
    }
    let gradient = wants_gradient.then(|| Tensor::from_vec(gradient, hidden.shape(), hidden.device())).transpose()?;
    graft([hidden], Value::cpu(vec![loss as f32], ()), move |g| match &gradient {
        Some(gradient) => Ok([Some(gradient.broadcast_mul(g)?)]),
        None => Ok([None]),
    })
}

/// The output matrix.
struct Head<'a> {
    matrix: Matrix<'a>,
    arithmetic: Arithmetic,
    /// `(vocabulary, d)`
    size: (usize, usize),
}

/// What a part of the vocabulary gives: of each position its sums, and `Σ exp(logit − top)·W`, `(n, d)` or empty.
struct Softmax {
    sums: Vec<Sums>,
    gradient: Scratch,
}

#[derive(Clone, Copy)]
struct Sums {
    /// The largest logit.
    top: f32,
    /// `Σ exp(logit − top)`
    sum: f32,
    /// The target's logit, 0 where it is in another part.
    at_target: f32,
}

impl Head<'_> {
    /// The rows of each part.
    fn parts(&self) -> Vec<Range<usize>> {
        let v = self.size.0;
        let rows = v.div_ceil(PARTS).next_multiple_of(LANES);
        (0..v).step_by(rows).map(|first| first..(first + rows).min(v)).collect()
    }

    /// The softmax over the rows of a part, on this thread.
    fn softmax(&self, part: Range<usize>, x: &Rows, targets: &[u32], wants_gradient: bool) -> Softmax {
        let ((_, d), n, arithmetic) = (self.size, targets.len(), self.arithmetic);
        let mut sums = vec![Sums { top: f32::NEG_INFINITY, sum: 0.0, at_target: 0.0 }; n];
        let mut gradient = Scratch::new(if wants_gradient { n * d } else { 0 });
        let mut logits = Scratch::new(TILE.min(n) * BLOCK.min(part.len()).next_multiple_of(LANES));
        let mut p = Rows::new(arithmetic, TILE.min(n), &[BLOCK.min(part.len())]);
        for first in part.clone().step_by(BLOCK) {
            let width = BLOCK.min(part.end - first);
            let matrix = self.matrix.from(first * d);
            let pack = |size, transposed| {
                let whole = Part { depth: 0, col: 0, size, matrix, transposed };
                Panels::pack_here(arithmetic, arithmetic.units(size.0), size.1, &[whole])
            };
            let keys = pack((d, width), true);
            let values = wants_gradient.then(|| pack((width, d), false));
            for (tile, sums) in sums.chunks_mut(TILE).enumerate() {
                let (top, rows, of_row) = (tile * TILE, sums.len(), width.next_multiple_of(LANES));
                let logits = &mut logits.f32()[..rows * of_row];
                keys.multiply(rows, x.left_from(top), Start::Zero, (logits, of_row));
                let gradient = &mut gradient.f32()[..];
                for (i, (s, logits)) in sums.iter_mut().zip(logits.chunks_exact_mut(of_row)).enumerate() {
                    let target = (targets[top + i] as usize).checked_sub(first).filter(|at| *at < width);
                    if let Some(at) = target {
                        s.at_target = logits[at];
                    }
                    let factor = s.add(logits, width);
                    if values.is_some() {
                        round(arithmetic, &logits[..width], &mut p.units[i * p.stride..(i + 1) * p.stride]);
                        if factor != 1.0 && first > part.start {
                            gradient[(top + i) * d..(top + i + 1) * d].iter_mut().for_each(|g| *g *= factor);
                        }
                    }
                }
                if let Some(values) = &values {
                    let start = if first == part.start { Start::Zero } else { Start::Itself };
                    values.multiply(rows, p.left(), start, (&mut gradient[top * d..(top + rows) * d], d));
                }
            }
        }
        Softmax { sums, gradient }
    }
}

impl Sums {
    /// Takes in the first `n` logits of a row, which goes on to a multiple of 16; they become `exp(logit − top)`. Returns what earlier
    /// sums are to be multiplied with.
    fn add(&mut self, logits: &mut [f32], n: usize) -> f32 {
        let top = self.top.max(softmax::max(logits, n));
        let about = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let factor = rescale(self.top, top);
        self.sum = self.sum * factor + softmax::exp_row(logits, n, 1.0, (about, 0.0));
        self.top = top;
        factor
    }
}

/// What sums about one top are multiplied with to be about another: 1 where they are the same, infinite too.
fn rescale(from: f32, to: f32) -> f32 {
    if from == to { 1.0 } else { (from - to).exp() }
}

impl Softmax {
    /// Takes in what another part of the vocabulary gives.
    fn join(&mut self, other: &mut Self, d: usize) {
        let (gradient, others) = (self.gradient.f32(), other.gradient.f32());
        for (i, (s, o)) in self.sums.iter_mut().zip(&other.sums).enumerate() {
            let top = s.top.max(o.top);
            let (left, right) = (rescale(s.top, top), rescale(o.top, top));
            *s = Sums { top, sum: s.sum * left + o.sum * right, at_target: s.at_target + o.at_target };
            if !gradient.is_empty() {
                let row = i * d..(i + 1) * d;
                gradient[row.clone()].iter_mut().zip(&others[row]).for_each(|(g, o)| *g = *g * left + o * right);
            }
        }
    }
}

/// Logits that exist at one time in [`composed`]: 16 million `f32` are 64 MB.
const CHUNK: usize = 16 << 20;

/// [`linear_cross_entropy`] of plain candle ops, in chunks of rows.
pub fn composed(hidden: &Tensor, head: &Weight, positions: &[u32], targets: &[u32]) -> Result<Tensor> {
    let d = check(hidden, head, positions, targets)?;
    let (dtype, device) = (hidden.dtype(), hidden.device());
    let wide = if dtype.size_in_bytes() < 4 { DType::F32 } else { dtype };
    let flat = hidden.detach().contiguous()?.reshape(((), d))?;
    let w = head.to_tensor(dtype)?;
    let wants_gradient = hidden.track_op();
    let mut loss = Tensor::zeros((), wide, device)?;
    let mut gradient = if wants_gradient { Some(flat.zeros_like()?) } else { None };
    let rows = (CHUNK / head.rows()).max(1);
    for (positions, targets) in positions.chunks(rows).zip(targets.chunks(rows)) {
        let at = Tensor::from_slice(positions, positions.len(), device)?;
        let target = Tensor::from_slice(targets, (targets.len(), 1), device)?;
        let logits = flat.index_select(&at, 0)?.matmul(&w.t()?)?.to_dtype(wide)?;
        let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        loss = (loss - log_p.gather(&target, 1)?.sum_all()?)?;
        if let Some(sum) = gradient {
            let ones = Tensor::ones(target.shape(), wide, device)?;
            let d_logits = log_p.exp()?.scatter_add(&target, &ones.neg()?, 1)?;
            gradient = Some(sum.index_add(&at, &d_logits.to_dtype(dtype)?.matmul(&w)?, 0)?);
        }
    }
    let gradient = gradient.map(|g| g.reshape(hidden.shape())).transpose()?;
    graft([hidden], Value::Tensor(loss), move |g| match &gradient {
        Some(gradient) => Ok([Some(gradient.broadcast_mul(&g.to_dtype(gradient.dtype())?)?)]),
        None => Ok([None]),
    })
}

fn check(hidden: &Tensor, head: &Weight, positions: &[u32], targets: &[u32]) -> Result<usize> {
    let d = hidden.dim(D::Minus1)?;
    if d != head.cols() {
        bail!("a head of width {} cannot read {:?}", head.cols(), hidden.shape())
    }
    if head.rows() == 0 || d == 0 {
        bail!("a head of ({}, {d}) has no logits", head.rows())
    }
    let n = hidden.elem_count() / d;
    if positions.len() != targets.len() {
        bail!("{} targets for {} positions", targets.len(), positions.len())
    }
    if let Some(p) = positions.iter().find(|p| **p as usize >= n) {
        bail!("position {p} is not among {n} rows")
    }
    if let Some(t) = targets.iter().find(|t| **t as usize >= head.rows()) {
        bail!("target {t} is not below the vocabulary of {}", head.rows())
    }
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let head = Weight::from_tensor(&random(1, (7, 3), DType::F64)).unwrap();
        // Row 4 is named twice, rows 1 and 3 never.
        gradcheck("linear_cross_entropy", &[random(2, (2, 3, 3), DType::F64)], |x| {
            linear_cross_entropy(&x[0], &head, &[0, 4, 2, 4, 5], &[6, 0, 3, 3, 1])
        });
    }

    #[test]
    fn no_position_is_no_loss() -> Result<()> {
        let head = Weight::from_tensor(&random(1, (7, 3), DType::F32))?;
        let loss = linear_cross_entropy(&random(2, (2, 3), DType::F32), &head, &[], &[])?;
        assert_eq!(loss.to_scalar::<f32>()?, 0.0);
        assert!(linear_cross_entropy(&random(2, (2, 3), DType::F32), &head, &[2], &[0]).is_err());
        assert!(linear_cross_entropy(&random(2, (2, 3), DType::F32), &head, &[1], &[7]).is_err());
        Ok(())
    }
}
