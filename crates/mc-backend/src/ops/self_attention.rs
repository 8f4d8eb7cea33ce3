//! The attention half of a decoder block as one op: norm, projections, rotation, attention, output, residual.
//!
//! Fused, the batch is walked three times: blocks of rows up to the rotated queries, keys and values; tiles of queries
//! through attention; blocks of rows through output projection and residual. What is kept for the backward pass is kept in the precision of
//! the products: it is what they read.

use super::{
    Attention, Linear, attention,
    block::{FINER, Ops, PLAIN, Project, Side, trained},
    group::{Group, are_few, rows_at_once},
    lora,
    rope::{self, Rope, Table},
};
use crate::{
    graft::{Value, graft_with},
    kernels::{
        self,
        attention::{self as kernel, Gradients, Packed, RowSum, View},
        operand::{Matrix, Rows, round, round_rows, widen},
        rows,
        scratch::{Scratch, zeros},
        tile::Start,
    },
};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// `x + o(attention(turn(q(h)), turn(k(h)), v(h)))` with `h` the root-mean-square norm of x: all but x.
#[derive(Clone)]
pub struct SelfAttention<'a> {
    /// The norm's weight, `(hidden)`, frozen.
    pub norm: &'a Tensor,
    /// What is added to the mean of squares, in all norms.
    pub eps: f64,
    /// `hidden → heads·d`
    pub q: Linear<'a>,
    /// `hidden → kv_heads·d`
    pub k: Linear<'a>,
    /// `hidden → kv_heads·d`
    pub v: Linear<'a>,
    /// `heads·d → hidden`
    pub o: Linear<'a>,
    /// Root-mean-square norms of each head's queries and of its keys, before they turn: `(d)`, frozen.
    pub head_norms: Option<[&'a Tensor; 2]>,
    /// Width of a head.
    pub head_dim: usize,
    /// How queries and keys turn.
    pub rope: &'a Rope,
    /// Position of each token: `t` numbers for all rows, or `b·t`.
    pub positions: &'a Arc<[u32]>,
    /// Which keys a query sees.
    pub how: Attention,
    /// What computes the projections instead, if they are more than `q`, `k`, `v` and `o` say; then nothing is fused.
    pub project: Option<&'a Project<'a>>,
}

impl std::fmt::Debug for SelfAttention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let linears = [&self.q, &self.k, &self.v, &self.o].map(|l| l.weight);
        f.debug_struct("SelfAttention").field("weights", &linears).field("how", &self.how).finish_non_exhaustive()
    }
}

/// Takes the keys and values of new tokens, `(b, t, kv_heads, d)` each, and gives back those of all tokens, as they came or both in `f16` or `bf16`.
pub type Append<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<(Tensor, Tensor)> + 'a;

/// `x + o(attention(…))`: x `(b, t, hidden)` → `(b, t, hidden)`. Gradients go to `x` and to the trained parts.
///
/// With `cache` the attention is over what that returns, and no gradient reaches what it was given.
///
/// # Errors
/// If the shapes do not fit each other, or the cache refuses or gives something else than [`Append`] says.
pub fn self_attention(x: &Tensor, s: &SelfAttention, cache: Option<&mut Append>) -> Result<Tensor> {
    let table = check(x, s)?;
    let on_cpu = [x, s.norm].into_iter().chain(s.head_norms.into_iter().flatten());
    let serves = s.project.is_none() && on_cpu.into_iter().all(kernels::serve);
    let trained = trained(&[&s.q, &s.k, &s.v, &s.o]);
    let tracked = x.track_op() || trained.iter().any(|t| t.track_op());
    if !serves || tracked && cache.is_some() {
        return unfused(x, s, cache, &FINER);
    }
    let (Some(qkv), Some(o)) = (Group::new(&[&s.q, &s.k, &s.v])?, Group::new(&[&s.o])?) else {
        return unfused(x, s, cache, &FINER);
    };
    let x = x.contiguous()?;
    let block = Block::new(&x, s, table, qkv, o)?;
    if tracked { block.tracked(&x, &trained, &s.how) } else { block.untracked(&x, cache, &s.how) }
}

