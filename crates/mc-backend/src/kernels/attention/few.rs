//! Attention of a few queries: dot products, softmax, weighted sum, of keys and values as they lie.
//!
//! Each head of each query by itself: the heads that share keys read them from a cache that all cores share. Keys in pieces, which
//! those heads go over together, were no faster (docs/benchmarks.md).

use super::{RowSum, Shape, View, exponents, score_stride};
use crate::kernels::{
    dots::dots,
    scratch::Scratch,
    simd::{self, simd},
};
use rayon::prelude::*;

/// `softmax(q·kᵀ·scale)·v` of a few queries: `out` is `(b, tq, heads, d)`.
pub(crate) fn decode(s: &Shape, q: View, k: View, v: View, out: &mut [f32]) {
    /// Multiplications below which handing work over costs more than it.
    const SMALL: usize = 12 * 1024;
    let (d, group) = (s.dim, s.heads / s.kv_heads);
    let unit = |(unit, out): (usize, &mut [f32])| {
        let (b, i, h) = s.query(unit);
        let keys = s.visible(b, i);
        let mut scores = Scratch::new(score_stride(keys.len()));
        let inverse = exponents_of(s, (b, i, h), (q, k), scores.f32()).inverse();
        let scores = &scores.numbers()[..keys.len()];
        simd(
            #[inline(always)]
            || {
                simd::weighted(|j| v.row(b, keys.start + j, h / group, d), scores, out);
                for o in out.iter_mut() {
                    *o *= inverse;
                }
            },
        );
    };
    if s.batch * s.queries * s.heads * s.keys * d < SMALL {
        out.chunks_exact_mut(d).enumerate().for_each(unit);
    } else {
        out.par_chunks_exact_mut(d).enumerate().for_each(unit);
    }
}

/// What the rows of a few queries sum up to, which [`decode`] does not keep.
pub(crate) fn sums(s: &Shape, q: View, k: View) -> Vec<RowSum> {
    let sum = |unit: usize| {
        let (b, i, h) = s.query(unit);
        exponents_of(s, (b, i, h), (q, k), Scratch::new(score_stride(s.visible(b, i).len())).f32())
    };
    (0..s.batch * s.queries * s.heads).map(sum).collect()
}

/// What [`exponents`] makes of the scores of head h of query i against the keys that it sees.
fn exponents_of(s: &Shape, (b, i, h): (usize, usize, usize), (q, k): (View, View), scores: &mut [f32]) -> RowSum {
    let (keys, kv) = (s.visible(b, i), h / (s.heads / s.kv_heads));
    dots(|j| k.row(b, keys.start + j, kv, s.dim), q.row(b, i, h, s.dim), &mut scores[..keys.len()]);
    s.add_bias(&mut scores[..keys.len()], (i, h), keys.start);
    exponents(scores, keys.len(), s.scale)
}
