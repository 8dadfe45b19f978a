//! How much memory the process has taken at most.

/// The process's largest resident size so far, in bytes; `None` where the system does not say.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Begins a new measurement, where the system lets us.
pub fn reset_peak_memory() {
    // Refused in some containers; the peak then covers the whole process.
    let _ = fs_err::write("/proc/self/clear_refs", "5");
}

/// How much memory the process may still take, in bytes: what the system can free for it, or what
/// its control group has left, whichever is less; `None` where neither says. Processes that train together on a machine
/// share it.
pub fn available_memory_bytes() -> Option<u64> {
    let system = fs_err::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let all = system.into_iter().chain(left_in_group()).min();
    all.map(|bytes| bytes / collective::local_processes() as u64)
}

/// What the control group's limit leaves beside anonymous memory; cached files can be dropped.
fn left_in_group() -> Option<u64> {
    let read = |name: &str| fs_err::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let of_version = |limit: &str, statistics: &str, key: &str| -> Option<u64> {
        let limit: u64 = read(limit)?.trim().parse().ok()?; // `max` where there is none.
        let statistics = read(statistics)?;
        let line = statistics.lines().find(|line| line.split(' ').next() == Some(key))?;
        let used: u64 = line.split(' ').nth(1)?.parse().ok()?;
        Some(limit.saturating_sub(used))
    };
    of_version("memory.max", "memory.stat", "anon")
        .or_else(|| of_version("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss"))
}
