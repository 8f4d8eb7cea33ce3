//! Dot products of rows with an `f32` vector. Rows are of `f32`, or of narrower numbers that are widened as they are read.
//!
//! A row's products are added up in 64 sums, those in 16, and those by halves, as [`super::simd::dot`] does it: every form gives the same
//! bits. On x86 the last sums of several rows are added up together, as one row's by themselves take longer than its products, and
//! vectors are written by hand: of a loop over 16 numbers the compiler makes single multiplications, and of those vectors of two,
//! four and eight (docs/benchmarks.md).

#[cfg(target_arch = "x86_64")]
use super::cpu;
use super::simd::{Element, dot, simd};

/// A number that vectors of `f32` are made of.
pub(crate) trait Number: Element {
    /// # Safety
    /// The CPU has AVX-512, and 16 numbers are there.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe fn load16(from: *const Self) -> std::arch::x86_64::__m512;
    /// # Safety
    /// The CPU has AVX2 and F16C, and eight numbers are there.
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    unsafe fn load8(from: *const Self) -> std::arch::x86_64::__m256;
}

/// The dot product of each row, as wide as x, with x.
#[inline]
pub(crate) fn dots<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) {
    if !dots_avx512(&row, x, out) && !dots_avx2(&row, x, out) {
        plain(row, x, out);
    }
}

/// The dot product of each of these rows, which lie one after the other, with x.
pub(crate) fn row_dots<T: Number>(rows: &[T], x: &[f32], out: &mut [f32]) {
    let width = x.len();
    dots(|j| &rows[j * width..(j + 1) * width], x, out);
}

/// Any CPU.
fn plain<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (j, out) in out.iter_mut().enumerate() {
                *out = dot(row(j), x);
            }
        },
    );
}

/// In AVX-512, if this CPU has it; whether it was done.
#[inline]
fn dots_avx512<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::dots(row, x, out);
        }
        return true;
    }
    let _ = (row, x, out);
    false
}

/// As [`dots_avx512`], in AVX2.
#[inline]
fn dots_avx2<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::widens_f16() {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            avx2::dots(row, x, out);
        }
        return true;
    }
    let _ = (row, x, out);
    false
}

#[cfg(not(target_arch = "x86_64"))]
mod numbers {
    use super::Number;
    use half::{bf16, f16};
    impl Number for f32 {}
    impl Number for f16 {}
    impl Number for bf16 {}
}

