//! The gated feed-forward half of a decoder block as one op: norm, gate and up, their product, down, residual.
//!
//! Fused, a block of rows goes through all of it on one thread: no intermediate of the whole batch is written but what
//! the backward pass needs, and that in the precision of the products.

use super::{
    Linear,
    block::{FINER, Ops, PLAIN, Project, Side, trained},
    group::{Group, are_few, rows_at_once},
    lora,
};
use crate::{
    graft::{Value, graft_with},
    kernels::{
        self,
        operand::{Rows, round, round_rows, widen},
        rows,
        scratch::{Scratch, zeros},
        tile::Start,
    },
};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// Columns of gate and up that exist at a time, so that they stay in the cache from the product to the gate: whole panels.
const COLUMNS: usize = 128;

/// `x + down(silu(gate(h))∘up(h))` with `h` the root-mean-square norm of x: the weights of it.
#[derive(Clone)]
pub struct FeedForward<'a> {
    /// The norm's weight, `(d)`, frozen.
    pub norm: &'a Tensor,
    /// What is added to the mean of squares.
    pub eps: f64,
    /// `d → inner`
    pub gate: Linear<'a>,
    /// `d → inner`
    pub up: Linear<'a>,
    /// `inner → d`
    pub down: Linear<'a>,
    /// What computes the projections instead, if they are more than `gate`, `up` and `down` say; then nothing is fused.
    pub project: Option<&'a Project<'a>>,
}

impl std::fmt::Debug for FeedForward<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let linears = [&self.gate, &self.up, &self.down].map(|l| l.weight);
        f.debug_struct("FeedForward").field("weights", &linears).finish_non_exhaustive()
    }
}

/// `x + down(silu(gate(h))∘up(h))` with `h = rms_norm(x)`: x `(…, d)` → `(…, d)` (Shazeer, "GLU Variants Improve
/// Transformer", 2020). Gradients go to `x` and to the trained parts.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn feed_forward(x: &Tensor, f: &FeedForward) -> Result<Tensor> {
    check(x, f)?;
    if f.project.is_some() || !kernels::serve(x) || !kernels::serve(f.norm) {
        return unfused(x, f, &FINER);
    }
    match (Group::new(&[&f.gate, &f.up])?, Group::new(&[&f.down])?) {
        (Some(wide), Some(narrow)) => fused(x, f, wide, narrow),
        _ => unfused(x, f, &FINER),
    }
}

/// [`feed_forward`] of plain candle ops.
pub fn composed(x: &Tensor, f: &FeedForward) -> Result<Tensor> {
    check(x, f)?;
    unfused(x, f, &PLAIN)
}

fn unfused(x: &Tensor, f: &FeedForward, ops: &Ops) -> Result<Tensor> {
    let h = (ops.norm)(x, f.norm, f.eps)?;
    let wide = ops.project(f.project, Side::In, &[&f.gate, &f.up], &h)?;
    let [gate, up] = wide.as_slice() else { bail!("{} projections for gate and up", wide.len()) };
    let down = ops.project(f.project, Side::Out, &[&f.down], &(ops.swiglu)(gate, up)?)?;
    let [down] = down.as_slice() else { bail!("{} projections for down", down.len()) };
    x + down
}

fn check(x: &Tensor, f: &FeedForward) -> Result<()> {
    let (d, inner) = (x.dim(D::Minus1)?, f.gate.weight.rows());
    if d == 0 || inner == 0 {
        bail!("a feed-forward block of widths {d} and {inner} computes nothing")
    }
    let shape = |l: &Linear| (l.weight.rows(), l.weight.cols());
    if shape(&f.gate) != (inner, d) || shape(&f.up) != (inner, d) || shape(&f.down) != (d, inner) {
        let shapes = (shape(&f.gate), shape(&f.up), shape(&f.down));
        bail!("a feed-forward block of {shapes:?} cannot read {:?}", x.shape())
    }
    if f.norm.dims() != [d] {
        bail!("a norm of {:?} cannot read {:?}", f.norm.shape(), x.shape())
    }
    [&f.gate, &f.up, &f.down].into_iter().try_for_each(lora::check_linear)
}

