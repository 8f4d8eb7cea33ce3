//! Root-mean-square norm and layer norm over the last dimension.

use crate::{
    graft::{Value, graft},
    kernels::{self, rows},
};
use candle_core::{D, DType, Result, Tensor, bail};

/// `x / √(mean(x²) + eps) · weight`: x `(…, d)`, weight `(d)`, frozen (Zhang and Sennrich, 2019).
///
/// # Errors
/// If the weight does not have the width of `x`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    if !kernels::serve(x) || !kernels::serve(weight) {
        return rms_norm_composed(x, weight, eps);
    }
    let (x, weight) = (x.contiguous()?, weight.detach().contiguous()?);
    let mut y = vec![0f32; x.elem_count()];
    rows::rms_norm(&kernels::slice(&x)?, &kernels::slice(&weight)?, eps as f32, &mut y);
    let saved = x.detach();
    graft([&x], Value::cpu(y, x.shape()), move |g| {
        let mut dx = vec![0f32; g.elem_count()];
        let (x, weight) = (kernels::slice(&saved)?, kernels::slice(&weight)?);
        rows::rms_norm_backward(&x, &weight, eps as f32, &kernels::slice(g)?, &mut dx);
        Ok([Some(Tensor::from_vec(dx, g.shape(), g.device())?)])
    })
}

/// [`rms_norm`] of candle's ops; half-precision input is normalised in `f32`.
pub fn rms_norm_composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    let wide = widened(&x.detach())?.contiguous()?;
    let weight = weight.detach().to_dtype(wide.dtype())?.contiguous()?;
    // d·(mean(x²) + eps), which the backward pass makes again rather than keeps.
    let d = weight.elem_count() as f64;
    let total = move |x: &Tensor| x.sqr()?.sum_keepdim(D::Minus1)? + d * eps;
    let root_mean = move |total: &Tensor| (total * (1.0 / d))?.sqrt();
    let y = if wide.dtype() == DType::F32 {
        candle_nn::ops::rms_norm(&wide, &weight, eps as f32)?
    } else {
        // Candle's has no f64.
        wide.broadcast_div(&root_mean(&total(&wide)?)?)?.broadcast_mul(&weight)?
    };
    // dx = r·h − x·r³·mean(h·x) with h = g·w, as in the kernel, and r one divided by the root of the mean.
    graft([x], Value::Tensor(y.to_dtype(x.dtype())?), move |g| {
        let (h, total) = (widened(g)?.broadcast_mul(&weight)?, total(&wide)?);
        let pull = ((&h * &wide)?.sum_keepdim(D::Minus1)? / &total)?;
        let dx = (h - wide.broadcast_mul(&pull)?)?.broadcast_div(&root_mean(&total)?)?;
        Ok([Some(dx.to_dtype(g.dtype())?)])
    })
}

/// `(x − mean) / √(variance + eps) · weight + bias`: x `(…, d)`, weight and bias `(d)`, frozen (Ba et al., 2016).
///
/// # Errors
/// If weight or bias do not have the width of `x`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    if !kernels::serve(x) || !kernels::serve(weight) {
        return layer_norm_composed(x, weight, bias, eps);
    }
    let (x, weight) = (x.contiguous()?, weight.detach().contiguous()?);
    let bias = bias.map(|b| check(&x, b).and_then(|()| b.detach().contiguous())).transpose()?;
    let mut y = vec![0f32; x.elem_count()];
    {
        let bias = bias.as_ref().map(kernels::slice).transpose()?;
        rows::layer_norm(&kernels::slice(&x)?, &kernels::slice(&weight)?, bias.as_deref(), eps as f32, &mut y);
    }
    let saved = x.detach();
    graft([&x], Value::cpu(y, x.shape()), move |g| {
        let mut dx = vec![0f32; g.elem_count()];
        let (x, weight) = (kernels::slice(&saved)?, kernels::slice(&weight)?);
        rows::layer_norm_backward(&x, &weight, eps as f32, &kernels::slice(g)?, &mut dx);
        Ok([Some(Tensor::from_vec(dx, g.shape(), g.device())?)])
    })
}

/// [`layer_norm`] of plain candle ops; half-precision input is normalised in `f32`.
pub fn layer_norm_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check(x, weight)?;
    let wide = widened(&x.detach())?;
    let weight = weight.detach().to_dtype(wide.dtype())?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let inverse = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let normal = centred.broadcast_mul(&inverse)?;
    let y = normal.broadcast_mul(&weight)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.detach().to_dtype(y.dtype())?)?,
        None => y,
    };
    // dx = r·(h − mean(h) − n·mean(h·n)) with h = g·w and n the normalised row, as in the kernel.
    graft([x], Value::Tensor(y.to_dtype(x.dtype())?), move |g| {
        let h = widened(g)?.broadcast_mul(&weight)?;
        let along = normal.broadcast_mul(&(&h * &normal)?.mean_keepdim(D::Minus1)?)?;
        let dx = (h.broadcast_sub(&h.mean_keepdim(D::Minus1)?)? - along)?.broadcast_mul(&inverse)?;
        Ok([Some(dx.to_dtype(g.dtype())?)])
    })
}

fn widened(x: &Tensor) -> Result<Tensor> {
    if x.dtype().size_in_bytes() < 4 { x.to_dtype(DType::F32) } else { Ok(x.clone()) }
}

fn check(x: &Tensor, weight: &Tensor) -> Result<()> {
    if weight.dims1()? != x.dim(D::Minus1)? {
        bail!("a norm of width {} cannot read {:?}", weight.dims1()?, x.shape())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let (weight, bias) = (random(1, 5, DType::F64), random(2, 5, DType::F64));
        let inputs = [random(3, (2, 3, 5), DType::F64)];
        gradcheck("rms_norm", &inputs, |x| rms_norm(&x[0], &weight, 1e-5));
        gradcheck("layer_norm", &inputs, |x| layer_norm(&x[0], &weight, Some(&bias), 1e-5));
        let strided = [random(4, (5, 3), DType::F64)];
        gradcheck("rms_norm, transposed", &strided, |x| rms_norm(&x[0].t()?, &weight, 1e-5));
    }
}
