//! What a softmax does to a row of scores: its largest number, and exponentials with their sum.
//!
//! A row goes on to whole vectors, so that its end is computed like the rest. Vectors of AVX-512 are written by hand, as of a largest
//! number, a remainder and sums the compiler makes vectors of two, four and eight; every form gives the same bits, but for the sign of a
//! largest number that is zero.

use super::{
    simd::{self, simd},
    tile::LANES,
};

/// The largest of the first `n` numbers, `−∞` of none; NaN is passed over. `x` goes on to a multiple of 16.
pub(crate) fn max(x: &[f32], n: usize) -> f32 {
    check(x, n);
    #[cfg(target_arch = "x86_64")]
    if super::cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512, and x goes on to a multiple of 16.
        #[allow(unsafe_code)]
        return unsafe { avx512::max(x.as_ptr(), n) };
    }
    max_plain(x, n)
}

/// `exp((x − top)·scale − shift)` of the first `n` numbers in place, as [`simd::exp2`] of 1.44 times as much; returns their sum, of 16
/// partial sums. `x` goes on to a multiple of 16, up to which what follows becomes 0.
///
/// What is the top itself gives `exp(−shift)`, however large it is: `x·scale − top·scale` would be what the two roundings leave.
pub(crate) fn exp_row(x: &mut [f32], n: usize, scale: f32, (top, shift): (f32, f32)) -> f32 {
    check(x, n);
    let (scale, shift) = (scale * std::f32::consts::LOG2_E, shift * std::f32::consts::LOG2_E);
    #[cfg(target_arch = "x86_64")]
    if super::cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512, and x goes on to a multiple of 16.
        #[allow(unsafe_code)]
        return unsafe { avx512::exp_row(x.as_mut_ptr(), n, scale, (top, shift)) };
    }
    exp_row_plain(x, n, scale, (top, shift))
}

fn check(x: &[f32], n: usize) {
    assert!(n <= x.len() && n.next_multiple_of(LANES) <= x.len(), "a row of {n} in {}", x.len());
}

/// Any CPU.
fn max_plain(x: &[f32], n: usize) -> f32 {
    simd(
        #[inline(always)]
        || {
            let larger = |a: f32, b: f32| if b > a { b } else { a };
            let (whole, last) = x.as_chunks::<LANES>().0[..n.div_ceil(LANES)].split_at(n / LANES);
            let mut maxima = [f32::NEG_INFINITY; LANES];
            for x in whole {
                for (m, x) in maxima.iter_mut().zip(x) {
                    *m = larger(*m, *x);
                }
            }
            for x in last {
                for (i, (m, x)) in maxima.iter_mut().zip(x).enumerate() {
                    *m = larger(*m, if i < n % LANES { *x } else { f32::NEG_INFINITY });
                }
            }
            maxima.into_iter().fold(f32::NEG_INFINITY, larger)
        },
    )
}

