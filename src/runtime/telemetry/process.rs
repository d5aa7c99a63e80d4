//! The process' own metrics under Prometheus' usual names, read from `/proc` when they are asked for.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge};

/// Clock ticks a second in `/proc/self/stat`; the same on all of Linux' architectures.
const TICKS_PER_SECOND: f64 = 100.0;
/// Where user time stands among the fields after the command's name; system time is behind it.
const USER_TIME_FIELD: usize = 11;

/// Collects them.
pub(super) struct Process {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    virtual_bytes: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
    start_time_seconds: Gauge,
    updating: Mutex<()>,
}

impl Process {
    /// The process started now, as far as its metrics tell.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new;
        let made = Self {
            cpu_seconds: Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            resident_bytes: gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            )?,
            virtual_bytes: gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            open_fds: gauge("process_open_fds", "Number of open file descriptors.")?,
            max_fds: gauge("process_max_fds", "Maximum number of open file descriptors.")?,
            threads: gauge("process_threads", "Number of OS threads in the process.")?,
            start_time_seconds: Gauge::new(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
            updating: Mutex::default(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        made.start_time_seconds.set(now.as_secs_f64());
        Ok(made)
    }

    fn update(&self) {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        if let Some(seconds) = cpu_seconds(&read("/proc/self/stat")) {
            // A counter can only be set by beginning anew.
            self.cpu_seconds.reset();
            self.cpu_seconds.inc_by(seconds);
        }
        let status = read("/proc/self/status");
        for (gauge, name, unit) in [
            (&self.resident_bytes, "VmRSS:", 1024),
            (&self.virtual_bytes, "VmSize:", 1024),
            (&self.threads, "Threads:", 1),
        ] {
            if let Some(value) = field(&status, name) {
                gauge.set(value.saturating_mul(unit));
            }
        }
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        self.open_fds.set(i64::try_from(open).unwrap_or(i64::MAX));
        if let Ok((soft, _)) = rlimit::Resource::NOFILE.get() {
            self.max_fds.set(i64::try_from(soft).unwrap_or(i64::MAX));
        }
    }

    fn collectors(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.virtual_bytes,
            &self.open_fds,
            &self.max_fds,
            &self.threads,
            &self.start_time_seconds,
        ]
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Two pages may be made at a time, and a counter is set in two steps.
        let _alone = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        self.update();
        self.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}

/// User and system time in seconds.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The command's name may hold anything, also blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(USER_TIME_FIELD);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn field(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 1 2";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn the_process_tells_its_memory_and_descriptors() {
        let process = Process::new().unwrap();
        process.update();
        assert!(process.resident_bytes.get() > 1024 * 1024 && process.open_fds.get() > 2);
        assert!(process.max_fds.get() >= process.open_fds.get());
    }
}
