//! Two thread pools on the same cores: rayon's, which our kernels use, and candle's own for elementwise ops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

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

/// Runs `f` on a thread of rayon's pool, and waits for it. Meanwhile the pool's other threads look for parts of its work
/// without going to sleep, from which they would take longer to wake than a short parallel section takes.
///
/// The kernels work from any thread. But a thread outside the pool hands over each of their parallel sections and
/// sleeps until it is done, twice for every op; so what runs many ops goes through here once.
///
/// A thread that finds nothing for a fifth of a millisecond sleeps as usual, and after a tenth of a second all do. So no work
/// waits for long because of one that looks, and one that looks does not take a core for long from whoever needs it.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let working = Working(Arc::new(AtomicBool::new(true)));
        let (this, others) = (rayon::current_thread_index(), working.0.clone());
        if rayon::current_num_threads() > 1 {
            rayon::spawn_broadcast(move |thread| {
                if Some(thread.index()) != this {
                    look_for_parts(&others);
                }
            });
        }
        f()
    })
}

/// True until it is dropped, after a panic too.
struct Working(Arc<AtomicBool>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Does parts of what the pool has to do, until that work is over, there has been nothing for some time, or for long
/// enough: below this on the stack a part may wait, which somebody else waits for.
fn look_for_parts(working: &AtomicBool) {
    const PATIENCE: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_millis(100);
    let began = Instant::now();
    let mut found = began;
    while working.load(Ordering::Relaxed) {
        let done = rayon::yield_now() == Some(rayon::Yield::Executed);
        let now = Instant::now();
        if done {
            found = now;
        } else {
            // Whoever else wants this core has it.
            std::thread::yield_now();
        }
        if now - found > PATIENCE || now - began > LONGEST {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn who_looks_finds_parts_and_ends() {
        let working = AtomicBool::new(true);
        let found = Arc::new(AtomicUsize::new(0));
        pool(1).install(|| {
            for _ in 0..3 {
                let found = found.clone();
                rayon::spawn(move || _ = found.fetch_add(1, Ordering::Relaxed));
            }
            // Of one thread, nobody else can do them.
            look_for_parts(&working);
            assert_eq!(found.load(Ordering::Relaxed), 3);
            let late = found.clone();
            rayon::spawn(move || _ = late.fetch_add(1, Ordering::Relaxed));
            working.store(false, Ordering::Relaxed);
            look_for_parts(&working);
            assert_eq!(found.load(Ordering::Relaxed), 3, "the work was over");
        });
    }

    /// Though there is always something to do.
    #[test]
    fn looking_ends_while_others_work() {
        fn again(stop: Arc<AtomicBool>) {
            rayon::spawn(move || {
                if !stop.load(Ordering::Relaxed) {
                    again(stop);
                }
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        pool(1).install(|| {
            again(stop.clone());
            // A second thread ends it, should this one never return by itself.
            let (late, seen) = (stop.clone(), Arc::new(AtomicBool::new(false)));
            let told = seen.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(20));
                told.store(true, Ordering::Relaxed);
                late.store(true, Ordering::Relaxed);
            });
            look_for_parts(&AtomicBool::new(true));
            assert!(!seen.load(Ordering::Relaxed), "it went on for as long as there was work");
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// Many at once, one in the other, on fewer threads: none waits for one that waits for it.
    #[test]
    fn calls_may_be_nested_and_side_by_side() {
        for threads in [1, 2, 3] {
            let pool = pool(threads);
            let sum = |n: usize| (0..n).into_par_iter().with_max_len(1).sum::<usize>();
            let done: usize = std::thread::scope(|scope| {
                let call = || {
                    pool.install(|| {
                        let outer = || (0..20).into_par_iter().map(|_| in_pool(|| sum(50))).sum::<usize>();
                        (0..10).map(|_| in_pool(outer)).sum::<usize>()
                    })
                };
                let callers: Vec<_> = (0..4).map(|_| scope.spawn(call)).collect();
                callers.into_iter().map(|caller| caller.join().unwrap()).sum()
            });
            assert_eq!(done, 4 * 10 * 20 * (49 * 50 / 2));
        }
    }

    #[test]
    fn a_panic_passes() {
        let pool = pool(2);
        let panics = || pool.install(|| in_pool(|| panic!("wrong")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(pool.install(|| in_pool(|| 7)), 7);
    }
}
