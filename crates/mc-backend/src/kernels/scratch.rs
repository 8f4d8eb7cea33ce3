//! Buffers that are used again: new memory costs more to get, and to clear, than to fill.

use rayon::prelude::*;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What all threads share. Of large buffers 96 MB wait, each for a call that wants at most an eighth less; of those below [`LARGE`] 2 MB,
/// each for one that wants at least half.
static SPARES: [Mutex<Spare>; 2] = [Mutex::new(Spare::new(24 << 20, 8)), Mutex::new(Spare::new(512 << 10, 1))];
/// Units from which a buffer is large, and below which the allocator is as good.
const LARGE: usize = 64 * 1024;
const SMALL: usize = 1024;

/// Buffers that nobody uses, and how much memory there is in all.
struct Spare {
    /// Units that are kept without [`KeptBuffers`].
    limit: usize,
    /// A buffer serves if it is larger by at most this part of what is asked for.
    part: usize,
    /// Oldest first.
    buffers: Vec<Vec<u32>>,
    /// Units of them, and of buffers that are in use.
    kept: usize,
    lent: usize,
    /// The most that was in use at one time since there are holders.
    most: usize,
    /// How many [`KeptBuffers`] there are.
    holders: usize,
}

impl Spare {
    const fn new(limit: usize, part: usize) -> Self {
        Self { limit, part, buffers: vec![], kept: 0, lent: 0, most: 0, holders: 0 }
    }

    /// A buffer for so many units, which are counted as lent: a spare one, or an empty one.
    fn take(&mut self, len: usize) -> Vec<u32> {
        // The smallest that is large enough, and hardly larger: what is kept for a backward pass is kept whole.
        let fits = |i: &usize| (len..=len + len / self.part).contains(&self.buffers[*i].capacity());
        let found = (0..self.buffers.len()).filter(fits).min_by_key(|i| self.buffers[*i].capacity());
        let buffer = found.map(|i| self.buffers.remove(i)).unwrap_or_default();
        self.kept -= buffer.capacity();
        self.lent += buffer.capacity().max(len);
        self.most = self.most.max(self.lent);
        self.trim();
        buffer
    }

    fn put_back(&mut self, buffer: Vec<u32>) {
        self.lent -= buffer.capacity();
        self.kept += buffer.capacity();
        self.buffers.push(buffer);
        self.trim();
    }

    fn hold(&mut self) {
        if self.holders == 0 {
            self.most = self.lent;
        }
        self.holders += 1;
    }

    fn release(&mut self) {
        self.holders -= 1;
        self.trim();
    }

    /// Lets the oldest go, until no more is there than was in use at one time, or no more is kept than without holders.
    fn trim(&mut self) {
        let most = if self.holders > 0 { self.most.saturating_sub(self.lent).max(self.limit) } else { self.limit };
        let mut kept = self.kept;
        let go = self.buffers.iter().take_while(|buffer| {
            let goes = kept > most;
            kept -= if goes { buffer.capacity() } else { 0 };
            goes
        });
        let go = go.count();
        self.buffers.drain(..go);
        self.kept = kept;
    }
}

/// Those among which a buffer of so many units is; `None` if the allocator has it.
fn spare(len: usize) -> Option<MutexGuard<'static, Spare>> {
    match len {
        ..SMALL => None,
        SMALL..LARGE => Some(lock(&SPARES[1])),
        _ => Some(large()),
    }
}

fn large() -> MutexGuard<'static, Spare> {
    lock(&SPARES[0])
}

