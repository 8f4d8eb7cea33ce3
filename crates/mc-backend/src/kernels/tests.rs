//! Properties of the kernels: they compute what a plain loop in `f64` does, whatever shapes, strides and offsets are, and
//! write nothing but their results. In a debug build what nobody wrote is NaN. Knows nothing of ops, but for one test.

mod attention;

use super::{
    compact::{self, Compact},
    few::{self, Factor, Low},
    operand::{Matrix, Panels, Part, Rows, round, widen},
    simd, tall,
    tile::{Arithmetic, LANES, Start},
    transpose,
};
use crate::weight::Elements;
use half::{bf16, f16};
use proptest::{collection::vec as some, prelude::*};
use std::array::from_fn;

/// SplitMix64 (Steele, Lea and Flood, 2014) at position `i` of stream `seed`.
fn mix(seed: u64, i: usize) -> u64 {
    let mut z = (seed ^ (i as u64).wrapping_mul(0xD1B5_4A32_D192_ED03)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// Numbers in −1..1.
pub(super) fn noise(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| (mix(seed, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// A matrix of any kind of elements.
#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Numbers {
    fn new(kind: u64, x: &[f32]) -> Self {
        match kind % 3 {
            0 => Self::F32(x.to_vec()),
            1 => Self::F16(x.iter().map(|x| f16::from_f32(*x)).collect()),
            _ => Self::BF16(x.iter().map(|x| bf16::from_f32(*x)).collect()),
        }
    }
    /// Any bits: infinities, NaN and subnormal numbers as well.
    fn of_any_bits(kind: u64, n: usize, seed: u64) -> Self {
        match kind % 3 {
            0 => Self::F32((0..n).map(|i| f32::from_bits(mix(seed, i) as u32)).collect()),
            1 => Self::F16((0..n).map(|i| f16::from_bits(mix(seed, i) as u16)).collect()),
            _ => Self::BF16((0..n).map(|i| bf16::from_bits(mix(seed, i) as u16)).collect()),
        }
    }
    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(x) => Elements::F32(x),
            Self::F16(x) => Elements::F16(x),
            Self::BF16(x) => Elements::BF16(x),
        }
    }
}

fn arithmetics() -> impl Strategy<Value = Arithmetic> {
    prop_oneof![Just(Arithmetic::F32), Just(Arithmetic::BF16)]
}

/// What a product reads in place of x.
fn rounded(arithmetic: Arithmetic, x: f32) -> f32 {
    match arithmetic {
        Arithmetic::F32 => x,
        Arithmetic::BF16 => bf16::from_f32(x).to_f32(),
    }
}

/// Number `i` of a row of units.
fn number(arithmetic: Arithmetic, units: &[u32], i: usize) -> f32 {
    match arithmetic {
        Arithmetic::F32 => f32::from_bits(units[i]),
        Arithmetic::BF16 => bf16::from_bits((units[i / 2] >> (16 * (i % 2))) as u16).to_f32(),
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Whether this is x rounded; a CPU that multiplies `bf16` makes zero of what is not normal.
fn is_rounded(arithmetic: Arithmetic, found: f32, x: f32) -> bool {
    let as_zero = arithmetic == Arithmetic::BF16 && super::round::has_fast() && x.is_subnormal() && found == 0.0;
    same(found, rounded(arithmetic, x)) || as_zero
}

/// A sum, and that of its terms' magnitudes, which is the measure of what rounding may do to it.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    value: f64,
    size: f64,
}

impl Sum {
    fn of(terms: impl IntoIterator<Item = f64>) -> Self {
        let mut sum = Self::default();
        terms.into_iter().for_each(|t| sum.add(t, t.abs()));
        sum
    }
    fn add(&mut self, value: f64, size: f64) {
        self.value += value;
        self.size += size;
    }
    #[track_caller]
    fn check(self, x: f32, error: f64) {
        let off = (f64::from(x) - self.value).abs();
        assert!(off <= error * self.size + 1e-30, "{x}, expected {self:?}: off by {off:e}");
    }
}

/// A right side in the making: places along the depth (first unit, numbers) and across (first column, columns).
struct Grid {
    deep: Vec<(usize, usize)>,
    wide: Vec<(usize, usize)>,
    depth: usize,
    cols: usize,
}

impl Grid {
    /// From numbers and the gap before them, of which the last ones are for the end.
    fn new(arithmetic: Arithmetic, deep: &[(usize, usize)], wide: &[(usize, usize, bool)]) -> Self {
        let (mut depth, mut cols) = (deep[0].1 / 2, wide[0].1 / 2);
        let deep = deep.iter().map(|(numbers, gap)| {
            let at = depth;
            depth += arithmetic.units(*numbers) + gap;
            (at, *numbers)
        });
        let deep = deep.collect();
        let wide = wide.iter().map(|(width, gap, aligned)| {
            let at = if *aligned { cols.next_multiple_of(LANES) } else { cols };
            cols = at + width + gap;
            (at, *width)
        });
        Self { wide: wide.collect(), deep, depth, cols }
    }
}

/// A matrix in memory, no element longer than it has to be.
struct Stored {
    numbers: Numbers,
    offset: usize,
    stride: usize,
    transposed: bool,
}

impl Stored {
    /// That of a part of this size.
    fn new((deep, wide): (usize, usize), seed: u64) -> Self {
        let transposed = mix(seed, 1).is_multiple_of(2);
        let (rows, width) = if transposed { (wide, deep) } else { (deep, wide) };
        let (offset, stride) = (mix(seed, 2) as usize % 6, width + mix(seed, 3) as usize % 9);
        let numbers = Numbers::new(mix(seed, 4), &noise(offset + (rows - 1) * stride + width, seed));
        Self { numbers, offset, stride, transposed }
    }
    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.numbers.elements(), self.stride).from(self.offset)
    }
    /// Number l of column j of the right side.
    fn at(&self, l: usize, j: usize) -> f32 {
        let (row, col) = if self.transposed { (j, l) } else { (l, j) };
        self.numbers.elements().get(self.offset + row * self.stride + col)
    }
}

/// Deeper than a piece, whatever the product is added to and whichever columns are asked for.
#[test]
fn deep_products_go_in_pieces() {
    for (arithmetic, rows, cols, deep) in [
        (Arithmetic::F32, 1, 5, 1281),
        (Arithmetic::F32, 7, 70, 2600),
        (Arithmetic::F32, 13, 130, 3001),
        (Arithmetic::BF16, 8, 97, 5203),
    ] {
        let (x, w) = (noise(rows * deep, 1), noise(cols * deep, 2));
        let a = Rows::of(arithmetic, &x, deep);
        let part = Part { depth: 0, col: 0, size: (deep, cols), matrix: Matrix::f32(&w, deep), transposed: true };
        let panels = Panels::pack(arithmetic, arithmetic.units(deep), cols, &[part]);
        let (row, matrix) = (noise(cols, 3), noise(rows * (cols + 3), 4));
        for first in (0..cols).step_by(4 * LANES) {
            let (n, stride) = (cols - first, cols + 1);
            for start in [Start::Zero, Start::Row(&row), Start::Matrix(&matrix, cols + 3), Start::Itself] {
                let mut c = noise(rows * stride, 5);
                let before = c.clone();
                panels.multiply_cols(rows, a.left(), first..cols, start, (&mut c, stride));
                for (i, j) in (0..rows).flat_map(|i| (0..stride).map(move |j| (i, j))) {
                    let at = i * stride + j;
                    if j >= n {
                        assert_eq!(c[at].to_bits(), before[at].to_bits(), "written beside the product");
                        continue;
                    }
                    let added = match start {
                        Start::Zero => 0.0,
                        Start::Row(row) => row[j],
                        Start::Matrix(m, stride) => m[i * stride + j],
                        Start::Itself => before[at],
                    };
                    let number = |x: f32| f64::from(rounded(arithmetic, x));
                    let terms = (0..deep).map(|l| number(x[i * deep + l]) * number(w[(first + j) * deep + l]));
                    Sum::of(terms.chain([f64::from(added)])).check(c[at], 1e-6);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Parts side by side along the depth and across, some places left out.
    #[test]
    fn products_with_panels_equal_a_triple_loop(
        arithmetic in arithmetics(),
        m in 1usize..40,
        deep in some((1usize..150, 0usize..3), 1..4),
        wide in some((1usize..100, 0usize..20, any::<bool>()), 1..4),
        part in prop::option::of((0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0)),
        (start, gap, seed) in (0usize..4, 0usize..7, any::<u64>()),
    ) {
        let (grid, per) = (Grid::new(arithmetic, &deep, &wide), arithmetic.per_unit());
        let places = grid.deep.iter().flat_map(|d| grid.wide.iter().map(move |w| (*d, *w))).enumerate();
        let stored: Vec<_> = places
            .filter(|(i, _)| !mix(seed, *i).is_multiple_of(4))
            .map(|(i, (d, w))| (d, w, Stored::new((d.1, w.1), seed ^ i as u64)))
            .collect();
        let mut b = vec![0f64; grid.depth * per * grid.cols];
        for ((depth, deep), (col, wide), stored) in &stored {
            for (l, j) in (0..*deep).flat_map(|l| (0..*wide).map(move |j| (l, j))) {
                b[(depth * per + l) * grid.cols + col + j] = f64::from(rounded(arithmetic, stored.at(l, j)));
            }
        }
        let parts = stored.iter().map(|((depth, deep), (col, wide), s)| Part {
            depth: *depth,
            col: *col,
            size: (*deep, *wide),
            matrix: s.matrix(),
            transposed: s.transposed,
        });
        let parts: Vec<_> = parts.collect();
        let panels = [Panels::pack, Panels::pack_here].map(|pack| pack(arithmetic, grid.depth, grid.cols, &parts));

        // The left side has numbers even where the right one has none.
        let x = noise(m * grid.depth * per, !seed);
        let a = Rows::of(arithmetic, &x, grid.depth * per);
        let (depth, cols) = part.map_or((0..grid.depth, 0..grid.cols), |(d0, d1, c0, c1)| {
            let within = |n: usize, a: f64, b: f64| (n as f64 * a.min(b)) as usize..(n as f64 * a.max(b)) as usize;
            let cols = within(grid.cols, c0, c1);
            (within(grid.depth, d0, d1), cols.start / LANES * LANES..cols.end)
        });
        let (n, stride) = (cols.len(), cols.len() + gap);
        let begin = noise(m * stride, seed.rotate_left(7));
        let mut c = vec![f32::NAN; ((m - 1) * stride + n) * usize::from(n > 0)];
        if start == 3 {
            c.chunks_mut(stride.max(1)).zip(begin.chunks(stride.max(1))).for_each(|(c, b)| c[..n].copy_from_slice(&b[..n]));
        }
        let how = [Start::Zero, Start::Row(&begin), Start::Matrix(&begin, stride), Start::Itself][start];
        let results = panels.map(|panels| {
            let mut c = c.clone();
            if part.is_some() {
                let a = (&a.units[depth.start..], a.stride);
                panels.multiply_part(m, a, (depth.clone(), cols.clone()), how, (&mut c, stride));
            } else {
                panels.multiply(m, a.left(), how, (&mut c, stride));
            }
            c
        });
        prop_assert!(results[0].iter().zip(&results[1]).all(|(a, b)| same(*a, *b)), "packed in parallel or here");
        for (e, c) in results[0].iter().enumerate() {
            let (i, j) = (e / stride, e % stride);
            if j >= n {
                prop_assert!(c.is_nan(), "written between rows");
                continue;
            }
            let term = |l: usize| f64::from(rounded(arithmetic, x[i * grid.depth * per + l])) * b[l * grid.cols + cols.start + j];
            let first = [0.0, begin[j], begin[i * stride + j], begin[i * stride + j]][start];
            let terms = (depth.start * per..depth.end * per).map(term);
            Sum::of(terms.chain([f64::from(first)])).check(*c, 1e-6);
        }
    }

    /// Bit for bit where panels take the depth in one piece, the right side being part of wider rows, with anything behind it.
    #[test]
    fn tall_products_are_those_with_panels(
        arithmetic in arithmetics(),
        (rows, n, cols) in (1usize..30, 1usize..150, 1usize..300),
        (gap, seed) in (0usize..40, any::<u64>()),
    ) {
        let left = Rows::of(arithmetic, &noise(rows * n, seed), n);
        let mut right = Rows::new(arithmetic, n, &[cols, gap]);
        right.units.fill(f32::NAN.to_bits());
        let numbers = noise(n * cols, !seed);
        for (units, x) in right.units.chunks_exact_mut(right.stride).zip(numbers.chunks_exact(cols)) {
            round(arithmetic, x, units);
        }
        let part = Part { depth: 0, col: 0, size: (n, cols), matrix: right.matrix(0), transposed: false };
        let panels = Panels::pack_here(arithmetic, arithmetic.units(n), cols, &[part]);
        let mut expected = vec![0f32; rows * cols];
        panels.multiply(rows, left.left(), Start::Zero, (&mut expected, cols));
        let found = tall::multiply(&left, rows, &right, (n, cols));
        prop_assert!(found.len() == rows * cols && found.iter().zip(&expected).all(|(a, b)| same(*a, *b)));
    }

    /// Deeper than the pieces in which panels would go.
    #[test]
    fn tall_products_equal_a_triple_loop(
        arithmetic in arithmetics(),
        (rows, n, cols) in (1usize..10, prop_oneof![1usize..300, 1usize..6000], 1usize..20),
        seed: u64,
    ) {
        let (x, w) = (noise(rows * n, seed), noise(n * cols, !seed));
        let (left, right) = (Rows::of(arithmetic, &x, n), Rows::of(arithmetic, &w, cols));
        for (e, y) in tall::multiply(&left, rows, &right, (n, cols)).into_iter().enumerate() {
            let number = |x: f32| f64::from(rounded(arithmetic, x));
            let term = |l: usize| number(x[e / cols * n + l]) * number(w[l * cols + e % cols]);
            Sum::of((0..n).map(term)).check(y, 1e-6);
        }
    }

    /// Exactly, whatever the bits, with zero after an odd number.
    #[test]
    fn a_transpose_holds_the_rounded_numbers(
        arithmetic in arithmetics(),
        (n, width) in (1usize..150, 1usize..70),
        (offset, gap, kind, seed) in (0usize..6, 0usize..9, 0u64..3, any::<u64>()),
    ) {
        let stride = width + gap;
        let numbers = Numbers::of_any_bits(kind, offset + (n - 1) * stride + width, seed);
        let rows = Rows::transposed(arithmetic, Matrix::new(numbers.elements(), stride).from(offset), n, width);
        for j in 0..width {
            let row = rows.row(j);
            for i in 0..n {
                let x = numbers.elements().get(offset + i * stride + j);
                prop_assert!(is_rounded(arithmetic, number(arithmetic, row, i), x), "({i}, {j})");
            }
            prop_assert!((n..row.len() * arithmetic.per_unit()).all(|i| number(arithmetic, row, i).to_bits() == 0));
        }
    }

    #[test]
    fn rounding_is_that_of_half(arithmetic in arithmetics(), n in 0usize..100, seed: u64) {
        let Numbers::F32(x) = Numbers::of_any_bits(0, n, seed) else { unreachable!() };
        let (units, junk) = (arithmetic.units(n), 0xABCD_EF01);
        let mut out = vec![junk; units + 3];
        round(arithmetic, &x, &mut out);
        prop_assert!((0..n).all(|i| is_rounded(arithmetic, number(arithmetic, &out, i), x[i])));
        prop_assert!((n..units * arithmetic.per_unit()).all(|i| number(arithmetic, &out, i).to_bits() == 0));
        prop_assert!(out[units..].iter().all(|u| *u == junk));
        let mut back = vec![f32::NAN; n];
        widen(arithmetic, &out[..units], &mut back);
        prop_assert!((0..n).all(|i| is_rounded(arithmetic, back[i], x[i])));
    }

    #[test]
    fn pairs_are_of_two_rows(n in 0usize..12, gap in 0usize..9, seed: u64) {
        let stride = LANES + gap;
        let len = (2 * n * stride).saturating_sub(gap);
        let (Numbers::F32(x), Numbers::BF16(h)) = (Numbers::of_any_bits(0, len, seed), Numbers::of_any_bits(2, len, seed))
        else { unreachable!() };
        let (mut rounded_pairs, mut pairs) = (vec![[1; LANES]; n], vec![[1; LANES]; n]);
        simd::pairs(&x, stride, &mut rounded_pairs);
        simd::pairs(&h, stride, &mut pairs);
        for (i, j) in (0..2 * n).flat_map(|i| (0..LANES).map(move |j| (i, j))) {
            let half = |pairs: &[[u32; LANES]]| number(Arithmetic::BF16, &[pairs[i / 2][j]], i % 2);
            prop_assert!(is_rounded(Arithmetic::BF16, half(&rounded_pairs), x[i * stride + j]));
            prop_assert!(same(half(&pairs), h[i * stride + j].to_f32()));
        }
    }

    #[test]
    fn a_square_is_transposed(seed: u64) {
        let square: [[u32; LANES]; LANES] = from_fn(|i| from_fn(|j| mix(seed, i * LANES + j) as u32));
        let mut turned = square;
        transpose::transpose(&mut turned);
        prop_assert!((0..LANES).all(|i| (0..LANES).all(|j| turned[i][j] == square[j][i])));
    }

    #[test]
    fn products_of_a_few_rows_equal_a_triple_loop(
        (n, k) in (1..=few::FEW, 1usize..1200),
        members in some((1usize..250, 0usize..20, any::<bool>(), 0usize..5), 1..4),
        (gap, seed) in (0usize..5, any::<u64>()),
    ) {
        struct Data {
            w: Numbers,
            compact: Option<Compact>,
            bias: Vec<f32>,
            h: Vec<f32>,
            b: Vec<f32>,
        }
        let data = |(i, (out, _, _, rank)): (usize, &(usize, usize, bool, usize))| {
            let seed = mix(seed, i);
            let w = Numbers::new(seed, &noise(out * k, seed));
            let compact = match w.elements() {
                Elements::BF16(w) if compact::serves(k) && seed.is_multiple_of(2) => Compact::new(w, k),
                _ => None,
            };
            Data { w, compact, bias: noise(*out, seed ^ 1), h: noise(n * rank, seed ^ 2), b: noise(out * rank, seed ^ 3) }
        };
        let data: Vec<_> = members.iter().enumerate().map(data).collect();
        let mut width = 0;
        let factors = members.iter().zip(&data).map(|((out, gap, bias, rank), d)| {
            let first = width + gap;
            width = first + out;
            let low = (*rank > 0).then_some(Low { h: &d.h, b: &d.b, rank: *rank });
            Factor { w: Matrix::new(d.w.elements(), k), compact: d.compact.as_ref(), bias: bias.then_some(&d.bias), low, first }
        });
        let factors: Vec<_> = factors.collect();
        let (stride, x) = (width + gap, noise(n * k, !seed));
        let mut y = vec![f32::NAN; (n - 1) * stride + width];
        few::times_transposed(n, &x, &factors, (&mut y, stride));
        let as_it_lies: Vec<_> = factors.iter().map(|f| Factor { compact: None, ..*f }).collect();
        let mut same = vec![f32::NAN; y.len()];
        few::times_transposed(n, &x, &as_it_lies, (&mut same, stride));
        prop_assert!(y.iter().zip(&same).all(|(a, b)| a.to_bits() == b.to_bits()), "the compact form gives something else");
        for ((f, d), (out, ..)) in factors.iter().zip(&data).zip(&members) {
            for (i, j) in (0..n).flat_map(|i| (0..*out).map(move |j| (i, j))) {
                let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
                let terms = (0..k).map(|l| product(x[i * k + l], d.w.elements().get(j * k + l)));
                let low = f.low.into_iter().flat_map(|l| (0..l.rank).map(move |r| product(l.h[i * l.rank + r], l.b[j * l.rank + r])));
                let bias = f.bias.map_or(0.0, |b| f64::from(b[j]));
                let y = &mut y[i * stride + f.first + j];
                Sum::of(terms.chain(low).chain([bias])).check(*y, 1e-6);
                *y = f32::NAN;
            }
        }
        prop_assert!(y.iter().all(|y| y.is_nan()), "written beside the products");
    }
}

mod ops {
    //! The ops that take buffers write all that they read of them: in a debug build a new buffer holds NaN.

    use super::*;
    use crate::{
        Weight,
        ops::{self, Attention, FeedForward, Linear, Lora, Rope, SelfAttention},
    };
    use candle_core::{DType, Device, Result, Tensor, Var};
    use mc_testkit::random;

    /// Values and gradients of both halves of a block, with and without a graph.
    fn block(arithmetic: Arithmetic) -> Result<Vec<Vec<f32>>> {
        let (batch, t, hidden, inner, d, rank) = (2, 37, 33, 51, 10, 3);
        let weight =
            |seed, shape| Ok(Weight::from_tensor(&random(seed, shape, DType::BF16))?.with_arithmetic(arithmetic));
        let low = |seed, (outer, inner)| -> Result<[Var; 2]> {
            let of = |seed, shape: (usize, usize)| Var::from_tensor(&random(seed, shape, DType::F32));
            Ok([of(seed, (rank, inner))?, of(seed + 1, (outer, rank))?])
        };
        let shapes = [(6 * d, hidden), (2 * d, hidden), (2 * d, hidden), (hidden, 6 * d)];
        let wide = [(inner, hidden), (inner, hidden), (hidden, inner)];
        let shapes = [&shapes[..], &wide].concat();
        let weights: Vec<Weight> = (0..7).map(|i| weight(i, shapes[i as usize])).collect::<Result<_>>()?;
        let lows: Vec<_> = (0..7).map(|i| low(20 + 2 * i, shapes[i as usize])).collect::<Result<_>>()?;
        let linear = |i: usize| {
            let [a, b] = &lows[i];
            Linear { weight: &weights[i], bias: None, lora: Some(Lora { a, b, scale: 0.5, dropout: None }) }
        };
        let (norm, x) =
            (random(50, hidden, DType::F32), Var::from_tensor(&random(51, (batch, t, hidden), DType::F32))?);
        let attending = SelfAttention {
            norm: &norm,
            eps: 1e-5,
            q: linear(0),
            k: linear(1),
            v: linear(2),
            o: linear(3),
            head_norms: None,
            head_dim: d,
            rope: &Rope::new(Rope::frequencies(d, 10_000.0), &Device::Cpu),
            positions: &(0..t as u32).collect(),
            how: Attention { causal: true, ..Attention::default() },
            project: None,
        };
        let (gate, up, down) = (linear(4), linear(5), linear(6));
        let forward = FeedForward { norm: &norm, eps: 1e-5, gate, up, down, project: None };
        let run = |x: &Tensor| ops::feed_forward(&ops::self_attention(x, &attending, None)?, &forward);
        let y = run(&x)?;
        let gradients = (&y * random(52, y.shape().clone(), DType::F32))?.sum_all()?.backward()?;
        let variables = [&x].into_iter().chain(lows.iter().flatten());
        let mut all = vec![y, run(&x.as_detached_tensor())?];
        all.extend(variables.filter_map(|v| gradients.get(v)).cloned());
        all.iter().map(|t| t.flatten_all()?.to_vec1()).collect()
    }

    /// What it would read is NaN.
    #[test]
    fn no_buffer_is_read_before_it_is_written() -> Result<()> {
        for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
            let all = block(arithmetic)?;
            assert_eq!(all.len(), 2 + 1 + 14);
            assert!(all.iter().flatten().all(|x| x.is_finite()), "{arithmetic:?}");
        }
        Ok(())
    }
}