#[cfg(target_arch = "x86_64")]
mod numbers {
    //! How numbers are read.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::Number;
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    impl Number for f32 {
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn load16(from: *const Self) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_ps(from) }
        }
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn load8(from: *const Self) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { _mm256_loadu_ps(from) }
        }
    }

    impl Number for f16 {
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn load16(from: *const Self) -> __m512 {
            // SAFETY: the caller's promise.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn load8(from: *const Self) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
    }

    impl Number for bf16 {
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn load16(from: *const Self) -> __m512 {
            // SAFETY: the caller's promise.
            let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        /// # Safety
        /// As the trait says.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn load8(from: *const Self) -> __m256 {
            // SAFETY: the caller's promise.
            let wide = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// The first numbers of a vector, and zeros.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn padded<T: Element>(x: &[T]) -> [T; super::tile::LANES] {
    let mut whole = [T::ZERO; super::tile::LANES];
    whole[..x.len()].copy_from_slice(x);
    whole
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    //! The products in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, padded};
    use crate::kernels::{simd::UNROLL, tile::LANES};
    use std::arch::x86_64::*;

    /// Rows whose sums are added up together.
    pub(in super::super) const ROWS: usize = 16;

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dots<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) {
        for (block, out) in out.chunks_mut(ROWS).enumerate() {
            let mut rows = [_mm512_setzero_ps(); ROWS];
            for (j, sums) in rows.iter_mut().enumerate().take(out.len()) {
                // SAFETY: the caller's promise.
                *sums = unsafe { products(row(block * ROWS + j), x) };
            }
            out.copy_from_slice(&totals(&rows)[..out.len()]);
        }
    }

    /// Products of a row with x, added up in 16 sums.
    ///
    /// # Safety
    /// The CPU has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn products<T: Number>(row: &[T], x: &[f32]) -> __m512 {
        let ((row, row_rest), (x, x_rest)) =
            (row.as_chunks::<{ UNROLL * LANES }>(), x.as_chunks::<{ UNROLL * LANES }>());
        let mut sums = [_mm512_setzero_ps(); UNROLL];
        // SAFETY: chunks are whole vectors.
        unsafe {
            for (row, x) in row.iter().zip(x) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (row, x) = (row.as_ptr().add(i * LANES), x.as_ptr().add(i * LANES));
                    *sum = _mm512_fmadd_ps(T::load16(row), _mm512_loadu_ps(x), *sum);
                }
            }
            let mut sum = _mm512_setzero_ps();
            for s in sums {
                sum = _mm512_add_ps(sum, s);
            }
            let ((row, row_last), (x, x_last)) = (row_rest.as_chunks::<LANES>(), x_rest.as_chunks::<LANES>());
            for (row, x) in row.iter().zip(x) {
                sum = _mm512_fmadd_ps(T::load16(row.as_ptr()), _mm512_loadu_ps(x.as_ptr()), sum);
            }
            if !x_last.is_empty() {
                let (row, x) = (padded(row_last), padded(x_last));
                sum = _mm512_fmadd_ps(T::load16(row.as_ptr()), _mm512_loadu_ps(x.as_ptr()), sum);
            }
            sum
        }
    }

    /// The total of each row's sums, by halves: at each step two vectors become one that has both in half as many sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn totals(rows: &[__m512; ROWS]) -> [f32; ROWS] {
        // Rows i and i + 4 in two quarters of a vector each.
        let mut halves = [_mm512_setzero_ps(); ROWS / 2];
        for (i, half) in halves.iter_mut().enumerate() {
            let (a, b) = (rows[i / 4 * 8 + i % 4], rows[i / 4 * 8 + i % 4 + 4]);
            *half = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
        }
        // Rows i, i + 4, i + 8 and i + 12 in a quarter each.
        let mut quarters = [_mm512_setzero_ps(); ROWS / 4];
        for (i, quarter) in quarters.iter_mut().enumerate() {
            let (a, b) = (halves[i], halves[i + 4]);
            *quarter = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        }
        let two = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (a, b) = (two(quarters[0], quarters[1]), two(quarters[2], quarters[3]));
        let all = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b));
        // Of nothing but zeros it is 0 whatever their signs, which what pads a row may change.
        let all = _mm512_add_ps(all, _mm512_setzero_ps());
        let mut totals = [0.0; ROWS];
        // SAFETY: as many numbers as a vector has.
        unsafe { _mm512_storeu_ps(totals.as_mut_ptr(), all) };
        totals
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The products in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, padded};
    use crate::kernels::{simd::UNROLL, tile::LANES};
    use std::arch::x86_64::*;

    /// Rows whose sums are added up together.
    const ROWS: usize = 8;
    const HALF: usize = LANES / 2;

    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dots<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], x: &[f32], out: &mut [f32]) {
        for (block, out) in out.chunks_mut(ROWS).enumerate() {
            let mut rows = [_mm256_setzero_ps(); ROWS];
            for (j, sums) in rows.iter_mut().enumerate().take(out.len()) {
                // SAFETY: the caller's promise.
                *sums = unsafe { products(row(block * ROWS + j), x) };
            }
            out.copy_from_slice(&totals(&rows)[..out.len()]);
        }
    }

    /// Products of a row with x, added up in 16 sums, and those of the two vectors together.
    ///
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn products<T: Number>(row: &[T], x: &[f32]) -> __m256 {
        let ((row, row_rest), (x, x_rest)) =
            (row.as_chunks::<{ UNROLL * LANES }>(), x.as_chunks::<{ UNROLL * LANES }>());
        let mut sums = [_mm256_setzero_ps(); 2 * UNROLL];
        // SAFETY: chunks are whole vectors.
        unsafe {
            for (row, x) in row.iter().zip(x) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (row, x) = (row.as_ptr().add(i * HALF), x.as_ptr().add(i * HALF));
                    *sum = _mm256_fmadd_ps(T::load8(row), _mm256_loadu_ps(x), *sum);
                }
            }
            let mut sum = [_mm256_setzero_ps(); 2];
            for (i, s) in sums.into_iter().enumerate() {
                sum[i % 2] = _mm256_add_ps(sum[i % 2], s);
            }
            let ((row, row_last), (x, x_last)) = (row_rest.as_chunks::<LANES>(), x_rest.as_chunks::<LANES>());
            let last = (!x_last.is_empty()).then(|| (padded(row_last), padded(x_last)));
            for (row, x) in row.iter().zip(x).chain(last.iter().map(|(row, x)| (row, x))) {
                for (i, sum) in sum.iter_mut().enumerate() {
                    let (row, x) = (row.as_ptr().add(i * HALF), x.as_ptr().add(i * HALF));
                    *sum = _mm256_fmadd_ps(T::load8(row), _mm256_loadu_ps(x), *sum);
                }
            }
            _mm256_add_ps(sum[0], sum[1])
        }
    }

    /// The total of each row's sums, by halves.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn totals(rows: &[__m256; ROWS]) -> [f32; ROWS] {
        // Rows i and i + 4 in half a vector each.
        let mut halves = [_mm256_setzero_ps(); ROWS / 2];
        for (i, half) in halves.iter_mut().enumerate() {
            let (a, b) = (rows[i], rows[i + 4]);
            *half = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        }
        let two = |a, b| _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (a, b) = (two(halves[0], halves[1]), two(halves[2], halves[3]));
        let all = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
        let all = _mm256_add_ps(all, _mm256_setzero_ps());
        let mut totals = [0.0; ROWS];
        // SAFETY: as many numbers as a vector has.
        unsafe { _mm256_storeu_ps(totals.as_mut_ptr(), all) };
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// Rows in every form, of widths up to and beyond several vectors.
    fn every_form_gives_the_same_bits<T: Number>(number: impl Fn(usize) -> T) {
        for width in (1..140).chain([384, 1000]) {
            let rows = 1 + width % 37;
            let x: Vec<T> = (0..rows * width).map(&number).collect();
            let row = |j: usize| &x[j * width..(j + 1) * width];
            let query = mc_testkit::random(2, width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let [mut expected, mut found] = [(); 2].map(|()| vec![f32::NAN; rows]);
            plain(row, &query, &mut expected);
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            for form in 0..2 {
                found.fill(f32::NAN);
                let done =
                    if form == 0 { dots_avx512(row, &query, &mut found) } else { dots_avx2(row, &query, &mut found) };
                assert!(!done || expected.iter().zip(&found).all(same), "{rows} x {width}");
            }
            row_dots(&x, &query, &mut found);
            for (x, y) in x.chunks_exact(width).zip(found) {
                let terms = || x.iter().zip(&query).map(|(x, q)| f64::from(x.widen()) * f64::from(*q));
                let most: f64 = terms().map(f64::abs).sum();
                assert!((terms().sum::<f64>() - f64::from(y)).abs() <= 1e-6 * most, "{rows} x {width}");
            }
        }
    }

    fn bits(i: usize) -> usize {
        i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
    }

    /// Also of subnormal numbers and zeros of both signs.
    #[test]
    fn of_every_kind_of_number() {
        // What would be as right, and slow.
        #[cfg(target_arch = "x86_64")]
        assert!(dots_avx2(|_| &[0f32][..], &[1.0], &mut []) || !cpu::has_avx2(), "AVX2 is not used");
        // Without one bit of the exponent a number is finite.
        every_form_gives_the_same_bits(|i| f16::from_bits(bits(i) as u16 & 0xFBFF));
        every_form_gives_the_same_bits(|i| bf16::from_bits(bits(i) as u16 & 0xBFFF));
        every_form_gives_the_same_bits(|i| f32::from_bits(bits(i) as u32 & 0xBFFF_FFFF));
    }
    /// Products that are too small for any number but -0, with and without numbers that pad a row.
    #[test]
    fn of_nothing_but_zeros() {
        for width in [16, 17, 63, 64, 160, 250] {
            let (row, x) = (vec![-1e-30f32; width], vec![1e-30; width]);
            let row = |_: usize| &row[..];
            let mut found = [[0f32; 3]; 3];
            plain(row, &x, &mut found[0]);
            let done = [dots_avx512(row, &x, &mut found[1]), dots_avx2(row, &x, &mut found[2])];
            assert!(found.as_flattened().iter().all(|x| x.to_bits() == 0), "{width}: {found:?}, {done:?}");
        }
    }
}
