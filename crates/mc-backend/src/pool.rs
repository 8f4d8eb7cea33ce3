//! Two thread pools on the same cores: rayon's, which our kernels use, and candle's own for elementwise ops.

const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";

/// Makes the threads of candle's pool sleep while they wait, instead of spinning on cores that the kernels need.
/// A limit that the environment sets already stays.
///
/// For programs, as the first thing in `main`: candle reads its setting from the environment alone.
///
/// # Safety
/// No other thread may run yet: changing the environment races with whoever reads it (see [`std::env::set_var`]).
#[allow(unsafe_code)]
pub unsafe fn let_candle_wait_asleep() {
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: the caller promises that this is the only thread.
        unsafe { std::env::set_var(SPIN_LIMIT, "0") }
    }
}
