//! Kernels that work on one row at a time: norms, gates, rotation. Rows are independent, so they run in
//! parallel over blocks of rows.

use super::simd::{Element, dot, exp, simd, sum_of};
use crate::weight::Elements;
use rayon::prelude::*;

/// Elements one unit of work handles: large enough that handing it to a thread costs nothing beside it.
const UNIT: usize = 16 * 1024;

/// Calls `f(first row, rows of out)` for blocks of rows `width` wide.
fn blocks(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Send + Sync) {
    let rows = (UNIT / width.max(1)).max(1);
    out.par_chunks_mut(rows * width.max(1)).enumerate().for_each(|(u, block)| f(u * rows, block));
}

/// `y = x / √(mean(x²) + eps) · w`
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let d = w.len();
    blocks(y, d, |first, y| rms_norm_rows(&x[first * d..][..y.len()], w, eps, y));
}

/// [`rms_norm`] on this thread.
pub(crate) fn rms_norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let d = w.len();
    simd(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
                let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * r * w;
                }
            }
        },
    );
}

/// Gradient of [`rms_norm`]: with `r = 1/√(mean(x²) + eps)` and `h = g·w`, `dx = r·h − x·r³·mean(h·x)`.
pub(crate) fn rms_norm_backward(x: &[f32], w: &[f32], eps: f32, g: &[f32], dx: &mut [f32]) {
    let d = w.len();
    blocks(dx, d, |first, dx| {
        let rows = first * d..first * d + dx.len();
        dx.copy_from_slice(&g[rows.clone()]);
        rms_norm_backward_rows(&x[rows], w, eps, dx);
    });
}

/// [`rms_norm_backward`] on this thread: the gradient of the output becomes that of the input.
pub(crate) fn rms_norm_backward_rows(x: &[f32], w: &[f32], eps: f32, g: &mut [f32]) {
    let d = w.len();
    simd(
        #[inline(always)]
        || {
            for (x, g) in x.chunks_exact(d).zip(g.chunks_exact_mut(d)) {
                let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
                for (g, w) in g.iter_mut().zip(w) {
                    *g *= w;
                }
                let pull = r * r * r * dot(g, x) / d as f32;
                for (g, x) in g.iter_mut().zip(x) {
                    *g = *g * r - x * pull;
                }
            }
        },
    );
}

/// Mean and `1/√(variance + eps)` of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let d = x.len() as f32;
    let mean = sum_of(x, |v| v) / d;
    let variance = sum_of(x, |v| (v - mean) * (v - mean)) / d;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// `y = (x − mean) / √(variance + eps) · w + b`
pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let d = w.len();
    blocks(y, d, |first, y| {
        y.copy_from_slice(&x[first * d..][..y.len()]);
        layer_norm_rows(w, b, eps, y);
    });
}

/// [`layer_norm`] in place, on this thread.
pub(crate) fn layer_norm_rows(w: &[f32], b: Option<&[f32]>, eps: f32, rows: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(w.len()) {
                let (mean, r) = moments(row, eps);
                match b {
                    Some(b) => {
                        for ((x, w), b) in row.iter_mut().zip(w).zip(b) {
                            *x = ((*x - mean) * r).mul_add(*w, *b);
                        }
                    }
                    None => {
                        for (x, w) in row.iter_mut().zip(w) {
                            *x = (*x - mean) * r * w;
                        }
                    }
                }
            }
        },
    );
}

