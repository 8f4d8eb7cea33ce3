//! Texts in batches of about as many tokens each. Knows their lengths, and no model.
//!
//! On the CPU each thread has a batch of its own, and takes it through the whole model: threads that share one would wait
//! for each other after every half of a layer.

use crate::{Error, Result};
use candle_core::Device;
use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How many tokens are computed at once, and in how many batches side by side. A text that is longer is alone.
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
    let work = Work {
        plan,
        lengths,
        order: &order,
        batches: &batches,
        compute,
        wrong: AtomicUsize::new(usize::MAX),
        queue: Mutex::default(),
        results: Mutex::default(),
        done: Mutex::new(done),
    };
    rayon::scope(|scope| work.start(scope));
    if let Some((_, error)) = lock(&work.queue).failed.take() {
        return Err(error);
    }
    match work.wrong.into_inner() {
        usize::MAX => Ok(()),
        text => Err(Error::NotFinite { text }),
    }
}

/// What the threads share.
struct Work<'a, C, D> {
    plan: Plan,
    lengths: &'a [usize],
    order: &'a [usize],
    batches: &'a [Range<usize>],
    compute: C,
    /// The first text so far that is not finite.
    wrong: AtomicUsize,
    queue: Mutex<Queue>,
    /// Texts and numbers that `done` has not heard of.
    results: Mutex<Vec<(Vec<usize>, Vec<f32>)>>,
    done: Mutex<D>,
}

#[derive(Default)]
struct Queue {
    /// The batch that begins next.
    next: usize,
    /// Tokens of those that have begun.
    running: usize,
    /// The first batch so far that failed.
    failed: Option<(usize, Error)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C, D> Work<'_, C, D>
where
    C: Fn(&[usize]) -> Result<Vec<f32>> + Sync,
    D: FnMut(&[usize], &[f32]) + Send,
{
    /// Begins as many batches as may run beside those that do; each that ends begins the next.
    fn start<'s>(&'s self, scope: &rayon::Scope<'s>) {
        let mut queue = lock(&self.queue);
        while let Some(batch) = self.batches.get(queue.next) {
            let (index, size) = (queue.next, self.order[batch.clone()].iter().map(|i| self.lengths[*i]).sum::<usize>());
            let fits = self.plan.side_by_side > 1 && queue.running.saturating_add(size) <= self.plan.tokens;
            if queue.failed.is_some() || !fits && queue.running > 0 {
                return;
            }
            queue.next += 1;
            queue.running += size;
            scope.spawn(move |scope| {
                let result = self.run(batch);
                let mut queue = lock(&self.queue);
                queue.running -= size;
                if let Err(error) = result
                    && queue.failed.as_ref().is_none_or(|(first, _)| index < *first)
                {
                    queue.failed = Some((index, error));
                }
                drop(queue);
                self.start(scope);
            });
        }
    }

    fn run(&self, batch: &Range<usize>) -> Result<()> {
        // Only ever too large, so that none before the first wrong one is left out.
        let before = |text: &usize| *text < self.wrong.load(Ordering::Relaxed);
        let mut batch: Vec<usize> = self.order[batch.clone()].iter().copied().filter(before).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let is_finite = |numbers: &[f32]| numbers.iter().all(|x| x.is_finite());
        let together = (self.compute)(&batch)?;
        if is_finite(&together) {
            self.hand_over(batch, together);
            return Ok(());
        }
        batch.sort_unstable();
        for text in batch {
            let alone = (self.compute)(&[text])?;
            if !is_finite(&alone) {
                self.wrong.fetch_min(text, Ordering::Relaxed);
                break;
            }
            self.hand_over(vec![text], alone);
        }
        Ok(())
    }

