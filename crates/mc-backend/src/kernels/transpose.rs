//! Rows become columns, or pairs of rows: how numbers get from matrices as they lie into the panels of [`super::tile`].
//!
//! Squares of 16 × 16 units go through 32 registers, without a stop in memory. What has no fast way here is packed element by
//! element by who asks.

#[cfg(target_arch = "x86_64")]
use super::cpu::{has_avx2, has_avx512};
use super::{simd::Element, tile::LANES};
use half::bf16;

/// Exchanges rows and columns.
#[inline(always)]
pub(crate) fn transpose(square: &mut [[u32; LANES]; LANES]) {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::transpose(square);
        }
        return;
    }
    let from = *square;
    if columns(bytemuck::cast_slice::<u32, f32>(from.as_flattened()), LANES, square) {
        return;
    }
    for (i, row) in square.iter_mut().enumerate() {
        for (to, from) in row.iter_mut().zip(&from) {
            *to = from[i];
        }
    }
}

/// Sixteen rows of `x`, which lie `stride` elements apart, become columns: what lies in memory as unit l of row j goes to
/// `to[l][j]`. Whole squares, so `to.len()` is a multiple of 16. Whether the CPU has a fast way, and so it is done.
#[inline(always)]
pub(crate) fn columns<T: Element>(x: &[T], stride: usize, to: &mut [[u32; LANES]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        let width = to.len() * size_of::<u32>() / size_of::<T>();
        assert!(to.len().is_multiple_of(LANES), "columns of part of a square");
        assert!(super::holds(x.len(), LANES, stride, width), "rows of columns out of bounds");
        let run = if has_avx512() { avx512::columns } else { avx2::columns };
        // SAFETY: the CPU has the instructions, and 16 rows of so many units are in bounds.
        #[allow(unsafe_code)]
        unsafe {
            run(x.as_ptr().cast(), stride * size_of::<T>(), to);
        }
        return true;
    }
    let _ = (x, stride, to);
    false
}

