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

/// Whether half of the system's memory stays available after taking so many bytes; not where it does not say.
pub fn is_memory_plentiful(bytes: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        let Ok(info) = std::fs::read_to_string("/proc/meminfo") else { return false };
        let kib = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let (Some(all), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else { return false };
        available.saturating_sub(bytes.div_ceil(1024)) >= all / 2
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = bytes;
        false
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn nobody_has_an_exabyte() {
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