    /// `done` hears of it from this thread, or from the one that it hears of something from now. Waiting for that one could be
    /// waiting for this very thread, which does other batches wherever `done` shares work.
    fn hand_over(&self, texts: Vec<usize>, numbers: Vec<f32>) {
        lock(&self.results).push((texts, numbers));
        while !lock(&self.results).is_empty() {
            // After a panic it hears nothing more.
            let Ok(mut done) = self.done.try_lock() else { return };
            let results = std::mem::take(&mut *lock(&self.results));
            for (texts, numbers) in results {
                (*done)(&texts, &numbers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rayon::prelude::*;
    use std::time::{Duration, Instant};

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

    /// What runs at the same time, of texts shorter and longer than a thread's share, in a pool of four threads.
    #[test]
    fn no_more_tokens_than_asked_for_are_computed_at_once() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let long: Vec<usize> = (0..60).map(|i| 10 + i * 37 % 300).collect();
        for (lengths, tokens, together) in [
            (vec![1000; 8], 1056, 1),
            (vec![500; 8], 1056, 2),
            (vec![14; 256], 1056, 4),
            (long, 700, 2),
            (vec![9; 9], 0, 1),
        ] {
            let (running, most) = (Mutex::new((0, 0)), Mutex::new((0, 0)));
            let compute = |texts: &[usize]| {
                let size: usize = texts.iter().map(|i| lengths[*i]).sum();
                {
                    let (mut running, mut most) = (running.lock().unwrap(), most.lock().unwrap());
                    *running = (running.0 + size, running.1 + 1);
                    *most = (most.0.max(running.0), most.1.max(running.1));
                }
                // Long enough for the others to begin, and shared work in which this thread can be given other batches.
                let _ = (0..8).into_par_iter().map(|_| std::thread::sleep(Duration::from_millis(2))).count();
                let mut running = running.lock().unwrap();
                *running = (running.0 - size, running.1 - 1);
                Ok(vec![0.0; texts.len()])
            };
            let mut seen = 0;
            pool.install(|| finite(&lengths, Plan { tokens, side_by_side: 4 }, compute, |t, _| seen += t.len()))
                .unwrap();
            let (tokens_at_once, batches_at_once) = *most.lock().unwrap();
            assert_eq!(seen, lengths.len());
            assert!(tokens_at_once <= tokens.max(*lengths.iter().max().unwrap()), "{tokens_at_once} of {tokens}");
            assert!(batches_at_once >= together, "{batches_at_once} at once, expected {together}");
        }
    }

    /// A wrong text that is found after one that stands before it.
    #[test]
    fn the_first_wrong_text_stays_the_first() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let (others_began, first_found) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let wait = |what: &AtomicUsize| {
            let start = Instant::now();
            while what.load(Ordering::SeqCst) == 0 && start.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
        };
        let compute = |texts: &[usize]| {
            match texts {
                [2, 3] => others_began.store(1, Ordering::SeqCst),
                [1] => {
                    wait(&others_began);
                    first_found.store(1, Ordering::SeqCst);
                }
                [3] => {
                    wait(&first_found);
                    std::thread::sleep(Duration::from_millis(50));
                }
                _ => {}
            }
            Ok(vec![if texts.iter().any(|i| i % 2 == 1) { f32::NAN } else { 0.0 }; texts.len()])
        };
        let plan = Plan { tokens: 400, side_by_side: 2 };
        let result = pool.install(|| finite(&[100; 4], plan, compute, |_, _| {}));
        assert!(matches!(result, Err(Error::NotFinite { text: 1 })), "{result:?}");
    }

    /// Who hears of batches may share work of its own, and this thread may be given a batch meanwhile.
    #[test]
    fn an_observer_may_compute_too() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let compute = |texts: &[usize]| Ok((0..texts.len()).into_par_iter().map(|i| i as f32).collect());
        let mut seen = 0;
        let done =
            |texts: &[usize], _: &[f32]| seen += (0..64).into_par_iter().map(|_| texts.len()).sum::<usize>() / 64;
        pool.install(|| finite(&vec![96; 3000], Plan { tokens: 400, side_by_side: 4 }, compute, done)).unwrap();
        assert_eq!(seen, 3000);
    }

    #[test]
    fn the_error_of_a_computation_is_told() {
        let compute = |texts: &[usize]| {
            if texts.contains(&700) {
                return Err(Error::Dimensions { asked: 7, width: 5 });
            }
            Ok(vec![0.0; texts.len()])
        };
        let result = finite(&vec![96; 3000], Plan { tokens: 200, side_by_side: 2 }, compute, |_, _| {});
        assert!(matches!(result, Err(Error::Dimensions { asked: 7, .. })), "{result:?}");
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
            sum += numbers.iter().sum::<f32>();
        })
        .unwrap();
        assert_eq!(sum, 20.0);
    }
}
