//! Products of a few rows with matrices as they lie: dot products with each of their rows.
//!
//! With one token at a time a product reads every weight once and uses it once, so it is as fast as memory, and
//! neither packing nor rounding could gain anything. Weights are widened as they are read. In AVX-512, of two neighbouring
//! `bf16` the first is the unit shifted up, the second the unit with its lower half cleared, so x comes in two vectors, its
//! even and its odd numbers. A matrix that is read again and again has a shorter form ([`super::compact`]), whose products
//! are the same bit for bit. Rows go one after the other, as they lie; of `bf16` in AVX-512 and of the shorter form what comes next is
//! fetched ahead. Several rows at a time would share loads of x, but memory answers one long stream faster (measured: 48 against
//! 30 GB/s).

use super::{
    Shared,
    compact::{BLOCK, Compact},
    dots::row_dots,
    operand::Matrix,
};
use crate::weight::Elements;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Up to this many rows; above, packing pays.
pub(crate) const FEW: usize = 8;

/// A low-rank part: `h·Bᵀ` with h `(n, rank)` and B `(out, rank)`.
#[derive(Clone, Copy)]
pub(crate) struct Low<'a> {
    pub(crate) h: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) rank: usize,
}

/// One of the matrices that are multiplied with the same rows.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    /// `(out, in)`; the number of rows is taken from what it holds.
    pub(crate) w: Matrix<'a>,
    /// The same in its compact form, if it has one.
    pub(crate) compact: Option<&'a Compact>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) low: Option<Low<'a>>,
    /// First column of its products.
    pub(crate) first: usize,
}

/// Rows of x, as they are and in two halves.
struct Input<'a> {
    x: &'a [f32],
    /// Per row the even numbers, then the odd ones, each padded with zeros to whole blocks of the compact form.
    halves: Vec<f32>,
    k: usize,
}

impl<'a> Input<'a> {
    fn new(x: &'a [f32], k: usize) -> Self {
        let half = Self::half(k);
        let mut halves = vec![0f32; x.len() / k * 2 * half];
        for (x, halves) in x.chunks_exact(k).zip(halves.chunks_exact_mut(2 * half)) {
            let (even, odd) = halves.split_at_mut(half);
            for (pair, (even, odd)) in x.chunks(2).zip(even.iter_mut().zip(odd)) {
                *even = pair[0];
                *odd = pair.get(1).copied().unwrap_or(0.0);
            }
        }
        Self { x, halves, k }
    }
    /// Numbers in one half.
    fn half(k: usize) -> usize {
        k.next_multiple_of(BLOCK) / 2
    }
    fn row(&self, i: usize) -> Row<'_> {
        let half = Self::half(self.k);
        let (even, odd) = self.halves[i * 2 * half..(i + 1) * 2 * half].split_at(half);
        Row { x: &self.x[i * self.k..(i + 1) * self.k], even, odd }
    }
}

/// A row of x.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) x: &'a [f32],
    /// Its even numbers, padded with zeros to whole blocks of the compact form.
    pub(crate) even: &'a [f32],
    pub(crate) odd: &'a [f32],
}

