//! Buffers that are used again: memory so large costs more to get from the system, and to clear, than to fill.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static SPARE: RefCell<Vec<Vec<u32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of 32-bit units from this thread's spare ones. What is in it is left from its last use.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u32>);

impl Scratch {
    /// A buffer of `len` units.
    pub(crate) fn new(len: usize) -> Self {
        let spare = SPARE.with(|spare| {
            let mut spare = spare.borrow_mut();
            let of = |i: &usize| spare[*i].capacity();
            // The smallest that is large enough, else the largest, which then grows.
            let fits = (0..spare.len()).filter(|i| of(i) >= len).min_by_key(of);
            fits.or_else(|| (0..spare.len()).max_by_key(of)).map(|i| spare.swap_remove(i))
        });
        let mut units = spare.unwrap_or_default();
        if units.capacity() < len {
            // Nothing in it is worth a copy.
            units = Vec::with_capacity(len);
        }
        units.resize(len, 0);
        Self(units)
    }

    /// The same as numbers.
    pub(crate) fn f32(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
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
        /// As many as a block of a model uses at once.
        const KEPT: usize = 12;
        /// Units below which the allocator is as good.
        const SMALL: usize = 16 * 1024;
        let units = std::mem::take(&mut self.0);
        if units.capacity() < SMALL {
            return;
        }
        // A thread that ends has no spare buffers any more, which is as well.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            spare.push(units);
            if spare.len() > KEPT {
                let smallest = (0..spare.len()).min_by_key(|i| spare[*i].capacity());
                smallest.map(|i| spare.swap_remove(i));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_whatever_is_in_it() {
        let len = 100_000;
        let mut first = Scratch::new(len);
        first.f32().fill(2.5);
        let at = first.as_ptr();
        drop(first);
        let mut second = Scratch::new(len - 1);
        assert_eq!((second.as_ptr(), second.len()), (at, len - 1));
        assert!(second.f32().iter().all(|x| *x == 2.5));
        assert_ne!(Scratch::new(len).as_ptr(), at);
    }
}
