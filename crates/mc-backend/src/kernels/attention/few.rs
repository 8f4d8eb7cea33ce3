//! Attention of a few queries: dot products, softmax, weighted sum, of keys and values as they lie.
//!
//! Keys go in parts, and the heads that share them go over a part together, so that each row is read and widened once for several heads.
//! What the parts give is put together as in Dao et al., "Flash-Decoding for long-context inference" (2023). Parts depend on the keys that a
//! query sees and on nothing else: the result is the same on any number of threads.

use super::{RowSum, Shape, View, exponents, score_stride};
use crate::{
    kernels::{
        dots::{Number, dots},
        scratch::Scratch,
        tile::LANES,
        weighted::weighted,
    },
    weight::Elements,
};
use rayon::prelude::*;
use std::{array, ops::Range};

/// Keys of a part: few enough that short texts have parts for all threads, enough that putting them together costs little.
const PART: usize = 128;
/// Heads that go over a part together: their sums are half of the registers of AVX-512.
const TOGETHER: usize = 4;

/// `softmax(q·kᵀ·scale)·v` of a few queries: `out` is `(b, tq, heads, d)`. Keys and values are of one type.
pub(crate) fn decode(s: &Shape, q: View, k: View, v: View, out: &mut [f32]) {
    match (k.elements, v.elements) {
        (Elements::F32(keys), Elements::F32(values)) => decode_of(s, q, &KeyValues { k, keys, v, values }, out),
        (Elements::F16(keys), Elements::F16(values)) => decode_of(s, q, &KeyValues { k, keys, v, values }, out),
        (Elements::BF16(keys), Elements::BF16(values)) => decode_of(s, q, &KeyValues { k, keys, v, values }, out),
        _ => unreachable!("keys and values of two types"),
    }
}

/// Keys and values and their numbers.
struct KeyValues<'a, T> {
    k: View<'a>,
    keys: &'a [T],
    v: View<'a>,
    values: &'a [T],
}

fn decode_of<T: Number>(s: &Shape, q: View, keys: &KeyValues<T>, out: &mut [f32]) {
    /// Multiplications below which handing work over costs more than it.
    const SMALL: usize = 12 * 1024;
    let (d, group, queries) = (s.dim, s.heads / s.kv_heads, s.batch * s.queries);
    let seen: Vec<Range<usize>> = (0..queries).map(|i| s.visible(i / s.queries, i % s.queries)).collect();
    let parts = seen.iter().map(|seen| seen.len().div_ceil(PART)).max().unwrap_or(0).max(1);
    // `(query, kv_heads, part, group, d)`, and without d.
    let mut sums = vec![RowSum::default(); queries * s.kv_heads * parts * group];
    let mut weighted = Scratch::new(sums.len() * d);
    let unit = |(unit, (out, sums)): (usize, (&mut [f32], &mut [RowSum]))| {
        let (query, kv, seen) =
            (unit / parts / s.kv_heads, unit / parts % s.kv_heads, &seen[unit / parts / s.kv_heads]);
        let seen = part(seen, unit % parts);
        let first = (query / s.queries, query % s.queries, kv * group);
        over_part(s, first, &seen, q, keys, out, sums);
    };
    let (outs, rows) = (weighted.f32(), sums.len() * d);
    let outs = &mut outs[..rows];
    if queries * s.heads * s.keys * d < SMALL {
        outs.chunks_exact_mut(group * d).zip(sums.chunks_exact_mut(group)).enumerate().for_each(unit);
    } else {
        let units = outs.par_chunks_exact_mut(group * d).zip(sums.par_chunks_exact_mut(group));
        units.enumerate().for_each(unit);
    }
    for (h, out) in out.chunks_exact_mut(d).enumerate() {
        let first = h / group * parts * group + h % group;
        let parts = (0..parts).map(|part| first + part * group);
        put_together(parts.map(|at| (&outs[at * d..][..d], sums[at])), s.scale, out);
    }
}

/// The keys of a part, none beyond the last: parts are as long as each other, of whole vectors of scores, but for the last.
fn part(seen: &Range<usize>, part: usize) -> Range<usize> {
    let len = seen.len().div_ceil(seen.len().div_ceil(PART).max(1)).next_multiple_of(LANES);
    let start = (seen.start + part * len).min(seen.end);
    start..(start + len).min(seen.end)
}

/// What a part of the keys gives to all heads of a query that share them, from head h on: sums of values, and what these are to be divided by.
fn over_part<T: Number>(
    s: &Shape,
    (b, i, h): (usize, usize, usize),
    seen: &Range<usize>,
    q: View,
    keys: &KeyValues<T>,
    out: &mut [f32],
    sums: &mut [RowSum],
) {
    if seen.is_empty() {
        return sums.fill(RowSum::default());
    }
    let heads = out.chunks_mut(TOGETHER * s.dim).zip(sums.chunks_mut(TOGETHER)).enumerate();
    for (block, (out, sums)) in heads {
        let first = (b, i, h + block * TOGETHER);
        match sums.len() {
            1 => of_heads::<T, 1>(s, first, seen, q, keys, out, sums),
            2 => of_heads::<T, 2>(s, first, seen, q, keys, out, sums),
            3 => of_heads::<T, 3>(s, first, seen, q, keys, out, sums),
            _ => of_heads::<T, TOGETHER>(s, first, seen, q, keys, out, sums),
        }
    }
}