/// [`self_attention`] of plain candle ops.
pub fn composed(x: &Tensor, s: &SelfAttention, cache: Option<&mut Append>) -> Result<Tensor> {
    check(x, s)?;
    unfused(x, s, cache, &PLAIN)
}

fn unfused(x: &Tensor, s: &SelfAttention, cache: Option<&mut Append>, ops: &Ops) -> Result<Tensor> {
    let (b, t, _) = x.dims3()?;
    let h = (ops.norm)(x, s.norm, s.eps)?;
    let qkv = ops.project(s.project, Side::In, &[&s.q, &s.k, &s.v], &h)?;
    let [q, k, v] = qkv.as_slice() else { bail!("{} projections for q, k and v", qkv.len()) };
    let heads = |x: &Tensor| x.reshape((b, t, (), s.head_dim));
    let turned = |x: &Tensor, norm: Option<&Tensor>| {
        let x = heads(x)?;
        let x = norm.map_or_else(|| Ok(x.clone()), |w| (ops.norm)(&x, w, s.eps))?;
        (ops.rope)(&x, s.rope, s.positions)
    };
    let [q_norm, k_norm] = s.head_norms.map_or([None, None], |n| n.map(Some));
    let (q, k, v) = (turned(q, q_norm)?, turned(k, k_norm)?, heads(v)?);
    let (k, v) = of_all(cache, k, v)?;
    let out = (ops.attention)(&q, &k, &v, &s.how)?.reshape((b, t, s.q.weight.rows()))?;
    let out = ops.project(s.project, Side::Out, &[&s.o], &out)?;
    let [out] = out.as_slice() else { bail!("{} projections for o", out.len()) };
    x + out
}

/// Keys and values of all tokens. Where those are the new ones alone they are as they were computed, though a cache keeps them in fewer bits.
fn of_all(cache: Option<&mut Append>, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
    let Some(append) = cache else { return Ok((k, v)) };
    let (all_k, all_v) = append(&k, &v)?;
    let kept = all_k.dtype();
    if kept != all_v.dtype() || kept != k.dtype() && !matches!(kept, DType::F16 | DType::BF16) {
        bail!("a cache gave keys in {kept:?} and values in {:?}", all_v.dtype())
    }
    let new_alone = kept != k.dtype() && all_k.dims() == k.dims() && all_v.dims() == v.dims();
    Ok(if new_alone { (k.detach(), v.detach()) } else { (all_k, all_v) })
}

fn check(x: &Tensor, s: &SelfAttention) -> Result<Table> {
    let (b, t, hidden) = x.dims3()?;
    let d = s.head_dim;
    let shape = |l: &Linear| (l.weight.rows(), l.weight.cols());
    let (q, k) = (s.q.weight.rows(), s.k.weight.rows());
    let fit = shape(&s.q) == (q, hidden) && shape(&s.k) == (k, hidden) && shape(&s.v) == (k, hidden);
    if !fit || shape(&s.o) != (hidden, q) || d == 0 || !q.is_multiple_of(d) || !k.is_multiple_of(d) {
        let shapes = [&s.q, &s.k, &s.v, &s.o].map(shape);
        bail!("an attention block of {shapes:?} with heads of {d} cannot read {:?}", x.shape())
    }
    if s.norm.dims() != [hidden] || s.head_norms.iter().flatten().any(|n| n.dims() != [d]) {
        bail!("the norms of an attention block do not have its widths {hidden} and {d}")
    }
    [&s.q, &s.k, &s.v, &s.o].into_iter().try_for_each(lora::check_linear)?;
    rope::check((b, t, d), s.rope, s.positions)
}

/// What the passes of one call share.
struct Block {
    qkv: Group,
    o: Group,
    /// Batch, tokens, hidden width.
    size: (usize, usize, usize),
    /// Columns of queries, keys and values in the output of `qkv`.
    columns: [Range<usize>; 3],
    d: usize,
    norm: Vec<f32>,
    head_norms: Option<[Vec<f32>; 2]>,
    eps: f32,
    table: Table,
    positions: Arc<[u32]>,
}

