//! In what a cache keeps keys and values, which [`super::self_attention`] reads as they are.

use crate::{
    computation::Products,
    kernels::{self, cpu},
};
use candle_core::{DType, Device, Result, Tensor};
use half::{f16, slice::HalfFloatSliceExt};

/// The dtype in which a cache keeps keys and values that are computed in `x`, by a model with these products.
///
/// It is `x`, but [`DType::F16`] for `f32` whose products round to `bf16`, on a CPU that widens `f16` in one instruction: a token that is
/// decoded reads all of the cache, and `f16` leaves out an eighth of what such products do (and up to 3·10⁻⁸ of numbers below 6·10⁻⁵). What
/// rounds nothing is kept as it is.
pub fn cache_dtype(x: DType, products: Products, device: &Device) -> DType {
    let rounded = x == DType::F32 && products == Products::BF16;
    if rounded && device.is_cpu() && cpu::widens_f16() { DType::F16 } else { x }
}

/// Contiguous `x` of `f32` on the CPU in `f16`, to nearest; `None` if a finite number of it would be infinite: from 65,520 on.
///
/// # Errors
/// If x is something else.
pub fn to_f16(x: &Tensor) -> Result<Option<Tensor>> {
    let numbers = kernels::slice(x)?;
    let mut halves = vec![f16::ZERO; numbers.len()];
    halves.convert_from_f32_slice(&numbers);
    if halves.iter().zip(&*numbers).any(|(half, x)| half.is_infinite() && x.is_finite()) {
        return Ok(None);
    }
    Tensor::from_vec(halves, x.shape(), x.device()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_is_half_as_large() {
        let half = if cpu::widens_f16() { DType::F16 } else { DType::F32 };
        for (x, products, expected) in [
            (DType::F32, Products::BF16, half),
            (DType::F32, Products::F32, DType::F32),
            (DType::F64, Products::BF16, DType::F64),
            (DType::BF16, Products::OfDevice, DType::BF16),
        ] {
            assert_eq!(cache_dtype(x, products, &Device::Cpu), expected, "{products:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_not_made_infinite() -> Result<()> {
        let (infinite, none) = (f32::INFINITY, f32::NAN);
        let of = |x: &[f32]| to_f16(&Tensor::from_slice(x, x.len(), &Device::Cpu)?);
        let halves = of(&[65_519.0, -1.000_2, infinite, -infinite, none, 1e-9])?.expect("they fit");
        let halves = halves.to_vec1::<f16>()?;
        assert_eq!(halves[..4].iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [65_504.0, -1.0, infinite, -infinite]);
        assert!(halves[4].is_nan() && halves[5].to_f32() == 0.0);
        for large in [65_520.0, -1e5, f32::MAX] {
            for at in 0..41 {
                let mut x = [0.5; 41];
                x[at] = large;
                assert!(of(&x)?.is_none(), "{large} at {at}");
            }
        }
        assert!(to_f16(&Tensor::zeros(3, DType::F64, &Device::Cpu)?).is_err());
        Ok(())
    }
}
