//! Whether there is memory for batches, before any is taken. Knows no data.

use crate::{Batch, Error, Result};
use mc_lora::LoRAAdapter;
use mc_models::CausalLM;

/// Checks that the step of these batches fits into the memory that is `available`.
///
/// # Errors
/// If what the backward pass of one of them certainly needs does not: the inputs of the blocks from the first adapted one on.
pub(crate) fn check_step(
    model: &dyn CausalLM,
    adapter: &LoRAAdapter,
    batches: &[Batch],
    available: Option<u64>,
) -> Result<()> {
    let computed = batches.iter().filter(|b| !b.targets.is_empty());
    let tokens = computed.map(|b| b.shape.0.saturating_mul(b.shape.1)).max().unwrap_or(0);
    check_tokens(model, adapter, tokens, available)
}

/// [`check_step`] of a batch with so many tokens.
pub(crate) fn check_tokens(
    model: &dyn CausalLM,
    adapter: &LoRAAdapter,
    tokens: usize,
    available: Option<u64>,
) -> Result<()> {
    let first = adapter.layers().next().map(mc_lora::LoRALayer::path);
    let before = model.sites().iter().position(|site| Some(site.path.as_str()) == first).unwrap_or(0);
    let blocks = model.num_blocks() - before * model.num_blocks() / model.sites().len().max(1);
    check_room(model, tokens, blocks, available)
}

/// Checks that the inputs of so many `blocks` fit into the memory that is `available`, for each of a batch's `tokens`, padding included. Of
/// other devices nothing is known.
///
/// # Errors
/// If they do not.
pub(crate) fn check_room(model: &dyn CausalLM, tokens: usize, blocks: usize, available: Option<u64>) -> Result<()> {
    if !model.device().is_cpu() {
        return Ok(());
    }
    let token = model.config().hidden_size * blocks * model.dtype().size_in_bytes();
    let needed = tokens.saturating_mul(token) as u64;
    match mc_backend::shortage(needed, available) {
        None => Ok(()),
        Some(short) => Err(Error::Memory { tokens, short }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_lora::{LoRAAdapterConfig, TargetModule};
    use mc_models::ModelLoader;

    #[test]
    fn what_a_step_takes_at_least() {
        let model = ModelLoader::new().load(mc_testkit::golden::dir("models/qwen2")).unwrap();
        let (hidden, blocks) = (model.config().hidden_size, model.num_blocks());
        assert!(blocks > 1);
        let adapter = |module| {
            let config = LoRAAdapterConfig { target_modules: vec![module], ..LoRAAdapterConfig::default() };
            LoRAAdapter::new(&model, config).unwrap()
        };
        let all = adapter(TargetModule::QProj);
        let last = adapter(TargetModule::Regex(format!(r"model\.layers\.{}\.mlp\.down_proj", blocks - 1)));
        let batch = |rows, tokens| Batch { shape: (rows, tokens), targets: vec![1], ..Batch::default() };
        // The largest of them; of one that supervises nothing, nothing is computed.
        let batches = [batch(2, 9), batch(5, 4), Batch { targets: vec![], ..batch(1000, 1000) }];
        for (adapter, blocks) in [(&all, blocks), (&last, 1)] {
            let needed = (20 * hidden * blocks * 4) as u64;
            let check = |available| check_step(&*model, adapter, &batches, available);
            assert!(check(Some(needed)).is_ok() && check(None).is_ok());
            let error = check(Some(needed - 1)).unwrap_err();
            assert!(error.to_string().starts_with("a batch of 20 tokens takes at least 0.0 MB of memory"), "{error}");
            assert!(error.hint().unwrap().contains("fewer records at a time"));
        }
        assert!(check_step(&*model, &all, &[batch(usize::MAX, 2)], Some(1 << 40)).is_err());
    }
}
