//! Products and sums of a trained tensor and one that is not, which candle would compute a gradient for too.
//!
//! Candle fills the gradient of every operand of an op that it records. Here the other operand is none: the gradient
//! goes to `x` alone. Knows no adapters.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail};
use std::sync::Mutex;

/// `x∘by`; `by` is of a shape that broadcasts to that of `x`.
pub(crate) fn times(x: &Tensor, by: &Tensor) -> Result<Tensor> {
    record(x, &(x.detach() * by.broadcast_as(x.shape())?)?, Some(by.detach()))
}

/// `x/by`; `by` is of a shape that broadcasts to that of `x`.
pub(crate) fn over(x: &Tensor, by: &Tensor) -> Result<Tensor> {
    record(x, &(x.detach() / by.broadcast_as(x.shape())?)?, Some(by.detach().recip()?))
}

/// `x + other`; `other` is of a shape that broadcasts to that of `x`.
pub(crate) fn plus(x: &Tensor, other: &Tensor) -> Result<Tensor> {
    record(x, &(x.detach() + other.broadcast_as(x.shape())?)?, None)
}

/// `value` as a tensor whose gradient, times `factor`, is that of `x`.
fn record(x: &Tensor, value: &Tensor, factor: Option<Tensor>) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(value.clone());
    }
    let (storage, layout) = value.storage_and_layout();
    x.apply_op1(Recorded { value: Mutex::new(Some(storage.try_clone(layout)?)), shape: x.shape().clone(), factor })
}

struct Recorded {
    /// Until the forward pass hands it out.
    value: Mutex<Option<Storage>>,
    shape: Shape,
    factor: Option<Tensor>,
}

impl Recorded {
    fn take<S>(&self, of: impl Fn(Storage) -> Option<S>) -> Result<(S, Shape)> {
        let value = self.value.lock().ok().and_then(|mut value| value.take()).and_then(of);
        let Some(value) = value else { bail!("a value was computed on another device, or asked for twice") };
        Ok((value, self.shape.clone()))
    }
}

impl CustomOp1 for Recorded {
    fn name(&self) -> &'static str {
        "recorded"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take(|s| if let Storage::Cpu(s) = s { Some(s) } else { None })
    }
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take(|s| if let Storage::Cuda(s) = s { Some(s) } else { None })
    }
    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.take(|s| if let Storage::Metal(s) = s { Some(s) } else { None })
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(match &self.factor {
            Some(factor) => gradient.broadcast_mul(factor)?,
            None => gradient.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let x = [random(1, (3, 4), DType::F64)];
        let other = (random(2, 4, DType::F64).abs().unwrap() + 0.5).unwrap();
        gradcheck("times", &x, |x| times(&x[0], &other));
        gradcheck("over", &x, |x| over(&x[0], &other));
        gradcheck("plus", &x, |x| plus(&x[0], &other));
        gradcheck("times, transposed", &[random(3, (4, 3), DType::F64)], |x| times(&x[0].t()?, &other));
    }
}
