//! Calls of the `tokenizers` crate, whose panics over an odd tokenizer.json become errors. Knows no files.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is about to become an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives; if it panics, that is an error, and nothing is printed.
///
/// The first call puts a hook before the one that prints panics. It passes on all but those of guarded calls.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                print(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    // A tokenizer keeps nothing between calls but a cache of words, which it does without if a panic left it locked.
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(format!("the tokenizer cannot work as it is written: {}", text.unwrap_or("no reason given")).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_call_goes_on() {
        let fail = |text: &str| guarded::<()>(|| panic!("{text} of {}", 3)).unwrap_err().to_string();
        assert_eq!(fail("index 4"), "the tokenizer cannot work as it is written: index 4 of 3");
        assert_eq!(guarded(|| Ok(3)).unwrap(), 3);
        assert_eq!(guarded::<()>(|| Err("as it is".into())).unwrap_err().to_string(), "as it is");
        let inner = guarded(|| {
            let _ = guarded::<()>(|| panic!("inner"));
            Ok(GUARDED.get())
        });
        assert!(inner.unwrap() && !GUARDED.get());
    }
}
