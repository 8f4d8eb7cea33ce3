//! Two thread pools on the same cores: rayon's, which our kernels use, and candle's own for elementwise ops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
/// A thread that finds nothing for a fifth of a millisecond sleeps as usual, and none looks while another call runs: there is
/// work anyway. So no work waits for long because of one that looks, and one that looks does not take a core for long from
/// whoever needs it.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let working = Working::begin();
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

/// How many calls of [`in_pool`] run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// True until it is dropped, after a panic too.
struct Working(Arc<AtomicBool>);

impl Working {
    fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Does parts of what the pool has to do, until that work is over, there has been nothing for some time, or for long
/// enough. Below this on the stack a part may wait for which another call waits; so it ends, too, if there is another.
fn look_for_parts(working: &AtomicBool) {
    const PATIENCE: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_millis(100);
    let began = Instant::now();
    let mut found = began;
    while working.load(Ordering::Relaxed) && RUNNING.load(Ordering::Relaxed) <= 1 {
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
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// How many calls run is known to all tests of a process.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn busy(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }

    /// Of one thread, nobody else can do what is found.
    #[test]
    fn who_looks_finds_parts_and_ends() {
        // Each begins the next, later than it would be waited for.
        fn part(found: Arc<AtomicUsize>) {
            busy(Duration::from_millis(1));
            if found.fetch_add(1, Ordering::Relaxed) < 2 {
                rayon::spawn(move || part(found));
            }
        }
        let _alone = alone();
        let found = Arc::new(AtomicUsize::new(0));
        pool(1).install(|| {
            let (parts, working) = (found.clone(), AtomicBool::new(true));
            rayon::spawn(move || part(parts));
            look_for_parts(&working);
            assert_eq!(found.load(Ordering::Relaxed), 3);
            let looked = |working: &AtomicBool| {
                let late = found.clone();
                rayon::spawn(move || _ = late.fetch_add(1, Ordering::Relaxed));
                look_for_parts(working);
                found.load(Ordering::Relaxed)
            };
            // It is over.
            assert_eq!(looked(&AtomicBool::new(false)), 3);
            // Others work.
            let calls = [Working::begin(), Working::begin()];
            assert_eq!(looked(&working), 3);
            drop(calls);
            assert!(looked(&working) > 3);
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
        let _alone = alone();
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

    /// After a panic too.
    #[test]
    fn the_work_is_over_when_the_call_is() {
        let _alone = alone();
        let pool = pool(2);
        let flag = |panics: bool| {
            let mut flag = None;
            let call = || {
                let working = Working::begin();
                flag = Some(working.0.clone());
                assert!(working.0.load(Ordering::Relaxed) && RUNNING.load(Ordering::Relaxed) == 1);
                assert!(!panics);
            };
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_ok();
            assert_eq!(ended, !panics);
            flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
        };
        assert!(!flag(false) && !flag(true));
        let panics = || pool.install(|| in_pool(|| panic!("wrong")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(RUNNING.load(Ordering::Relaxed), 0);
        assert_eq!(pool.install(|| in_pool(|| 7)), 7);
    }

    /// Many at once, one in the other, on fewer threads: none waits for one that waits for it.
    #[test]
    fn calls_may_be_nested_and_side_by_side() {
        let _alone = alone();
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
        assert_eq!(RUNNING.load(Ordering::Relaxed), 0);
    }
}
