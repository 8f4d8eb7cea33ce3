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

/// Runs `f` on a thread of rayon's pool, and waits for it.
///
/// The kernels work from any thread. But a thread outside the pool hands over each of their parallel sections and
/// sleeps until it is done, twice for every op; so what runs many ops goes through here once.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}