/// Writes `x·Wᵀ + bias + h·Bᵀ` of every factor into its columns of `y`, whose rows are `stride` apart; x is `(n, in)`.
pub(crate) fn times_transposed(n: usize, x: &[f32], factors: &[Factor], (y, stride): (&mut [f32], usize)) {
    /// Numbers of a matrix that one unit of work reads: long enough to be worth handing over.
    const UNIT: usize = 48 * 1024;
    /// Units that a thread takes at most before others may take of them: no thread waits long for the last one.
    const AT_ONCE: usize = 4;
    let k = x.len().checked_div(n).unwrap_or(0);
    if k == 0 {
        return;
    }
    assert!(lie_apart(factors, k, stride), "columns of factors overlap");
    let input = Input::new(x, k);
    let rows = UNIT.div_ceil(k).next_multiple_of(4);
    let units: Vec<(&Factor, Range<usize>)> = factors
        .iter()
        .flat_map(|f| {
            let out = f.w.elements.len() / k;
            (0..out.div_ceil(rows)).map(move |u| (f, u * rows..((u + 1) * rows).min(out)))
        })
        .collect();
    let shared = Shared::new(y);
    let run = |(factor, range): &(&Factor, Range<usize>)| {
        for i in 0..n {
            // SAFETY: units own disjoint columns of y, as asserted, and `slice` keeps them in bounds; one row's part at a time.
            #[allow(unsafe_code)]
            let y = unsafe { shared.slice(i * stride + factor.first + range.start, range.len()) };
            let x = input.row(i);
            match (factor.w.elements, factor.compact) {
                (_, Some(w)) => w.dots(range.start, x, y),
                (Elements::F32(w), _) => row_dots(&w[range.start * k..], x.x, y),
                (Elements::F16(w), _) => row_dots(&w[range.start * k..], x.x, y),
                (Elements::BF16(w), _) => widened(&w[range.start * k..], x, y),
            }
            if let Some(bias) = factor.bias {
                y.iter_mut().zip(&bias[range.clone()]).for_each(|(y, b)| *y += b);
            }
            if let Some(Low { h, b, rank }) = factor.low {
                let h = &h[i * rank..(i + 1) * rank];
                for (y, b) in y.iter_mut().zip(b[range.start * rank..].chunks_exact(rank)) {
                    *y += b.iter().zip(h).map(|(b, h)| b * h).sum::<f32>();
                }
            }
        }
    };
    if let [only] = &units[..] { run(only) } else { units.par_iter().with_max_len(AT_ONCE).for_each(run) }
}

/// Whether each column belongs to one factor, of rows `k` wide, and none reaches into the next row of the product.
fn lie_apart(factors: &[Factor], k: usize, stride: usize) -> bool {
    let columns = |f: &Factor| f.first..f.first + f.w.elements.len() / k;
    let mut columns: Vec<_> = factors.iter().map(columns).filter(|columns| !columns.is_empty()).collect();
    columns.sort_unstable_by_key(|columns| columns.start);
    columns.windows(2).all(|two| two[0].end <= two[1].start) && columns.last().is_none_or(|last| last.end <= stride)
}

