//! Attention and its gradients against plain loops in `f64`.

use super::{Numbers, Sum, arithmetics, mix, noise, rounded};
use crate::kernels::{
    attention::{self, Gradients, Packed, RowSum, Shape, View},
    operand::Matrix,
    tile::Arithmetic,
};
use crate::ops::RelativeBias;
use proptest::prelude::*;
use std::{array::from_fn, ops::Range};

/// Sizes of an attention: batch, queries, keys before them, key-value heads, heads for each of those, width.
type Sizes = (usize, usize, usize, usize, usize, usize);

fn sizes() -> impl Strategy<Value = Sizes> {
    let dim = prop_oneof![4 => 1usize..35, 1 => Just(64), 1 => Just(80), 1 => Just(128)];
    let group = prop_oneof![4 => 1usize..4, 1 => 4usize..9];
    (
        1usize..3,
        prop_oneof![1usize..8, 1usize..110],
        prop_oneof![8 => 0usize..60, 1 => 200usize..400],
        1usize..3,
        group,
        dim,
    )
}

/// With padding, texts that fill the one row, or neither, and sometimes a relative bias.
fn shape((batch, queries, past, kv_heads, group, dim): Sizes, causal: bool, window: Option<usize>, seed: u64) -> Shape {
    let random = |i: usize, n: usize| (mix(seed, i) >> 11) as usize % n;
    let (batch, past) = if seed % 3 == 2 { (1, 0) } else { (batch, past) };
    let (keys, heads, scale) = (queries + past, kv_heads * group, 1.0 / (dim as f32).sqrt());
    let range = |b: usize| {
        let (from, to) = (random(2 * b, keys + 1), random(2 * b + 1, keys + 1));
        from.min(to)..from.max(to)
    };
    let valid = (seed % 3 == 1).then(|| (0..batch).map(range).collect());
    let text = |from: usize| (from < keys).then(|| from..keys.min(from + 1 + random(100 + from, 40)));
    let segments = (seed % 3 == 2).then(|| std::iter::successors(text(0), |last| text(last.end)).collect());
    let value = |head: usize, distance: isize| (distance as f32 * 0.7).sin() - head as f32 * 0.2;
    let bias = (random(10, 3) == 0).then(|| RelativeBias::new(heads, random(11, 20), value));
    Shape { batch, queries, keys, heads, kv_heads, dim, scale, causal, window, valid, segments, bias }
}

/// Heads in the columns of a matrix.
struct Heads {
    numbers: Numbers,
    first: usize,
    stride: usize,
    t: usize,
    d: usize,
}

impl Heads {
    fn new((b, t, h, d): (usize, usize, usize, usize), kind: u64, seed: u64) -> Self {
        let (first, stride) = (seed as usize % 5, h * d + 5 + (seed >> 8) as usize % 7);
        // Spread, so that some keys weigh much more than others.
        let mut x: Vec<f32> = noise(b * t * stride, seed).iter().map(|x| x * 2.0).collect();
        // What is beside the heads is not theirs, and would show even where it is multiplied by zero.
        for row in x.chunks_exact_mut(stride) {
            row[..first].fill(f32::NAN);
            row[first + h * d..].fill(f32::NAN);
        }
        Self { numbers: Numbers::new(kind, &x), first, stride, t, d }
    }
    fn view(&self) -> View<'_> {
        View::columns(Matrix::new(self.numbers.elements(), self.stride), self.first, self.t, self.d)
    }
    fn at(&self, arithmetic: Arithmetic, (b, t, h): (usize, usize, usize), i: usize) -> f64 {
        let at = (b * self.t + t) * self.stride + self.first + h * self.d + i;
        f64::from(rounded(arithmetic, self.numbers.elements().get(at)))
    }
}

/// Attention and its gradients by their definitions, in `f64`.
struct Expected {
    /// `(b, tq, heads, d)`
    out: Vec<Sum>,
    /// `(b, tq, heads)`
    sums: Vec<f64>,
    dq: Vec<Sum>,
    /// `(b, tk, kv_heads, d)`
    dk: Vec<Sum>,
    dv: Vec<Sum>,
}

