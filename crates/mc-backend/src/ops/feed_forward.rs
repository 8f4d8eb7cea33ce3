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
use std::ops::Range;

/// Columns of gate and up that one thread packs and multiplies: whole panels, which stay in its L2 cache.
const COLUMNS: usize = 64;
/// Rows of them that exist at a time, so that they stay there too from the product to the gate: whole tiles.
const ROWS_AT_ONCE: usize = 132;

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
    let arithmetic = wide.arithmetic;
    let (mut h, mut act) = (wide.input_rows(n), narrow.input_rows(n));
    let mut gate_up = tracked.then(|| Rows::new(arithmetic, n, &[outer]));
    let (h_stride, act_stride, at_once) = (h.stride, act.stride, rows_at_once(n));
    wide.forward_by_columns(|first| {
        let rows = h.units.par_chunks_mut((at_once * h_stride).max(1));
        rows.zip(x_slice.par_chunks((at_once * d).max(1))).for_each(|(h, x)| {
            let mut row = vec![0f32; d];
            for (x, h) in x.chunks_exact(d).zip(h.chunks_exact_mut(h_stride)) {
                rows::rms_norm_rows(x, &weight, eps, &mut row[..d]);
                round(arithmetic, &row[..d], h);
            }
            first.stage.low(x.len() / d, None, (h, h_stride));
        });
        let saved = gate_up.as_mut().map(|rows| rows.columns(both(inner, up_at)));
        let mut gates_saved: Vec<_> = saved.into_iter().flatten().map(Some).collect();
        gates_saved.resize_with(2 * inner.div_ceil(COLUMNS), || None);
        let ups_saved = gates_saved.split_off(inner.div_ceil(COLUMNS));
        let saved = gates_saved.into_par_iter().zip(ups_saved);
        let work = blocks(inner)
            .collect::<Vec<_>>()
            .into_par_iter()
            .zip(act.columns(blocks(inner)))
            .zip(saved)
            .with_max_len(1);
        work.for_each(|((block, mut act), (mut gate_saved, mut up_saved))| {
            let (width, places) = (block.len(), [block.clone(), up_at + block.start..up_at + block.end]);
            let panels = places.clone().map(|cols| first.pack(cols));
            let mut both = Scratch::new(2 * ROWS_AT_ONCE * COLUMNS);
            let (gates, ups) = both.f32().split_at_mut(ROWS_AT_ONCE * COLUMNS);
            for top in (0..n).step_by(ROWS_AT_ONCE) {
                let rows = ROWS_AT_ONCE.min(n - top);
                for (i, (out, saved)) in
                    [(&mut *gates, &mut gate_saved), (&mut *ups, &mut up_saved)].into_iter().enumerate()
                {
                    let start = wide.bias().map_or(Start::Zero, |bias| Start::Row(&bias[places[i].clone()]));
                    panels[i].multiply(rows, h.left_from(top), start, (out, COLUMNS));
                    if let Some(saved) = saved {
                        for (i, out) in out.chunks_exact(COLUMNS).take(rows).enumerate() {
                            round(arithmetic, &out[..width], saved.row(top + i));
                        }
                    }
                }
                let lines = gates.chunks_exact(COLUMNS).zip(ups.chunks_exact_mut(COLUMNS)).take(rows);
                for (i, (gate, up)) in lines.enumerate() {
                    rows::swiglu_row(&gate[..width], &mut up[..width]);
                    round(narrow.arithmetic, &up[..width], act.row(top + i));
                }
            }
        });
    })?;
    let second = narrow.forward()?;
    let blocks_of_rows = y.par_chunks_mut((at_once * d).max(1)).zip(x_slice.par_chunks((at_once * d).max(1)));
    blocks_of_rows.zip(act.units.par_chunks_mut((at_once * act_stride).max(1))).for_each(|((y, x), act)| {
        second.run(x.len() / d, (act, act_stride), Start::Matrix(x, d), (y, d));
        narrow.add_bias(y);
    });
    drop((second, x_slice));

    let Some(gate_up) = gate_up else { return Tensor::from_vec(y, x.shape(), x.device()) };
    let saved = Saved { x: x.detach(), norm: (weight, eps), h, gate_up, act };
    graft_with(&x, &trained, Value::cpu(y, x.shape()), move |g| backward(&wide, &narrow, &saved, g))
}

