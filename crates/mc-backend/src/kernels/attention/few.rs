//! Attention of a few queries: dot products, softmax, weighted sum, of keys and values as they lie.
//!
//! Each head of each query by itself: the heads that share keys read them from a cache that all cores share. Keys in pieces, which
//! those heads go over together, were no faster (docs/benchmarks.md).

use super::{RowSum, Shape, View, exponents, score_stride};
use crate::{
    kernels::{
        dots::{Number, dots},
        scratch::Scratch,
        weighted::weighted,
    },
    weight::Elements,
};
use rayon::prelude::*;

/// `softmax(q·kᵀ·scale)·v` of a few queries: `out` is `(b, tq, heads, d)`. Keys and values are of one type.
pub(crate) fn decode(s: &Shape, q: View, k: View, v: View, out: &mut [f32]) {
    match (k.elements, v.elements) {
        (Elements::F32(keys), Elements::F32(values)) => of_elements(s, q, (k, keys), (v, values), out),
        (Elements::F16(keys), Elements::F16(values)) => of_elements(s, q, (k, keys), (v, values), out),
        (Elements::BF16(keys), Elements::BF16(values)) => of_elements(s, q, (k, keys), (v, values), out),
        _ => unreachable!("keys and values of two types"),
    }
}

/// [`decode`] of elements of type T.
fn of_elements<T: Number>(s: &Shape, q: View, (k, keys): (View, &[T]), (v, values): (View, &[T]), out: &mut [f32]) {
    /// Multiplications below which handing work over costs more than it.
    const SMALL: usize = 12 * 1024;
    let (d, group) = (s.dim, s.heads / s.kv_heads);
    let unit = |(unit, out): (usize, &mut [f32])| {
        let (b, i, h) = s.query(unit);
        let seen = s.visible(b, i);
        let mut scores = Scratch::new(score_stride(seen.len()));
        let inverse = exponents_of(s, (b, i, h), q, (k, keys), scores.f32()).inverse();
        weighted(|j| v.row(values, (b, seen.start + j, h / group), d), &scores.numbers()[..seen.len()], out);
        for o in out.iter_mut() {
            *o *= inverse;
        }
    };
    if s.batch * s.queries * s.heads * s.keys * d < SMALL {
        out.chunks_exact_mut(d).enumerate().for_each(unit);
    } else {
        out.par_chunks_exact_mut(d).enumerate().for_each(unit);
    }
}

/// What the rows of a few queries sum up to, which [`decode`] does not keep.
pub(crate) fn sums(s: &Shape, q: View, k: View) -> Vec<RowSum> {
    let Elements::F32(keys) = k.elements else { unreachable!("whose gradients are wanted is f32") };
    let sum = |unit: usize| {
        let (b, i, h) = s.query(unit);
        exponents_of(s, (b, i, h), q, (k, keys), Scratch::new(score_stride(s.visible(b, i).len())).f32())
    };
    (0..s.batch * s.queries * s.heads).map(sum).collect()
}

/// What [`exponents`] makes of the scores of head h of query i against the keys that it sees.
fn exponents_of<T: Number>(
    s: &Shape,
    (b, i, h): (usize, usize, usize),
    q: View,
    (k, keys): (View, &[T]),
    scores: &mut [f32],
) -> RowSum {
    let Elements::F32(queries) = q.elements else { unreachable!("queries are f32") };
    let (seen, kv) = (s.visible(b, i), h / (s.heads / s.kv_heads));
    let query = q.row(queries, (b, i, h), s.dim);
    dots(|j| k.row(keys, (b, seen.start + j, kv), s.dim), query, &mut scores[..seen.len()]);
    s.add_bias(&mut scores[..seen.len()], (i, h), seen.start);
    exponents(scores, seen.len(), s.scale)
}
