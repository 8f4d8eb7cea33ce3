//! `f16`, of which a CPU with AVX-512-FP16 multiplies twice as many as of `f32`.
//!
//! - *Range.* A row of A and a column of B are scaled by powers of two, so that their largest number is in [8, 16), or smaller
//!   if it is below 2⁻¹²³; the result is scaled back. What is less than 2⁻¹⁷ of the largest may lose precision, what becomes
//!   zero is at most 2⁻²⁸ of it, and each rounding of a sum loses up to 2⁻³¹ of the largest of the row times that of the column.
//!   Where the largest is infinite or NaN nothing is scaled, and no result of that row or column is finite.
//! - *Precision of sums.* No more than 32 products are summed one by one in `f16`; two such sums are added, widened and go on in
//!   `f32`. In 64 products below 16 · 16 there is no overflow. For random numbers the error is 9.3·10⁻⁴ of a result, where rounding
//!   one side to `bf16` makes 17·10⁻⁴ (root mean squares, from the test `errors_are_smaller_than_those_of_bf16`).
//!
//! A tile is 8 rows × 3 panels, or 6 × 4: 24 sums, for the reasons in [`crate::kernels::tile`]. The 32-product loop is a function by
//! itself: the sums, the vectors of B and a broadcast are all that it holds, and the compiler keeps them in registers only if
//! there is nothing else (measured: 83 and 349 GFLOP/s a core).

use super::{LANES, largest};
use half::f16;

/// Rows of a tile, at most.
pub(super) const TALL: usize = 8;
/// Panels of a tile, at most.
const PANELS: usize = 4;
/// Units of a sum in `f16`: each half of one is a product.
pub(super) const CHAIN: usize = 32;
/// The exponent of the largest number of a row or column.
const TOP: i32 = 3;

/// Panels of a tile of so many rows.
pub(super) fn panels(rows: usize) -> usize {
    if rows <= 6 { PANELS } else { PANELS - 1 }
}

/// Whether this CPU has AVX-512-FP16, with BW and VL.
pub(super) fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512fp16");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// What numbers are multiplied by of which this is the largest, by its bits, and the exponent of the power of two that undoes
/// it; 1 where that is not finite.
fn scales(largest: u32) -> (f32, f32) {
    let exponent = (largest >> 23).cast_signed();
    if exponent == 255 {
        return (1.0, 0.0);
    }
    let by = (127 + TOP - exponent).min(126);
    (f32::from_bits((127 + by).cast_unsigned() << 23), -by as f32)
}

/// A row as units, and the exponent of the power of two that its results are multiplied by.
pub(super) fn encode(x: &[f32], units: &mut [u32]) -> f32 {
    let (by, back) = scales(largest(x));
    round(has_vectors(), x, by, units);
    back
}

/// Scaled numbers as units, rounded to nearest with ties to even; what is left of the last one is zero.
pub(super) fn round(vectors: bool, x: &[f32], by: f32, units: &mut [u32]) {
    let halves: &mut [u16] = bytemuck::cast_slice_mut(units);
    let (halves, rest) = halves.split_at_mut(x.len());
    rest.fill(0);
    #[cfg(target_arch = "x86_64")]
    if vectors {
        // SAFETY: who asks for vectors has looked that the CPU has AVX-512-FP16, and the rest; both are as long.
        #[allow(unsafe_code)]
        unsafe {
            avx512::round(x, by, halves);
        }
        return;
    }
    let _ = vectors;
    halves.iter_mut().zip(x).for_each(|(h, x)| *h = f16::from_f32(x * by).to_bits());
}

/// The product of a row and a column, in plain Rust.
pub(super) fn product([row, column]: [&[u32]; 2], [rows, columns]: [&[f32]; 2]) -> f32 {
    let add = |sum: f16, a: f16, b: f16| nearest(a.to_f64().mul_add(b.to_f64(), sum.to_f64()));
    let halves = |unit: u32| [unit as u16, (unit >> 16) as u16].map(f16::from_bits);
    let mut wide = [0f32; 2];
    let mut chains = row.chunks(CHAIN).zip(column.chunks(CHAIN * LANES)).map(|(a, b)| {
        let both = a.iter().zip(b.iter().step_by(LANES)).map(|(a, b)| (halves(*a), halves(*b)));
        both.fold([f16::ZERO; 2], |sum, (a, b)| [add(sum[0], a[0], b[0]), add(sum[1], a[1], b[1])])
    });
    while let Some(first) = chains.next() {
        let second = chains.next().unwrap_or_default();
        let [even, odd] = [0, 1].map(|i| add(first[i], second[i], f16::ONE).to_f32());
        wide = [wide[0] + even, wide[1] + odd];
    }
    // In f64 nothing is lost on the way to numbers at the ends of f32.
    (f64::from(wide[0] + wide[1]) * 2f64.powf(f64::from(rows[0] + columns[0]))) as f32
}

