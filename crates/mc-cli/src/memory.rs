//! What the process asks of the system's memory.

use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(not(target_vendor = "apple"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lets the allocator keep what is freed. Each step of a training takes the same buffers as the one before, and pages
/// that went back to the system in between would all be cleared again.
pub(crate) fn keep_what_is_freed() {
    purge_after(None);
}

/// Lets the allocator return what nobody has used for a twentieth of a second. Texts in batches use what the batch before them
/// used; what a single piece of work took once, such as reading a tokenizer, is not held beside it.
pub(crate) fn give_back_soon() {
    purge_after(Some(50));
}

/// After so many milliseconds what is freed goes back to the system, or never.
fn purge_after(milliseconds: Option<u16>) {
    #[cfg(not(target_vendor = "apple"))]
    {
        /// `mi_option_purge_delay`, of which −1 is never. The bindings have no name for it.
        const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
        // SAFETY: setting an option of the allocator changes no memory that is in use.
        #[allow(unsafe_code)]
        unsafe {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds.map_or(-1, std::ffi::c_long::from));
        }
    }
    #[cfg(target_vendor = "apple")]
    let _ = milliseconds;
}

/// Whether [`small_pages`] changed something.
static SMALL: AtomicBool = AtomicBool::new(false);

/// Takes memory in small pages from now on, not in those of 2 MB that the allocator asks for.
///
/// Much memory is faster in large pages. But a page is cleared when it is first used, and a process that answers once and ends
/// would clear much that it never reads (measured: docs/benchmarks.md, "Huge pages at the start").
pub(crate) fn small_pages() {
    if !are_small() {
        SMALL.store(set_small(true), Ordering::Relaxed);
    }
}

/// Takes it as before again, after [`small_pages`].
pub(crate) fn large_pages() {
    if SMALL.swap(false, Ordering::Relaxed) {
        set_small(false);
    }
}

#[cfg(target_os = "linux")]
fn are_small() -> bool {
    rustix::thread::transparent_huge_pages_are_disabled().unwrap_or(true)
}

/// Whether the system did it.
#[cfg(target_os = "linux")]
fn set_small(small: bool) -> bool {
    let done = rustix::thread::disable_transparent_huge_pages(small);
    tracing::debug!(small, ?done, "size of pages");
    done.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn are_small() -> bool {
    true
}

#[cfg(not(target_os = "linux"))]
fn set_small(_: bool) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_small_before_stays() {
        // Where the process began without large pages, or the system has none to ask for.
        if !set_small(false) {
            return;
        }
        assert!(!are_small());
        small_pages();
        assert!(are_small());
        large_pages();
        assert!(!are_small());
        assert!(set_small(true));
        small_pages();
        large_pages();
        assert!(are_small());
        assert!(set_small(false));
    }
}
