//! The output head and its cross-entropy in one op: logits of a whole batch never exist.

use crate::{
    Weight,
    graft::{Value, graft},
    kernels::{
        self,
        operand::{Matrix, Panels, Part, Rows, round_in_place},
        rows,
        scratch::Scratch,
        tile::{Arithmetic, MAX_ROWS, Start},
    },
    ops::group::rows_at_once,
    weight::Elements,
};
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Logits that exist at one time on the CPU: 16 million `f32` are 64 MB. The head is packed once for each chunk, and
/// 100 rows of the largest vocabularies are enough to pay for that.
const CHUNK: usize = 16 << 20;
/// Rows of the head that are packed at a time, a multiple of a panel's columns.
const BLOCK: usize = 4096;

/// Σ over the supervised positions of `ln Σ exp(h·Wᵀ) − (h·Wᵀ)[target]`, a scalar in `f32`, or in `f64` for `f64` input.
///
/// `hidden` is `(…, d)`, `head` `(vocabulary, d)`; `positions[i]` is a row of `hidden` seen as `(n, d)` and
/// `targets[i]` the token that it should give. Rows that are not named cost nothing. The gradient to `hidden` is
/// computed in the same pass as the loss, one chunk of rows after the other, and only if `hidden` is tracked.
///
/// # Errors
/// If a position or a target is out of range, or there is not one target for each position.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Weight, positions: &[u32], targets: &[u32]) -> Result<Tensor> {
    let d = check(hidden, head, positions, targets)?;
    let Some(elements) = head.elements().filter(|_| kernels::serve(hidden)) else {
        return composed(hidden, head, positions, targets);
    };
    let v = head.rows();
    let dense = hidden.detach().contiguous()?;
    let h = kernels::slice(&dense)?;
    let wants_gradient = hidden.track_op();
    let mut gradient = vec![0f32; if wants_gradient { h.len() } else { 0 }];
    let mut loss = 0f64;
    let in_chunk = (CHUNK / v).clamp(1, positions.len().max(1));
    let mut logits = Scratch::new(in_chunk.next_multiple_of(MAX_ROWS) * v);
    let logits = logits.f32();
    let mut dx = vec![0f32; if wants_gradient { in_chunk * d } else { 0 }];
    for (positions, targets) in positions.chunks(in_chunk).zip(targets.chunks(in_chunk)) {
        let n = positions.len();
        let x: Vec<f32> = positions.iter().flat_map(|p| &h[*p as usize * d..(*p as usize + 1) * d]).copied().collect();
        let mut losses = vec![0f32; n];
        head_product(&x, elements, head.arithmetic(), (n, v, d), logits);
        rows::cross_entropy(&mut logits[..n * v], targets, wants_gradient, &mut losses);
        loss += losses.iter().map(|l| f64::from(*l)).sum::<f64>();
        if wants_gradient {
            head_gradient(logits, elements, head.arithmetic(), (n, v, d), &mut dx[..n * d]);
            for (p, dx) in positions.iter().zip(dx.chunks_exact(d)) {
                let row = &mut gradient[*p as usize * d..(*p as usize + 1) * d];
                row.iter_mut().zip(dx).for_each(|(g, dx)| *g += dx);
            }
        }
    }
    let gradient = wants_gradient.then(|| Tensor::from_vec(gradient, hidden.shape(), hidden.device())).transpose()?;
    graft([hidden], Value::cpu(vec![loss as f32], ()), move |g| match &gradient {
        Some(gradient) => Ok([Some(gradient.broadcast_mul(g)?)]),
        None => Ok([None]),
    })
}

/// `x·headᵀ`, block by block of the vocabulary: x `(n, d)` → the first n rows of `logits`, of width v.
fn head_product(
    x: &[f32],
    head: Elements,
    arithmetic: Arithmetic,
    (n, v, d): (usize, usize, usize),
    logits: &mut [f32],
) {
    let (rows, at_once, matrix) = (Rows::of(arithmetic, x, d), rows_at_once(n), Matrix::new(head, d));
    for first in (0..v).step_by(BLOCK) {
        let width = BLOCK.min(v - first);
        let part = Part { depth: 0, col: 0, size: (d, width), matrix: matrix.from(first * d), transposed: true };
        let panels = Panels::pack(arithmetic, arithmetic.units(d), width, &[part]);
        logits[..n * v].par_chunks_mut(at_once * v).enumerate().for_each(|(block, logits)| {
            let n = logits.len() / v;
            panels.multiply(n, rows.left_from(block * at_once), Start::Zero, (&mut logits[first..], v));
        });
    }
}

/// `g·head` for the gradient `g` of logits, which is rounded where it lies: it is not needed again.
fn head_gradient(
    g: &mut [f32],
    head: Elements,
    arithmetic: Arithmetic,
    (n, v, d): (usize, usize, usize),
    dx: &mut [f32],
) {
    let (at_once, matrix) = (rows_at_once(n), Matrix::new(head, d));
    g.par_chunks_exact_mut(v).for_each(|row| round_in_place(arithmetic, row));
    let units: &[u32] = bytemuck::cast_slice(g);
    for first in (0..v).step_by(BLOCK) {
        let depth = BLOCK.min(v - first);
        let part = Part { depth: 0, col: 0, size: (depth, d), matrix: matrix.from(first * d), transposed: false };
        let panels = Panels::pack(arithmetic, arithmetic.units(depth), d, &[part]);
        dx.par_chunks_mut(at_once * d).enumerate().for_each(|(block, dx)| {
            let start = if first == 0 { Start::Zero } else { Start::Itself };
            let left = &units[block * at_once * v + arithmetic.units(first)..];
            panels.multiply(dx.len() / d, (left, v), start, (dx, d));
        });
    }
}

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
