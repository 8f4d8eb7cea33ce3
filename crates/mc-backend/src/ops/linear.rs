//! Projection by a frozen matrix.

use super::{Linear, lora};
use crate::{
    Weight,
    graft::{Value, graft},
    kernels,
};
use candle_core::{D, Result, Tensor, bail};

/// `x·Wᵀ + bias`: x `(…, in)`, weight `(out, in)`, bias `(out)` → `(…, out)`. The gradient goes to `x` alone.
///
/// # Errors
/// If the widths do not match.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    if !kernels::serve(x) || weight.elements().is_none() {
        return composed(x, weight, bias);
    }
    lora::fused(x, &Linear { weight, bias, lora: None })
}

/// [`linear`] of plain candle ops.
pub fn composed(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    let y = composed_forward(&flat(x)?, weight, bias)?.reshape(output_shape(x, weight))?;
    let (weight, shape) = (weight.clone(), x.shape().clone());
    graft([x], Value::Tensor(y), move |g| Ok([Some(composed_backward(&flat(g)?, &weight)?.reshape(shape.clone())?)]))
}

/// `x·Wᵀ + bias` of `(n, in)`.
pub(super) fn composed_forward(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.to_tensor(x.dtype())?.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.detach().to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

/// `g·W` of `(n, out)`. The matrix is read again rather than kept: widened it may be twice the size of the weight.
pub(super) fn composed_backward(g: &Tensor, weight: &Weight) -> Result<Tensor> {
    g.matmul(&weight.to_tensor(g.dtype())?)
}

pub(super) fn check(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<()> {
    if x.dim(D::Minus1)? != weight.cols() {
        bail!("a projection of width {} cannot read {:?}", weight.cols(), x.shape())
    }
    if let Some(bias) = bias.filter(|b| b.dims() != [weight.rows()]) {
        bail!("a bias of {:?} for {} outputs", bias.shape(), weight.rows())
    }
    Ok(())
}

/// `(…, d)` as a detached `(n, d)`.
pub(super) fn flat(x: &Tensor) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    x.detach().contiguous()?.reshape(((), d))
}

pub(super) fn output_shape(x: &Tensor, weight: &Weight) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.rows();
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let weight = Weight::from_tensor(&random(1, (5, 3), DType::F64)).unwrap();
        let bias = random(2, 5, DType::F64);
        gradcheck("linear", &[random(3, (2, 3, 3), DType::F64)], |x| linear(&x[0], &weight, Some(&bias)));
        assert!(linear(&random(3, (2, 3), DType::F32), &weight, Some(&random(2, 3, DType::F32))).is_err());
        gradcheck("linear, transposed input", &[random(4, (3, 2), DType::F64)], |x| linear(&x[0].t()?, &weight, None));
    }
}
