//! Texts in batches of about as many tokens each. Knows their lengths, and no model.
//!
//! On the CPU each thread has a batch of its own, and takes it through the whole model: threads that share one would wait
//! for each other after every half of a layer.

use crate::{Error, Result};
use candle_core::Device;
use rayon::prelude::*;
use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How many tokens are computed at once, and in how many batches side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    tokens: usize,
    side_by_side: usize,
}

impl Plan {
    /// For so many tokens, or as many as suit the device: on the CPU a block of rows per thread, which stays in its caches on
    /// its way through a layer; elsewhere so many that the device has work.
    pub(crate) fn new(device: &Device, tokens: Option<usize>) -> Self {
        let side_by_side = if device.is_cpu() { rayon::current_num_threads() } else { 1 };
        let suits = if device.is_cpu() { 264 * side_by_side } else { 16 * 1024 };
        Self { tokens: tokens.unwrap_or(suits), side_by_side }
    }

    /// Tokens of a batch: about as many for each thread, so that none is without work at the end; and at most.
    fn of_batch(self, lengths: &[usize]) -> (usize, usize) {
        /// Below this a batch of its own costs a thread more than sharing one.
        const SHARED: usize = 96;
        let most = (self.tokens / self.side_by_side).max(1);
        let all = lengths.iter().sum::<usize>();
        let batches = all.div_ceil(most).next_multiple_of(self.side_by_side).max(1);
        (all.div_ceil(batches).max(SHARED), most)
    }
}

/// In which order texts are read, and where one batch ends and the next begins: of similar length together, the longest
/// first, each batch of about so many tokens, and of at most so many or of one text.
fn batches(lengths: &[usize], (about, most): (usize, usize)) -> (Vec<usize>, Vec<Range<usize>>) {
    // What has no tokens is not read at all.
    let mut order: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i] > 0).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    let (mut batches, mut first, mut sum) = (vec![], 0, 0);
    for (at, text) in order.iter().enumerate() {
        let next = lengths[*text];
        if at > first && (sum + next > most || sum + next / 2 >= about) {
            batches.push(first..at);
            (first, sum) = (at, 0);
        }
        sum += next;
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
    plan: Plan,
    compute: impl Fn(&[usize]) -> Result<Vec<f32>> + Sync,
    done: impl FnMut(&[usize], &[f32]) + Send,
) -> Result<()> {
    let (order, batches) = batches(lengths, plan.of_batch(lengths));
    let (wrong, done) = (AtomicUsize::new(usize::MAX), Mutex::new(done));
    let done = |texts: &[usize], numbers: &[f32]| {
        (*done.lock().unwrap_or_else(PoisonError::into_inner))(texts, numbers);
    };
    let is_finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
    let run = |batch: Range<usize>| -> Result<()> {
        // Only ever too large, so that none before the first wrong one is left out.
        let before = |text: &usize| *text < wrong.load(Ordering::Relaxed);
        let mut batch: Vec<usize> = order[batch].iter().copied().filter(before).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let together = compute(&batch)?;
        if is_finite(&together) {
            done(&batch, &together);
            return Ok(());
        }
        batch.sort_unstable();
        for text in batch {
            let alone = compute(&[text])?;
            if !is_finite(&alone) {
                wrong.fetch_min(text, Ordering::Relaxed);
                break;
            }
            done(&[text], &alone);
        }
        Ok(())
    };
    if plan.side_by_side > 1 && batches.len() > 1 {
        batches.into_par_iter().with_max_len(1).try_for_each(run)?;
    } else {
        batches.into_iter().try_for_each(run)?;
    }
    match wrong.into_inner() {
        usize::MAX => Ok(()),
        text => Err(Error::NotFinite { text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_with_tokens_is_in_one_batch_of_bounded_size(
            lengths in prop::collection::vec(0usize..50, 0..60),
            about in 0usize..120,
            most in 0usize..120,
        ) {
            let (order, batches) = batches(&lengths, (about, most));
            let mut seen: Vec<usize> = batches.iter().flat_map(|b| order[b.clone()].to_vec()).collect();
            seen.sort_unstable();
            let expected: Vec<usize> = (0..lengths.len()).filter(|i| lengths[*i] > 0).collect();
            prop_assert_eq!(seen, expected);
            for batch in &batches {
                let sum: usize = order[batch.clone()].iter().map(|i| lengths[*i]).sum();
                prop_assert!(batch.len() == 1 || sum <= most);
            }
            // None could take the next text, or is nearer to what it should be without.
            for two in batches.windows(2) {
                let first: usize = order[two[0].clone()].iter().map(|i| lengths[*i]).sum();
                let with = first + lengths[order[two[1].start]];
                prop_assert!(with > most || with.saturating_sub(about) + 1 >= about.saturating_sub(first));
            }
        }
    }

    #[test]
    fn every_thread_has_as_much_to_do() {
        let plan = |tokens, side_by_side| Plan { tokens, side_by_side };
        let sizes = |lengths: &[usize], plan: Plan| {
            let (order, batches) = batches(lengths, plan.of_batch(lengths));
            let size = |b: Range<usize>| order[b].iter().map(|i| lengths[*i]).sum();
            batches.into_iter().map(size).collect::<Vec<usize>>()
        };
        // Seven full batches would leave one of two threads without work at the end.
        assert_eq!(sizes(&[14; 256], plan(1056, 2)), [448; 8]);
        // All threads together hold no more than was asked for, but for a text that is longer.
        assert_eq!(sizes(&[14; 256], plan(100, 4)), [14; 256]);
        assert_eq!(sizes(&[200, 30, 20], plan(100, 2)), [200, 50]);
        // Few tokens are one batch, which the threads share; and without tokens there is none.
        assert_eq!(sizes(&[14; 6], plan(1056, 2)), [84]);
        assert!(sizes(&[0, 0], plan(1056, 2)).is_empty() && sizes(&[], plan(1056, 2)).is_empty());
    }

    /// Whichever batch they are in, and though each text of a batch that overflows gives nothing.
    #[test]
    fn the_first_text_that_is_not_finite_is_named() {
        let lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
        for (bad, first) in
            [(vec![5, 2, 8], Some(2)), (vec![1, 5], Some(1)), (vec![4, 9], Some(4)), (vec![9], Some(9)), (vec![], None)]
        {
            for (tokens, side_by_side) in [1, 7, 12, 99].into_iter().flat_map(|t| [(t, 1), (2 * t, 2), (5 * t, 5)]) {
                let compute = |texts: &[usize]| {
                    let number = if texts.iter().any(|text| bad.contains(text)) { f32::NAN } else { 1.0 };
                    Ok(vec![number; texts.len()])
                };
                let mut seen = vec![];
                let result = finite(&lengths, Plan { tokens, side_by_side }, compute, |texts, numbers| {
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
        finite(&lengths, Plan { tokens: 12, side_by_side: 1 }, compute, |_, numbers| {
            sum += numbers.iter().sum::<f32>()
        })
        .unwrap();
        assert_eq!(sum, 20.0);
    }
}