/// [`over_part`] of H heads.
fn of_heads<T: Number, const H: usize>(
    s: &Shape,
    (b, i, h): (usize, usize, usize),
    seen: &Range<usize>,
    q: View,
    keys: &KeyValues<T>,
    out: &mut [f32],
    sums: &mut [RowSum],
) {
    let mut scores = [[0f32; PART]; H];
    let scores = scores.as_flattened_mut();
    sums.copy_from_slice(&exponents_of::<T, H>(s, (b, i, h), seen, q, (keys.k, keys.keys), scores));
    let values = keys.v.rows(keys.values, (b, seen.start, h / (s.heads / s.kv_heads)));
    weighted::<T, H>(values, seen.len(), (scores, PART), out);
}

/// The mean of values of several parts, each its sum of values and what it is to be divided by: the sums are of exponents less a top of
/// their own.
fn put_together<'a>(parts: impl Iterator<Item = (&'a [f32], RowSum)> + Clone, scale: f32, out: &mut [f32]) {
    // Of no key there is neither.
    let parts = parts.filter(|(_, part)| part.sum != 0.0);
    let top = parts.clone().fold(f32::NEG_INFINITY, |top, (_, part)| top.max(part.top));
    let mut all = RowSum { top, sum: 0.0 };
    out.fill(0.0);
    // Scores of −∞ alone are no number by themselves, and nothing beside others.
    for (values, part) in parts.filter(|(_, part)| part.top > f32::NEG_INFINITY || top == f32::NEG_INFINITY) {
        let weight = ((part.top - top) * scale).exp();
        all.sum += weight * part.sum;
        out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
    }
    let inverse = all.inverse();
    for out in out.iter_mut() {
        *out *= inverse;
    }
}

/// What the rows of a few queries sum up to, which [`decode`] does not keep.
pub(crate) fn sums(s: &Shape, q: View, k: View) -> Vec<RowSum> {
    let Elements::F32(keys) = k.elements else { unreachable!("whose gradients are wanted is f32") };
    let sum = |unit: usize| {
        let (b, i, h) = s.query(unit);
        let seen = s.visible(b, i);
        if seen.is_empty() {
            return RowSum::default();
        }
        let mut scores = Scratch::new(score_stride(seen.len()));
        let [sum] = exponents_of(s, (b, i, h), &seen, q, (k, keys), scores.f32());
        sum
    };
    (0..s.batch * s.queries * s.heads).map(sum).collect()
}

/// What [`exponents`] makes of the scores of H heads of query i, from head h on, against keys that they share. Each head has its part of
/// `scores`.
fn exponents_of<T: Number, const H: usize>(
    s: &Shape,
    (b, i, h): (usize, usize, usize),
    seen: &Range<usize>,
    q: View,
    (k, keys): (View, &[T]),
    scores: &mut [f32],
) -> [RowSum; H] {
    let Elements::F32(queries) = q.elements else { unreachable!("queries are f32") };
    let (n, stride) = (seen.len(), scores.len() / H);
    let x: [&[f32]; H] = array::from_fn(|e| q.row(queries, (b, i, h + e), s.dim));
    dots(k.rows(keys, (b, seen.start, h / (s.heads / s.kv_heads))), n, x, (scores, stride));
    array::from_fn(|e| {
        let scores = &mut scores[e * stride..][..stride];
        s.add_bias(&mut scores[..n], (i, h + e), seen.start);
        exponents(scores, n, s.scale)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_keys_in_order() {
        for (start, len) in (0..700usize).map(|n| (n % 53, n)).chain([(0, 4096), (7, 65_535)]) {
            let seen = start..start + len;
            let count = len.div_ceil(PART);
            let parts: Vec<_> = (0..count + 2).map(|i| part(&seen, i)).collect();
            let all: Vec<usize> = parts.iter().cloned().flatten().collect();
            assert_eq!(all, seen.collect::<Vec<_>>());
            assert!(parts.iter().all(|part| part.len() <= PART));
            assert!(parts[..count.saturating_sub(1)].iter().all(|part| part.len() >= PART / 2), "{parts:?}");
        }
    }

    /// Of parts whose tops are far apart, of no key, of nothing but −∞ and of no number.
    #[test]
    fn parts_are_put_together_as_one_row_would_be() {
        let part = |top, sum, value| ([value; 2], RowSum { top, sum });
        let of = |parts: &[([f32; 2], RowSum)], scale| {
            let mut out = [f32::NAN; 2];
            put_together(parts.iter().map(|(values, sum)| (&values[..], *sum)), scale, &mut out);
            assert_eq!(out[0].to_bits(), out[1].to_bits());
            out[0]
        };
        // Values 3 and 5 at scores 2 and 1, half of the scale.
        let e = (-0.5f32).exp();
        assert!((of(&[part(2.0, 1.0, 3.0), part(1.0, 1.0, 5.0)], 0.5) - (3.0 + 5.0 * e) / (1.0 + e)).abs() < 1e-6);
        assert_eq!(of(&[part(500.0, 2.0, 3.0), part(-500.0, 1.0, 5.0)], 1.0), 1.5);
        let nothing = ([f32::NAN; 2], RowSum::default());
        assert_eq!(of(&[nothing, part(-3.0, 4.0, 8.0), nothing], 1.0), 2.0);
        assert_eq!(of(&[nothing, nothing], 1.0), 0.0);
        let infinite = ([f32::NAN; 2], RowSum { top: f32::NEG_INFINITY, sum: f32::NAN });
        assert_eq!(of(&[infinite, part(-3.0, 4.0, 8.0)], 1.0), 2.0);
        assert!(of(&[infinite, infinite], 1.0).is_nan());
        assert!(of(&[part(1.0, f32::NAN, 1.0), part(9.0, 1.0, 1.0)], 1.0).is_nan());
        assert!(of(&[part(f32::INFINITY, f32::NAN, 1.0), part(9.0, 1.0, 1.0)], 1.0).is_nan());
    }
}
