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
    memory().is_some_and(|memory| stays_plentiful(memory, bytes))
}

fn stays_plentiful((all, available): (u64, u64), bytes: u64) -> bool {
    available.saturating_sub(bytes) >= all / 2
}

/// Bytes that the process can still take, by what the system estimates: free ones, and those of files that can be read again. `None`
/// where it does not say. A control group's limit counts.
pub fn available_memory_bytes() -> Option<u64> {
    memory().map(|(_, available)| available)
}

/// What is said where so many bytes are to be taken and fewer are available, by [`available_memory_bytes`]; `None` if there is
/// room for them, or the system does not say.
///
/// ```
/// assert_eq!(mc_backend::shortage(3_000_000, Some(3_000_000)), None);
/// let words = mc_backend::shortage(3_200_000_000, Some(900_000_000));
/// assert_eq!(words.as_deref(), Some("3.2 GB of memory, expected at most the 900.0 MB that are free"));
/// ```
pub fn shortage(bytes: u64, available: Option<u64>) -> Option<String> {
    let available = available.filter(|available| bytes > *available)?;
    let shown = |bytes: u64| match bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.1} GB", bytes / 1e9),
    };
    Some(format!("{} of memory, expected at most the {} that are free", shown(bytes), shown(available)))
}

/// Bytes there are, and those available.
fn memory() -> Option<(u64, u64)> {
    #[cfg(target_os = "linux")]
    {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let group = ["memory.max", "memory.current", "memory.stat"].map(|file| read(&format!("/sys/fs/cgroup/{file}")));
        memory_of(&read("/proc/meminfo"), group.each_ref().map(String::as_str))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// [`memory`] by what the system's files say: its memory, and the group's limit, its use, and what that is made of.
#[cfg(target_os = "linux")]
fn memory_of(meminfo: &str, [limit, used, stat]: [&str; 3]) -> Option<(u64, u64)> {
    let number = |file: &str, name: &str| {
        let line = file.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let kib = |name: &str| number(meminfo, name);
    let (mut all, mut available) = (kib("MemTotal:")? * 1024, kib("MemAvailable:")? * 1024);
    // Without a limit the file says `max`, and without a group there is none.
    if let (Ok(limit), Ok(used)) = (limit.trim().parse::<u64>(), used.trim().parse::<u64>()) {
        // Its use counts what was read of files, which it gives back.
        let files: u64 = ["inactive_file ", "active_file "].iter().filter_map(|name| number(stat, name)).sum();
        let kept = used.saturating_sub(files);
        (all, available) = (all.min(limit), available.min(limit.saturating_sub(kept)));
    }
    Some((all, available))
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_group_may_have_less_memory_than_the_machine() {
        let memory = |info, group| super::memory_of(info, group).map(|(all, available)| (all / 1024, available / 1024));
        let (info, none) = ("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   800 kB\n", ["max\n", "5\n", ""]);
        assert_eq!(memory(info, none), Some((1000, 800)));
        assert_eq!(memory(info, [""; 3]), Some((1000, 800)));
        assert_eq!(memory(info, ["409600\n", "102400\n", ""]), Some((400, 300)));
        assert_eq!(memory(info, ["1024000\n", "819200\n", ""]), Some((1000, 200)));
        assert_eq!(memory("MemTotal: 1000 kB", none), None);
        // 300 of its 390 KiB are of files, as after a model was read.
        let files = "anon 1\ninactive_file 204800\nactive_file 102400\n";
        assert_eq!(memory(info, ["409600\n", "399360\n", files]), Some((400, 310)));
    }

    #[test]
    fn half_of_the_memory_stays() {
        let plentiful = super::stays_plentiful;
        assert!(plentiful((1000, 800), 300) && !plentiful((1000, 800), 301));
        assert!(plentiful((400, 300), 100) && !plentiful((400, 300), 101) && !plentiful((400, 300), u64::MAX));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_says_what_it_has() {
        let (all, available) = super::memory().unwrap();
        assert!(available > 1 << 20 && available <= all && all < 1 << 50);
        assert_eq!(super::is_memory_plentiful(0), available >= all / 2);
        assert!(!super::is_memory_plentiful(all) && super::available_memory_bytes().is_some());
    }

    #[test]
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    fn a_touched_buffer_counts() {
        // A buffer that nobody looks at need not be made.
        let buffer = std::hint::black_box(vec![1u8; 64 << 20]);
        let peak = super::peak_memory_bytes().unwrap();
        assert!(peak >= buffer.len() as u64 && peak < 1 << 40, "{peak}");
    }
}
