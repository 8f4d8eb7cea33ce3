//! How much memory the process has held at most, and how much there is.

/// The most memory that the process has held at one time, in bytes; `None` where the system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        // Not `getrusage`: its maximum is inherited from the program that started this one.
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    }
    #[cfg(target_vendor = "apple")]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        // In bytes on Apple's systems.
        getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| usage.max_rss() as u64)
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    None
}

/// Whether half of the memory there is stays available after taking so many bytes; false where the system does not say.
/// What there is may be less than the machine has: a control group's limit counts.
pub fn is_memory_plentiful(bytes: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let group = (read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory.current"));
        stays_plentiful(&read("/proc/meminfo"), (&group.0, &group.1), bytes)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = bytes;
        false
    }
}

/// [`is_memory_plentiful`] by what the system's files say: its memory, and the group's limit and use.
#[cfg(target_os = "linux")]
fn stays_plentiful(meminfo: &str, (limit, used): (&str, &str), bytes: u64) -> bool {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (Some(all), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else { return false };
    let (mut all, mut available) = (all * 1024, available * 1024);
    // Without a limit the file says `max`, and without a group there is none.
    if let (Ok(limit), Ok(used)) = (limit.trim().parse::<u64>(), used.trim().parse::<u64>()) {
        (all, available) = (all.min(limit), available.min(limit.saturating_sub(used)));
    }
    available.saturating_sub(bytes) >= all / 2
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn half_of_the_memory_stays() {
        let plentiful = super::stays_plentiful;
        let (info, none) = ("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   800 kB\n", ("max\n", "5\n"));
        assert!(plentiful(info, none, 300 * 1024) && !plentiful(info, none, 301 * 1024));
        assert!(plentiful(info, ("", ""), 300 * 1024) && !plentiful("MemTotal: 1000 kB", none, 0));
        let limited = ("409600\n", "102400\n"); // of 400 KiB 100 are used
        assert!(plentiful(info, limited, 100 * 1024) && !plentiful(info, limited, 101 * 1024));
        assert!(!super::is_memory_plentiful(1 << 60));
    }

    #[test]
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    fn a_touched_buffer_counts() {
        let buffer = vec![1u8; 64 << 20];
        let peak = super::peak_memory_bytes().unwrap();
        assert!(peak >= buffer.len() as u64 && peak < 1 << 40, "{peak}");
    }
}
