//! Projection by a frozen matrix.

use crate::{
    Weight,
    graft::{Value, graft},
    kernels::{self, gemm},
};
use candle_core::{D, Result, Tensor, bail};

/// `x·Wᵀ + bias`: x `(…, in)`, weight `(out, in)`, bias `(out)` → `(…, out)`. The gradient goes to `x` alone.
///
/// # Errors
/// If the widths do not match.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight)?;
    if !kernels::serve(x) || weight.elements().is_none() {
        return composed(x, weight, bias);
    }
    let value = Value::cpu(forward(x, weight, bias)?, output_shape(x, weight));
    let w = weight.clone();
    graft([x], value, move |g| Ok([Some(backward(g, &w)?)]))
}

/// [`linear`] of plain candle ops.
pub fn composed(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight)?;
    let w = weight.to_tensor(x.dtype())?;
    let y = flat(x)?.matmul(&w.t()?)?.reshape(output_shape(x, weight))?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.detach().to_dtype(x.dtype())?)?,
        None => y,
    };
    let (weight, shape) = (weight.clone(), x.shape().clone());
    // The matrix is read again rather than kept: widened it may be twice the size of the weight.
    graft([x], Value::Tensor(y), move |g| {
        let w = weight.to_tensor(g.dtype())?;
        Ok([Some(flat(g)?.matmul(&w)?.reshape(shape.clone())?)])
    })
}

pub(super) fn check(x: &Tensor, weight: &Weight) -> Result<()> {
    if x.dim(D::Minus1)? != weight.cols() {
        bail!("a projection of width {} cannot read {:?}", weight.cols(), x.shape())
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

/// The kernel's forward pass: `(n, out)` in a fresh buffer.
pub(super) fn forward(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Vec<f32>> {
    let (x, bias) = (flat(x)?, bias.map(Tensor::contiguous).transpose()?);
    let mut y = vec![0f32; x.dim(0)? * weight.rows()];
    let x = kernels::slice(&x)?;
    let bias = bias.as_ref().map(kernels::slice).transpose()?;
    let Some(elements) = weight.elements() else { bail!("the weight is not on the CPU") };
    gemm::times_transposed(&x, elements, (weight.rows(), weight.cols()), bias.as_deref(), &mut y);
    Ok(y)
}

/// `g·W` of the shape that the input had.
pub(super) fn backward(g: &Tensor, weight: &Weight) -> Result<Tensor> {
    let mut shape = g.dims().to_vec();
    let n: usize = shape.pop().map_or(0, |_| shape.iter().product());
    shape.push(weight.cols());
    let mut dx = vec![0f32; n * weight.cols()];
    let g = g.contiguous()?;
    let Some(elements) = weight.elements() else { bail!("the weight is not on the CPU") };
    gemm::times(&kernels::slice(&g)?, elements, (weight.rows(), weight.cols()), &mut dx);
    Tensor::from_vec(dx, shape, g.device())
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
        gradcheck("linear, transposed input", &[random(4, (3, 2), DType::F64)], |x| linear(&x[0].t()?, &weight, None));
    }
}
