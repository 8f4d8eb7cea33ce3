//! The loss of a model on data, without training. Knows no optimizer.

use crate::{Batch, Dataset, Error, Example, Objective, Result, Supervised, room::check_room};
use mc_backend::{available_memory_bytes, in_pool};
use mc_models::{Adapter, CausalLM, Pass};
use serde::Serialize;

/// How well a model predicts the supervised tokens of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
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
/// If there is no data, a token is not in the model's vocabulary, or a batch needs more memory than there is.
pub fn evaluate(
    model: &dyn CausalLM,
    adapter: Option<&dyn Adapter>,
    data: &Dataset,
    batch_size: usize,
) -> Result<EvalMetrics> {
    evaluate_with(&Supervised, model, adapter, data, batch_size, available_memory_bytes())
}

/// [`evaluate`] of another loss, where so much memory is `available`, if that is known.
pub(crate) fn evaluate_with(
    objective: &dyn Objective,
    model: &dyn CausalLM,
    adapter: Option<&dyn Adapter>,
    data: &Dataset,
    batch_size: usize,
    available: Option<u64>,
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
    let tokens = |chunk: &[&Example]| chunk.len() * chunk.iter().map(|e| e.tokens_read()).max().unwrap_or(0);
    let largest = examples.chunks(batch_size).map(tokens).max().unwrap_or(0);
    check_room(model, largest, 1, available)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use mc_models::ModelLoader;

    #[test]
    fn the_largest_batch_must_fit() {
        let model = ModelLoader::new().load(mc_testkit::golden::dir("models/qwen2")).unwrap();
        let example = |n: u32| Example::new((0..n).collect(), vec![true; n as usize]);
        let data = Dataset::from_examples(vec![example(3), example(9), example(6)]);
        // Two of which at most five tokens are read, one of which eight are.
        let needed = (10 * model.config().hidden_size * 4) as u64;
        let evaluate = |available| evaluate_with(&Supervised, &*model, None, &data, 2, Some(available));
        assert!(evaluate(needed).is_ok());
        let error = evaluate(needed - 1).unwrap_err().to_string();
        assert!(error.starts_with("a batch of 10 tokens takes at least "), "{error}");
    }
}
