//! Sums of rows, each times a number: the values of attention by their probabilities. Rows are of `f32`, or of narrower numbers that are
//! widened as they are read.
//!
//! Columns stay in registers while all rows go by, so a column's products are added up in order: every form gives the same bits. In
//! AVX-512, whose registers are enough for it, a row is read and widened once for several sums.

#[cfg(target_arch = "x86_64")]
use super::cpu;
use super::{
    dots::Number,
    simd::{Element, simd},
};

/// Columns whose sums stay in registers.
const WIDE: usize = 64;

/// H sums of the same `n` rows, which lie `stride` numbers apart: `y[h] = Σ p[h][j]·row(j)`. The p of each sum lie `p_stride` apart, the sums
/// one after the other in `y`, each as wide as a row.
#[inline]
pub(crate) fn weighted<T: Number, const H: usize>(rows: (&[T], usize), n: usize, p: (&[f32], usize), y: &mut [f32]) {
    if !weighted_avx512::<T, H>(rows, n, p, y) && !weighted_avx2::<T, H>(rows, n, p, y) {
        each::<T, H>(rows, n, p, y, plain);
    }
}

/// Rows, their stride, a number for each and their sum.
type One<T> = fn(&[T], usize, &[f32], &mut [f32]);

/// One sum after the other.
fn each<T: Number, const H: usize>(
    (rows, stride): (&[T], usize),
    n: usize,
    (p, p_stride): (&[f32], usize),
    y: &mut [f32],
    one: One<T>,
) {
    let width = y.len() / H;
    for (h, y) in y.chunks_exact_mut(width.max(1)).enumerate() {
        one(rows, stride, &p[h * p_stride..][..n], y);
    }
}

/// Any CPU.
fn plain<T: Element>(rows: &[T], stride: usize, p: &[f32], y: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            let width = y.len();
            let (wide, rest) = y.as_chunks_mut::<WIDE>();
            for (c, y) in wide.iter_mut().enumerate() {
                let mut sums = [0f32; WIDE];
                for (j, p) in p.iter().enumerate() {
                    let row = &rows[j * stride..][..width].as_chunks::<WIDE>().0[c];
                    for i in 0..WIDE {
                        sums[i] = p.mul_add(row[i].widen(), sums[i]);
                    }
                }
                *y = sums;
            }
            rest.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                let row = &rows[j * stride..][width - rest.len()..width];
                rest.iter_mut().zip(row).for_each(|(y, x)| *y = p.mul_add(x.widen(), *y));
            }
        },
    );
}

/// In AVX-512, if this CPU has it; whether it was done.
#[inline]
fn weighted_avx512<T: Number, const H: usize>(
    rows: (&[T], usize),
    n: usize,
    p: (&[f32], usize),
    y: &mut [f32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::weighted::<T, H>(rows, n, p, y);
        }
        return true;
    }
    let _ = (rows, n, p, y);
    false
}

