//! Products whose depth is the long side, `C = A·B` with few rows of A: the gradients of low-rank factors, which sum over all
//! positions.
//!
//! B is used once for each 8 rows, so packing it into the panels of [`super::tile`] would cost more than the product.
//! Instead its rows are read where they lie, 32 columns at a time, a line of memory in `bf16`. Its units are pairs of
//! neighbours in a row, and those of the product pairs of neighbours in a column: two permutations of two rows give them.
//! 8 rows × 32 columns are 16 independent sums, enough to hide the latency of an addition.

use super::{
    operand::{Panels, Part, Rows},
    tile::Start,
};
use rayon::prelude::*;

/// Columns that one unit of work computes: whole lines of memory, several in a row.
const UNIT: usize = 128;

/// `left·right`, `(rows, n)` times `(n, cols)` → `(rows, cols)`: the first of left's rows and units, and of right's.
///
/// Each number is one sum in the order of the depth, as in [`super::tile`]: bit for bit that of panels, unless the depth is so long that
/// [`Panels::multiply_cols`] cuts it, which adds its pieces up one by one.
pub(crate) fn multiply(left: &Rows, rows: usize, right: &Rows, (n, cols): (usize, usize)) -> Vec<f32> {
    let part = |first: usize| {
        let width = UNIT.min(cols - first);
        let mut c = vec![0f32; rows * width];
        if !in_place(left, rows, right, n, first, &mut c) {
            let matrix = right.matrix(0).from(first);
            let part = Part { depth: 0, col: 0, size: (n, width), matrix, transposed: false };
            let panels = Panels::pack_here(left.arithmetic, left.arithmetic.units(n), width, &[part]);
            panels.multiply(rows, left.left(), Start::Zero, (&mut c, width));
        }
        c
    };
    let parts: Vec<Vec<f32>> = (0..cols.div_ceil(UNIT)).into_par_iter().map(|u| part(u * UNIT)).collect();
    let mut out = vec![0f32; rows * cols];
    for (u, part) in parts.iter().enumerate() {
        let width = part.len() / rows.max(1);
        for (row, part) in out.chunks_exact_mut(cols).zip(part.chunks_exact(width.max(1))) {
            row[u * UNIT..u * UNIT + width].copy_from_slice(part);
        }
    }
    out
}