/// The nearest `f16`, of two the even one, rounded once; its library goes by way of `f32`.
pub(super) fn nearest(x: f64) -> f16 {
    let close = f16::from_f64(x);
    if !close.is_finite() {
        return close;
    }
    let bits = close.to_bits();
    // Beyond the ends there is NaN or infinity, which is farther than any.
    let around = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)].map(f16::from_bits);
    let distance = |h: &f16| (h.to_f64() - x).abs();
    around
        .into_iter()
        .min_by(|a, b| {
            let order = distance(a).total_cmp(&distance(b));
            order.then((a.to_bits() & 1).cmp(&(b.to_bits() & 1)))
        })
        .unwrap_or(close)
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::tile;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512, of which rows are not read beyond their end.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{super::Tile, CHAIN, LANES, PANELS, TALL};
    use std::{arch::x86_64::*, mem::MaybeUninit};

    /// # Safety
    /// The CPU has AVX-512 with BW and VL, and both are as long.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn round(x: &[f32], by: f32, halves: &mut [u16]) {
        let by = _mm512_set1_ps(by);
        for (x, halves) in x.chunks(LANES).zip(halves.chunks_mut(LANES)) {
            let mask = !0 >> (LANES - x.len());
            // SAFETY: what is read and written is masked to their length.
            unsafe {
                let scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x.as_ptr()), by);
                let rounded = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
                _mm256_mask_storeu_epi16(halves.as_mut_ptr().cast(), mask, rounded);
            }
        }
    }

    /// One vector for each row and panel of a tile.
    type Vectors = [[MaybeUninit<__m512i>; PANELS]; TALL];
    /// [`chain`] of some size.
    ///
    /// # Safety
    /// As for that.
    type Chain = unsafe fn(usize, usize, *const u32, *const u32, &mut Vectors);

    /// [`chain`] for so many rows and panels, both less one.
    #[rustfmt::skip]
    static CHAINS: [[Chain; PANELS]; TALL] = [
        [chain::<1, 1>, chain::<1, 2>, chain::<1, 3>, chain::<1, 4>],
        [chain::<2, 1>, chain::<2, 2>, chain::<2, 3>, chain::<2, 4>],
        [chain::<3, 1>, chain::<3, 2>, chain::<3, 3>, chain::<3, 4>],
        [chain::<4, 1>, chain::<4, 2>, chain::<4, 3>, chain::<4, 4>],
        [chain::<5, 1>, chain::<5, 2>, chain::<5, 3>, chain::<5, 4>],
        [chain::<6, 1>, chain::<6, 2>, chain::<6, 3>, chain::<6, 4>],
        [chain::<7, 1>, chain::<7, 2>, chain::<7, 3>, chain::<7, 4>],
        [chain::<8, 1>, chain::<8, 2>, chain::<8, 3>, chain::<8, 4>],
    ];

    /// The sums in `f16` of `n` units, at most [`CHAIN`], of R rows and P panels into `out`.
    ///
    /// # Safety
    /// The CPU has AVX-512-FP16; R rows `stride` apart at `a` have so many units, panels `LANES·stride` apart at `b` too.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512fp16")]
    unsafe fn chain<const R: usize, const P: usize>(
        n: usize,
        stride: usize,
        a: *const u32,
        b: *const u32,
        out: &mut Vectors,
    ) {
        /// How far ahead B comes into the first cache, as in the tile of `f32`.
        const AHEAD: usize = 8 * LANES;
        let mut sums = [[_mm512_setzero_ph(); P]; R];
        for l in 0..n {
            let mut columns = [_mm512_setzero_ph(); P];
            for (q, column) in columns.iter_mut().enumerate() {
                let at = b.wrapping_add(q * LANES * stride + l * LANES);
                // SAFETY: unit l of panel q; what is fetched ahead is not read.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                    *column = _mm512_castsi512_ph(_mm512_loadu_si512(at.cast()));
                }
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: unit l of row i.
                let unit = unsafe { *a.add(i * stride + l) };
                let unit = _mm512_castsi512_ph(_mm512_set1_epi32(unit.cast_signed()));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ph(unit, column, *sum);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                out.write(_mm512_castph_si512(sum));
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512-FP16, and the tile is in bounds, as [`Tile::run`] asserts.
    #[target_feature(enable = "avx512f,avx512fp16")]
    pub(in super::super) unsafe fn tile(tile: &mut Tile) {
        let (depth, a, b) = (tile.depth, tile.a.as_ptr(), tile.b.as_ptr());
        let (rows, panels) = tile.size;
        let chain = CHAINS[rows - 1][panels - 1];
        // What is written last is asked for first.
        for i in 0..rows {
            for q in 0..panels {
                let at = tile.c.as_ptr().wrapping_add(i * tile.c_stride + q * LANES);
                _mm_prefetch::<_MM_HINT_ET0>(at.cast());
            }
        }
        // Clearing what a tile does not use would take as long as a short chain.
        let mut sums: [Vectors; 2] = [[[MaybeUninit::uninit(); PANELS]; TALL]; 2];
        // Both halves of 8 columns, and of the other 8.
        let mut wide = [[[MaybeUninit::uninit(); 2]; PANELS]; TALL];
        wide.iter_mut().take(rows).flat_map(|wide| &mut wide[..panels]).for_each(|wide| {
            *wide = [MaybeUninit::new(_mm512_setzero_ps()); 2];
        });
        for l in (0..depth).step_by(2 * CHAIN) {
            for (l, sums) in [l, l + CHAIN].into_iter().zip(&mut sums) {
                let (n, a, b) = (CHAIN.min(depth.saturating_sub(l)), a.wrapping_add(l), b.wrapping_add(l * LANES));
                // SAFETY: the caller's promise, and no more units than there are, which may be none.
                unsafe { chain(n, depth, a, b, sums) };
            }
            for (i, wide) in wide.iter_mut().take(rows).enumerate() {
                for (q, wide) in wide.iter_mut().take(panels).enumerate() {
                    // SAFETY: a chain has written the sums of these rows and panels, and their wide ones were set.
                    let ([first, second], [low, high]) = unsafe {
                        ([sums[0][i][q].assume_init(), sums[1][i][q].assume_init()], wide.map(|w| w.assume_init()))
                    };
                    let sum = _mm512_add_ph(_mm512_castsi512_ph(first), _mm512_castsi512_ph(second));
                    let sum = _mm512_castph_si512(sum);
                    wide[0].write(_mm512_add_ps(low, _mm512_cvtph_ps(_mm512_castsi512_si256(sum))));
                    wide[1].write(_mm512_add_ps(high, _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum))));
                }
            }
        }
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        for (i, (row, wide)) in tile.rows.iter().zip(&wide).enumerate() {
            for (q, (columns, wide)) in tile.columns.chunks_exact(LANES).zip(wide).enumerate() {
                // SAFETY: those of these rows and panels were set.
                let [low, high] = unsafe { wide.map(|w| w.assume_init()) };
                let first = _mm512_permutex2var_ps(low, even, high);
                let second = _mm512_permutex2var_ps(low, odd, high);
                // SAFETY: 16 columns.
                let power = _mm512_add_ps(unsafe { _mm512_loadu_ps(columns.as_ptr()) }, _mm512_set1_ps(*row));
                let mut result = _mm512_scalef_ps(_mm512_add_ps(first, second), power);
                let left = tile.width.saturating_sub(q * LANES);
                let mask: __mmask16 = if left >= LANES { !0 } else { (1 << left) - 1 };
                // SAFETY: what is read and written is masked to the rows and columns that there are.
                unsafe {
                    if !tile.add.is_empty() {
                        let add = tile.add.as_ptr().wrapping_add(i * tile.add_stride + q * LANES);
                        result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(mask, add));
                    }
                    let c = tile.c.as_mut_ptr().wrapping_add(i * tile.c_stride + q * LANES);
                    _mm512_mask_storeu_ps(c, mask, result);
                }
            }
        }
    }
}