/// Gradient of [`layer_norm`]: with `n = (x − mean)·r` and `h = g·w`, `dx = r·(h − mean(h) − n·mean(h·n))`.
pub(crate) fn layer_norm_backward(x: &[f32], w: &[f32], eps: f32, g: &[f32], dx: &mut [f32]) {
    let d = w.len();
    blocks(dx, d, |first, block| {
        simd(
            #[inline(always)]
            || {
                for (i, dx) in block.chunks_exact_mut(d).enumerate() {
                    let row = (first + i) * d..(first + i + 1) * d;
                    let (x, g) = (&x[row.clone()], &g[row]);
                    let (mean, r) = moments(x, eps);
                    for ((h, g), w) in dx.iter_mut().zip(g).zip(w) {
                        *h = g * w;
                    }
                    let mean_h = sum_of(dx, |v| v) / d as f32;
                    let mean_hn = (dot(dx, x) - mean * mean_h * d as f32) * r / d as f32;
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = r * (*dx - mean_h - (x - mean) * r * mean_hn);
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `y = gate·σ(gate)·up`
pub(crate) fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    blocks(y, 1, |first, y| {
        y.copy_from_slice(&up[first..][..y.len()]);
        swiglu_row(&gate[first..][..y.len()], y);
    });
}

/// [`swiglu`] on this thread: `up` becomes the result.
pub(crate) fn swiglu_row(gate: &[f32], up: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (u, x) in up.iter_mut().zip(gate) {
                *u *= x * sigmoid(*x);
            }
        },
    );
}

/// Gradients of [`swiglu`] in both arguments, `silu'(x) = σ·(1 + x·(1 − σ))`.
pub(crate) fn swiglu_backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let units = d_gate.par_chunks_mut(UNIT).zip(d_up.par_chunks_mut(UNIT)).enumerate();
    units.for_each(|(i, (d_gate, d_up))| {
        let range = i * UNIT..i * UNIT + d_up.len();
        d_gate.copy_from_slice(&gate[range.clone()]);
        d_up.copy_from_slice(&up[range.clone()]);
        swiglu_backward_row(d_gate, d_up, &g[range]);
    });
}

/// [`swiglu_backward`] on this thread: gate and up become their gradients.
pub(crate) fn swiglu_backward_row(gate: &mut [f32], up: &mut [f32], g: &[f32]) {
    simd(
        #[inline(always)]
        || {
            for ((gate, up), g) in gate.iter_mut().zip(up.iter_mut()).zip(g) {
                let (x, s) = (*gate, sigmoid(*gate));
                *gate = g * *up * s * (1.0 + x * (1.0 - s));
                *up = g * x * s;
            }
        },
    );
}

/// How the normal distribution function of a gelu is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// By the error function: `Φ(x) = ½(1 + erf(x/√2))`.
    Exact,
    /// By the hyperbolic tangent: `Φ(x) ≈ ½(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    Tanh,
}

impl Gelu {
    /// `Φ(x)` and its derivative.
    #[inline(always)]
    fn cdf(self, x: f32) -> (f32, f32) {
        match self {
            Self::Exact => normal_cdf(x),
            Self::Tanh => {
                // ½(1 + tanh(u)) is σ(2u).
                let (square, c) = (x * x, 1.595_769_2);
                let s = sigmoid(c * x * square.mul_add(0.044_715, 1.0));
                (s, s * (1.0 - s) * c * square.mul_add(0.134_145, 1.0))
            }
        }
    }
}

/// `y = x·Φ(x)`
pub(crate) fn gelu(form: Gelu, x: &[f32], y: &mut [f32]) {
    blocks(y, 1, |first, y| {
        y.copy_from_slice(&x[first..][..y.len()]);
        gelu_row(form, y);
    });
}

/// [`gelu`] in place, on this thread.
pub(crate) fn gelu_row(form: Gelu, x: &mut [f32]) {
    simd(
        #[inline(always)]
        || match form {
            Gelu::Exact => x.iter_mut().for_each(|x| *x *= Gelu::Exact.cdf(*x).0),
            Gelu::Tanh => x.iter_mut().for_each(|x| *x *= Gelu::Tanh.cdf(*x).0),
        },
    );
}

/// Gradient of [`gelu`]: `Φ(x) + x·Φ'(x)`.
pub(crate) fn gelu_backward(form: Gelu, x: &[f32], g: &[f32], dx: &mut [f32]) {
    blocks(dx, 1, |first, dx| {
        simd(
            #[inline(always)]
            || {
                for ((dx, x), g) in dx.iter_mut().zip(&x[first..]).zip(&g[first..]) {
                    let (cdf, density) = form.cdf(*x);
                    *dx = g * x.mul_add(density, cdf);
                }
            },
        );
    });
}

/// `y = gate·Φ(gate)·up`
pub(crate) fn geglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    blocks(y, 1, |first, y| geglu_row(&gate[first..][..y.len()], &up[first..][..y.len()], y));
}

/// [`geglu`] on this thread.
pub(crate) fn geglu_row(gate: &[f32], up: &[f32], y: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for ((y, x), u) in y.iter_mut().zip(gate).zip(up) {
                *y = x * normal_cdf(*x).0 * u;
            }
        },
    );
}

/// Gradients of [`geglu`] in both arguments.
pub(crate) fn geglu_backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let units = d_gate.par_chunks_mut(UNIT).zip(d_up.par_chunks_mut(UNIT)).enumerate();
    units.for_each(|(i, (d_gate, d_up))| {
        let range = i * UNIT..i * UNIT + d_up.len();
        simd(
            #[inline(always)]
            || {
                let inputs = gate[range.clone()].iter().zip(&up[range.clone()]).zip(&g[range.clone()]);
                for ((d_gate, d_up), ((x, up), g)) in d_gate.iter_mut().zip(d_up.iter_mut()).zip(inputs) {
                    let (cdf, density) = normal_cdf(*x);
                    *d_gate = g * up * x.mul_add(density, cdf);
                    *d_up = g * x * cdf;
                }
            },
        );
    });
}

/// `Φ(x) = ½(1 + erf(x/√2))` within 3·10⁻⁷, and its derivative, the normal density.
///
/// `½ + x·P(2x²/c² − 1)` up to `c = 5.25`, where it is 0 or 1 to within 10⁻⁷; P is the least-squares polynomial of degree
/// 13 in Chebyshev's points, its errors weighted by x. Without a division or an exponential, it costs a third of those.
#[inline(always)]
fn normal_cdf(x: f32) -> (f32, f32) {
    const END: f32 = 5.25;
    const P: [f32; 14] = [
        -5.366_551e-4,
        1.444_596_9e-3,
        -1.399_323e-3,
        1.902_493_6e-3,
        -5.036_259_5e-3,
        9.036_567e-3,
        -1.300_012_1e-2,
        1.834_178e-2,
        -2.498_290_3e-2,
        3.206_097_3e-2,
        -3.976_997_4e-2,
        4.964_414_6e-2,
        -6.712_661e-2,
        1.346_593_6e-1,
    ];
    let u = (x * x).mul_add(2.0 / (END * END), -1.0);
    let mut p = P[0];
    for c in &P[1..] {
        p = u.mul_add(p, *c);
    }
    let inside = x.mul_add(p, 0.5);
    let cdf = if x < -END { 0.0 } else { inside };
    let cdf = if x > END { 1.0 } else { cdf };
    (cdf, 0.398_942_3 * exp(-0.5 * x * x))
}

