//! The non-linearities of feed-forward blocks.

use crate::{
    graft::{Value, graft},
    kernels::{self, rows},
};
use candle_core::{Result, Tensor, bail};

pub use crate::kernels::rows::Gelu;

/// `gate·σ(gate)·up`, elementwise over equal shapes (Shazeer, "GLU Variants Improve Transformer", 2020).
///
/// # Errors
/// If the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("swiglu of {:?} and {:?}", gate.shape(), up.shape())
    }
    if !kernels::serve(gate) || !kernels::serve(up) {
        return swiglu_composed(gate, up);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut y = vec![0f32; gate.elem_count()];
    rows::swiglu(&kernels::slice(&gate)?, &kernels::slice(&up)?, &mut y);
    let saved = (gate.detach(), up.detach());
    graft([&gate, &up], Value::cpu(y, gate.shape()), move |g| {
        let (mut d_gate, mut d_up) = (vec![0f32; g.elem_count()], vec![0f32; g.elem_count()]);
        let (gate, up) = (kernels::slice(&saved.0)?, kernels::slice(&saved.1)?);
        rows::swiglu_backward(&gate, &up, &kernels::slice(g)?, &mut d_gate, &mut d_up);
        let tensor = |data| Tensor::from_vec(data, g.shape(), g.device());
        Ok([Some(tensor(d_gate)?), Some(tensor(d_up)?)])
    })
}

/// [`swiglu`] of candle's ops.
pub fn swiglu_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let saved = (gate.detach(), up.detach());
    let y = (saved.0.silu()? * &saved.1)?;
    let product = y.clone();
    graft([gate, up], Value::Tensor(y), move |g| {
        let (gate, up) = &saved;
        let sigmoid = candle_nn::ops::sigmoid(gate)?;
        // The derivative of gate·σ is σ + gate·σ·(1 − σ).
        let d_gate = ((&product + (&sigmoid * (up - &product)?)?)? * g)?;
        Ok([Some(d_gate), Some(((gate * sigmoid)? * g)?)])
    })
}

/// `x·Φ(x)` with the normal distribution function Φ in one of its two forms (Hendrycks and Gimpel, "Gaussian Error Linear
/// Units", 2016).
pub fn gelu(x: &Tensor, form: Gelu) -> Result<Tensor> {
    if !kernels::serve(x) {
        return gelu_composed(x, form);
    }
    let x = x.contiguous()?;
    let mut y = vec![0f32; x.elem_count()];
    rows::gelu(form, &kernels::slice(&x)?, &mut y);
    let saved = x.detach();
    graft([&x], Value::cpu(y, x.shape()), move |g| {
        let mut dx = vec![0f32; g.elem_count()];
        rows::gelu_backward(form, &kernels::slice(&saved)?, &kernels::slice(g)?, &mut dx);
        Ok([Some(Tensor::from_vec(dx, g.shape(), g.device())?)])
    })
}

/// [`gelu`] of plain candle ops.
pub fn gelu_composed(x: &Tensor, form: Gelu) -> Result<Tensor> {
    match form {
        Gelu::Exact => (x * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?)? * 0.5,
        Gelu::Tanh => {
            let inner = ((x.sqr()? * 0.044_715)? + 1.0)?;
            let u = ((x * inner)? * (2.0 / std::f64::consts::PI).sqrt())?;
            (x * (u.tanh()? + 1.0)?)? * 0.5
        }
    }
}

/// `gate·Φ(gate)·up`, elementwise over equal shapes, Φ exact (Shazeer, "GLU Variants Improve Transformer", 2020).
///
/// # Errors
/// If the shapes differ.
pub fn geglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("geglu of {:?} and {:?}", gate.shape(), up.shape())
    }
    if !kernels::serve(gate) || !kernels::serve(up) {
        return geglu_composed(gate, up);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut y = vec![0f32; gate.elem_count()];
    rows::geglu(&kernels::slice(&gate)?, &kernels::slice(&up)?, &mut y);
    let saved = (gate.detach(), up.detach());
    graft([&gate, &up], Value::cpu(y, gate.shape()), move |g| {
        let (mut d_gate, mut d_up) = (vec![0f32; g.elem_count()], vec![0f32; g.elem_count()]);
        let (gate, up) = (kernels::slice(&saved.0)?, kernels::slice(&saved.1)?);
        rows::geglu_backward(&gate, &up, &kernels::slice(g)?, &mut d_gate, &mut d_up);
        let tensor = |data| Tensor::from_vec(data, g.shape(), g.device());
        Ok([Some(tensor(d_gate)?), Some(tensor(d_up)?)])
    })
}

/// [`geglu`] of plain candle ops.
pub fn geglu_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gelu_composed(gate, Gelu::Exact)? * up
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let inputs = [random(1, (2, 3, 5), DType::F64), random(2, (2, 3, 5), DType::F64)];
        gradcheck("swiglu", &inputs, |x| swiglu(&x[0], &x[1]));
        gradcheck("geglu", &inputs, |x| geglu(&x[0], &x[1]));
        for form in [Gelu::Exact, Gelu::Tanh] {
            gradcheck("gelu", &inputs[..1], |x| gelu(&x[0].transpose(0, 1)?, form));
        }
    }
}