/// As [`weighted_avx512`], in AVX2.
#[inline]
fn weighted_avx2<T: Number, const H: usize>(rows: (&[T], usize), n: usize, p: (&[f32], usize), y: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::widens_f16() {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        each::<T, H>(rows, n, p, y, |rows, stride, p, y| unsafe { avx2::weighted(rows, stride, p, y) });
        return true;
    }
    let _ = (rows, n, p, y);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, WIDE};
    use crate::kernels::{
        dots::{avx512, padded},
        tile::LANES,
    };
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn weighted<T: Number, const H: usize>(
        (rows, stride): (&[T], usize),
        n: usize,
        (p, p_stride): (&[f32], usize),
        y: &mut [f32],
    ) {
        let width = y.len() / H;
        let (mut at, ahead) = (0, avx512::ahead::<T>(width, stride));
        while at + WIDE <= width {
            let mut sums = [[_mm512_setzero_ps(); H]; WIDE / LANES];
            for j in 0..n {
                let row = &rows[j * stride + at..][..WIDE];
                avx512::fetch(row, ahead);
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller's promise; the vector is in the row.
                    let row = unsafe { T::load16(row.as_ptr().add(i * LANES)) };
                    for h in 0..H {
                        sums[h] = _mm512_fmadd_ps(_mm512_set1_ps(p[h * p_stride + j]), row, sums[h]);
                    }
                }
            }
            for h in 0..H {
                let y = y[h * width + at..][..WIDE].as_chunks_mut::<LANES>().0;
                for (y, sums) in y.iter_mut().zip(&sums) {
                    // SAFETY: 16 numbers.
                    unsafe { _mm512_storeu_ps(y.as_mut_ptr(), sums[h]) };
                }
            }
            at += WIDE;
        }
        while at < width {
            let columns = LANES.min(width - at);
            let mut sums = [_mm512_setzero_ps(); H];
            for j in 0..n {
                let row = padded(&rows[j * stride + at..][..columns]);
                // SAFETY: the caller's promise; 16 numbers.
                let row = unsafe { T::load16(row.as_ptr()) };
                for h in 0..H {
                    sums[h] = _mm512_fmadd_ps(_mm512_set1_ps(p[h * p_stride + j]), row, sums[h]);
                }
            }
            for (h, sum) in sums.iter().enumerate() {
                let mut numbers = [0f32; LANES];
                // SAFETY: 16 numbers.
                unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), *sum) };
                y[h * width + at..][..columns].copy_from_slice(&numbers[..columns]);
            }
            at += columns;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same in AVX2, one sum.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, WIDE};
    use crate::kernels::{dots::padded, tile::LANES};
    use std::arch::x86_64::*;

    const HALF: usize = LANES / 2;

    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn weighted<T: Number>(rows: &[T], stride: usize, p: &[f32], y: &mut [f32]) {
        let (wide, rest) = y.as_chunks_mut::<WIDE>();
        let first = wide.len() * WIDE;
        for (c, y) in wide.iter_mut().enumerate() {
            let mut sums = [_mm256_setzero_ps(); WIDE / HALF];
            for (j, p) in p.iter().enumerate() {
                let (p, row) = (_mm256_set1_ps(*p), &rows[j * stride + c * WIDE..][..WIDE]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller's promise; the vector is in the row.
                    *sum = unsafe { _mm256_fmadd_ps(p, T::load8(row.as_ptr().add(i * HALF)), *sum) };
                }
            }
            for (sum, y) in sums.iter().zip(y.as_chunks_mut::<HALF>().0) {
                // SAFETY: eight numbers.
                unsafe { _mm256_storeu_ps(y.as_mut_ptr(), *sum) };
            }
        }
        for (c, y) in rest.chunks_mut(HALF).enumerate() {
            let mut sum = _mm256_setzero_ps();
            for (j, p) in p.iter().enumerate() {
                let row = padded(&rows[j * stride + first + c * HALF..][..y.len()]);
                // SAFETY: the caller's promise; of 16 numbers the first eight.
                sum = unsafe { _mm256_fmadd_ps(_mm256_set1_ps(*p), T::load8(row.as_ptr()), sum) };
            }
            let mut sums = [0f32; HALF];
            // SAFETY: eight numbers.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), sum) };
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu;
    use half::{bf16, f16};

    /// In every form, H sums of rows of widths up to and beyond several vectors.
    fn every_form_gives_the_same_bits<T: Number, const H: usize>(number: &impl Fn(f32) -> T) {
        for width in (0..140).chain([256, 300]) {
            let (n, gap) = (width % 37, width % 3);
            let (stride, p_stride) = (width + gap, n + gap);
            let random = |seed, len| mc_testkit::random(seed, len, candle_core::DType::F32).to_vec1::<f32>();
            let rows: Vec<T> = random(1, n * stride).expect("numbers").into_iter().map(number).collect();
            let rows = (&rows[..(n * stride).saturating_sub(gap)], stride);
            let p = random(2, H * p_stride).expect("numbers");
            let p = (&p[..], p_stride);
            let mut expected = vec![f32::NAN; H * width];
            each::<T, H>(rows, n, p, &mut expected, plain);
            for form in 0..3 {
                let mut found = vec![f32::NAN; H * width];
                let done = match form {
                    0 => weighted_avx512::<T, H>(rows, n, p, &mut found),
                    1 => weighted_avx2::<T, H>(rows, n, p, &mut found),
                    _ => {
                        weighted::<T, H>(rows, n, p, &mut found);
                        true
                    }
                };
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(!done || expected.iter().zip(&found).all(same), "{n} x {width}, form {form}");
            }
            for (at, y) in expected.iter().enumerate() {
                let (h, c) = (at / width, at % width);
                let term = |j: usize| f64::from(p.0[h * p_stride + j]) * f64::from(rows.0[j * stride + c].widen());
                let most: f64 = (0..n).map(|j| term(j).abs()).sum();
                assert!(((0..n).map(term).sum::<f64>() - f64::from(*y)).abs() <= 1e-6 * most, "{n} x {width}");
            }
        }
    }

    fn of_several<T: Number>(number: impl Fn(f32) -> T) {
        every_form_gives_the_same_bits::<T, 1>(&number);
        every_form_gives_the_same_bits::<T, 3>(&number);
        every_form_gives_the_same_bits::<T, 4>(&number);
    }

    #[test]
    fn of_every_kind_of_number() {
        // Plain Rust would be as right, and slow.
        let nothing = (&[0f32][..], 1);
        assert!(weighted_avx512::<_, 1>(nothing, 0, (&[], 0), &mut [0.0]) == cpu::has_avx512(), "AVX-512 is not used");
        assert!(weighted_avx2::<_, 1>(nothing, 0, (&[], 0), &mut [0.0]) == cpu::widens_f16(), "AVX2 is not used");
        of_several(|x| x);
        of_several(f16::from_f32);
        of_several(bf16::from_f32);
    }
}