/// What the backward pass reads.
struct Saved {
    h: Rows,
    /// Turned queries and keys, and values.
    qkv: Rows,
    /// What the norms of heads read, if there are any.
    raw: Option<Rows>,
    attended: Rows,
    /// What rows of scores sum up to, `(b·t, heads)`.
    sums: Vec<RowSum>,
}

impl Block {
    fn new(x: &Tensor, s: &SelfAttention, table: Table, qkv: Group, o: Group) -> Result<Self> {
        let columns: Vec<_> = qkv.outputs().collect();
        let Ok(columns) = columns.try_into() else { bail!("an attention block has three projections of its input") };
        let numbers = |t: &Tensor| t.detach().to_vec1::<f32>();
        let head_norms = match s.head_norms {
            Some([q, k]) => Some([numbers(q)?, numbers(k)?]),
            None => None,
        };
        let (size, d, norm, eps) = (x.dims3()?, s.head_dim, numbers(s.norm)?, s.eps as f32);
        Ok(Self { qkv, o, size, columns, d, norm, head_norms, eps, table, positions: s.positions.clone() })
    }

    fn rows(&self) -> usize {
        self.size.0 * self.size.1
    }

    fn shape(&self, keys: usize, how: &Attention) -> Result<kernel::Shape> {
        let ((b, t, _), d) = (self.size, self.d);
        let heads = |columns: &Range<usize>| columns.len() / d;
        attention::shape((b, t, heads(&self.columns[0]), d), (b, keys, heads(&self.columns[1]), d), how)
    }

    /// Norms of heads and rotation of token `i` in the output of `qkv`.
    fn turn(&self, i: usize, (cos, sin): (&[f32], &[f32]), row: &mut [f32]) {
        let (half, position) = (self.d / 2, self.positions[i % self.positions.len()] as usize);
        let at = position * half..(position + 1) * half;
        for (part, columns) in self.columns[..2].iter().enumerate() {
            let x = &mut row[columns.clone()];
            if let Some(norms) = &self.head_norms {
                let raw = x.to_vec();
                rows::rms_norm_rows(&raw, &norms[part], self.eps, x);
            }
            rows::rope_row((&cos[at.clone()], &sin[at.clone()]), 1.0, x);
        }
    }

    /// From the gradient of what [`Block::turn`] wrote to that of what it read, which is `raw`.
    fn turn_back(&self, i: usize, (cos, sin): (&[f32], &[f32]), raw: &[f32], row: &mut [f32]) {
        let (half, position) = (self.d / 2, self.positions[i % self.positions.len()] as usize);
        let at = position * half..(position + 1) * half;
        for (part, columns) in self.columns[..2].iter().enumerate() {
            let g = &mut row[columns.clone()];
            rows::rope_row((&cos[at.clone()], &sin[at.clone()]), -1.0, g);
            if let Some(norms) = &self.head_norms {
                rows::rms_norm_backward_rows(&raw[columns.clone()], &norms[part], self.eps, g);
            }
        }
    }