/// Rotates pairs `(x[i], x[i + half])` of every head by the angle of its position.
///
/// `x` is rows of `heads · 2·half`; `cos` and `sin` hold `half` numbers per position; `position(row)` says which.
/// `sign` −1 turns back, which is the gradient.
pub(crate) fn rope(
    x: &[f32],
    (heads, half): (usize, usize),
    (cos, sin): (&[f32], &[f32]),
    position: impl Fn(usize) -> usize + Send + Sync,
    sign: f32,
    y: &mut [f32],
) {
    let width = heads * 2 * half;
    blocks(y, width, |first, y| {
        y.copy_from_slice(&x[first * width..][..y.len()]);
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let at = position(first + i) * half;
            rope_row((&cos[at..at + half], &sin[at..at + half]), sign, y);
        }
    });
}

/// [`rope`] of one token's heads in place, with the cosines and sines of its position.
pub(crate) fn rope_row((cos, sin): (&[f32], &[f32]), sign: f32, x: &mut [f32]) {
    let half = cos.len();
    simd(
        #[inline(always)]
        || {
            for x in x.chunks_exact_mut(2 * half) {
                let (x1, x2) = x.split_at_mut(half);
                for j in 0..half {
                    let (a, b, s) = (x1[j], x2[j], sign * sin[j]);
                    x1[j] = a * cos[j] - b * s;
                    x2[j] = b * cos[j] + a * s;
                }
            }
        },
    );
}

/// `sums[i] = Σ_j W[i, j]²`
pub(crate) fn square_sums(w: Elements, k: usize, sums: &mut [f32]) {
    fn run<T: Element>(w: &[T], k: usize, sums: &mut [f32]) {
        sums.par_iter_mut().zip(w.par_chunks(k.max(1))).for_each(|(sum, row)| {
            *sum = row.iter().map(|v| f64::from(v.widen()).powi(2)).sum::<f64>() as f32;
        });
    }
    match w {
        Elements::F32(w) => run(w, k, sums),
        Elements::F16(w) => run(w, k, sums),
        Elements::BF16(w) => run(w, k, sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of numbers whose mean is far larger than their deviation, too, where the mean of squares less the square of the mean would be noise.
    #[test]
    fn the_variance_of_a_layer_norm_is_that_of_what_the_mean_leaves() {
        for (width, mean) in [(1, 0.0), (5, 300.0), (64, -4e3), (100, 0.5), (384, 1e4), (1000, -1e3)] {
            let random =
                |seed| mc_testkit::random(seed, width, candle_core::DType::F32).to_vec1::<f32>().expect("numbers");
            let (x, w, b): (Vec<f32>, _, _) = (random(1).iter().map(|x| x + mean).collect(), random(2), random(3));
            let wide: Vec<f64> = x.iter().copied().map(f64::from).collect();
            let of_mean = wide.iter().sum::<f64>() / width as f64;
            let variance = wide.iter().map(|x| (x - of_mean).powi(2)).sum::<f64>() / width as f64;
            for b in [None, Some(&b[..])] {
                let mut y = vec![f32::NAN; width];
                layer_norm(&x, &w, b, 1e-5, &mut y);
                for (i, y) in y.iter().enumerate() {
                    let normal = (wide[i] - of_mean) / (variance + 1e-5).sqrt();
                    let expected = normal * f64::from(w[i]) + b.map_or(0.0, |b| f64::from(b[i]));
                    // The mean is off by what f32 has of numbers of its size.
                    let most = 1e-5 + f64::from(mean.abs()) * 2e-6;
                    assert!((f64::from(*y) - expected).abs() < most, "{width} {mean}: {y}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn the_normal_distribution_is_within_its_stated_error() {
        for i in -120_000..=120_000 {
            let x = i as f32 * 1e-4;
            let exact = 0.5 * (1.0 + candle_core::cpu::erf::erf_f64(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            let (cdf, density) = simd(|| normal_cdf(x));
            assert!((f64::from(cdf) - exact).abs() < 3e-7, "{x}: {cdf}, expected {exact}");
            assert!((f64::from(density) - (-0.5 * f64::from(x).powi(2)).exp() * 0.398_942_280_401).abs() < 2e-7, "{x}");
        }
        assert!(normal_cdf(f32::NAN).0.is_nan());
        assert_eq!(normal_cdf(f32::INFINITY).0, 1.0);
        assert_eq!(normal_cdf(f32::NEG_INFINITY).0, 0.0);
    }
}