/// Pairs of 16 neighbouring columns: two rows of `x`, which lie `stride` apart, become one row of pairs, the first of the
/// two in the low half. Whether the CPU has a fast way, and so it is done.
#[inline(always)]
pub(crate) fn pairs(x: &[bf16], stride: usize, pairs: &mut [[u32; LANES]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if has_avx512() {
        check_rows(x.len(), stride, pairs.len());
        // SAFETY: the CPU has AVX-512, and two rows for each pair are in bounds.
        #[allow(unsafe_code)]
        unsafe {
            avx512::pairs(x, stride, pairs);
        }
        return true;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, stride, pairs);
    false
}

#[cfg(target_arch = "x86_64")]
pub(super) fn check_rows(len: usize, stride: usize, pairs: usize) {
    assert!(pairs == 0 || stride > 0 && super::holds(len, 2 * pairs, stride, LANES), "rows of pairs out of bounds");
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::LANES;
    use half::bf16;
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512; `x` has two rows of 16 for each of `pairs`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn pairs(x: &[bf16], stride: usize, pairs: &mut [[u32; LANES]]) {
        for (i, pairs) in pairs.iter_mut().enumerate() {
            // SAFETY: 16 halves are 256 bits, and 16 pairs are 512.
            unsafe {
                let row = x.as_ptr().add(2 * i * stride);
                let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.cast()));
                let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.add(stride).cast()));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), _mm512_or_si512(low, _mm512_slli_epi32::<16>(high)));
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(square: &mut [[u32; LANES]; LANES]) {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, from) in rows.iter_mut().zip(&*square) {
            // SAFETY: a row is one vector.
            *row = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
        }
        for (row, to) in exchange(rows).iter().zip(square) {
            // SAFETY: a row is one vector.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *row) };
        }
    }

    /// # Safety
    /// The CPU has AVX-512; from `x` on there are 16 rows of `to.len()` units, a multiple of 16, that are `stride` bytes apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn columns(x: *const u8, stride: usize, to: &mut [[u32; LANES]]) {
        for (s, to) in to.chunks_exact_mut(LANES).enumerate() {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (j, row) in rows.iter_mut().enumerate() {
                let at = x.wrapping_add(j * stride + s * size_of_val(to[0].as_slice()));
                // The 16 rows after these are most likely the next.
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(LANES * stride).cast());
                // SAFETY: 16 units of a row are one vector, and in bounds.
                *row = unsafe { _mm512_loadu_si512(at.cast()) };
            }
            for (row, to) in exchange(rows).iter().zip(to) {
                // SAFETY: a row is one vector.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *row) };
            }
        }
    }

    /// Exchanges rows and columns: pairs of rows are interleaved by one, two, four and eight elements.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exchange(mut a: [__m512i; LANES]) -> [__m512i; LANES] {
        let mut b = a;
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        // Of each four rows: a[4i + c] holds their columns 4q + c, quarter by quarter.
        for i in 0..4 {
            for half in 0..2 {
                a[4 * i + 2 * half] = _mm512_unpacklo_epi64(b[4 * i + half], b[4 * i + 2 + half]);
                a[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(b[4 * i + half], b[4 * i + 2 + half]);
            }
        }
        // Quarters of the four groups of rows come together: columns c, 4 + c, 8 + c and 12 + c.
        for c in 0..4 {
            let (low, high) = ((a[c], a[4 + c]), (a[8 + c], a[12 + c]));
            let even = (_mm512_shuffle_i32x4::<0x88>(low.0, low.1), _mm512_shuffle_i32x4::<0x88>(high.0, high.1));
            let odd = (_mm512_shuffle_i32x4::<0xDD>(low.0, low.1), _mm512_shuffle_i32x4::<0xDD>(high.0, high.1));
            b[c] = _mm512_shuffle_i32x4::<0x88>(even.0, even.1);
            b[8 + c] = _mm512_shuffle_i32x4::<0xDD>(even.0, even.1);
            b[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd.0, odd.1);
            b[12 + c] = _mm512_shuffle_i32x4::<0xDD>(odd.0, odd.1);
        }
        b
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Columns in AVX2, by squares of 8 × 8 units.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::LANES;
    use std::arch::x86_64::*;

    /// Units of a vector.
    const WIDE: usize = 8;

    /// # Safety
    /// The CPU has AVX2; from `x` on there are 16 rows of `to.len()` units, a multiple of 16, that are `stride` bytes apart.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn columns(x: *const u8, stride: usize, to: &mut [[u32; LANES]]) {
        for (s, to) in to.chunks_exact_mut(WIDE).enumerate() {
            for first in [0, WIDE] {
                let mut rows = [_mm256_setzero_ps(); WIDE];
                for (j, row) in rows.iter_mut().enumerate() {
                    let at = x.wrapping_add((first + j) * stride + s * WIDE * size_of::<u32>());
                    // The 16 rows after these are most likely the next.
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(LANES * stride).cast());
                    // SAFETY: 8 units of a row are one vector, and in bounds.
                    *row = unsafe { _mm256_loadu_ps(at.cast()) };
                }
                for (row, to) in exchange(rows).iter().zip(&mut *to) {
                    // SAFETY: half of a row is one vector.
                    unsafe { _mm256_storeu_ps(to[first..first + WIDE].as_mut_ptr().cast(), *row) };
                }
            }
        }
    }

    /// Exchanges rows and columns: pairs of rows are interleaved by one, two and four elements.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn exchange(mut a: [__m256; WIDE]) -> [__m256; WIDE] {
        let mut b = a;
        for i in 0..4 {
            b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        // Of each four rows: a[4i + c] holds their columns c and 4 + c, half by half.
        for i in 0..2 {
            for half in 0..2 {
                let (x, y) = (_mm256_castps_pd(b[4 * i + half]), _mm256_castps_pd(b[4 * i + 2 + half]));
                a[4 * i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
                a[4 * i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
            }
        }
        for c in 0..4 {
            b[c] = _mm256_permute2f128_ps::<0x20>(a[c], a[4 + c]);
            b[4 + c] = _mm256_permute2f128_ps::<0x31>(a[c], a[4 + c]);
        }
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let at = |i: usize, j: usize| (i * 1000 + j) as u32;
        let mut square: [[u32; LANES]; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| at(i, j)));
        transpose(&mut square);
        assert!((0..LANES).all(|i| (0..LANES).all(|j| square[i][j] == at(j, i))));

        let stride = 2 * LANES + 3;
        let rows: Vec<f32> = (0..LANES * stride).map(|e| f32::from_bits(at(e / stride, e % stride))).collect();
        let mut units = [[0u32; LANES]; 2 * LANES];
        let right = |units: &[[u32; LANES]]| (0..2 * LANES).all(|l| (0..LANES).all(|j| units[l][j] == at(j, l)));
        assert!(!columns(&rows, stride, &mut units) || right(&units));
        // Which a CPU with AVX-512 does not choose.
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            let mut units = [[0u32; LANES]; 2 * LANES];
            // SAFETY: the CPU has AVX2, and 16 rows of 32 numbers are there.
            #[allow(unsafe_code)]
            unsafe {
                avx2::columns(rows.as_ptr().cast(), stride * size_of::<f32>(), &mut units);
            }
            assert!(right(&units));
        }
    }

    /// What the loops rely on is asked for, also where a product would wrap around.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_out_of_bounds_is_refused() {
        let fails = |f: &dyn Fn() -> bool| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        let (x, halves) = ([0.5f32; 16 * 20], [bf16::ONE; 16 * 20]);
        let done = columns(&x[..16 * 17 - 1], 17, &mut [[0; LANES]; LANES]);
        assert_eq!(done, has_avx2());
        if done {
            for stride in [17, usize::MAX / 15 + 2, usize::MAX] {
                assert!(fails(&|| columns(&x[..16 * 17 - 2], stride, &mut [[0; LANES]; LANES])), "{stride}");
            }
            assert!(fails(&|| columns(&x, 17, &mut [[0; LANES]; 3])), "part of a square");
        }
        let done = pairs(&halves[..3 * 17 + 16], 17, &mut [[0; LANES]; 2]);
        assert_eq!(done, has_avx512());
        if done {
            for stride in [17, usize::MAX / 15 + 2, usize::MAX] {
                assert!(fails(&|| pairs(&halves[..3 * 17 + 15], stride, &mut [[0; LANES]; 2])), "{stride}");
            }
            assert!(fails(&|| pairs(&halves, 0, &mut [[0; LANES]; 2])));
        }
    }
}
