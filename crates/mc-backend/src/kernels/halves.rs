//! Dot products of rows of `f16` with an `f32` vector, as [`super::simd::dot`] adds them up, bit for bit, and as fast as memory: without
//! the CPU's own conversion, each number would take eight instructions.

use super::simd::{dot, simd};
use half::f16;

/// The dot product of each row of `x`, which is as wide as `query`, with it.
pub(crate) fn dots(x: &[f16], query: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::dots(x, query, out);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has the instructions.
        #[allow(unsafe_code)]
        unsafe {
            avx2::dots(x, query, out);
        }
        return;
    }
    plain(x, query, out);
}

fn plain(x: &[f16], query: &[f32], out: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(query.len())) {
                *out = dot(x, query);
            }
        },
    );
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The products in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use crate::kernels::simd::{Element, total};
    use half::f16;
    use std::arch::x86_64::*;

    /// Vectors at a time, so that sums do not wait for each other.
    const STEP: usize = 4;

    /// # Safety
    /// The CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dots(x: &[f16], query: &[f32], scores: &mut [f32]) {
        const LANES: usize = 16;
        for (score, x) in scores.iter_mut().zip(x.chunks_exact(query.len())) {
            let mut sums = [_mm512_setzero_ps(); STEP];
            let (mut cx, mut cq) = (x.chunks_exact(LANES * STEP), query.chunks_exact(LANES * STEP));
            for (x, q) in (&mut cx).zip(&mut cq) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a chunk is `STEP` vectors.
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
            *score = total(lanes);
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

    #[test]
    fn the_chosen_products_equal_the_plain_ones() {
        for (rows, width) in [(0, 5), (3, 1), (2, 16), (3, 63), (4, 64), (5, 131), (3, 384), (2, 1000)] {
            let x = mc_testkit::random(1, rows * width, candle_core::DType::F16).to_vec1::<f16>().expect("halves");
            let query = mc_testkit::random(2, width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let [mut chosen, mut plain_ones] = [(); 2].map(|()| vec![f32::NAN; rows]);
            dots(&x, &query, &mut chosen);
            plain(&x, &query, &mut plain_ones);
            let exact = |x: &[f16]| x.iter().zip(&query).map(|(x, q)| x.to_f64() * f64::from(*q)).sum::<f64>();
            assert_eq!(chosen, plain_ones, "{rows} x {width}");
            assert!(
                x.chunks_exact(width).zip(&chosen).all(|(x, y)| (exact(x) - f64::from(*y)).abs() < 1e-4 * width as f64)
            );
        }
    }
}
