//! Random tensors that are the same on every run. Knows no distribution but the normal and the uniform.

use candle_core::{DType, Device, Shape, Tensor};
use std::f64::consts::TAU;

/// A standard normal CPU tensor; one seed and shape always give the same values, whatever the dtype rounds them to.
///
/// # Panics
/// When candle cannot hold `dtype`.
pub fn random(seed: u64, shape: impl Into<Shape>, dtype: DType) -> Tensor {
    tensor(shape.into(), dtype, |i| {
        // Box–Muller; 1 − u lies in (0, 1], so the logarithm is finite.
        let (u, v) = (uniform(seed, 2 * i), uniform(seed, 2 * i + 1));
        (-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()
    })
}

/// A CPU tensor of values uniform in `low..high`; an integer dtype rounds towards zero, so `0.0..101.0` makes token ids.
///
/// # Panics
/// When candle cannot hold `dtype`.
pub fn random_range(seed: u64, low: f64, high: f64, shape: impl Into<Shape>, dtype: DType) -> Tensor {
    tensor(shape.into(), dtype, |i| low + (high - low) * uniform(seed, i))
}

fn tensor(shape: Shape, dtype: DType, value: impl Fn(u64) -> f64) -> Tensor {
    let values: Vec<f64> = (0..shape.elem_count() as u64).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|t| t.to_dtype(dtype))
        .unwrap_or_else(|error| panic!("random tensor of {dtype:?}: {error}"))
}

/// SplitMix64 (Steele, Lea and Flood, 2014) at position `i` of stream `seed`, as a number in [0, 1).
fn uniform(seed: u64, i: u64) -> f64 {
    const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    // The seed is mixed too, or streams 0 and 1 would be each other's neighbours.
    let z = mix(mix(seed).wrapping_add((i + 1).wrapping_mul(GOLDEN_GAMMA)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cosine, max_abs_diff};

    #[test]
    fn moments_are_those_of_the_distribution() {
        let n = 40_000;
        let moments = |t: Tensor| {
            let v = t.to_vec1::<f64>().unwrap();
            let mean = v.iter().sum::<f64>() / n as f64;
            (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
        };
        // Four standard errors: 4/√n = 0.02 for the mean, 4·√(2/n) = 0.028 for the variance.
        let (mean, variance) = moments(random(7, n, DType::F64));
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.028, "{mean} {variance}");
        let (mean, variance) = moments(random_range(7, -1.0, 3.0, n, DType::F64));
        assert!((mean - 1.0).abs() < 0.03 && (variance - 16.0 / 12.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn a_seed_names_its_values() {
        let x = random(3, (20, 50), DType::F64);
        assert!(max_abs_diff(&x, &random(3, (20, 50), DType::F64)) == 0.0);
        // Neighbouring streams are independent: 1000 values have a cosine of about 1/√1000.
        assert!(cosine(&x, &random(4, (20, 50), DType::F64)).abs() < 0.13);
    }

    #[test]
    fn integers_fill_their_range() {
        let ids = random_range(1, 0.0, 5.0, 200, DType::U32).to_vec1::<u32>().unwrap();
        assert!((0..5).all(|id| ids.contains(&id)) && ids.iter().all(|&id| id < 5));
    }
}
