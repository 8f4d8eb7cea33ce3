//! The gradients of attention: probabilities are computed again, tile by tile of queries, from what their rows sum up to.

use super::{Packed, RowSum, Shape, Side, TILE, View, score_stride, within};
use crate::kernels::{
    operand::{Panels, Part, pair_rows},
    scratch::Scratch,
    simd::{dot, simd},
    softmax,
    tile::{Arithmetic, LANES, Left, ROWS, Start},
};
use rayon::prelude::*;
use std::ops::Range;

/// The gradients of all query heads, each in its queries and its part of those in keys and values.
pub(crate) struct Gradients {
    /// `(b·heads)` times dQ `(tq, d)`, dK and dV `(tk, d)`.
    heads: Scratch,
    of_head: usize,
}

impl Gradients {
    /// Computes them in parallel over the query heads.
    pub(crate) fn new(s: &Shape, packed: &Packed, views: [View; 2], sums: &[RowSum]) -> Self {
        let (tq, tk) = (s.queries * s.dim, s.keys * s.dim);
        let of_head = tq + 2 * tk;
        let mut heads = Scratch::new(s.batch * s.heads * of_head);
        heads.f32().par_chunks_exact_mut(of_head.max(1)).enumerate().for_each(|(unit, head)| {
            let (dq, rest) = head.split_at_mut(tq);
            let (dk, dv) = rest.split_at_mut(tk);
            backward(s, packed, (unit / s.heads, unit % s.heads), views, sums, [dq, dk, dv]);
        });
        Self { heads, of_head }
    }

    /// The gradients of one token's queries, `(heads·d)`.
    pub(crate) fn query(&self, s: &Shape, (b, i): (usize, usize), dq: &mut [f32]) {
        for (h, dq) in dq.chunks_exact_mut(s.dim).enumerate() {
            let at = (b * s.heads + h) * self.of_head + i * s.dim;
            dq.copy_from_slice(&self.heads.numbers()[at..at + s.dim]);
        }
    }

    /// The gradients of one token's keys and values, each `(kv_heads·d)`: the sums over the query heads of a group.
    pub(crate) fn key(&self, s: &Shape, (b, j): (usize, usize), dk: &mut [f32], dv: &mut [f32]) {
        let (d, group) = (s.dim, s.heads / s.kv_heads);
        for (first, out) in [(s.queries * d, dk), (s.queries * d + s.keys * d, dv)] {
            out.fill(0.0);
            for (g, out) in out.chunks_exact_mut(d).enumerate() {
                for h in g * group..(g + 1) * group {
                    let at = (b * s.heads + h) * self.of_head + first + j * d;
                    out.iter_mut().zip(&self.heads.numbers()[at..at + d]).for_each(|(o, x)| *o += x);
                }
            }
        }
    }

    /// All gradients of queries, `(b, tq, heads, d)`.
    pub(crate) fn queries(&self, s: &Shape, dq: &mut [f32]) {
        let width = s.heads * s.dim;
        let rows = dq.par_chunks_exact_mut(width).enumerate();
        rows.for_each(|(i, dq)| self.query(s, (i / s.queries, i % s.queries), dq));
    }

    /// All gradients of keys and values, `(b, tk, kv_heads, d)`.
    pub(crate) fn keys(&self, s: &Shape, dk: &mut [f32], dv: &mut [f32]) {
        let width = s.kv_heads * s.dim;
        let rows = dk.par_chunks_exact_mut(width).zip(dv.par_chunks_exact_mut(width)).enumerate();
        rows.for_each(|(j, (dk, dv))| self.key(s, (j / s.keys, j % s.keys), dk, dv));
    }
}

