//! CPU kernels over plain slices: numbers in `f32`, matrices in their own dtype. Know nothing of graphs or gradients; [`crate::ops`]
//! gives them those.
//!
//! However the work is cut into units, each output element is computed within one, in one order, so results are the same
//! bit for bit on one thread or many.

pub(crate) mod attention;
pub(crate) mod compact;
pub(crate) mod cpu;
pub(crate) mod dots;
pub(crate) mod few;
pub(crate) mod operand;
pub(crate) mod round;
pub(crate) mod rows;
pub(crate) mod scratch;
pub mod search;
pub(crate) mod simd;
pub(crate) mod sixteen;
pub(crate) mod softmax;
pub(crate) mod tall;
pub(crate) mod tile;
pub(crate) mod transpose;
pub(crate) mod weighted;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use std::ops::Deref;

/// Whether the fused kernels serve this tensor: `f32` on the CPU.
pub(crate) fn serve(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The elements of a contiguous `f32` tensor on the CPU.
pub(crate) fn slice(x: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    struct Elements<G>(G, usize, usize);
    impl<G: Deref<Target = Storage>> Deref for Elements<G> {
        type Target = [f32];
        fn deref(&self) -> &[f32] {
            match &*self.0 {
                Storage::Cpu(CpuStorage::F32(v)) => &v[self.1..self.2],
                _ => &[],
            }
        }
    }
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("kernel argument is not contiguous") };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("kernel argument is not f32 on the CPU")
    }
    Ok(Elements(storage, start, end))
}

/// Whether `len` elements hold so many rows of `width`, `stride` apart; a product that wraps around does not.
pub(crate) fn holds(len: usize, rows: usize, stride: usize, width: usize) -> bool {
    let Some(last) = rows.checked_sub(1) else { return true };
    let end = stride.checked_mul(last).and_then(|last| last.checked_add(width));
    width == 0 || end.is_some_and(|end| end <= len)
}

/// A pointer that units of parallel work may share; each writes its own elements.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut f32,
    len: usize,
}

// SAFETY: a `Shared` is only made from a `&mut [f32]` that outlives the parallel section, and every unit of work
// that dereferences it writes elements no other unit touches (stated where it is used).
#[allow(unsafe_code)]
unsafe impl Send for Shared {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(data: &mut [f32]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len() }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// They belong to the calling unit of work alone, which drops the slice before it asks for them again; and the
    /// buffer outlives it.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "kernel out of bounds");
        // SAFETY: in bounds, as asserted; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests;