fn fused(x: &Tensor, f: &FeedForward, wide: Group, narrow: Group) -> Result<Tensor> {
    let (d, inner, outer, eps) = (wide.inner, narrow.inner, wide.outer, f.eps as f32);
    let n = x.elem_count() / d.max(1);
    let (x, weight) = (x.contiguous()?, f.norm.detach().flatten_all()?.to_vec1::<f32>()?);
    let up_at = wide.outputs().nth(1).map_or(0, |up| up.start);
    let trained = trained(&[&f.gate, &f.up, &f.down]);
    let tracked = x.track_op() || trained.iter().any(|t| t.track_op());
    let x_slice = kernels::slice(&x)?;

    if are_few(n) && !tracked {
        let mut h = vec![0f32; n * d];
        rows::rms_norm_rows(&x_slice, &weight, eps, &mut h);
        let y = few((n, up_at), &h, &x_slice, &wide, &narrow)?;
        drop(x_slice);
        return Tensor::from_vec(y, x.shape(), x.device());
    }

    let mut y = zeros(n * d);
    let (arithmetic, kept) = (wide.arithmetic, wide.kept);
    let (mut h, mut act) = (wide.input_rows(n), narrow.input_rows(n));
    let mut gate_up = tracked.then(|| Rows::new(kept, n, &[outer]));
    let (first, second) = (wide.forward()?, narrow.forward()?);
    let (h_stride, act_stride, at_once) = (h.stride, act.stride, rows_at_once(n));
    let saved_blocks = Rows::blocks(gate_up.as_mut(), n, at_once);
    let blocks = y.par_chunks_mut((at_once * d).max(1)).zip(x_slice.par_chunks((at_once * d).max(1)));
    let rows_of = h
        .units
        .par_chunks_mut((at_once * h_stride).max(1))
        .zip(act.units.par_chunks_mut((at_once * act_stride).max(1)));
    blocks.zip(rows_of).zip(saved_blocks).for_each(|(((y, x), (h, act)), mut saved)| {
        let n = x.len() / d;
        let mut row = vec![0f32; d];
        for (x, h) in x.chunks_exact(d).zip(h.chunks_exact_mut(h_stride)) {
            rows::rms_norm_rows(x, &weight, eps, &mut row[..d]);
            round(arithmetic, &row[..d], h);
        }
        first.low(n, None, (&mut *h, h_stride));
        let mut both = Scratch::new(2 * n * COLUMNS);
        let (gates, ups) = both.f32().split_at_mut(n * COLUMNS);
        for from in (0..inner).step_by(COLUMNS) {
            let width = COLUMNS.min(inner - from);
            for (at, out) in [(from, &mut *gates), (up_at + from, &mut *ups)] {
                let start = wide.bias().map_or(Start::Zero, |bias| Start::Row(&bias[at..]));
                first.columns(n, (h, h_stride), at..at + width, start, (out, COLUMNS));
                saved.fill_columns(out, (COLUMNS, width), at);
            }
            let lines = gates.chunks_exact(COLUMNS).zip(ups.chunks_exact_mut(COLUMNS));
            for ((gate, up), act) in lines.zip(act.chunks_exact_mut(act_stride)) {
                rows::swiglu_row(&gate[..width], &mut up[..width]);
                round(narrow.arithmetic, &up[..width], &mut act[narrow.arithmetic.units(from)..]);
            }
        }
        second.run(n, (act, act_stride), Start::Matrix(x, d), (y, d));
        narrow.add_bias(y);
    });
    drop((first, second, x_slice));

    let Some(gate_up) = gate_up else { return Tensor::from_vec(y, x.shape(), x.device()) };
    let (saved, h, act) = (x.detach(), wide.keep(h), narrow.keep(act));
    graft_with(&x, &trained, Value::cpu(y, x.shape()), move |g| {
        let x = kernels::slice(&saved)?;
        let g_slice = kernels::slice(g)?;
        let mut dx = zeros(n * d);
        let (mut g_rows, mut d_wide) = (narrow.gradient_rows(n), wide.gradient_rows(n));
        let (first, second) = (narrow.backward(true)?, wide.backward(true)?);
        let (g_stride, wide_stride) = (g_rows.stride, d_wide.stride);
        let blocks = dx.par_chunks_mut((at_once * d).max(1)).enumerate();
        let rows_of = g_rows
            .units
            .par_chunks_mut((at_once * g_stride).max(1))
            .zip(d_wide.units.par_chunks_mut((at_once * wide_stride).max(1)));
        blocks.zip(rows_of).for_each(|((block, dx), (g_rows, d_wide))| {
            let (n, top) = (dx.len() / d, block * at_once);
            let range = top * d..top * d + dx.len();
            let (x, g) = (&x[range.clone()], &g_slice[range]);
            round_rows(narrow.arithmetic, (g, d), (g_rows, g_stride));
            first.low(n, None, (&mut *g_rows, g_stride));
            let mut d_act = Scratch::new(n * COLUMNS);
            let d_act = d_act.f32();
            let [mut gate, mut up] = [[0f32; COLUMNS]; 2];
            for from in (0..inner).step_by(COLUMNS) {
                let width = COLUMNS.min(inner - from);
                first.columns(n, (g_rows, g_stride), from..from + width, Start::Zero, (d_act, COLUMNS));
                let lines = d_act.chunks_exact(COLUMNS).zip(d_wide.chunks_exact_mut(wide_stride));
                for (i, (d_act, units)) in lines.enumerate() {
                    let saved = gate_up.row(top + i);
                    widen(kept, &saved[kept.units(from)..], &mut gate[..width]);
                    widen(kept, &saved[kept.units(up_at + from)..], &mut up[..width]);
                    rows::swiglu_backward_row(&mut gate[..width], &mut up[..width], &d_act[..width]);
                    round(arithmetic, &gate[..width], &mut units[arithmetic.units(from)..]);
                    round(arithmetic, &up[..width], &mut units[arithmetic.units(up_at + from)..]);
                }
            }
            second.run(n, (d_wide, wide_stride), Start::Zero, (dx, d));
            rows::rms_norm_backward_rows(x, &weight, eps, dx);
            dx.iter_mut().zip(g).for_each(|(dx, g)| *dx += g);
        });
        drop((first, second));
        let mut gradients = wide.gradients(n, &h, None, &d_wide)?;
        gradients.extend(narrow.gradients(n, &act, None, &g_rows)?);
        let dx = Tensor::from_vec(dx, g.shape(), g.device())?;
        Ok((Some(dx), gradients))
    })
}