fn expected(s: &Shape, arithmetic: Arithmetic, [q, k, v, g]: [&Heads; 4]) -> Expected {
    let d = s.dim;
    let [nq, nk] = [s.queries * s.heads, s.keys * s.kv_heads].map(|n| vec![Sum::default(); s.batch * n * d]);
    let mut e = Expected { out: nq.clone(), sums: vec![], dq: nq, dk: nk.clone(), dv: nk };
    for (b, i, h) in
        (0..s.batch * s.queries * s.heads).map(|u| (u / s.heads / s.queries, u / s.heads % s.queries, u % s.heads))
    {
        let kv = h / (s.heads / s.kv_heads);
        let dot = |x: &Heads, y: &Heads, j: usize| {
            Sum::of((0..d).map(|c| x.at(arithmetic, (b, i, h), c) * y.at(arithmetic, (b, j, kv), c)))
        };
        let position = i + s.keys - s.queries;
        let text = |j: usize| s.segments.as_ref().map(|texts| texts.iter().position(|text| text.contains(&j)));
        let seen = |j: &usize| {
            let near = s.window.is_none_or(|w| position.abs_diff(*j) < w);
            let valid = s.valid.as_ref().is_none_or(|v| v[b].contains(j));
            near && valid && text(*j) == text(position) && (!s.causal || *j <= position)
        };
        let keys: Vec<usize> = (0..s.keys).filter(seen).collect();
        let bias = |j: usize| {
            let mut bias = [0.0];
            s.bias.iter().for_each(|b| b.add_to(&mut bias, h, j as isize - position as isize, 1.0));
            f64::from(bias[0])
        };
        let scores: Vec<f64> = keys.iter().map(|j| dot(q, k, *j).value * f64::from(s.scale) + bias(*j)).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
        e.sums.push(if keys.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() });
        let p: Vec<f64> = scores.iter().map(|x| (x - top).exp() / sum).collect();
        let dp: Vec<Sum> = keys.iter().map(|j| dot(g, v, *j)).collect();
        let mean = p.iter().zip(&dp).fold(Sum::default(), |mut mean, (p, dp)| {
            mean.add(p * dp.value, p * dp.size);
            mean
        });
        let query = ((b * s.queries + i) * s.heads + h) * d;
        for ((j, p), dp) in keys.into_iter().zip(p).zip(dp) {
            let key = ((b * s.keys + j) * s.kv_heads + kv) * d;
            let scale = f64::from(s.scale);
            let (ds, size) = (p * (dp.value - mean.value) * scale, p * (dp.size + mean.size) * scale);
            for c in 0..d {
                let at = |x: &Heads| x.at(arithmetic, (b, j, kv), c);
                let of = |x: &Heads| x.at(arithmetic, (b, i, h), c);
                e.out[query + c].add(p * at(v), p * at(v).abs());
                e.dq[query + c].add(ds * at(k), size * at(k).abs());
                e.dk[key + c].add(ds * of(q), size * of(q).abs());
                e.dv[key + c].add(p * of(g), p * of(g).abs());
            }
        }
    }
    e
}

#[track_caller]
fn check_all(actual: &[f32], expected: &[Sum], error: f64) {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).for_each(|(a, e)| e.check(*a, error));
}

/// Sums against their logarithms.
#[track_caller]
fn check_sums(s: &Shape, actual: &[RowSum], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        let log = f64::from(actual.top) * f64::from(s.scale) + f64::from(actual.sum).ln();
        assert!(log == *expected || (log - expected).abs() < 1e-5, "{actual:?}: {log}, not {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn attention_and_its_gradients_equal_plain_loops(
        arithmetic in arithmetics(),
        sizes in sizes(),
        (causal, window) in (any::<bool>(), prop::option::of(1usize..60)),
        (tile, seed) in (prop::sample::select(vec![5usize, 12, 48]), any::<u64>()),
    ) {
        let s = shape(sizes, causal, window, seed);
        let (query, key) = ((s.batch, s.queries, s.heads, s.dim), (s.batch, s.keys, s.kv_heads, s.dim));
        let inputs = [query, key, key, query];
        let inputs: [Heads; 4] = from_fn(|i| Heads::new(inputs[i], mix(seed, 50 + i), mix(seed, 60 + i)));
        let expected = expected(&s, arithmetic, inputs.each_ref());
        let [q, k, v, g] = inputs.each_ref().map(Heads::view);
        // Besides f32 sums, with bf16 the probabilities and their gradients are rounded to 8 bits.
        let error = if arithmetic == Arithmetic::BF16 { 1.0 / 256.0 + 4e-6 } else { 4e-6 };

        let width = s.heads * s.dim;
        let mut out = vec![f32::NAN; s.batch * s.queries * width];
        let mut sums = vec![RowSum { top: f32::NAN, sum: f32::NAN }; s.batch * s.queries * s.heads];
        let packed = Packed::new(&s, arithmetic, k, v, false);
        for (b, first) in (0..s.batch).flat_map(|b| (0..s.queries).step_by(tile).map(move |i| (b, i))) {
            let queries = first..(first + tile).min(s.queries);
            let at: Range<usize> = b * s.queries + queries.start..b * s.queries + queries.end;
            let sums = &mut sums[at.start * s.heads..at.end * s.heads];
            attention::forward(&s, &packed, (b, queries), q, &mut out[at.start * width..at.end * width], sums);
        }
        check_all(&out, &expected.out, error);
        check_sums(&s, &sums, &expected.sums);

        // Whoever shares the heads out gets the same numbers.
        let mut by_heads = vec![f32::NAN; out.len()];
        attention::over_heads(&s, arithmetic, [q, k, v], &mut by_heads);
        prop_assert!(out == by_heads);

        let packed = Packed::new(&s, arithmetic, k, v, true);
        let gradients = Gradients::new(&s, &packed, [q, g], &sums);
        let (mut dq, [mut dk, mut dv]) = (vec![f32::NAN; out.len()], from_fn(|_| vec![f32::NAN; expected.dk.len()]));
        gradients.queries(&s, &mut dq);
        gradients.keys(&s, &mut dk, &mut dv);
        check_all(&dq, &expected.dq, error);
        check_all(&dk, &expected.dk, error);
        check_all(&dv, &expected.dv, error);
    }

    #[test]
    fn attention_of_a_few_queries_equals_a_plain_loop(
        sizes in sizes(),
        (causal, window) in (any::<bool>(), prop::option::of(1usize..60)),
        seed: u64,
    ) {
        let s = shape(sizes, causal, window, seed);
        let (query, key) = ((s.batch, s.queries, s.heads, s.dim), (s.batch, s.keys, s.kv_heads, s.dim));
        let [q, k, v] = [(query, 1), (key, 2), (key, 3)].map(|(size, i)| Heads::new(size, 0, mix(seed, i)));
        let expected = expected(&s, Arithmetic::F32, [&q, &k, &v, &q]);
        let mut out = vec![f32::NAN; expected.out.len()];
        attention::decode(&s, q.view(), k.view(), v.view(), &mut out);
        check_all(&out, &expected.out, 4e-6);
        check_sums(&s, &attention::sums(&s, q.view(), k.view()), &expected.sums);
    }
}

