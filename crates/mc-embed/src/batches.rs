//! Texts in batches of about as many tokens each. Knows their lengths, and no model.

use crate::{Error, Result};
use candle_core::Device;
use std::ops::Range;

/// How many tokens suit a device: on the CPU two blocks of rows per thread, which stay in its caches on their way through a
/// layer; elsewhere so many that the device has work.
pub(crate) fn tokens_at_once(device: &Device) -> usize {
    if device.is_cpu() { 528 * rayon::current_num_threads() } else { 16 * 1024 }
}

/// In which order texts are read, and where one batch ends and the next begins: of similar length together, the longest
/// first, each batch of at most `tokens` tokens or of one text.
pub(crate) fn batches(lengths: &[usize], tokens: usize) -> (Vec<usize>, Vec<Range<usize>>) {
    // What has no tokens is not read at all.
    let mut order: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i] > 0).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let (mut batches, mut first, mut sum) = (vec![], 0, 0);
    for (at, text) in order.iter().enumerate() {
        if sum + lengths[*text] > tokens && at > first {
            batches.push(first..at);
            (first, sum) = (at, 0);
        }
        sum += lengths[*text];
    }
    if first < order.len() {
        batches.push(first..order.len());
    }
    (order, batches)
}

/// The numbers of a batch of texts, one text's after the other's, all finite.
///
/// Where some are not, each text is computed alone: one that overflows spoils those that lie beside it.
pub(crate) fn finite(batch: &[usize], compute: impl Fn(&[usize]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
    let is_finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
    let together = compute(batch)?;
    if is_finite(&together) {
        return Ok(together);
    }
    let mut numbers = Vec::with_capacity(together.len());
    for text in batch {
        let alone = compute(&[*text])?;
        if !is_finite(&alone) {
            return Err(Error::NotFinite { text: *text });
        }
        numbers.extend(alone);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_with_tokens_is_in_one_batch_of_bounded_size(
            lengths in prop::collection::vec(0usize..50, 0..60),
            tokens in 0usize..120,
        ) {
            let (order, batches) = batches(&lengths, tokens);
            let mut seen: Vec<usize> = batches.iter().flat_map(|b| order[b.clone()].to_vec()).collect();
            seen.sort_unstable();
            let expected: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i] > 0).collect();
            prop_assert_eq!(seen, expected);
            for batch in &batches {
                let sum: usize = order[batch.clone()].iter().map(|i| lengths[*i]).sum();
                prop_assert!(batch.len() == 1 || sum <= tokens);
            }
            // No two neighbours would fit into one.
            for two in batches.windows(2) {
                let first: usize = order[two[0].clone()].iter().map(|i| lengths[*i]).sum();
                prop_assert!(first + lengths[order[two[1].start]] > tokens);
            }
        }
    }
}
