//! The machine this runs on, as the system describes it.

use std::num::NonZero;
use std::thread::available_parallelism;

use crate::units::{bytes_text, counted};

/// What a run was computed on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// The processor's model, if the system says.
    pub(crate) cpu: Option<String>,
    /// How many cores this process may use.
    pub(crate) cores: usize,
    /// The memory there is, if the system says.
    pub(crate) memory_bytes: Option<u64>,
    /// The models of the GPUs there are.
    pub(crate) gpus: Vec<String>,
}

impl Machine {
    /// The one this process runs on.
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        Self {
            cpu: field(&cpus, &["model name", "Model", "Hardware"]).map(str::to_owned),
            cores: available_parallelism().map_or(1, NonZero::get),
            memory_bytes: memory(&read("/proc/meminfo")),
            gpus: gpus(),
        }
    }

    /// The processor, its cores and the memory, in one line.
    pub(crate) fn text(&self) -> String {
        let Self { cpu, cores, memory_bytes, .. } = self;
        let cpu = cpu.as_deref().unwrap_or(std::env::consts::ARCH);
        let memory = memory_bytes
            .map_or_else(String::new, |bytes| format!(", {} of memory", bytes_text(bytes)));
        format!("{cpu}, {}{memory}", counted(*cores, "core"))
    }
}

/// The first of these fields that a text of lines `name : value` has.
fn field<'a>(text: &'a str, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|wanted| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, value)| name.trim() == *wanted && !value.trim().is_empty())
            .map(|(_, value)| value.trim())
    })
}

/// What `/proc/meminfo` says there is in all.
fn memory(text: &str) -> Option<u64> {
    let kilobytes = field(text, &["MemTotal"])?.split_whitespace().next()?;
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

/// The GPUs that the driver lists.
fn gpus() -> Vec<String> {
    let Ok(entries) = fs_err::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
        .iter()
        .filter_map(|folder| fs_err::read_to_string(folder.join("information")).ok())
        .filter_map(|text| field(&text, &["Model"]).map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says() {
        let cpus = "processor\t: 0\nmodel name\t: Fast CPU @ 3.00GHz\n\nprocessor\t: 1\n";
        assert_eq!(field(cpus, &["model name", "Model"]), Some("Fast CPU @ 3.00GHz"));
        assert_eq!(field("Model\t\t: Some Board\n", &["model name", "Model"]), Some("Some Board"));
        assert_eq!(field(cpus, &["Hardware"]), None);
        assert_eq!(memory("MemTotal:       1000 kB\nMemFree: 9 kB\n"), Some(1_024_000));
        assert_eq!(memory(""), None);
    }

    #[test]
    fn in_one_line() {
        let mut machine = Machine {
            cpu: Some("Fast CPU".into()),
            cores: 2,
            memory_bytes: Some(24_000_000_000),
            gpus: Vec::new(),
        };
        assert_eq!(machine.text(), "Fast CPU, 2 cores, 24.0 GB of memory");
        machine = Machine { cpu: None, cores: 1, memory_bytes: None, gpus: Vec::new() };
        assert_eq!(machine.text(), format!("{}, 1 core", std::env::consts::ARCH));
    }
}
