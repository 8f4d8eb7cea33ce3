//! Dot products of rows with `f32` vectors. Rows are of `f32`, or of narrower numbers that are widened as they are read.
//!
//! A row's products are added up in 64 sums, those in 16, and those by halves, as [`super::simd::dot`] does it: every form gives the same
//! bits. On x86 the last sums of several rows are added up together, as one row's by themselves take longer than its products, and
//! vectors are written by hand: of a loop over 16 numbers the compiler makes single multiplications, and of those vectors of two,
//! four and eight (docs/benchmarks.md). In AVX-512, whose registers are enough for it, a row is read and widened once for several vectors.

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

/// The dot products of `n` rows, which lie `stride` numbers apart, with each of H vectors that are as wide as they are: that of row j with vector
/// h is number `h·out_stride + j` of `out`.
#[inline]
pub(crate) fn dots<T: Number, const H: usize>(
    rows: (&[T], usize),
    n: usize,
    x: [&[f32]; H],
    (out, out_stride): (&mut [f32], usize),
) {
    let out = &mut (out, out_stride);
    if !dots_avx512(rows, n, x, out) && !dots_avx2(rows, n, x, out) {
        plain(rows, n, x, out);
    }
}

/// The dot product of each of these rows, which lie one after the other, with x.
pub(crate) fn row_dots<T: Number>(rows: &[T], x: &[f32], out: &mut [f32]) {
    dots((rows, x.len()), out.len(), [x], (out, 0));
}

/// Any CPU.
fn plain<T: Number, const H: usize>(
    (rows, stride): (&[T], usize),
    n: usize,
    x: [&[f32]; H],
    (out, out_stride): &mut (&mut [f32], usize),
) {
    simd(
        #[inline(always)]
        || {
            for (h, x) in x.iter().enumerate() {
                for j in 0..n {
                    out[h * *out_stride + j] = dot(&rows[j * stride..][..x.len()], x);
                }
            }
        },
    );
}

/// In AVX-512, if this CPU has it; whether it was done.
#[inline]
fn dots_avx512<T: Number, const H: usize>(
    rows: (&[T], usize),
    n: usize,
    x: [&[f32]; H],
    out: &mut (&mut [f32], usize),
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::dots(rows, n, x, out);
        }
        return true;
    }
    let _ = (rows, n, x, out);
    false
}

