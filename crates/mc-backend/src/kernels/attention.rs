//! Grouped-query attention on the CPU, forward and backward, never a t×t matrix.
//!
//! Everything is `(b, t, h, d)`: the layout projections produce and caches keep, so nothing is transposed. A unit of
//! work is one head of one row (forward) or one key-value head with its group of query heads (backward: they share dK
//! and dV). It walks the queries in tiles of 64, and for each tile holds the scores against the keys that the tile
//! can see: 64 × t numbers. Probabilities are computed again in the backward pass, so nothing is saved between.

use super::{
    Shared,
    gemm::{Matrix, serial},
    simd::{self, axpy, dot, simd},
};
use candle_core::Layout;
use rayon::prelude::*;
use std::ops::Range;

/// Queries in a tile: scores of 64 × 1,024 keys are 256 KB and stay in the L2 cache.
const TILE: usize = 64;

/// Sizes of one call and which keys a query sees.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    /// Per row of the batch, the keys that are not padding.
    pub(crate) valid: Option<std::sync::Arc<[Range<usize>]>>,
}

impl Shape {
    /// The keys that query `i` of row `b` sees. Queries are the last ones: query `i` stands at `keys − queries + i`.
    pub(crate) fn visible(&self, b: usize, i: usize) -> Range<usize> {
        let valid = self.valid.as_ref().map_or(0..self.keys, |v| v[b].clone());
        let position = i + self.keys - self.queries;
        let end = if self.causal { valid.end.min(position + 1) } else { valid.end };
        let start = self.window.map_or(valid.start, |w| valid.start.max((position + 1).saturating_sub(w)));
        start.min(end)..end
    }

    /// The keys that any query of a tile sees.
    fn visible_to_tile(&self, b: usize, tile: &Range<usize>) -> Range<usize> {
        let ranges = tile.clone().map(|i| self.visible(b, i)).filter(|r| !r.is_empty());
        ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        (0..queries).step_by(TILE).map(move |from| from..(from + TILE).min(queries))
    }
}

/// One argument `(b, t, h, d)` in memory, any strides but 1 in the last dimension.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    strides: [usize; 3],
}

impl<'a> View<'a> {
    /// `data` is the whole storage that `layout` lies in; `None` if the last dimension is not dense.
    pub(crate) fn new(data: &'a [f32], layout: &Layout) -> Option<Self> {
        let stride = layout.stride();
        (stride[3] == 1 || layout.dims()[3] == 1)
            .then(|| Self { data: &data[layout.start_offset()..], strides: [stride[0], stride[1], stride[2]] })
    }
    /// The `(t, d)` matrix of one head, from time `from` on.
    fn head(&self, b: usize, from: usize, h: usize) -> Matrix<'a> {
        let start = (b * self.strides[0] + from * self.strides[1] + h * self.strides[2]).min(self.data.len());
        Matrix { data: &self.data[start..], row_stride: self.strides[1], col_stride: 1 }
    }
    fn row(&self, b: usize, t: usize, h: usize, d: usize) -> &'a [f32] {
        &self.data[b * self.strides[0] + t * self.strides[1] + h * self.strides[2]..][..d]
    }
}

/// `softmax(q·kᵀ·scale)·v`: q and out `(b, queries, heads, d)`, k and v `(b, keys, kv_heads, d)`.
pub(crate) fn forward(s: &Shape, q: View, k: View, v: View, out: &mut [f32]) {
    let shared = Shared::new(out);
    (0..s.batch * s.heads).into_par_iter().for_each(|unit| {
        let (b, h) = (unit / s.heads, unit % s.heads);
        // SAFETY: units own disjoint heads of `out`, and each row is borrowed for one statement.
        #[allow(unsafe_code)]
        let row_of = |i: usize| unsafe { shared.slice(((b * s.queries + i) * s.heads + h) * s.dim, s.dim) };
        if s.queries == 1 {
            decode(s, (b, h), q, k, v, row_of(0));
            return;
        }
        let mut scores = Vec::new();
        let mut tile_out = vec![0f32; TILE * s.dim];
        for tile in s.tiles() {
            let keys = probabilities(s, (b, h), &tile, q, k, &mut scores);
            let (rows, n) = (tile.len(), keys.len());
            let out = &mut tile_out[..rows * s.dim];
            if n == 0 {
                out.fill(0.0);
            } else {
                let p = Matrix::new(&scores, n);
                serial((rows, s.dim, n), 1.0, p, v.head(b, keys.start, h / (s.heads / s.kv_heads)), 0.0, out, s.dim);
            }
            for (i, row) in tile.zip(out.chunks_exact(s.dim)) {
                row_of(i).copy_from_slice(row);
            }
        }
    });
}

/// One query: dot products, softmax, weighted sum; bound by reading keys and values.
fn decode(s: &Shape, (b, h): (usize, usize), q: View, k: View, v: View, out: &mut [f32]) {
    let group = h / (s.heads / s.kv_heads);
    let keys = s.visible(b, 0);
    let mut scores = vec![0f32; keys.len()];
    simd(
        #[inline(always)]
        || {
            let query = q.row(b, 0, h, s.dim);
            for (score, j) in scores.iter_mut().zip(keys.clone()) {
                *score = dot(k.row(b, j, group, s.dim), query);
            }
            simd::softmax(&mut scores, s.scale);
            out.fill(0.0);
            for (p, j) in scores.iter().zip(keys) {
                axpy(*p, v.row(b, j, group, s.dim), out);
            }
        },
    );
}