/// Columns from `first` on, a multiple of 32, as many as `c` is wide; whether the CPU can, and so it is done.
fn in_place(left: &Rows, rows: usize, right: &Rows, n: usize, first: usize, c: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if rows > 0 && avx512::serves(left.arithmetic) {
        let (arithmetic, width) = (left.arithmetic, c.len() / rows);
        let depth = arithmetic.units(n);
        let end = arithmetic.units(first + width);
        assert!(arithmetic == right.arithmetic && first.is_multiple_of(avx512::WIDE), "sides of a tall product");
        assert!(
            depth <= left.stride && super::holds(left.units.len(), rows, left.stride, depth),
            "left of a tall product"
        );
        assert!(
            end <= right.stride && super::holds(right.units.len(), n, right.stride, end),
            "right of a tall product"
        );
        for at in (0..width).step_by(avx512::WIDE) {
            let cols = avx512::WIDE.min(width - at);
            for top in (0..rows).step_by(avx512::HIGH) {
                let strip = avx512::Strip {
                    n,
                    rows: avx512::HIGH.min(rows - top),
                    cols,
                    a: left.units[top * left.stride..].as_ptr(),
                    a_stride: left.stride,
                    b: right.units.as_ptr().wrapping_add(arithmetic.units(first + at)),
                    b_stride: right.stride,
                    c: c[top * width + at..].as_mut_ptr(),
                    c_stride: width,
                };
                // SAFETY: the CPU can; rows and columns of the strip are inside the matrices, as asserted, and inside `c`.
                #[allow(unsafe_code)]
                unsafe {
                    avx512::run(arithmetic, &strip);
                }
            }
        }
        return true;
    }
    let _ = (left, rows, right, n, first, c);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The strips in AVX-512. All functions are unsafe for the same reason: `Strip` holds raw pointers.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use crate::kernels::{
        cpu::{has_avx512, has_bf16},
        tile::{
            Arithmetic, LANES,
            avx512::{Bf16, F32, MultiplyAdd},
        },
    };
    use std::arch::x86_64::*;

    /// Rows and columns of a strip, at most.
    pub(super) const HIGH: usize = 8;
    pub(super) const WIDE: usize = 2 * LANES;

    pub(super) fn serves(arithmetic: Arithmetic) -> bool {
        match arithmetic {
            Arithmetic::F32 => has_avx512(),
            Arithmetic::BF16 => has_bf16() && is_x86_feature_detected!("avx512bw"),
        }
    }

    /// Where a strip reads and writes: strides of A and B in units, of C in numbers.
    pub(super) struct Strip {
        /// Numbers of the depth, rows of B.
        pub(super) n: usize,
        pub(super) rows: usize,
        pub(super) cols: usize,
        pub(super) a: *const u32,
        pub(super) a_stride: usize,
        pub(super) b: *const u32,
        pub(super) b_stride: usize,
        pub(super) c: *mut f32,
        pub(super) c_stride: usize,
    }

    /// # Safety
    /// [`serves`] says so; rows and columns are inside the matrices.
    pub(super) unsafe fn run(arithmetic: Arithmetic, strip: &Strip) {
        // SAFETY: the caller's promise.
        unsafe {
            match arithmetic {
                Arithmetic::F32 => f32(strip),
                Arithmetic::BF16 => bf16(strip),
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512; rows and columns are inside the matrices.
    #[target_feature(enable = "avx512f")]
    unsafe fn f32(strip: &Strip) {
        // SAFETY: the caller's promise.
        unsafe { sum::<F32>(strip) }
    }

    /// # Safety
    /// The CPU has AVX-512 with BF16 and BW; rows and columns are inside the matrices.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn bf16(strip: &Strip) {
        // SAFETY: the caller's promise.
        unsafe { sum::<Bf16>(strip) }
    }

    fn first_lanes(n: usize) -> __mmask16 {
        if n >= LANES { !0 } else { (1 << n) - 1 }
    }

    /// Rows of B that are asked for before they are read.
    const AHEAD: usize = 16;

    /// How units of 32 columns come from rows of B.
    trait Columns: MultiplyAdd {
        /// Rows of B in one unit.
        const PER: usize;
        /// Those of unit `l`.
        ///
        /// # Safety
        /// The CPU has AVX-512, with BW for `bf16`; the unit and the columns are inside B.
        unsafe fn columns(strip: &Strip, l: usize) -> [__m512i; 2];
    }

    impl Columns for F32 {
        const PER: usize = 1;
        /// # Safety
        /// The CPU has AVX-512; row `l` and the columns are inside B.
        #[inline(always)]
        unsafe fn columns(strip: &Strip, l: usize) -> [__m512i; 2] {
            let row = strip.b.wrapping_add(l * strip.b_stride);
            // SAFETY: the caller's promise; beyond the columns nothing is read.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * strip.b_stride).cast());
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * strip.b_stride + LANES).cast());
                [
                    _mm512_maskz_loadu_epi32(first_lanes(strip.cols), row.cast()),
                    _mm512_maskz_loadu_epi32(
                        first_lanes(strip.cols.saturating_sub(LANES)),
                        row.wrapping_add(LANES).cast(),
                    ),
                ]
            }
        }
    }

    impl Columns for Bf16 {
        const PER: usize = 2;
        /// # Safety
        /// The CPU has AVX-512 with BW; row `2·l` and the columns are inside B.
        #[inline(always)]
        unsafe fn columns(strip: &Strip, l: usize) -> [__m512i; 2] {
            let row = strip.b.wrapping_add(2 * l * strip.b_stride);
            let mask = first_lanes(strip.cols.div_ceil(2));
            // After an odd number of rows comes none.
            let next = if 2 * l + 1 < strip.n { mask } else { 0 };
            // SAFETY: the caller's promise; beyond the rows and columns nothing is read.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * strip.b_stride).cast());
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add((AHEAD + 1) * strip.b_stride).cast());
                let first = _mm512_maskz_loadu_epi32(mask, row.cast());
                let second = _mm512_maskz_loadu_epi32(next, row.wrapping_add(strip.b_stride).cast());
                // Halves i of the two side by side: of the second they count from 32 on.
                let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let low =
                    _mm512_or_si512(lanes, _mm512_slli_epi32::<16>(_mm512_or_si512(lanes, _mm512_set1_epi32(32))));
                let high = _mm512_or_si512(low, _mm512_set1_epi32(0x10_0010));
                [_mm512_permutex2var_epi16(first, low, second), _mm512_permutex2var_epi16(first, high, second)]
            }
        }
    }

    /// # Safety
    /// The CPU has what `T` needs; rows and columns are inside the matrices.
    #[inline(always)]
    unsafe fn sum<T: Columns>(strip: &Strip) {
        // Rows that are not there are the last one again, and not written.
        let mut a = [strip.a; HIGH];
        for (i, a) in a.iter_mut().enumerate() {
            *a = a.wrapping_add(i.min(strip.rows - 1) * strip.a_stride);
        }
        // SAFETY: the caller's promise; what is written is masked to rows × columns.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; HIGH];
            for l in 0..strip.n.div_ceil(T::PER) {
                let b = T::columns(strip, l);
                for (sums, a) in sums.iter_mut().zip(a) {
                    let a = _mm512_set1_epi32((*a.add(l)).cast_signed());
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = T::run(*sum, a, b);
                    }
                }
            }
            for (i, sums) in sums.iter().take(strip.rows).enumerate() {
                for (q, sum) in sums.iter().enumerate() {
                    let mask = first_lanes(strip.cols.saturating_sub(q * LANES));
                    let to = strip.c.wrapping_add(i * strip.c_stride + q * LANES);
                    _mm512_mask_storeu_ps(to, mask, *sum);
                }
            }
        }
    }
}
