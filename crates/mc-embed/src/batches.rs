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
fn batches(lengths: &[usize], tokens: usize) -> (Vec<usize>, Vec<Range<usize>>) {
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

/// Computes texts of these lengths in batches, and hands over each batch with its numbers, one text's after the other's.
///
/// Where some are not finite the error names the first such text. Each text of that batch is computed alone, as one that
/// overflows spoils those that lie beside it; of the batches that follow only what stands before the text that was found.
pub(crate) fn finite(
    lengths: &[usize],
    tokens: usize,
    compute: impl Fn(&[usize]) -> Result<Vec<f32>>,
    mut done: impl FnMut(&[usize], &[f32]),
) -> Result<()> {
    let (order, batches) = batches(lengths, tokens);
    let mut wrong = usize::MAX;
    for batch in batches {
        let mut batch: Vec<usize> = order[batch].iter().copied().filter(|text| *text < wrong).collect();
        if batch.is_empty() {
            continue;
        }
        let is_finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
        let together = compute(&batch)?;
        if is_finite(&together) {
            done(&batch, &together);
            continue;
        }
        batch.sort_unstable();
        for text in batch {
            let alone = compute(&[text])?;
            if !is_finite(&alone) {
                wrong = text;
                break;
            }
            done(&[text], &alone);
        }
    }
    if wrong < usize::MAX { Err(Error::NotFinite { text: wrong }) } else { Ok(()) }
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

    /// Whichever batch they are in, and though each text of a batch that overflows gives nothing.
    #[test]
    fn the_first_text_that_is_not_finite_is_named() {
        let lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
        for (bad, first) in
            [(vec![5, 2, 8], Some(2)), (vec![1, 5], Some(1)), (vec![4, 9], Some(4)), (vec![9], Some(9)), (vec![], None)]
        {
            for tokens in [1, 7, 12, 99] {
                let compute = |texts: &[usize]| {
                    let number = if texts.iter().any(|text| bad.contains(text)) { f32::NAN } else { 1.0 };
                    Ok(vec![number; texts.len()])
                };
                let mut seen = vec![];
                let result = finite(&lengths, tokens, compute, |texts, numbers| {
                    assert_eq!(texts.len(), numbers.len());
                    seen.extend_from_slice(texts);
                });
                match (result, first) {
                    (Ok(()), None) => {
                        seen.sort_unstable();
                        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
                    }
                    (Err(Error::NotFinite { text }), Some(first)) => assert_eq!(text, first, "{bad:?}, {tokens}"),
                    (other, _) => panic!("{other:?}"),
                }
            }
        }
        // What overflows together and not alone is what it is alone.
        let compute = |texts: &[usize]| Ok(vec![if texts.len() > 1 { f32::INFINITY } else { 2.0 }; texts.len()]);
        let mut sum = 0.0;
        finite(&lengths, 12, compute, |_, numbers| sum += numbers.iter().sum::<f32>()).unwrap();
        assert_eq!(sum, 20.0);
    }
}