/// `2^((x − top)·scale − shift)`, any CPU.
fn exp_row_plain(x: &mut [f32], n: usize, scale: f32, (top, shift): (f32, f32)) -> f32 {
    simd(
        #[inline(always)]
        || {
            let (whole, last) = x.as_chunks_mut::<LANES>().0[..n.div_ceil(LANES)].split_at_mut(n / LANES);
            let mut sums = [0f32; LANES];
            for x in whole {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *x = simd::exp2((*x - top).mul_add(scale, -shift));
                    *sum += *x;
                }
            }
            for x in last {
                for (i, (sum, x)) in sums.iter_mut().zip(x).enumerate() {
                    let e = simd::exp2((*x - top).mul_add(scale, -shift));
                    *x = if i < n % LANES { e } else { 0.0 };
                    *sum += *x;
                }
            }
            simd::total(sums)
        },
    )
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::LANES;
    use crate::kernels::simd::exp::*;
    use std::arch::x86_64::*;

    fn lanes(n: usize) -> __mmask16 {
        (1 << n) - 1
    }

    /// # Safety
    /// The CPU has AVX-512; `x` are n numbers, up to a multiple of 16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn max(x: *const f32, n: usize) -> f32 {
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        // SAFETY: the caller's promise. Of two numbers of which one is none the second is the result.
        unsafe {
            let mut top = none;
            for v in 0..n / LANES {
                top = _mm512_max_ps(_mm512_loadu_ps(x.add(v * LANES)), top);
            }
            let rest = _mm512_mask_loadu_ps(none, lanes(n % LANES), x.wrapping_add(n / LANES * LANES));
            _mm512_reduce_max_ps(_mm512_max_ps(rest, top))
        }
    }

    /// # Safety
    /// The CPU has AVX-512; `x` are n numbers, up to a multiple of 16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn exp_row(x: *mut f32, n: usize, scale: f32, (top, shift): (f32, f32)) -> f32 {
        let [scale, top, shift] = [scale, top, shift].map(|x| _mm512_set1_ps(x));
        let mut sums = _mm512_setzero_ps();
        // SAFETY: the caller's promise.
        unsafe {
            for v in 0..n / LANES {
                let x = x.add(v * LANES);
                let e = exp2(!0, _mm512_fmsub_ps(_mm512_sub_ps(_mm512_loadu_ps(x), top), scale, shift));
                _mm512_storeu_ps(x, e);
                sums = _mm512_add_ps(sums, e);
            }
            if !n.is_multiple_of(LANES) {
                let x = x.add(n / LANES * LANES);
                let e = exp2(lanes(n % LANES), _mm512_fmsub_ps(_mm512_sub_ps(_mm512_loadu_ps(x), top), scale, shift));
                _mm512_storeu_ps(x, e);
                sums = _mm512_add_ps(sums, e);
            }
        }
        total(sums)
    }

    /// [`crate::kernels::simd::exp2`] of these lanes, 0 of the others.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp2(lanes: __mmask16, x: __m512) -> __m512 {
        let number = |x: f32| _mm512_set1_ps(x);
        // Of two numbers of which one is none the second is the result; what is too small is left as it is, for it becomes 0.
        let clamped = _mm512_min_ps(number(LARGEST), x);
        let rounded = _mm512_add_ps(clamped, number(ROUND));
        let r = _mm512_sub_ps(clamped, _mm512_sub_ps(rounded, number(ROUND)));
        let mut p = number(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            p = _mm512_fmadd_ps(r, p, number(*c));
        }
        let exponent = _mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127)));
        let seen = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(lanes, x, number(LEAST));
        _mm512_maskz_mul_ps(seen, p, _mm512_castsi512_ps(exponent))
    }

    /// [`crate::kernels::simd::total`]
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total(sums: __m512) -> f32 {
        let eight = _mm256_add_ps(
            _mm512_castps512_ps256(sums),
            _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums))),
        );
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))) + 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of every length and what floats can be, beside numbers that must not count.
    #[test]
    fn every_form_gives_the_same_bits() {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -0.0, -87.3, -87.4, 88.0, 88.1, 1e30, -1e30];
        for n in 0..=130usize {
            for kind in 0..4 {
                let end = n.next_multiple_of(LANES);
                let mut row: Vec<f32> = (0..end + LANES).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
                for i in (0..n).filter(|i| kind > 0 && i % 7 == 3) {
                    // Without NaN and what is infinite, all of it, or NaN alone, before which the largest number may be.
                    row[i] = match kind {
                        1 => special[3 + i % (special.len() - 3)],
                        2 => special[i % special.len()],
                        _ => f32::NAN,
                    };
                }
                row[n..].fill(if kind == 1 { f32::NAN } else { 1e9 });
                let top = row[..n].iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
                assert_eq!((max(&row, n), max_plain(&row, n)), (top, top), "{n} {kind}");

                for (scale, top, shift) in [
                    (1.0, 0.0, 0.0),
                    (0.125, top, 0.0),
                    (0.3, top, 2.5),
                    (-3.0, 0.0, -2.0),
                    (1.0, f32::NEG_INFINITY, 0.0),
                ] {
                    let [mut chosen, mut plain] = [(); 2].map(|()| row.clone());
                    let in_twos = [scale, shift].map(|x| x * std::f32::consts::LOG2_E);
                    let sums = [
                        exp_row(&mut chosen, n, scale, (top, shift)),
                        exp_row_plain(&mut plain, n, in_twos[0], (top, in_twos[1])),
                    ];
                    let same = |a: &f32, b: &f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                    assert!(same(&sums[0], &sums[1]), "{n} {kind} {scale} {shift}: {sums:?}");
                    assert!(chosen.iter().zip(&plain).all(|(a, b)| same(a, b)), "{n} {kind} {scale} {shift}");
                    // The least of the two would pass over NaN.
                    let capped = |x: f64| if x > 127.0 { 127.0 } else { x };
                    for (e, x) in chosen.iter().map(|e| f64::from(*e)).zip(&row[..n]) {
                        let of = f64::from(*x - top) * f64::from(scale) - f64::from(shift);
                        let exact = capped(of * std::f64::consts::LOG2_E).exp2();
                        // Beside exp2's own error that of its argument, of three roundings.
                        let error = 1e-7 + 1.8e-7 * (of.abs() + f64::from(shift).abs()).min(100.0);
                        let near = (e - exact).abs() <= error * exact || e == 0.0 && exact < 1.3e-38;
                        assert!(near || e.is_nan() && exact.is_nan(), "{n} {kind} {scale} {shift}: {e}, not {exact}");
                    }
                    let sum: f64 = chosen[..n].iter().map(|e| f64::from(*e)).sum();
                    let near = (f64::from(sums[0]) - sum).abs() <= 1e-5 * sum;
                    assert!(
                        near || sum.is_nan() && sums[0].is_nan() || sum > 3e38,
                        "{n} {kind}: {}, not {sum}",
                        sums[0]
                    );
                    assert!(chosen[n..end].iter().all(|x| *x == 0.0), "{n}");
                    assert!(chosen[end..].iter().zip(&row[end..]).all(|(a, b)| same(a, b)), "beyond a row of {n}");
                }
            }
        }
    }

    /// The least and the largest power that there is, and what lies beyond.
    #[test]
    fn every_form_ends_where_the_numbers_end() {
        let (least, largest) = (simd::exp::LEAST, simd::exp::LARGEST);
        let ends = [least, least.next_down(), least.next_up(), largest, largest.next_up(), largest.next_down()];
        for n in [ends.len(), 16, 22] {
            let row: Vec<f32> = (0..32).map(|i| ends[i % ends.len()]).collect();
            let mut plain = row.clone();
            let sum = exp_row_plain(&mut plain, n, 1.0, (0.0, 0.0));
            assert_eq!(plain[..3], [2f32.powi(-126), 0.0, least.next_up().exp2()]);
            assert_eq!(plain[3..5], [2f32.powi(127); 2]);
            #[cfg(target_arch = "x86_64")]
            if crate::kernels::cpu::has_avx512() {
                let mut vectors = row;
                // SAFETY: the CPU has AVX-512, and the row goes on to a multiple of 16.
                #[allow(unsafe_code)]
                let of_vectors = unsafe { avx512::exp_row(vectors.as_mut_ptr(), n, 1.0, (0.0, 0.0)) };
                assert!(vectors == plain && of_vectors == sum, "{n}: {vectors:?}, not {plain:?}");
            }
        }
    }

    #[test]
    fn a_row_without_its_end_is_refused() {
        for n in [1, 15, 17] {
            let mut row = vec![1.0; n];
            assert!(std::panic::catch_unwind(|| max(&row.clone(), n)).is_err(), "{n}");
            let exp = std::panic::AssertUnwindSafe(|| exp_row(&mut row, n, 1.0, (0.0, 0.0)));
            assert!(std::panic::catch_unwind(exp).is_err(), "{n}");
        }
    }
}