/// As [`dots_avx512`], in AVX2.
#[inline]
fn dots_avx2<T: Number, const H: usize>(
    rows: (&[T], usize),
    n: usize,
    x: [&[f32]; H],
    out: &mut (&mut [f32], usize),
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::widens_f16() {
        let (out, out_stride) = out;
        for (h, x) in x.iter().enumerate() {
            // SAFETY: the CPU has the instructions.
            #[allow(unsafe_code)]
            unsafe {
                avx2::dots(rows, x, &mut out[h * *out_stride..][..n]);
            }
        }
        return true;
    }
    let _ = (rows, n, x, out);
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
    pub(super) unsafe fn dots<T: Number, const H: usize>(
        (rows, stride): (&[T], usize),
        n: usize,
        x: [&[f32]; H],
        (out, out_stride): &mut (&mut [f32], usize),
    ) {
        let (mut first, ahead) = (0, ahead::<T>(x[0].len(), stride));
        while first < n {
            let block = ROWS.min(n - first);
            let mut sums = [[_mm512_setzero_ps(); ROWS]; H];
            for j in 0..block {
                // SAFETY: the caller's promise.
                let found = unsafe { products(&rows[(first + j) * stride..], &x) };
                fetch(&rows[(first + j) * stride..][..x[0].len()], ahead);
                for h in 0..H {
                    sums[h][j] = found[h];
                }
            }
            for (h, sums) in sums.iter().enumerate() {
                out[h * *out_stride + first..][..block].copy_from_slice(&totals(sums)[..block]);
            }
            first += block;
        }
    }

    /// Products of what `row` begins with and each x, added up in 16 sums.
    ///
    /// # Safety
    /// The CPU has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn products<T: Number, const H: usize>(row: &[T], x: &[&[f32]; H]) -> [__m512; H] {
        let width = x[0].len();
        let row = &row[..width];
        assert!(x.iter().all(|x| x.len() == width), "vectors of several widths");
        let (whole, vectors) = (width - width % (UNROLL * LANES), width - width % LANES);
        let (mut sums, mut sum) = ([[_mm512_setzero_ps(); H]; UNROLL], [_mm512_setzero_ps(); H]);
        let mut at = 0;
        // SAFETY: whole vectors of what is as wide as the row.
        unsafe {
            while at < whole {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let row = T::load16(row.as_ptr().add(at + i * LANES));
                    for h in 0..H {
                        let x = _mm512_loadu_ps(x[h].as_ptr().add(at + i * LANES));
                        sums[h] = _mm512_fmadd_ps(row, x, sums[h]);
                    }
                }
                at += UNROLL * LANES;
            }
            for sums in sums {
                for h in 0..H {
                    sum[h] = _mm512_add_ps(sum[h], sums[h]);
                }
            }
            while at < vectors {
                let row = T::load16(row.as_ptr().add(at));
                for h in 0..H {
                    sum[h] = _mm512_fmadd_ps(row, _mm512_loadu_ps(x[h].as_ptr().add(at)), sum[h]);
                }
                at += LANES;
            }
            if at < width {
                let row = T::load16(padded(&row[at..]).as_ptr());
                for h in 0..H {
                    sum[h] = _mm512_fmadd_ps(row, _mm512_loadu_ps(padded(&x[h][at..]).as_ptr()), sum[h]);
                }
            }
        }
        sum
    }

    /// How many numbers beyond a row that one lies which is to be fetched when it is read: of rows so wide, as many on as take 4 KB
    /// (docs/benchmarks.md).
    #[inline]
    pub(in super::super) fn ahead<T>(width: usize, stride: usize) -> usize {
        4096usize.div_ceil((width * size_of::<T>()).max(1)) * stride
    }

    /// Fetches what lies so many numbers beyond these: a later row, perhaps of the next call, or nothing.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn fetch<T>(x: &[T], ahead: usize) {
        const LINE: usize = 64;
        let mut at = 0;
        while at < size_of_val(x) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(ahead).cast::<i8>().wrapping_add(at));
            at += LINE;
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
    pub(super) unsafe fn dots<T: Number>((all, stride): (&[T], usize), x: &[f32], out: &mut [f32]) {
        for (block, out) in out.chunks_mut(ROWS).enumerate() {
            let mut rows = [_mm256_setzero_ps(); ROWS];
            for (j, sums) in rows.iter_mut().enumerate().take(out.len()) {
                // SAFETY: the caller's promise.
                *sums = unsafe { products(&all[(block * ROWS + j) * stride..][..x.len()], x) };
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

    /// Rows in every form, of widths up to and beyond several vectors, with H vectors.
    fn every_form_gives_the_same_bits<T: Number, const H: usize>(number: &impl Fn(usize) -> T) {
        for width in (1..140).chain([384, 1000]) {
            let (n, gap) = (1 + width % 37, width % 3);
            let (stride, out_stride) = (width + gap, n + gap);
            let rows: Vec<T> = (0..n * stride - gap).map(number).collect();
            let rows = (&rows[..], stride);
            let x = mc_testkit::random(2, H * width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let x: [&[f32]; H] = std::array::from_fn(|h| &x[h * width..][..width]);
            let [mut expected, mut found] = [(); 2].map(|()| vec![f32::NAN; H * out_stride]);
            plain(rows, n, x, &mut (&mut expected, out_stride));
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            for form in 0..3 {
                found.fill(f32::NAN);
                let done = match form {
                    0 => dots_avx512(rows, n, x, &mut (&mut found, out_stride)),
                    1 => dots_avx2(rows, n, x, &mut (&mut found, out_stride)),
                    _ => {
                        dots(rows, n, x, (&mut found, out_stride));
                        true
                    }
                };
                assert!(!done || expected.iter().zip(&found).all(same), "{n} x {width}, form {form}");
            }
            for (at, y) in found.iter().enumerate() {
                let (h, j) = (at / out_stride, at % out_stride);
                if j >= n {
                    assert!(y.is_nan(), "written beyond row {n}");
                    continue;
                }
                let row = &rows.0[j * stride..][..width];
                let terms = || row.iter().zip(x[h]).map(|(row, x)| f64::from(row.widen()) * f64::from(*x));
                let most: f64 = terms().map(f64::abs).sum();
                assert!((terms().sum::<f64>() - f64::from(*y)).abs() <= 1e-6 * most, "{n} x {width}");
            }
        }
    }

    fn of_several<T: Number>(number: impl Fn(usize) -> T) {
        every_form_gives_the_same_bits::<T, 1>(&number);
        every_form_gives_the_same_bits::<T, 3>(&number);
        every_form_gives_the_same_bits::<T, 4>(&number);
    }

    fn bits(i: usize) -> usize {
        i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
    }

    /// Also of subnormal numbers and zeros of both signs.
    #[test]
    fn of_every_kind_of_number() {
        // What would be as right, and slow.
        #[cfg(target_arch = "x86_64")]
        assert!(dots_avx2((&[0f32], 1), 0, [&[1.0]], &mut (&mut [], 0)) || !cpu::has_avx2(), "AVX2 is not used");
        // Without one bit of the exponent a number is finite.
        of_several(|i| f16::from_bits(bits(i) as u16 & 0xFBFF));
        of_several(|i| bf16::from_bits(bits(i) as u16 & 0xBFFF));
        of_several(|i| f32::from_bits(bits(i) as u32 & 0xBFFF_FFFF));
    }
    /// Products that are too small for any number but -0, with and without numbers that pad a row.
    #[test]
    fn of_nothing_but_zeros() {
        for width in [16, 17, 63, 64, 160, 250] {
            let (row, x) = (vec![-1e-30f32; width], vec![1e-30; width]);
            let mut found = [[0f32; 3]; 3];
            let [a, b, c] = found.each_mut();
            plain((&row, 0), 3, [&x], &mut (a, 0));
            let done = [dots_avx512((&row, 0), 3, [&x], &mut (b, 0)), dots_avx2((&row, 0), 3, [&x], &mut (c, 0))];
            assert!(found.as_flattened().iter().all(|x| x.to_bits() == 0), "{width}: {found:?}, {done:?}");
        }
    }
}