/// Fills `scores` with the probabilities of a tile, `(tile, keys)`, and returns the keys.
fn probabilities(
    s: &Shape,
    (b, h): (usize, usize),
    tile: &Range<usize>,
    q: View,
    k: View,
    scores: &mut Vec<f32>,
) -> Range<usize> {
    let keys = s.visible_to_tile(b, tile);
    let (rows, n) = (tile.len(), keys.len());
    scores.resize(rows * n, 0.0);
    if n == 0 {
        return keys;
    }
    let (q, k) = (q.head(b, tile.start, h), k.head(b, keys.start, h / (s.heads / s.kv_heads)));
    serial((rows, n, s.dim), 1.0, q, k.transposed(), 0.0, scores, n);
    for (i, row) in tile.clone().zip(scores.chunks_exact_mut(n)) {
        let seen = s.visible(b, i);
        let seen = seen.start.saturating_sub(keys.start)..seen.end.saturating_sub(keys.start);
        let (before, rest) = row.split_at_mut(seen.start.min(n));
        let (row, after) = rest.split_at_mut(seen.len());
        before.fill(0.0);
        after.fill(0.0);
        simd(
            #[inline(always)]
            || simd::softmax(row, s.scale),
        );
    }
    keys
}

/// Gradients in q, k and v from the gradient `g` of the output; dq, dk, dv are dense `(b, t, h, d)`.
///
/// With P the probabilities: `dV = Pᵀ·g`, `dP = g·Vᵀ`, `dS = P∘(dP − rowsum(P∘dP))·scale`, `dQ = dS·K`, `dK = dSᵀ·Q`
/// (Dao et al., "FlashAttention", 2022, appendix B.2).
pub(crate) fn backward(s: &Shape, [q, k, v, g]: [View; 4], grads: [&mut [f32]; 3]) {
    let [dq, dk, dv] = grads.map(Shared::new);
    let per_group = s.heads / s.kv_heads;
    (0..s.batch * s.kv_heads).into_par_iter().for_each(|unit| {
        let (b, group) = (unit / s.kv_heads, unit % s.kv_heads);
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        let mut tile_dq = vec![0f32; TILE * s.dim];
        let (mut sum_dk, mut sum_dv) = (vec![0f32; s.keys * s.dim], vec![0f32; s.keys * s.dim]);
        for h in group * per_group..(group + 1) * per_group {
            for tile in s.tiles() {
                let keys = probabilities(s, (b, h), &tile, q, k, &mut p);
                let (rows, n) = (tile.len(), keys.len());
                let tile_dq = &mut tile_dq[..rows * s.dim];
                tile_dq.fill(0.0);
                if n > 0 {
                    let (qm, gm) = (q.head(b, tile.start, h), g.head(b, tile.start, h));
                    let (km, vm) = (k.head(b, keys.start, group), v.head(b, keys.start, group));
                    let in_keys = keys.start * s.dim..keys.end * s.dim;
                    let pm = Matrix::new(&p, n);
                    serial((n, s.dim, rows), 1.0, pm.transposed(), gm, 1.0, &mut sum_dv[in_keys.clone()], s.dim);
                    dp.resize(rows * n, 0.0);
                    serial((rows, n, s.dim), 1.0, gm, vm.transposed(), 0.0, &mut dp, n);
                    simd(
                        #[inline(always)]
                        || {
                            for (p, dp) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)) {
                                let sum = dot(p, dp);
                                for (dp, p) in dp.iter_mut().zip(p) {
                                    *dp = p * (*dp - sum) * s.scale;
                                }
                            }
                        },
                    );
                    let ds = Matrix::new(&dp, n);
                    serial((rows, s.dim, n), 1.0, ds, km, 0.0, tile_dq, s.dim);
                    serial((n, s.dim, rows), 1.0, ds.transposed(), qm, 1.0, &mut sum_dk[in_keys], s.dim);
                }
                for (i, row) in tile.zip(tile_dq.chunks_exact(s.dim)) {
                    // SAFETY: this unit alone has the query heads of its group; the row is borrowed for one statement.
                    #[allow(unsafe_code)]
                    unsafe {
                        dq.slice(((b * s.queries + i) * s.heads + h) * s.dim, s.dim).copy_from_slice(row);
                    }
                }
            }
        }
        for j in 0..s.keys {
            let (from, at) = (j * s.dim..(j + 1) * s.dim, ((b * s.keys + j) * s.kv_heads + group) * s.dim);
            // SAFETY: units own disjoint key-value heads of dk and dv; each row is borrowed for one statement.
            #[allow(unsafe_code)]
            unsafe {
                dk.slice(at, s.dim).copy_from_slice(&sum_dk[from.clone()]);
                dv.slice(at, s.dim).copy_from_slice(&sum_dv[from]);
            }
        }
    });
}