/// Blocks of columns of so many.
fn blocks(inner: usize) -> impl Iterator<Item = Range<usize>> {
    (0..inner).step_by(COLUMNS).map(move |from| from..(from + COLUMNS).min(inner))
}

/// Those of gate, and then those of up, which begin at `up_at`.
fn both(inner: usize, up_at: usize) -> impl Iterator<Item = Range<usize>> {
    blocks(inner).chain(blocks(inner).map(move |block| up_at + block.start..up_at + block.end))
}

/// What the backward pass reads.
struct Saved {
    x: Tensor,
    /// Its weight, and what is added to the mean of squares.
    norm: (Vec<f32>, f32),
    h: Rows,
    gate_up: Rows,
    act: Rows,
}

fn backward(wide: &Group, narrow: &Group, saved: &Saved, g: &Tensor) -> Result<(Option<Tensor>, Vec<Tensor>)> {
    let (d, inner, arithmetic, (weight, eps)) = (wide.inner, narrow.inner, wide.arithmetic, &saved.norm);
    let n = g.elem_count() / d.max(1);
    let (at_once, up_at) = (rows_at_once(n), wide.outputs().nth(1).map_or(0, |up| up.start));
    let x = kernels::slice(&saved.x)?;
    let g_slice = kernels::slice(g)?;
    let mut dx = zeros(n * d);
    let (mut g_rows, mut d_wide) = (narrow.gradient_rows(n), wide.gradient_rows(n));
    let (g_stride, wide_stride) = (g_rows.stride, d_wide.stride);
    narrow.backward_by_columns(|first| {
        let rows = g_rows.units.par_chunks_mut((at_once * g_stride).max(1));
        rows.zip(g_slice.par_chunks((at_once * d).max(1))).for_each(|(g_rows, g)| {
            round_rows(narrow.arithmetic, (g, d), (g_rows, g_stride));
            first.stage.low(g.len() / d, None, (g_rows, g_stride));
        });
        let mut gates = d_wide.columns(both(inner, up_at));
        let ups = gates.split_off(inner.div_ceil(COLUMNS));
        let work = blocks(inner).collect::<Vec<_>>().into_par_iter().zip(gates).zip(ups).with_max_len(1);
        work.for_each(|((block, mut d_gate), mut d_up)| {
            let width = block.len();
            let (gate_at, up_at) = (arithmetic.units(block.start), arithmetic.units(up_at + block.start));
            let panels = first.pack(block);
            let mut d_act = Scratch::new(ROWS_AT_ONCE * COLUMNS);
            let d_act = d_act.f32();
            let [mut gate, mut up] = [[0f32; COLUMNS]; 2];
            for top in (0..n).step_by(ROWS_AT_ONCE) {
                let rows = ROWS_AT_ONCE.min(n - top);
                panels.multiply(rows, g_rows.left_from(top), Start::Zero, (d_act, COLUMNS));
                for (i, d_act) in (top..).zip(d_act.chunks_exact(COLUMNS)).take(rows) {
                    let line = saved.gate_up.row(i);
                    widen(arithmetic, &line[gate_at..], &mut gate[..width]);
                    widen(arithmetic, &line[up_at..], &mut up[..width]);
                    rows::swiglu_backward_row(&mut gate[..width], &mut up[..width], &d_act[..width]);
                    round(arithmetic, &gate[..width], d_gate.row(i));
                    round(arithmetic, &up[..width], d_up.row(i));
                }
            }
        });
    })?;
    let second = wide.backward(true)?;
    let blocks = dx.par_chunks_mut((at_once * d).max(1)).enumerate();
    blocks.zip(d_wide.units.par_chunks_mut((at_once * wide_stride).max(1))).for_each(|((block, dx), d_wide)| {
        let range = block * at_once * d..block * at_once * d + dx.len();
        second.run(dx.len() / d, (d_wide, wide_stride), Start::Zero, (dx, d));
        rows::rms_norm_backward_rows(&x[range.clone()], weight, *eps, dx);
        dx.iter_mut().zip(&g_slice[range]).for_each(|(dx, g)| *dx += g);
    });
    drop(second);
    let mut gradients = wide.gradients(n, &saved.h, None, &d_wide)?;
    gradients.extend(narrow.gradients(n, &saved.act, None, &g_rows)?);
    let dx = Tensor::from_vec(dx, g.shape(), g.device())?;
    Ok((Some(dx), gradients))
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