    /// Turned queries and keys, and values, `(n, outer)`; keeps what the backward pass reads where there is room for it.
    fn project(&self, x: &[f32], h: &mut Rows, mut keep: [Option<&mut Rows>; 2]) -> Result<Scratch> {
        let (n, outer, hidden) = (self.rows(), self.qkv.outer, self.size.2);
        let mut scratch = Scratch::new(n * outer);
        let out = scratch.f32();
        let (stage, stride, at_once) = (self.qkv.forward()?, h.stride, rows_at_once(n));
        let (cos, sin) = (kernels::slice(&self.table.cos)?, kernels::slice(&self.table.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        let [raw, turned] = keep.each_mut().map(|rows| Rows::blocks(rows.as_deref_mut(), n, at_once));
        let blocks = out.par_chunks_mut(at_once * outer).zip(x.par_chunks(at_once * hidden));
        let units = h.units.par_chunks_mut(at_once * stride).zip(raw).zip(turned).enumerate();
        blocks.zip(units).for_each(|((out, x), (block, ((h, raw), turned)))| {
            let mut row = vec![0f32; hidden];
            for (x, h) in x.chunks_exact(hidden).zip(h.chunks_exact_mut(stride)) {
                rows::rms_norm_rows(x, &self.norm, self.eps, &mut row);
                round(self.qkv.arithmetic, &row, h);
            }
            let bias = self.qkv.bias().map_or(Start::Zero, Start::Row);
            stage.run(x.len() / hidden, (h, stride), bias, (out, outer));
            raw.fill(out, outer);
            for (i, row) in out.chunks_exact_mut(outer).enumerate() {
                self.turn(block * at_once + i, (cos, sin), row);
            }
            turned.fill(out, outer);
        });
        Ok(scratch)
    }

    /// Attention, output projection and residual: `(n, hidden)`.
    fn attend(
        &self,
        x: &[f32],
        shape: &kernel::Shape,
        (q, k, v): (View, View, View),
        attended: &mut Rows,
        sums: &mut [RowSum],
    ) -> Result<Vec<f32>> {
        let (hidden, width) = (self.size.2, self.columns[0].len());
        let (mut y, stride) = (zeros(self.rows() * hidden), attended.stride);
        let packed = Packed::new(shape, self.qkv.arithmetic, k, v, false);
        kernel::over_tiles(shape, (&mut attended.units, stride), sums, |b, tile, units, sums| {
            let mut out = Scratch::new(tile.len() * width);
            let out = out.f32();
            kernel::forward(shape, &packed, (b, tile), q, out, sums);
            round_rows(self.o.arithmetic, (out, width), (units, stride));
        });
        drop(packed);
        let (stage, at_once) = (self.o.forward()?, rows_at_once(self.rows()));
        let blocks = y.par_chunks_mut(at_once * hidden).zip(x.par_chunks(at_once * hidden));
        blocks.zip(attended.units.par_chunks_mut(at_once * stride)).for_each(|((y, x), units)| {
            stage.run(x.len() / hidden, (units, stride), Start::Matrix(x, hidden), (y, hidden));
            self.o.add_bias(y);
        });
        Ok(y)
    }

    /// The pass without gradient; `x` is contiguous.
    fn untracked(&self, x: &Tensor, cache: Option<&mut Append>, how: &Attention) -> Result<Tensor> {
        let ((b, t, hidden), n, outer, d) = (self.size, self.rows(), self.qkv.outer, self.d);
        let x_slice = kernels::slice(x)?;
        let mut scratch = if are_few(n) {
            let mut h = vec![0f32; n * hidden];
            rows::rms_norm_rows(&x_slice, &self.norm, self.eps, &mut h);
            let mut scratch = Scratch::new(n * outer);
            let out = scratch.f32();
            self.qkv.few(n, &h, (out, outer))?;
            let (cos, sin) = (kernels::slice(&self.table.cos)?, kernels::slice(&self.table.sin)?);
            out.chunks_exact_mut(outer).enumerate().for_each(|(i, row)| self.turn(i, (&cos, &sin), row));
            scratch
        } else {
            self.project(&x_slice, &mut self.qkv.input_rows(n), [None, None])?
        };
        let qkv: &[f32] = scratch.f32();
        let part = |columns: &Range<usize>| {
            let numbers = qkv.chunks_exact(outer).flat_map(|row| &row[columns.clone()]).copied().collect();
            Tensor::from_vec(numbers, (b, t, columns.len() / d, d), x.device())
        };
        let (k, v) = (part(&self.columns[1])?, part(&self.columns[2])?);
        let (k, v) = of_all(cache, k, v)?;
        let expected = (b, k.dim(1)?, self.columns[1].len() / d, d);
        if k.dims4()? != expected || v.dims4()? != expected {
            bail!("a cache gave keys {:?} and values {:?}, expected {expected:?} of both", k.shape(), v.shape())
        }
        let shape = self.shape(expected.1, how)?;
        let q = View::columns(Matrix::f32(qkv, outer), self.columns[0].start, t, d);
        let (k, v) = (attention::dense(&k)?, attention::dense(&v)?);
        let y = attention::with_views([&k, &v], |[k, v]| {
            if !are_few(t) {
                return self.attend(&x_slice, &shape, (q, k, v), &mut self.o.input_rows(n), &mut []);
            }
            // A few queries of each row, of however many rows: packing all keys would cost more than reading them.
            let width = self.columns[0].len();
            let mut out = vec![0f32; n * width];
            kernel::decode(&shape, q, k, v, &mut out);
            let mut y = x_slice.to_vec();
            if are_few(n) {
                let mut o = vec![0f32; n * hidden];
                self.o.few(n, &out, (&mut o, hidden))?;
                y.iter_mut().zip(o).for_each(|(y, o)| *y += o);
            } else {
                let (stage, mut rows) = (self.o.forward()?, self.o.input_rows(n));
                let stride = rows.stride;
                round_rows(self.o.arithmetic, (&out, width), (&mut rows.units, stride));
                stage.run(n, (&mut rows.units, stride), Start::Itself, (&mut y, hidden));
                self.o.add_bias(&mut y);
            }
            Ok(y)
        })??;
        Tensor::from_vec(y, x.shape(), x.device())
    }

    /// The pass that a backward pass follows; `x` is contiguous.
    fn tracked(self, x: &Tensor, trained: &[&Tensor], how: &Attention) -> Result<Tensor> {
        let (n, outer, arithmetic) = (self.rows(), self.qkv.outer, self.qkv.arithmetic);
        let shape = self.shape(self.size.1, how)?;
        let new = |width| Rows::new(arithmetic, n, &[width]);
        let mut saved = Saved {
            h: self.qkv.input_rows(n),
            qkv: new(outer),
            raw: self.head_norms.is_some().then(|| new(outer)),
            attended: self.o.input_rows(n),
            sums: vec![RowSum::default(); n * shape.heads],
        };
        let x_slice = kernels::slice(x)?;
        let mut turned = self.project(&x_slice, &mut saved.h, [saved.raw.as_mut(), Some(&mut saved.qkv)])?;
        let [q, k, v] = self.views(Matrix::f32(turned.f32(), outer));
        let y = self.attend(&x_slice, &shape, (q, k, v), &mut saved.attended, &mut saved.sums)?;
        drop(x_slice);
        (saved.h, saved.attended) = (self.qkv.keep(saved.h), self.o.keep(saved.attended));
        let value = Value::cpu(y, x.shape());
        let detached = x.detach();
        graft_with(x, trained, value, move |g| self.backward(&detached, &shape, &saved, g))
    }

    fn views<'a>(&self, m: Matrix<'a>) -> [View<'a>; 3] {
        self.columns.each_ref().map(|columns| View::columns(m, columns.start, self.size.1, self.d))
    }

    fn backward(
        &self,
        x: &Tensor,
        shape: &kernel::Shape,
        saved: &Saved,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let ((_, t, hidden), n, outer) = (self.size, self.rows(), self.qkv.outer);
        let (width, at_once, arithmetic) = (self.columns[0].len(), rows_at_once(self.rows()), self.qkv.arithmetic);
        let (x, g_slice) = (kernels::slice(x)?, kernels::slice(g)?);

        let mut g_rows = self.o.gradient_rows(n);
        let mut d_attended = Scratch::new(n * width);
        let d_attended = d_attended.f32();
        let (stage, stride) = (self.o.backward(true)?, g_rows.stride);
        let blocks = d_attended.par_chunks_mut(at_once * width).zip(g_slice.par_chunks(at_once * hidden));
        blocks.zip(g_rows.units.par_chunks_mut(at_once * stride)).for_each(|((d_attended, g), units)| {
            round_rows(self.o.arithmetic, (g, hidden), (units, stride));
            stage.run(g.len() / hidden, (units, stride), Start::Zero, (d_attended, width));
        });
        drop(stage);

        let [q, k, v] = self.views(saved.qkv.matrix(0));
        let packed = Packed::new(shape, arithmetic, k, v, true);
        let d_out = View::columns(Matrix::f32(d_attended, width), 0, t, self.d);
        let heads = Gradients::new(shape, &packed, [q, d_out], &saved.sums);
        drop(packed);

        let mut d_qkv = self.qkv.gradient_rows(n);
        let mut dx = zeros(n * hidden);
        let (stage, stride) = (self.qkv.backward(true)?, d_qkv.stride);
        let (cos, sin) = (kernels::slice(&self.table.cos)?, kernels::slice(&self.table.sin)?);
        let (cos, sin, x): (&[f32], &[f32], &[f32]) = (&cos, &sin, &x);
        let g_slice: &[f32] = &g_slice;
        let blocks = dx.par_chunks_mut(at_once * hidden).zip(d_qkv.units.par_chunks_mut(at_once * stride)).enumerate();
        blocks.for_each(|(block, (dx, units))| {
            let top = block * at_once;
            let rows = dx.len() / hidden;
            let (mut row, mut raw) = (vec![0f32; outer], vec![0f32; outer]);
            for (i, units) in (top..top + rows).zip(units.chunks_exact_mut(stride)) {
                let token = (i / t, i % t);
                let (dq, rest) = row.split_at_mut(self.columns[1].start);
                let (dk, dv) = rest.split_at_mut(self.columns[2].start - self.columns[1].start);
                let kv = self.columns[1].len();
                heads.query(shape, token, &mut dq[..width]);
                heads.key(shape, token, &mut dk[..kv], &mut dv[..kv]);
                if let Some(saved) = &saved.raw {
                    widen(arithmetic, saved.row(i), &mut raw);
                }
                self.turn_back(i, (cos, sin), &raw, &mut row);
                round(arithmetic, &row, units);
            }
            stage.run(rows, (units, stride), Start::Zero, (dx, hidden));
            let range = top * hidden..(top + rows) * hidden;
            rows::rms_norm_backward_rows(&x[range.clone()], &self.norm, self.eps, dx);
            dx.iter_mut().zip(&g_slice[range]).for_each(|(dx, g)| *dx += g);
        });
        drop((stage, heads));
        let mut gradients = self.qkv.gradients(n, &saved.h, None, &d_qkv)?;
        gradients.extend(self.o.gradients(n, &saved.attended, None, &g_rows)?);
        let dx = Tensor::from_vec(dx, g.shape(), g.device())?;
        Ok((Some(dx), gradients))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Weight, ops::Lora};
    use candle_core::{DType, Device};
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let weight = |seed, shape| Weight::from_tensor(&random(seed, shape, DType::F64)).unwrap();
        let (q, k, v, o) = (weight(1, (8, 3)), weight(2, (4, 3)), weight(3, (4, 3)), weight(4, (3, 8)));
        let (norm, head_norm, bias) = (random(5, 3, DType::F64), random(6, 2, DType::F64), random(7, 4, DType::F64));
        let rope = Rope::new(Rope::frequencies(2, 100.0), &Device::Cpu);
        let inputs = [random(8, (2, 3, 3), DType::F64), random(9, (2, 3), DType::F64), random(10, (8, 2), DType::F64)];
        for head_norms in [None, Some([&head_norm, &head_norm])] {
            gradcheck("self_attention", &inputs, |x| {
                let lora = Some(Lora { a: &x[1], b: &x[2], scale: 1.7, dropout: None });
                let linear = |weight, bias, lora| Linear { weight, bias, lora };
                let block = SelfAttention {
                    norm: &norm,
                    eps: 1e-5,
                    q: linear(&q, None, lora),
                    k: linear(&k, Some(&bias), None),
                    v: linear(&v, None, None),
                    o: linear(&o, None, None),
                    head_norms,
                    head_dim: 2,
                    rope: &rope,
                    positions: &vec![0, 1, 2].into(),
                    how: Attention { causal: true, ..Attention::default() },
                    project: None,
                };
                self_attention(&x[0], &block, None)
            });
        }
    }
}
