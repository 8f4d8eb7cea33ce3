//! Counts what a device would be asked to do, on the CPU, without touching candle.
//!
//! Each of candle's ops fills one fresh buffer, on the CPU a `Vec` of the tensor's elements, where a GPU launches one
//! kernel; views allocate no such buffer. So buffers are counted by an allocator, and told from everything else by their
//! alignment: that of `f16`, `bf16`, `f32` and `u32` is 2 or 4, while what programs keep books in (pointers, sizes,
//! reference counts, text) has 8 or 1, and scratch of matrix products 64 and more. Not seen are tensors of `u8`, `i64`
//! and `f64`, and copies into a buffer that is there: `slice_set`, `Var::set`, and all parts but one of a `cat`.
//!
//! Knows nothing of ops or models.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// The allocator that [`count_dispatches`] needs to be the test binary's `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator;

thread_local! {
    /// Buffers that this thread has allocated.
    static BUFFERS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged. The counter is a `Cell` without a destructor, so that
// touching it neither allocates nor fails.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for CountingAllocator {
    // SAFETY: what the caller promises is what the system's allocator asks for.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: what the caller promises is what the system's allocator asks for.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    // A buffer that grows is still the same one.
    // SAFETY: what the caller promises is what the system's allocator asks for.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    // SAFETY: what the caller promises is what the system's allocator asks for.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(layout: Layout) {
    if matches!(layout.align(), 2 | 4) {
        BUFFERS.with(|buffers| buffers.set(buffers.get() + 1));
    }
}

/// What `run` gives, and how many dispatches its ops would be: the buffers that they fill, on this thread.
///
/// # Panics
/// When [`CountingAllocator`] is not the global allocator.
#[track_caller]
pub fn count_dispatches<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = BUFFERS.get();
    drop(std::hint::black_box(vec![1f32]));
    assert_eq!(BUFFERS.get() - before, 1, "CountingAllocator is not the #[global_allocator] of this test");
    let before = BUFFERS.get();
    let result = run();
    (result, BUFFERS.get() - before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use candle_core::{D, DType, Device, Result, Tensor, Var};

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[track_caller]
    fn check(what: &str, expected: usize, run: impl Fn() -> Result<Tensor>) {
        // The first time, pools of threads and the like are made.
        run().unwrap();
        assert_eq!(count_dispatches(run).1, expected, "{what}");
    }

    #[test]
    fn ops_are_counted_and_views_are_not() {
        for dtype in [DType::F16, DType::F32] {
            // One row: the smallest results are those of a single element.
            for rows in [1, 5, 300] {
                let (x, w) = (random(1, (rows, 48), dtype), random(2, (32, 48), dtype));
                let (row, first) = (random(3, 48, dtype), Tensor::zeros(1, DType::U32, &Device::Cpu).unwrap());
                check("views", 0, || x.reshape((rows, 6, 8))?.transpose(1, 2)?.narrow(2, 1, 3)?.detach().t());
                check("what is so already", 0, || x.to_dtype(dtype)?.contiguous());
                check("a copy", 1, || w.t()?.contiguous());
                check("a product", 1, || x.matmul(&w.t()?));
                check("sums", 2, || (&x + &x)?.broadcast_add(&row));
                check("a reduced row", 1, || x.sum_keepdim(D::Minus1));
                check("a square and its sum", 2, || x.sqr()?.sum_all());
                check("a factor", 1, || &x * 2.0);
                check("a conversion", 1, || x.to_dtype(DType::BF16));
                check("an upload", 1, || Tensor::new(&[1f32, 2.], &Device::Cpu));
                check("rows by index", 1, || x.index_select(&first, 0));
                check("parts, the first alone", 1, || Tensor::cat(&[&x, &x, &x], 0));
                check("a copy into what is there, which is not seen", 1, || {
                    let y = x.zeros_like()?;
                    y.slice_set(&x, 0, 0).map(|()| y)
                });
            }
        }
    }

    #[test]
    fn a_backward_pass_is_counted() {
        let x = Var::from_tensor(&random(1, (3, 4), DType::F32)).unwrap();
        // Forward: e^x. Backward: the seed, its product with e^x, and zeros that the product is added to.
        check("e^x", 1 + 1 + 1 + 2, || Ok(x.exp()?.backward()?.get(&x).unwrap().clone()));
    }
}
