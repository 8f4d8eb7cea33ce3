//! What candle's `Tensor` lacks for transformers: softmax and norms that have a gradient.

use crate::ops;
use candle_core::{D, Result, Tensor};

/// Differentiable softmax and norms on candle's own `Tensor`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_backend::TensorExt;
/// let x = Tensor::new(&[1000f32, 1000., 1000.], &Device::Cpu)?;
/// assert!((x.softmax_stable()?.to_vec1::<f32>()?[0] - 1. / 3.).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub trait TensorExt: Sized {
    /// Softmax over the last dimension; the maximum is subtracted first, so large values do not overflow.
    fn softmax_stable(&self) -> Result<Self>;
    /// `(x − mean) / √(variance + eps)` over the last dimension, without scale and shift.
    fn layer_norm(&self, eps: f64) -> Result<Self>;
    /// `x / √(mean(x²) + eps)` over the last dimension, times `weight` of that width (see [`ops::rms_norm`]).
    fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Self>;
}

impl TensorExt for Tensor {
    fn softmax_stable(&self) -> Result<Self> {
        // Candle's `softmax` (not `softmax_last_dim`) is made of ops that all have a gradient.
        candle_nn::ops::softmax(self, D::Minus1)
    }

    fn layer_norm(&self, eps: f64) -> Result<Self> {
        let ones = Tensor::ones(self.dim(D::Minus1)?, self.dtype(), self.device())?;
        ops::layer_norm(self, &ones, None, eps)
    }

    fn rms_norm(&self, weight: &Tensor, eps: f64) -> Result<Self> {
        ops::rms_norm(self, weight, eps)
    }
}
