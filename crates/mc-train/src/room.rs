//! Whether there is memory for a batch, before any is taken. Knows no data.

use crate::{Error, Result};
use mc_models::CausalLM;

/// Checks that what is certainly held at one time fits into the memory that is `available`: the inputs of so many `blocks`
/// for each of a batch's `tokens`, padding included. Of other devices nothing is known.
///
/// # Errors
/// If it does not.
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
    use mc_models::ModelLoader;

    #[test]
    fn what_a_batch_takes_at_least() {
        let model = ModelLoader::new().load(mc_testkit::golden::dir("models/qwen2")).unwrap();
        let token = (model.config().hidden_size * 2 * 4) as u64;
        let check = |tokens, available| check_room(&*model, tokens, 2, available);
        assert!(check(1000, Some(1000 * token)).is_ok() && check(usize::MAX, None).is_ok());
        let error = check(1001, Some(1000 * token)).unwrap_err();
        assert!(error.to_string().starts_with("a batch of 1001 tokens takes at least 0.0 GB of memory"), "{error}");
        assert!(error.hint().unwrap().contains("fewer records at a time"));
        assert!(check(usize::MAX, Some(1 << 40)).is_err());
    }
}