/// Dot products of x with the first rows of `w`, in the order of the compact form that this CPU reads.
fn widened(w: &[bf16], x: Row, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if super::compact::reads_even_and_odd() {
        // SAFETY: the CPU has AVX-512 that moves bytes, and the halves are padded to whole blocks.
        #[allow(unsafe_code)]
        unsafe {
            avx512::dots(w, x, y);
        }
        return;
    }
    row_dots(w, x.x, y);
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    //! Dot products in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{
        super::dots::avx512::{ROWS, totals},
        Row,
    };
    use half::bf16;
    use std::arch::x86_64::*;

    /// Groups of 32 numbers at a time, so that sums do not wait for each other.
    pub(in super::super) const GROUPS: usize = 4;

    /// Dot products of the first rows of w with x.
    ///
    /// # Safety
    /// The CPU has AVX-512 that moves bytes, and even and odd numbers of x are padded to whole groups.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn dots(w: &[bf16], x: Row, y: &mut [f32]) {
        let width = x.x.len();
        for (y, w) in y.chunks_mut(ROWS).zip(w.chunks(ROWS * width)) {
            let mut rows = [_mm512_setzero_ps(); ROWS];
            for (row, w) in rows.iter_mut().zip(w.chunks_exact(width)).take(y.len()) {
                // SAFETY: the caller's promise.
                *row = unsafe { products(w, x.even, x.odd) };
            }
            y.copy_from_slice(&totals(&rows)[..y.len()]);
        }
    }

    /// Products of w with x, added up in 16 sums.
    ///
    /// # Safety
    /// As for [`dots`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn products(w: &[bf16], even: &[f32], odd: &[f32]) -> __m512 {
        /// Bytes ahead of the one in use.
        const AHEAD: usize = 2048;
        let (units, at) = (w.len() / 2, w.as_ptr());
        let mut sums = [_mm512_setzero_ps(); 2 * GROUPS];
        let whole = units / (16 * GROUPS) * (16 * GROUPS);
        // SAFETY: x is padded, and units beyond the row are masked; what is fetched ahead need not be there.
        unsafe {
            let x = |u: usize| (even.as_ptr().add(u), odd.as_ptr().add(u));
            for u in (0..whole).step_by(16 * GROUPS) {
                for i in 0..GROUPS {
                    let (u, (even, odd)) = (u + 16 * i, x(u + 16 * i));
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2 * u + AHEAD / 2).cast());
                    add(&mut sums, i, _mm512_loadu_si512(at.add(2 * u).cast()), even, odd);
                }
            }
            for (i, u) in (whole..w.len().div_ceil(2)).step_by(16).enumerate() {
                let (left, (even, odd)) = (w.len() - 2 * u, x(u));
                let mask = if left >= 32 { !0 } else { (1 << left) - 1 };
                add(&mut sums, i, _mm512_maskz_loadu_epi16(mask, at.add(2 * u).cast()), even, odd);
            }
        }
        together(sums)
    }

    /// Adds the products of 16 pairs of `bf16` with x to the sums of group `i`.
    ///
    /// # Safety
    /// The CPU has AVX-512; 16 numbers of each half of x are there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) unsafe fn add(
        sums: &mut [__m512; 2 * GROUPS],
        i: usize,
        pairs: __m512i,
        even: *const f32,
        odd: *const f32,
    ) {
        // SAFETY: the caller's promise.
        let (x0, x1) = unsafe { (_mm512_loadu_ps(even), _mm512_loadu_ps(odd)) };
        let (w0, w1) = (_mm512_slli_epi32::<16>(pairs), _mm512_and_si512(pairs, _mm512_set1_epi32(-0x1_0000)));
        sums[2 * i] = _mm512_fmadd_ps(_mm512_castsi512_ps(w0), x0, sums[2 * i]);
        sums[2 * i + 1] = _mm512_fmadd_ps(_mm512_castsi512_ps(w1), x1, sums[2 * i + 1]);
    }

    /// All groups' sums together, by pairs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn together(mut sums: [__m512; 2 * GROUPS]) -> __m512 {
        let mut n = sums.len() / 2;
        while n > 0 {
            for i in 0..n {
                sums[i] = _mm512_add_ps(sums[i], sums[i + n]);
            }
            n /= 2;
        }
        sums[0]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::noise, *};

    fn factor(w: &[bf16], k: usize, first: usize) -> Factor<'_> {
        Factor { w: Matrix::new(Elements::BF16(w), k), compact: None, bias: None, low: None, first }
    }

    #[test]
    fn every_width_and_number_of_rows() {
        let sizes = [(1, 1, 1), (2, 3, 2), (31, 5, 1), (33, 4, 3), (64, 9, 4), (576, 6, 1), (97, 2100, 2)];
        for (k, out, n) in sizes.into_iter().chain((1..=FEW).map(|n| (70, 11, n))) {
            let x = noise(n * k, 1);
            let w: Vec<bf16> = noise(out * k, 2).into_iter().map(bf16::from_f32).collect();
            let mut y = vec![f32::NAN; n * (out + 1)];
            times_transposed(n, &x, &[factor(&w, k, 1)], (&mut y, out + 1));
            for (i, y) in y.chunks_exact(out + 1).enumerate() {
                for j in 0..out {
                    let terms = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l].to_f32()));
                    let expected: f64 = terms.sum();
                    assert!((f64::from(y[j + 1]) - expected).abs() < 1e-5 * k as f64, "{k} {out} {n}: {}", y[j + 1]);
                }
                assert!(y[0].is_nan());
            }
        }
    }

    /// Products of two rows with two matrices of three rows, whose columns begin here, in rows of `stride`.
    fn products_at(first: [usize; 2], stride: usize) {
        let w = vec![bf16::ONE; 3 * 4];
        let mut y = vec![f32::NAN; 2 * stride + 8];
        times_transposed(2, &[1.0; 2 * 4], &first.map(|first| factor(&w, 4, first)), (&mut y, stride));
        for (i, first) in (0..2).flat_map(|i| first.map(|first| (i, first))) {
            assert_eq!(y[i * stride + first..][..3], [4.0; 3]);
        }
    }

    #[test]
    fn factors_may_come_in_any_order() {
        products_at([0, 3], 6);
        products_at([5, 1], 8);
    }

    #[test]
    #[should_panic(expected = "columns of factors overlap")]
    fn factors_that_share_a_column_are_refused() {
        products_at([5, 3], 8);
    }

    /// The last of their columns would be the first of the next row.
    #[test]
    #[should_panic(expected = "columns of factors overlap")]
    fn factors_that_reach_into_the_next_row_are_refused() {
        products_at([0, 3], 5);
    }
}
