//! Dot products of rows of `f16` with an `f32` vector, as [`super::simd::dot`] adds them up, bit for bit. The CPU's own conversion takes one
//! instruction for each vector, where a conversion in plain Rust takes eight, which is slower than memory.

#[cfg(target_arch = "x86_64")]
use super::cpu;
use super::simd::row_dots;
use half::f16;

/// The dot product of each row of `x`, which is as wide as `query`, with it.
pub(crate) fn dots(x: &[f16], query: &[f32], out: &mut [f32]) {
    if !dots_avx512(x, query, out) && !dots_avx2(x, query, out) {
        row_dots(x, query, out);
    }
}

/// In AVX-512, if this CPU has it; whether it was done.
fn dots_avx512(x: &[f16], query: &[f32], out: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx512() {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::dots(x, query, out);
        }
        return true;
    }
    let _ = (x, query, out);
    false
}

/// As [`dots_avx512`], in AVX2.
fn dots_avx2(x: &[f16], query: &[f32], out: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx2() && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            avx2::dots(x, query, out);
        }
        return true;
    }
    let _ = (x, query, out);
    false
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The products in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use crate::kernels::{
        simd::{Element, UNROLL, total},
        tile::LANES,
    };
    use half::f16;
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dots(x: &[f16], query: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(query.len())) {
            let mut sums = [_mm512_setzero_ps(); UNROLL];
            let (mut cx, mut cq) = (x.chunks_exact(LANES * UNROLL), query.chunks_exact(LANES * UNROLL));
            for (x, q) in (&mut cx).zip(&mut cq) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a chunk is `UNROLL` vectors.
                    unsafe {
                        let x = _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().add(i * LANES).cast()));
                        *sum = _mm512_fmadd_ps(x, _mm512_loadu_ps(q.as_ptr().add(i * LANES)), *sum);
                    }
                }
            }
            let mut sum = _mm512_setzero_ps();
            for s in sums {
                sum = _mm512_add_ps(sum, s);
            }
            let (mut cx, mut cq) = (cx.remainder().chunks_exact(LANES), cq.remainder().chunks_exact(LANES));
            for (x, q) in (&mut cx).zip(&mut cq) {
                // SAFETY: a chunk is one vector.
                unsafe {
                    let x = _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast()));
                    sum = _mm512_fmadd_ps(x, _mm512_loadu_ps(q.as_ptr()), sum);
                }
            }
            let mut lanes = [0f32; LANES];
            // SAFETY: the lanes are one vector.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) }
            for ((lane, x), q) in lanes.iter_mut().zip(cx.remainder()).zip(cq.remainder()) {
                *lane = x.widen().mul_add(*q, *lane);
            }
            *out = total(lanes);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The products in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use crate::kernels::{
        simd::{UNROLL, finish},
        tile::LANES,
    };
    use half::f16;
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn dots(x: &[f16], query: &[f32], out: &mut [f32]) {
        const HALF: usize = LANES / 2;
        let (numbers, rest) = query.as_chunks::<{ UNROLL * LANES }>();
        for (out, x) in out.iter_mut().zip(x.chunks_exact(query.len())) {
            let (halves, last) = x.as_chunks::<{ UNROLL * LANES }>();
            let mut sums = [_mm256_setzero_ps(); 2 * UNROLL];
            for (x, q) in halves.iter().zip(numbers) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a chunk is as many vectors as there are sums.
                    unsafe {
                        let x = _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(i * HALF).cast()));
                        *sum = _mm256_fmadd_ps(x, _mm256_loadu_ps(q.as_ptr().add(i * HALF)), *sum);
                    }
                }
            }
            *out = finish(bytemuck::cast(sums), last, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also of subnormal numbers and zeros of both signs.
    #[test]
    fn every_form_gives_the_same_bits() {
        // What would be as right, and slow.
        #[cfg(target_arch = "x86_64")]
        assert!(dots_avx2(&[], &[1.0], &mut []) || !cpu::has_avx2(), "the CPU's conversion is not used");
        let bits = |i: usize| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        for width in (1..140).chain([384, 1000]) {
            let rows = 1 + width % 4;
            // Without one bit of the exponent a number is finite.
            let x: Vec<_> = (0..rows * width).map(|i| f16::from_bits(bits(i) as u16 & 0xFBFF)).collect();
            let query = mc_testkit::random(2, width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let [mut plain, mut found] = [(); 2].map(|()| vec![f32::NAN; rows]);
            row_dots(&x, &query, &mut plain);
            for form in [dots_avx512, dots_avx2] {
                found.fill(f32::NAN);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(!form(&x, &query, &mut found) || plain.iter().zip(&found).all(same), "{rows} x {width}");
            }
            dots(&x, &query, &mut found);
            for (x, y) in x.chunks_exact(width).zip(found) {
                let terms = || x.iter().zip(&query).map(|(x, q)| x.to_f64() * f64::from(*q));
                let most: f64 = terms().map(f64::abs).sum();
                assert!((terms().sum::<f64>() - f64::from(y)).abs() <= 1e-6 * most, "{rows} x {width}");
            }
        }
    }
}
