//! The loss of a model on data, without training. Knows no optimizer.

use crate::{Batch, Dataset, Error, Objective, Result, Supervised};
use mc_backend::in_pool;
use mc_models::{Adapter, CausalLM, Pass};
use serde::Serialize;

/// How well a model predicts the supervised tokens of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EvalMetrics {
    /// Mean negative log-likelihood over all supervised tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`
    pub perplexity: f64,
    /// How many tokens that is the mean of.
    pub tokens: usize,
}

/// The loss of a model, with an adapter or without, on data; `batch_size` examples are computed at one time.
///
/// # Errors
/// If there is no data, or a token is not in the model's vocabulary.
pub fn evaluate(
    model: &dyn CausalLM,
    adapter: Option<&dyn Adapter>,
    data: &Dataset,
    batch_size: usize,
) -> Result<EvalMetrics> {
    evaluate_with(&Supervised, model, adapter, data, batch_size)
}

pub(crate) fn evaluate_with(
    objective: &dyn Objective,
    model: &dyn CausalLM,
    adapter: Option<&dyn Adapter>,
    data: &Dataset,
    batch_size: usize,
) -> Result<EvalMetrics> {
    if batch_size == 0 {
        return Err(Error::config("batch_size", batch_size, "at least 1"));
    }
    if data.is_empty() {
        return Err(Error::config("examples to evaluate on", 0, "at least 1"));
    }
    data.check_tokens("the data to evaluate on", model.config().vocab_size)?;
    // Like lengths side by side need little padding; which rows share a batch does not change their losses, but for the
    // rounding of bf16 products, which a batch of very few tokens is spared.
    let mut examples: Vec<_> = data.examples().iter().collect();
    examples.sort_by_key(|e| e.ids.len());
    let (mut sum, mut count) = (0.0, 0);
    for chunk in examples.chunks(batch_size) {
        let batch = Batch::new(chunk.iter().copied());
        let loss = in_pool(|| {
            let mut x = model.embed(&batch.ids, batch.shape)?;
            for index in 0..model.num_blocks() {
                // Detached: an adapter's variables would make a graph of it.
                x = model.block(index, &x, &mut Pass { adapter, ..Pass::default() })?.detach();
            }
            objective.loss(&model.norm(&x)?, model.head(), &batch)
        })?;
        sum += f64::from(loss.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        count += objective.count(&batch);
    }
    let loss = sum / count.max(1) as f64;
    Ok(EvalMetrics { loss, perplexity: loss.exp(), tokens: count })
}
