//! Whether others use the machine: what is measured beside them says little, the less the more threads wait by
//! spinning. Knows Linux's counters; elsewhere nothing is known of others.

use std::time::{Duration, Instant};

/// So many cores of others are no disturbance.
const LITTLE: f64 = 0.1;
/// Counters have steps of this many seconds, one for each core that it may be off.
const TICK: f64 = 0.01;
const PATIENCE: Duration = Duration::from_secs(30);

/// Processor time of all programs since the system started, in seconds.
pub(super) fn busy_seconds() -> Option<f64> {
    busy(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// Whether others used too much of the machine, `others` seconds of processor time in `elapsed` seconds.
pub(super) fn is_disturbed(others: f64, elapsed: f64) -> bool {
    others > LITTLE * elapsed + 4.0 * TICK
}

/// Waits until others are quiet for a second, or patience ends.
pub(super) fn wait() {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let Some(before) = busy_seconds() else { return };
        std::thread::sleep(Duration::from_secs(1));
        if busy_seconds().is_none_or(|after| !is_disturbed(after - before, 1.0)) {
            return;
        }
    }
    eprintln!("warning: others have used the machine for {} s", PATIENCE.as_secs());
}

/// All but idle time and waiting for disks, of the line for all cores together.
fn busy(stat: &str) -> Option<f64> {
    let numbers = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user already.
    let busy = [0, 1, 2, 5, 6, 7].map(|at| ticks.get(at).copied().unwrap_or(0)).iter().sum::<u64>();
    (ticks.len() >= 4).then_some(busy as f64 * TICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        let stat = "cpu  100 20 30 9999 8888 4 5 6 77 0\ncpu0 1 2 3 4\n";
        assert!(busy(stat).is_some_and(|seconds| (seconds - 1.65).abs() < 1e-9));
        assert_eq!(busy("cpu0 1 2 3 4\n"), None);
        assert_eq!(busy("cpu  1 2\n"), None);
    }

    #[test]
    fn a_little_is_no_disturbance() {
        assert!(!is_disturbed(0.05, 0.2) && !is_disturbed(0.9, 10.0));
        assert!(is_disturbed(0.1, 0.2) && is_disturbed(2.0, 10.0));
    }
}