/// Two queries over many keys.
fn of_long(q: impl Fn(usize) -> f32) -> (Shape, [Heads; 3]) {
    let s = shape((1, 2, 1001, 2, 3, 48), true, None, 0);
    let (query, key) = ((1, s.queries, s.heads, s.dim), (1, s.keys, s.kv_heads, s.dim));
    let mut heads = [(query, 1), (key, 2), (key, 3)].map(|(size, seed)| Heads::new(size, 0, seed));
    if let Numbers::F32(x) = &mut heads[0].numbers {
        x.iter_mut().enumerate().for_each(|(i, x)| *x += q(i));
    }
    (s, heads)
}

#[test]
fn a_few_queries_over_many_keys_are_the_same_on_any_number_of_threads() {
    let (s, [q, k, v]) = of_long(|_| 0.0);
    let run = |threads| {
        let mut out = vec![f32::NAN; s.queries * s.heads * s.dim];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| attention::decode(&s, q.view(), k.view(), v.view(), &mut out));
        out
    };
    let one = run(1);
    check_all(&one, &expected(&s, Arithmetic::F32, [&q, &k, &v, &q]).out, 4e-6);
    assert!(one == run(2) && one == run(3));
}

/// A query that is no number has no output that is one: its scores are no reason to take its keys for unseen.
#[test]
fn a_query_that_is_no_number_gives_none() {
    // Most of the first query, some of each of its heads.
    let (s, [q, k, v]) = of_long(|i| if i < 280 { f32::NAN } else { 0.0 });
    let run = |how: &dyn Fn(&mut [f32])| {
        let mut out = vec![0.0; s.queries * s.heads * s.dim];
        how(&mut out);
        let (of_nan, rest) = out.split_at(s.heads * s.dim);
        assert!(of_nan.iter().all(|x| x.is_nan()) && rest.iter().all(|x| x.is_finite()));
    };
    let [q, k, v] = [&q, &k, &v].map(Heads::view);
    run(&|out| attention::decode(&s, q, k, v, out));
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        run(&|out| attention::over_heads(&s, arithmetic, [q, k, v], out));
        let packed = Packed::new(&s, arithmetic, k, v, false);
        run(&|out| attention::forward(&s, &packed, (0, 0..2), q, out, &mut []));
    }
}

