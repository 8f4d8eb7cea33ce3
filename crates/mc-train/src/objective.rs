//! What training minimises. Knows hidden states and the head, no model and no optimizer.

use crate::Batch;
use candle_core::{D, DType, Result, Tensor, bail};
use mc_backend::{Weight, ops};

/// From a batch to a loss.
///
/// A step's loss is the sum over all its micro-batches divided by the count over all of them, so that how a step is cut
/// into micro-batches changes nothing.
pub trait Objective: Send + Sync {
    /// The summed loss, a scalar that gradients flow from. `hidden` is `(b, t, hidden size)`, `head`
    /// `(vocabulary, hidden size)`.
    fn loss(&self, hidden: &Tensor, head: &Weight, batch: &Batch) -> Result<Tensor>;

    /// What the sum is a sum of, at least 1 for a batch to train on: by default supervised tokens.
    fn count(&self, batch: &Batch) -> usize {
        batch.targets.len()
    }
}

/// Negative log-likelihood of the supervised tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Supervised;

impl Objective for Supervised {
    fn loss(&self, hidden: &Tensor, head: &Weight, batch: &Batch) -> Result<Tensor> {
        ops::linear_cross_entropy(hidden, head, &batch.positions, &batch.targets)
    }
}

/// The mean cross-entropy of `logits` `(…, classes)` for `targets` `(…)`, without those that are `ignore_index`: a
/// scalar in `f32`, or `f64` for `f64` logits, and 0 where nothing is left. As in torch, the index ignored may be negative.
///
/// The trainer does not use it: it never makes whole logits. This is for objectives of your own.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0., 0., 0.], [9., 1., 5., 7.]], &Device::Cpu)?;
/// let targets = Tensor::new(&[2i64, -100], &Device::Cpu)?;
/// let loss = mc_train::cross_entropy_loss(&logits, &targets, Some(-100))?;
/// assert!((loss.to_scalar::<f32>()? - 4f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy_loss(logits: &Tensor, targets: &Tensor, ignore_index: Option<i64>) -> Result<Tensor> {
    let classes = logits.dim(D::Minus1)?;
    let targets = targets.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    let n = logits.elem_count() / classes.max(1);
    if targets.len() != n {
        bail!("{} targets for {n} rows of logits", targets.len())
    }
    let kept: Vec<(u32, i64)> = (0..).zip(targets).filter(|(_, target)| Some(*target) != ignore_index).collect();
    if let Some((row, target)) = kept.iter().find(|(_, target)| !(0..classes as i64).contains(target)) {
        bail!("target {target} of row {row} is not one of {classes} classes")
    }
    let wide = if logits.dtype().size_in_bytes() < 4 { DType::F32 } else { logits.dtype() };
    if kept.is_empty() {
        return Tensor::zeros((), wide, logits.device());
    }
    let count = kept.len();
    let (rows, targets): (Vec<u32>, Vec<u32>) = kept.into_iter().map(|(row, target)| (row, target as u32)).unzip();
    let logits = logits.reshape((n, classes))?.index_select(&Tensor::new(rows, logits.device())?, 0)?.to_dtype(wide)?;
    let targets = Tensor::from_vec(targets, (count, 1), logits.device())?;
    let losses = (logits.log_sum_exp(D::Minus1)? - logits.gather(&targets, 1)?.squeeze(1)?)?;
    losses.sum_all()? * (1.0 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use mc_testkit::{Tolerance, assert_close, gradcheck, random};

    #[test]
    fn gradient() {
        let targets = Tensor::new(&[[3i64, -1, 0], [4, 4, 1]], &Device::Cpu).unwrap();
        gradcheck("cross_entropy_loss", &[random(1, (2, 3, 5), DType::F64)], |x| {
            cross_entropy_loss(&x[0], &targets, Some(-1))
        });
    }

    #[test]
    fn equals_the_trainers_own() -> Result<()> {
        let (hidden, w) = (random(1, (2, 3, 4), DType::F32), random(2, (7, 4), DType::F32));
        let batch = Batch { positions: vec![0, 2, 5], targets: vec![6, 0, 3], ..Batch::default() };
        let sum = Supervised.loss(&hidden, &Weight::from_tensor(&w)?, &batch)?;
        let targets = Tensor::new(&[6i64, 9, 0, 9, 9, 3], &Device::Cpu)?;
        let mean = cross_entropy_loss(&hidden.broadcast_matmul(&w.t()?)?, &targets, Some(9))?;
        assert_close("mean", &(mean * 3.0)?, &sum, Tolerance::relative(1e-6));
        assert_eq!(Supervised.count(&batch), 3);
        Ok(())
    }

    #[test]
    fn wrong_targets_are_refused() -> Result<()> {
        let logits = random(1, (2, 3), DType::F32);
        let loss = |targets: &[i64]| cross_entropy_loss(&logits, &Tensor::new(targets, &Device::Cpu)?, Some(-100));
        assert!(loss(&[3, 0]).is_err());
        assert!(loss(&[-1, 0]).is_err());
        assert!(loss(&[0]).is_err());
        assert!(loss(&[-100, -100])?.to_scalar::<f32>()?.abs() < f32::MIN_POSITIVE);
        Ok(())
    }
}
