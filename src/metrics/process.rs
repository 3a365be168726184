//! This process: version, panics, and what Linux says about it.
//!
//! Invariants: a figure that cannot be read keeps its last value; reading never fails a scrape.
//! Absent on purpose: systems other than Linux (there the figures stay 0).

use super::make::Maker;
use super::{Gauge, IntCounter};
use prometheus::Counter;
use std::fs;

/// Clock ticks per second in `/proc/<pid>/stat` (`USER_HZ`). Linux fixes it at 100 for user space
/// on every architecture PostgreSQL is packaged for, whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Handles of the process.
#[derive(Debug)]
pub struct ProcessMetrics {
    /// Panics caught (each one is a defect of ours).
    pub panics: IntCounter,
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    start_seconds: Gauge,
}

impl ProcessMetrics {
    pub(super) fn new(maker: &Maker) -> Self {
        let build = maker.gauges("build_info", "Always 1; the label tells the version (0 or 1).", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            panics: maker.counter("panics_total", "Panics caught, each one a defect of pgregent (count)."),
            cpu_seconds: maker
                .process_counter("process_cpu_seconds_total", "CPU time used by user and system (seconds)."),
            resident_bytes: maker.process_gauge("process_resident_memory_bytes", "Resident memory (bytes)."),
            open_fds: maker.process_gauge("process_open_fds", "File descriptors open now (count)."),
            max_fds: maker.process_gauge("process_max_fds", "File descriptors allowed (count)."),
            threads: maker.process_gauge("process_threads", "Threads now (count)."),
            start_seconds: maker
                .process_gauge("process_start_time_seconds", "Start of the process since the Unix epoch (seconds)."),
        }
    }

    /// Reads the figures anew. For one caller at a time.
    pub(super) fn refresh(&self) {
        if let Some(stat) = read("/proc/self/stat").as_deref().and_then(Stat::parse) {
            self.cpu_seconds.inc_by((stat.cpu_ticks / TICKS_PER_SECOND - self.cpu_seconds.get()).max(0.0));
            self.threads.set(stat.threads);
            if let Some(boot) = read("/proc/stat").as_deref().and_then(|text| number_after(text, "btime ")) {
                self.start_seconds.set(boot + stat.start_ticks / TICKS_PER_SECOND);
            }
        }
        if let Some(kib) = read("/proc/self/status").as_deref().and_then(|text| number_after(text, "VmRSS:")) {
            self.resident_bytes.set(kib * 1024.0);
        }
        if let Some(limit) = read("/proc/self/limits").as_deref().and_then(|text| number_after(text, "Max open files"))
        {
            self.max_fds.set(limit);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            let open = entries.count().saturating_sub(1);
            self.open_fds.set(u32::try_from(open).unwrap_or(u32::MAX).into());
        }
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The number behind `key`, which begins a line.
fn number_after(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// What is used of `/proc/self/stat` (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
    start_ticks: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold spaces and parentheses, so count from the last closing one: field 3 follows.
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self { cpu_ticks: field(14)? + field(15)?, threads: field(20)?, start_ticks: field(22)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_a_parenthesis_does_not_shift_the_fields() {
        let text = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 4242 1 2 3";
        let expected = Stat { cpu_ticks: 200.0, threads: 9.0, start_ticks: 4242.0 };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (short) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_number_is_found_behind_its_key() {
        let text = "Name:\tx\nVmRSS:\t    5120 kB\nMax open files            1024      4096   files\n";
        assert_eq!(number_after(text, "VmRSS:"), Some(5120.0));
        assert_eq!(number_after(text, "Max open files"), Some(1024.0));
        assert_eq!(number_after(text, "VmSwap:"), None);
        assert_eq!(number_after("Max open files unlimited", "Max open files"), None);
    }
}