/// However large scores are, the largest has a probability: what differs by less than their rounding is as one. In tiles, head by head, and
/// as a few queries.
#[test]
fn scores_of_any_size_give_probabilities() {
    for (size, scale) in [1e2f32, 1e4, 1e6, 1e9].into_iter().flat_map(|size| [0.25, 0.177].map(|scale| (size, scale))) {
        let s = Shape { scale, ..shape((1, 20, 0, 2, 1, 32), true, None, 0) };
        let query = (s.batch, s.queries, s.heads, s.dim);
        let mut inputs: [Heads; 4] = from_fn(|i| Heads::new(query, 0, mix(7, i)));
        for Heads { numbers, .. } in &mut inputs[..2] {
            if let Numbers::F32(x) = numbers {
                for x in x {
                    *x *= size;
                }
            }
        }
        let expected = expected(&s, Arithmetic::F32, inputs.each_ref());
        let [q, k, v, g] = inputs.each_ref().map(Heads::view);
        let packed = Packed::new(&s, Arithmetic::F32, k, v, false);
        let [mut tiles, mut by_heads, mut few] = [(); 3].map(|()| vec![f32::NAN; expected.out.len()]);
        let mut sums = vec![RowSum::default(); expected.sums.len()];
        attention::over_tiles(&s, (&mut tiles, s.heads * s.dim), &mut sums, |b, tile, out, sums| {
            attention::forward(&s, &packed, (b, tile), q, out, sums);
        });
        attention::over_heads(&s, Arithmetic::F32, [q, k, v], &mut by_heads);
        attention::decode(&s, q, k, v, &mut few);
        // Scores of 10⁴ are off by 10⁻³ in f32; beyond that one of them is all.
        for out in [&tiles, &by_heads, &few] {
            check_all(out, &expected.out, 4e-3);
        }
        let packed = Packed::new(&s, Arithmetic::F32, k, v, true);
        let gradients = Gradients::new(&s, &packed, [q, g], &sums);
        let [mut dk, mut dv] = [(); 2].map(|()| vec![f32::NAN; expected.dv.len()]);
        gradients.keys(&s, &mut dk, &mut dv);
        check_all(&dv, &expected.dv, 4e-3);
        assert!(dk.iter().all(|x| x.is_finite()), "{size} {scale}");
    }
}

/// A text among others is the same bit for bit as alone, wherever it begins: at odd places the pairs of `bf16` must not be others. So is a
/// row with padding before it.
#[test]
fn a_text_among_others_equals_the_text_alone() {
    let (heads, d) = (3, 32);
    let width = 3 * heads * d;
    for (arithmetic, (causal, window)) in [Arithmetic::F32, Arithmetic::BF16]
        .into_iter()
        .flat_map(|a| [(false, None), (true, None), (false, Some(5)), (true, Some(6))].map(|how| (a, how)))
    {
        // Queries, keys and values side by side, of so many tokens; in tiles, and head by head.
        let run = |x: &[f32], segments: Option<Vec<Range<usize>>>, valid: Option<Range<usize>>| {
            let n = x.len() / width;
            let shape = Shape {
                batch: 1,
                queries: n,
                keys: n,
                heads,
                kv_heads: heads,
                dim: d,
                scale: 0.2,
                causal,
                window,
                valid: valid.map(|valid| std::iter::once(valid).collect()),
                segments: segments.map(Into::into),
                bias: None,
            };
            let views = from_fn(|i| View::columns(Matrix::f32(x, width), i * heads * d, n, d));
            let [q, k, v] = views;
            let packed = Packed::new(&shape, arithmetic, k, v, false);
            let [mut tiles, mut by_heads] = [(); 2].map(|()| vec![f32::NAN; n * heads * d]);
            attention::over_tiles(&shape, (&mut tiles, heads * d), &mut [], |b, tile, out, _| {
                attention::forward(&shape, &packed, (b, tile), q, out, &mut []);
            });
            attention::over_heads(&shape, arithmetic, views, &mut by_heads);
            assert!(tiles == by_heads, "{arithmetic:?}");
            tiles
        };
        let lengths = [41, 40, 1, 17, 3, 64, 7, 150, 49];
        let texts: Vec<Range<usize>> = lengths
            .iter()
            .scan(0, |end, n| {
                *end += n;
                Some(*end - n..*end)
            })
            .collect();
        let x: Vec<f32> = noise(lengths.iter().sum::<usize>() * width, 1).iter().map(|x| x * 3.0).collect();
        let all = run(&x, Some(texts.clone()), None);
        for text in &texts {
            let of_text = &x[text.start * width..text.end * width];
            let alone = run(of_text, None, None);
            let among = &all[text.start * heads * d..text.end * heads * d];
            assert!(among == alone, "{arithmetic:?}: {text:?}, causal {causal}, window {window:?}");
            let before = 5.min(text.len() - 1);
            let padded = run(of_text, None, Some(before..text.len()));
            let alone = run(&of_text[before * width..], None, None);
            assert!(padded[before * heads * d..] == alone, "{arithmetic:?}: {text:?} padded, causal {causal}");
        }
    }
}
