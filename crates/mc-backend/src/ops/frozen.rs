//! Products and sums of a tensor and a frozen one. Candle fills a gradient for every operand of an op that it records;
//! here the frozen one is none. Plain candle ops on every device, so there is no fused path to hold them against.

use crate::graft::{Value, graft};
use candle_core::{Result, Tensor};

/// `x∘frozen`, where `frozen` broadcasts to the shape of `x`. The gradient goes to `x` alone.
///
/// # Errors
/// If the shapes do not fit.
pub fn mul_frozen(x: &Tensor, frozen: &Tensor) -> Result<Tensor> {
    let frozen = frozen.detach().broadcast_as(x.shape())?;
    let value = (x.detach() * &frozen)?;
    graft([x], Value::Tensor(value), move |g| Ok([Some((g * &frozen)?)]))
}

/// `x + frozen`, where `frozen` broadcasts to the shape of `x`. The gradient goes to `x` alone.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_frozen(x: &Tensor, frozen: &Tensor) -> Result<Tensor> {
    let value = (x.detach() + frozen.detach().broadcast_as(x.shape())?)?;
    graft([x], Value::Tensor(value), |g| Ok([Some(g.clone())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let (x, frozen) = ([random(1, (3, 4), DType::F64)], random(2, 4, DType::F64));
        gradcheck("mul_frozen", &x, |x| mul_frozen(&x[0], &frozen));
        gradcheck("add_frozen", &x, |x| add_frozen(&x[0], &frozen));
        gradcheck("mul_frozen, transposed", &[random(3, (4, 3), DType::F64)], |x| mul_frozen(&x[0].t()?, &frozen));
        assert!(mul_frozen(&x[0], &random(4, 3, DType::F64)).is_err());
    }
}