/// A few rows, whose cost is reading the matrices: `h` is the norm of x, the columns of up begin at `up_at`.
fn few((n, up_at): (usize, usize), h: &[f32], x: &[f32], wide: &Group, narrow: &Group) -> Result<Vec<f32>> {
    let (inner, outer) = (narrow.inner, wide.outer);
    let mut gate_up = vec![0f32; n * outer];
    wide.few(n, h, (&mut gate_up, outer))?;
    let mut act = vec![0f32; n * inner];
    for (row, act) in gate_up.chunks_exact(outer).zip(act.chunks_exact_mut(inner)) {
        act.copy_from_slice(&row[up_at..up_at + inner]);
        rows::swiglu_row(&row[..inner], act);
    }
    let mut y = vec![0f32; x.len()];
    narrow.few(n, &act, (&mut y, wide.inner))?;
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Weight, ops::Lora};
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let weight = |seed, shape| Weight::from_tensor(&random(seed, shape, DType::F64)).unwrap();
        let (gate, up, down) = (weight(1, (5, 3)), weight(2, (5, 3)), weight(3, (3, 5)));
        let (norm, bias) = (random(4, 3, DType::F64), random(5, 5, DType::F64));
        let inputs = [random(6, (2, 3, 3), DType::F64), random(7, (2, 3), DType::F64), random(8, (5, 2), DType::F64)];
        gradcheck("feed_forward", &inputs, |x| {
            let lora = Some(Lora { a: &x[1], b: &x[2], scale: 1.7, dropout: None });
            let linear = |weight, bias, lora| Linear { weight, bias, lora };
            let (gate, up) = (linear(&gate, None, lora), linear(&up, Some(&bias), None));
            let down = linear(&down, None, None);
            feed_forward(&x[0], &FeedForward { norm: &norm, eps: 1e-5, gate, up, down, project: None })
        });
    }
}
