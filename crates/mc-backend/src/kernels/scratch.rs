//! Buffers that are used again: memory so large costs more to get from the system, and to clear, than to fill.

use rayon::prelude::*;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// What threads share of buffers that nobody uses, oldest first.
static SPARE: Mutex<Vec<Vec<u32>>> = Mutex::new(Vec::new());
/// Units that are kept at most, 96 MB; and units below which the allocator is as good.
const KEPT: usize = 24 << 20;
const SMALL: usize = 64 * 1024;

/// A buffer of 32-bit units from the spare ones. What is in it is left from its last use.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u32>);

fn spare() -> impl DerefMut<Target = Vec<Vec<u32>>> {
    // Whoever panicked with it left whole buffers.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scratch {
    /// A buffer of `len` units.
    pub(crate) fn new(len: usize) -> Self {
        let mut units = if len < SMALL {
            Vec::new()
        } else {
            let mut spare = spare();
            // The smallest that is large enough, and hardly larger: what is kept for a backward pass is kept whole.
            let fits = |i: &usize| (len..=len + len / 8).contains(&spare[*i].capacity());
            let found = (0..spare.len()).filter(fits).min_by_key(|i| spare[*i].capacity());
            found.map(|i| spare.remove(i)).unwrap_or_default()
        };
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
        if units.capacity() < SMALL {
            return;
        }
        let mut spare = spare();
        spare.push(units);
        let mut total: usize = spare.iter().map(Vec::capacity).sum();
        while total > KEPT {
            total -= spare.remove(0).capacity();
        }
    }
}

/// So many zeros, written by all threads: beside one that clears memory the others would wait.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    const BLOCK: usize = 256;
    if len < SMALL {
        return vec![0.0; len];
    }
    let blocks = (0..len.div_ceil(BLOCK)).into_par_iter().with_min_len(SMALL / 4 / BLOCK).map(|_| [0.0; BLOCK]);
    let mut zeros = blocks.collect::<Vec<_>>().into_flattened();
    zeros.truncate(len);
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a size that no other test of this process asks for.
    #[test]
    fn a_buffer_is_used_again_whatever_is_in_it() {
        let len = 3_000_017;
        let mut first = Scratch::new(len);
        first.f32().fill(2.5);
        let at = first.as_ptr();
        drop(first);
        let mut second = Scratch::new(len - 1);
        assert_eq!((second.as_ptr(), second.len()), (at, len - 1));
        let left = |x: &f32| if cfg!(debug_assertions) { x.is_nan() } else { *x == 2.5 };
        assert!(second.f32().iter().all(left));
        assert_ne!(Scratch::new(len).as_ptr(), at);
    }

    #[test]
    fn no_more_than_the_limit_is_kept() {
        drop(Scratch::new(KEPT + 1));
        let total: usize = spare().iter().map(Vec::capacity).sum();
        assert!(total <= KEPT, "{total}");
    }
}
