//! Numbers rounded to `bf16`, to nearest with ties to even; NaN stays NaN.
//!
//! A CPU that multiplies `bf16` rounds 32 numbers in one instruction. Those below 1.2·10⁻³⁸, the least that is normal, it makes zero,
//! as its products do; [`Element::nearest`] rounds them like others.

use super::{
    simd::{Element, simd},
    tile::LANES,
};
use half::bf16;

/// These numbers, rounded.
pub(crate) fn nearest(x: &[f32], to: &mut [bf16]) {
    assert!(x.len() <= to.len(), "{} numbers into {}", x.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    if has_fast() {
        // SAFETY: the CPU has the instructions, and there is room for all.
        #[allow(unsafe_code)]
        unsafe {
            avx512::nearest(x, to.as_mut_ptr());
        }
        return;
    }
    simd(
        #[inline(always)]
        || to.iter_mut().zip(x).for_each(|(to, x)| *to = x.nearest()),
    );
}

/// As [`super::transpose::pairs`], of numbers that are rounded. Whether the CPU has a fast way, and so it is done.
#[inline(always)]
pub(crate) fn pairs(x: &[f32], stride: usize, pairs: &mut [[u32; LANES]]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if has_fast() {
        super::transpose::check_rows(x.len(), stride, pairs.len());
        // SAFETY: the CPU has the instructions, and two rows for each pair are in bounds.
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

/// Whether this CPU rounds in one instruction.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) fn has_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = super::cpu::has_bf16() && is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::LANES;
    use half::bf16;
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512 with BF16 and BW; `to` has room for x.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn nearest(x: &[f32], to: *mut bf16) {
        let (whole, rest) = x.as_chunks::<{ 2 * LANES }>();
        // SAFETY: the caller's promise; beyond x nothing is read, and nothing written beyond its last number.
        unsafe {
            for (i, x) in whole.iter().enumerate() {
                let halves = both(_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES)));
                _mm512_storeu_si512(to.add(i * x.len()).cast(), halves);
            }
            if !rest.is_empty() {
                let lanes: __mmask32 = (1 << rest.len()) - 1;
                let first = _mm512_maskz_loadu_ps(lanes as __mmask16, rest.as_ptr());
                let second = _mm512_maskz_loadu_ps((lanes >> LANES) as __mmask16, rest.as_ptr().wrapping_add(LANES));
                _mm512_mask_storeu_epi16(to.add(x.len() - rest.len()).cast(), lanes, both(first, second));
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512 with BF16 and BW; `x` has two rows of 16 for each of `pairs`.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn pairs(x: &[f32], stride: usize, pairs: &mut [[u32; LANES]]) {
        // Halves i of the two rows side by side: of the second they count from 16 on.
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let side_by_side =
            _mm512_or_si512(lanes, _mm512_slli_epi32::<16>(_mm512_or_si512(lanes, _mm512_set1_epi32(16))));
        for (i, pairs) in pairs.iter_mut().enumerate() {
            // SAFETY: 16 numbers are 512 bits, and so are 16 pairs.
            unsafe {
                let row = x.as_ptr().add(2 * i * stride);
                let halves = both(_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(stride)));
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), _mm512_permutexvar_epi16(side_by_side, halves));
            }
        }
    }

    /// Two vectors rounded, one after the other.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn both(first: __m512, second: __m512) -> __m512i {
        let halves = _mm512_cvtne2ps_pbh(second, first);
        // SAFETY: both are 512 bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(halves) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all kinds, ties to even and to odd among them.
    fn numbers(n: usize) -> Vec<f32> {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, f32::MIN_POSITIVE, -1e-39, 1e-45];
        let number = |i: usize| match i % 5 {
            0 => special[i / 5 % special.len()],
            1 => f32::from_bits(0x3F80_8000 + ((i as u32) << 16)),
            2 => f32::from_bits(0xBF80_7FFF + ((i as u32) << 15)),
            _ => (i as f32 * 0.37).sin() * 100.0,
        };
        (0..n).map(number).collect()
    }

    /// What is rounded otherwise than by [`half`] is not normal, and zero, where the CPU has its own way.
    fn check(rounded: bf16, x: f32, place: &dyn std::fmt::Debug) {
        let exact = bf16::from_f32(x);
        let zero = has_fast()
            && !x.is_normal()
            && rounded.to_f32() == 0.0
            && rounded.is_sign_negative() == x.is_sign_negative();
        let same = rounded.to_bits() == exact.to_bits() || rounded.is_nan() && x.is_nan();
        assert!(same || zero, "{place:?}: {x} became {rounded}, not {exact}");
    }

    #[test]
    fn rows_are_rounded_and_nothing_beyond_them() {
        for n in 0..=100 {
            let (x, beyond) = (numbers(n), bf16::from_f32(7.0));
            let mut to = vec![beyond; n + 3];
            nearest(&x, &mut to);
            x.iter().zip(&to).enumerate().for_each(|(i, (x, to))| check(*to, *x, &(n, i)));
            assert!(to[n..].iter().all(|to| *to == beyond), "beyond a row of {n}");
        }
        let short = std::panic::catch_unwind(|| nearest(&[1.0; 3], &mut [bf16::ZERO; 2]));
        assert!(short.is_err());
    }

    #[test]
    fn pairs_are_rounded_columns_of_two_rows() {
        let (stride, n) = (19, 5);
        let x = numbers(2 * n * stride);
        let mut to = vec![[0u32; LANES]; n];
        crate::kernels::simd::pairs(&x, stride, &mut to);
        for (i, column) in (0..2 * n).flat_map(|i| (0..LANES).map(move |column| (i, column))) {
            let bits = (to[i / 2][column] >> (i % 2 * 16)) as u16;
            check(bf16::from_bits(bits), x[i * stride + column], &(i, column));
        }
        assert_eq!(pairs(&x, stride, &mut to), has_fast());
        if !has_fast() {
            return;
        }
        // What the loop relies on is asked for, also where a product would wrap around.
        let fails = |stride| {
            let run = std::panic::AssertUnwindSafe(|| pairs(&x[..3 * 19 + 15], stride, &mut [[0; LANES]; 2]));
            std::panic::catch_unwind(run).is_err()
        };
        assert!([0, 19, usize::MAX / 3 + 1, usize::MAX].into_iter().all(fails));
    }
}
