//! Sums of rows, each times a number: the values of attention by their probabilities. Rows are of `f32`, or of narrower numbers that are
//! widened as they are read.
//!
//! Columns stay in registers while all rows go by, so a column's products are added up in order: every form gives the same bits.

#[cfg(target_arch = "x86_64")]
use super::cpu;
use super::{
    dots::Number,
    simd::{Element, simd},
};

/// Columns whose sums stay in registers.
const WIDE: usize = 64;

/// `y = Σ p[j]·row(j)`, of rows as wide as y.
#[inline]
pub(crate) fn weighted<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) {
    if !weighted_avx512(&row, p, y) && !weighted_avx2(&row, p, y) {
        plain(row, p, y);
    }
}

/// Any CPU.
fn plain<'a, T: Element + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            let width = y.len();
            let (wide, rest) = y.as_chunks_mut::<WIDE>();
            for (c, y) in wide.iter_mut().enumerate() {
                let mut sums = [0f32; WIDE];
                for (j, p) in p.iter().enumerate() {
                    let row = &row(j).as_chunks::<WIDE>().0[c];
                    for i in 0..WIDE {
                        sums[i] = p.mul_add(row[i].widen(), sums[i]);
                    }
                }
                *y = sums;
            }
            rest.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                let row = &row(j)[width - rest.len()..];
                rest.iter_mut().zip(row).for_each(|(y, x)| *y = p.mul_add(x.widen(), *y));
            }
        },
    );
}

/// In AVX-512, if this CPU has it; whether it was done.
#[inline]
fn weighted_avx512<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::weighted(row, p, y);
        }
        return true;
    }
    let _ = (row, p, y);
    false
}

/// As [`weighted_avx512`], in AVX2.
#[inline]
fn weighted_avx2<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::widens_f16() {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            avx2::weighted(row, p, y);
        }
        return true;
    }
    let _ = (row, p, y);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, WIDE};
    use crate::kernels::{dots::padded, tile::LANES};
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn weighted<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) {
        let (wide, rest) = y.as_chunks_mut::<WIDE>();
        let first = wide.len() * WIDE;
        for (c, y) in wide.iter_mut().enumerate() {
            let mut sums = [_mm512_setzero_ps(); WIDE / LANES];
            for (j, p) in p.iter().enumerate() {
                let (p, row) = (_mm512_set1_ps(*p), &row(j)[c * WIDE..(c + 1) * WIDE]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller's promise; the vector is in the row.
                    *sum = unsafe { _mm512_fmadd_ps(p, T::load16(row.as_ptr().add(i * LANES)), *sum) };
                }
            }
            for (sum, y) in sums.iter().zip(y.as_chunks_mut::<LANES>().0) {
                // SAFETY: 16 numbers.
                unsafe { _mm512_storeu_ps(y.as_mut_ptr(), *sum) };
            }
        }
        for (c, y) in rest.chunks_mut(LANES).enumerate() {
            let columns = first + c * LANES..first + c * LANES + y.len();
            let mut sum = _mm512_setzero_ps();
            for (j, p) in p.iter().enumerate() {
                let row = padded(&row(j)[columns.clone()]);
                // SAFETY: the caller's promise; 16 numbers.
                sum = unsafe { _mm512_fmadd_ps(_mm512_set1_ps(*p), T::load16(row.as_ptr()), sum) };
            }
            let mut sums = [0f32; LANES];
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{Number, WIDE};
    use crate::kernels::{dots::padded, tile::LANES};
    use std::arch::x86_64::*;

    const HALF: usize = LANES / 2;

    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn weighted<'a, T: Number + 'a>(row: impl Fn(usize) -> &'a [T], p: &[f32], y: &mut [f32]) {
        let (wide, rest) = y.as_chunks_mut::<WIDE>();
        let first = wide.len() * WIDE;
        for (c, y) in wide.iter_mut().enumerate() {
            let mut sums = [_mm256_setzero_ps(); WIDE / HALF];
            for (j, p) in p.iter().enumerate() {
                let (p, row) = (_mm256_set1_ps(*p), &row(j)[c * WIDE..(c + 1) * WIDE]);
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
            let columns = first + c * HALF..first + c * HALF + y.len();
            let mut sum = _mm256_setzero_ps();
            for (j, p) in p.iter().enumerate() {
                let row = padded(&row(j)[columns.clone()]);
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

    /// In every form, of rows of widths up to and beyond several vectors.
    fn every_form_gives_the_same_bits<T: Number>(number: impl Fn(f32) -> T) {
        for width in (0..140).chain([256, 300]) {
            let rows = width % 37;
            let x = mc_testkit::random(1, rows * width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let x: Vec<T> = x.into_iter().map(&number).collect();
            let p = mc_testkit::random(2, rows, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let row = |j: usize| &x[j * width..(j + 1) * width];
            let mut expected = vec![f32::NAN; width];
            plain(row, &p, &mut expected);
            for form in 0..3 {
                let mut found = vec![f32::NAN; width];
                let done = match form {
                    0 => weighted_avx512(row, &p, &mut found),
                    1 => weighted_avx2(row, &p, &mut found),
                    _ => {
                        weighted(row, &p, &mut found);
                        true
                    }
                };
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(!done || expected.iter().zip(&found).all(same), "{rows} x {width}, form {form}");
            }
            for (c, y) in expected.iter().enumerate() {
                let terms = || p.iter().enumerate().map(|(j, p)| f64::from(*p) * f64::from(row(j)[c].widen()));
                let most: f64 = terms().map(f64::abs).sum();
                assert!((terms().sum::<f64>() - f64::from(*y)).abs() <= 1e-6 * most, "{rows} x {width}");
            }
        }
    }

    #[test]
    fn of_every_kind_of_number() {
        // Plain Rust would be as right, and slow.
        let row = |_: usize| &[0f32][..];
        assert!(weighted_avx512(row, &[], &mut [0.0]) == cpu::has_avx512(), "AVX-512 is not used");
        assert!(weighted_avx2(row, &[], &mut [0.0]) == cpu::widens_f16(), "AVX2 is not used");
        every_form_gives_the_same_bits(|x| x);
        every_form_gives_the_same_bits(f16::from_f32);
        every_form_gives_the_same_bits(bf16::from_f32);
    }
}