fn lock(spare: &'static Mutex<Spare>) -> MutexGuard<'static, Spare> {
    // Whoever panicked with it left whole buffers.
    spare.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While there is one, large buffers of the kernels that are let go wait for the next call that wants one of their size: those
/// that one step of a training keeps for its backward pass are there for the next step. Those that wait and those in use are
/// together no more than were in use at one time since; but 96 MB wait in any case, here and without.
///
/// ```
/// let buffers = mc_backend::KeptBuffers::new();
/// // … the steps of a training …
/// drop(buffers);
/// ```
#[derive(Debug)]
pub struct KeptBuffers(());

impl KeptBuffers {
    /// Keeps buffers from now on.
    #[must_use]
    pub fn new() -> Self {
        large().hold();
        Self(())
    }
}

impl Default for KeptBuffers {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for KeptBuffers {
    fn drop(&mut self) {
        large().release();
    }
}

/// A buffer of 32-bit units from the spare ones. What is in it is left from its last use.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u32>);

impl Scratch {
    /// A buffer of `len` units.
    pub(crate) fn new(len: usize) -> Self {
        let mut units = spare(len).map(|mut spare| spare.take(len)).unwrap_or_default();
        if units.capacity() < len {
            units = vec![0; len];
        }
        // What was used before stays as it is; only what never was is filled.
        units.resize(len, 0);
        if cfg!(debug_assertions) {
            // Whoever reads what nobody wrote finds out.
            units.fill(f32::NAN.to_bits() | f32::NAN.to_bits() >> 16);
        }
        Self(units)
    }

    /// The same as numbers.
    pub(crate) fn f32(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// The same as numbers to read.
    pub(crate) fn numbers(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Deref for Scratch {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let units = std::mem::take(&mut self.0);
        if let Some(mut spare) = spare(units.capacity()) {
            spare.put_back(units);
        }
    }
}

/// So many zeros, written by all threads: beside one that clears memory the others would wait.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    const BLOCK: usize = 256;
    if len < LARGE {
        return vec![0.0; len];
    }
    let blocks = (0..len.div_ceil(BLOCK)).into_par_iter().with_min_len(LARGE / 4 / BLOCK).map(|_| [0.0; BLOCK]);
    let mut zeros = blocks.collect::<Vec<_>>().into_flattened();
    zeros.truncate(len);
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of sizes that no other test of this process asks for; but other tests' buffers may push it out of its list.
    #[test]
    fn a_buffer_is_used_again_whatever_is_in_it() {
        for len in [3_000_017, 64_901] {
            let again = || (0..10_000).any(|_| is_used_again(len));
            assert!(again(), "{len}");
        }
        assert!(spare(SMALL - 1).is_none() && spare(SMALL).is_some_and(|spare| spare.limit < large().limit));
    }

    fn is_used_again(len: usize) -> bool {
        let mut first = Scratch::new(len);
        first.f32().fill(2.5);
        let at = first.as_ptr();
        drop(first);
        if !SPARES.iter().any(|spare| lock(spare).buffers.iter().any(|b| b.as_ptr() == at)) {
            return false;
        }
        let mut second = Scratch::new(len - 1);
        let left = |x: &f32| if cfg!(debug_assertions) { x.is_nan() } else { *x == 2.5 };
        let again = second.as_ptr() == at;
        assert!(second.len() == len - 1 && (!again || second.f32().iter().all(left)));
        assert_ne!(Scratch::new(len).as_ptr(), second.as_ptr());
        again
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        let limit = large().limit;
        drop(Scratch::new(limit + 1));
        for len in SMALL..SMALL + 1000 {
            drop((Scratch::new(len), Scratch::new(len)));
        }
        for spare in SPARES.iter().map(lock) {
            assert_eq!(spare.kept, spare.buffers.iter().map(Vec::capacity).sum::<usize>());
            assert!(spare.holders > 0 || spare.kept <= spare.limit, "{}", spare.kept);
        }
    }

    /// Sizes in millions of units, which nobody touches.
    #[test]
    fn a_holder_keeps_as_much_as_was_in_use_at_one_time() {
        const MILLION: usize = 1_000_000;
        let mut spare = Spare { holders: 1, ..Spare::new(24 * MILLION, 8) };
        let take = |spare: &mut Spare, len: usize| {
            let found = spare.take(len * MILLION);
            let new = found.capacity() == 0;
            (if new { Vec::with_capacity(len * MILLION) } else { found }, new)
        };
        let sizes = |spare: &Spare| spare.buffers.iter().map(|b| b.capacity() / MILLION).collect::<Vec<_>>();
        let all: Vec<_> = [20, 21, 30].map(|len| take(&mut spare, len)).into();
        assert!(all.iter().all(|(_, new)| *new) && spare.most == 71 * MILLION);
        for (buffer, _) in all {
            spare.put_back(buffer);
        }
        assert_eq!((sizes(&spare), spare.kept, spare.lent), (vec![20, 21, 30], 71 * MILLION, 0));
        // The next step finds them.
        let (again, new) = take(&mut spare, 19);
        assert!(!new && again.capacity() == 20 * MILLION && sizes(&spare) == [21, 30]);
        spare.put_back(again);
        // Another size takes the place of the oldest.
        let (other, new) = take(&mut spare, 3);
        assert!(new && sizes(&spare) == [30, 20] && spare.kept == 50 * MILLION);
        spare.put_back(other);
        assert_eq!((sizes(&spare), spare.most), (vec![30, 20, 3], 71 * MILLION));
        // And without holders there is the limit.
        spare.release();
        assert_eq!((sizes(&spare), spare.kept), (vec![20, 3], 23 * MILLION));
        // Which a holder does not lower.
        spare.hold();
        let (other, _) = take(&mut spare, 1);
        assert!(spare.most == MILLION && sizes(&spare) == [20, 3]);
        spare.put_back(other);
    }

    /// No other test of this process holds.
    #[test]
    fn each_holder_lets_go_for_itself() {
        let holders = || large().holders;
        let [first, second] = [KeptBuffers::new(), KeptBuffers::new()];
        assert_eq!(holders(), 2);
        drop(first);
        assert_eq!(holders(), 1);
        drop(second);
        assert_eq!(holders(), 0);
        let mut spare = Spare { lent: 5, most: 9, ..Spare::new(1, 1) };
        spare.hold();
        assert_eq!(spare.most, 5);
        spare.most = 7;
        spare.hold();
        assert_eq!((spare.most, spare.holders), (7, 2));
    }
}
