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