/// Gradients of one query head, each a dense `(t, d)`: in its queries, and its part of those in keys and values.
///
/// With P the probabilities: `dV = Pᵀ·g`, `dP = g·Vᵀ`, `dS = P∘(dP − rowsum(P∘dP))·scale`, `dQ = dS·K`, `dK = dSᵀ·Q`
/// (Dao et al., "FlashAttention", 2022, appendix B.2). What is large is neither packed nor transposed: `Pᵀ` and `dSᵀ` are
/// left sides that lie in columns.
fn backward(
    s: &Shape,
    packed: &Packed,
    (b, h): (usize, usize),
    [q, g]: [View; 2],
    sums: &[RowSum],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let (arithmetic, d, head) = (packed.arithmetic, s.dim, packed.head(s, b, h));
    // An odd number of lines of memory, so that a column of many rows does not fall into one place of a cache.
    let stride = ((score_stride(s.keys + ROWS) / LANES) | 1) * LANES;
    let [mut p, mut ds] = [(); 2].map(|()| Scratch::new(TILE.min(s.queries).next_multiple_of(ROWS) * stride));
    let mut pairs = Scratch::new(if arithmetic == Arithmetic::F32 { 0 } else { p.len() / 2 });
    dk.fill(0.0);
    dv.fill(0.0);
    for tile in s.tiles(TILE) {
        let keys = s.keys_of_tile(b, &tile);
        let (rows, n) = (tile.len(), keys.len());
        let [scores, of_scores] = [(q, &head.keys_t, &mut p), (g, &head.values_t, &mut ds)].map(|(x, right, out)| {
            let (side, whole) = (x.side(arithmetic, (b, tile.start, h), (rows, d)), (0..right.depth, keys.clone()));
            right.multiply_part(rows, side.left(), whole, Start::Zero, (out.f32(), stride));
            out.f32()
        });
        for (i, row) in tile.clone().enumerate() {
            let [p, ds] = [&mut *scores, &mut *of_scores].map(|x| &mut x[i * stride..(i + 1) * stride]);
            s.add_bias(&mut p[..n], (row, h), keys.start);
            let sum = sums[(b * s.queries + row) * s.heads + h];
            score_gradient(p, &mut ds[..n], within(&s.visible(b, row), keys.start, n), s.scale, sum);
        }
        let depth = arithmetic.units(keys.start);
        let (part, dq) = ((depth..depth + arithmetic.units(n), 0..d), &mut dq[tile.start * d..tile.end * d]);
        let ds_rows = Side::of(arithmetic, (&ds, stride), (rows, n));
        head.keys.multiply_part(rows, ds_rows.left(), part, Start::Zero, (dq, d));
        for (x, left, sum) in [(g, &p, &mut *dv), (q, &ds, &mut *dk)] {
            let (size, matrix) = ((rows, d), x.head(b, tile.start, h));
            let depth = arithmetic.units(rows);
            let right =
                Panels::pack_here(arithmetic, depth, d, &[Part { depth: 0, col: 0, size, matrix, transposed: false }]);
            let left = match arithmetic {
                Arithmetic::F32 => left,
                Arithmetic::BF16 => {
                    pair_rows(left.numbers(), (rows, n), stride, &mut pairs);
                    &pairs
                }
            };
            let sum = sum.get_mut(keys.start * d..).unwrap_or_default();
            right.multiply_part(n, Left::Columns(left, stride), (0..depth, 0..d), Start::Itself, (sum, d));
        }
    }
}

/// Scores become probabilities, and `ds`, which comes as their gradient, becomes that of the scores. The row of scores is
/// [`score_stride`] long.
fn score_gradient(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, scale: f32, sum: RowSum) {
    let n = ds.len();
    softmax::exp_row(&mut p[seen.start..], seen.len(), scale, (sum.top, sum.sum.ln()));
    simd(
        #[inline(always)]
        || {
            let (p, ds) = (&p[seen.clone()], &mut ds[seen.clone()]);
            let sum = dot(p, ds);
            for (ds, p) in ds.iter_mut().zip(p) {
                *ds = *p * (*ds - sum) * scale;
            }
        },
    );
    for x in [p, ds] {
        x[..seen.start].fill(0.0);
        x[seen.end..n].fill(0.0);
    }
}
