//! What a process costs the machine, from Linux's `/proc`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

/// A tick of `/proc/<pid>/stat`: Linux shows 100 a second on all machines that Kubernetes runs on.
const TICK: Duration = Duration::from_millis(10);

/// A process on this machine.
#[derive(Clone, Debug)]
pub(super) struct Process {
    directory: PathBuf,
}

/// Memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident, shared pages counted whole.
    pub(super) rss: u64,
    /// Resident, shared pages counted by share; none where it may not be read.
    pub(super) pss: Option<u64>,
}

impl Memory {
    /// The larger of each.
    pub(super) fn max(self, other: Self) -> Self {
        Self { rss: self.rss.max(other.rss), pss: self.pss.max(other.pss) }
    }
}

impl Process {
    /// The process with this id, which has to be there.
    pub(super) fn new(pid: u32) -> anyhow::Result<Self> {
        let process = Self { directory: PathBuf::from(format!("/proc/{pid}")) };
        process.cpu().with_context(|| format!("process {pid} cannot be measured"))?;
        Ok(process)
    }

    /// CPU time so far, in user and system mode, in steps of 10 ms.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(self.directory.join("stat"))?;
        ticks(&stat).map(|ticks| TICK * ticks).context("/proc/<pid>/stat has another form")
    }

    /// Memory now; none when the process has ended.
    pub(super) fn memory(&self) -> Option<Memory> {
        let status = std::fs::read_to_string(self.directory.join("status")).ok()?;
        let rollup = std::fs::read_to_string(self.directory.join("smaps_rollup"));
        let pss = rollup.ok().and_then(|rollup| bytes(&rollup, "Pss:"));
        Some(Memory { rss: bytes(&status, "VmRSS:")?, pss })
    }
}

/// utime and stime, fields 14 and 15; the second field is a name that may hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// A line's value, which is in KiB.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added_whatever_the_process_is_called() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 5 6 20 0 1 0 100 1 2";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(bytes("VmHWM:\t  9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 * 1024));
        assert_eq!(bytes("VmRSS: none", "VmRSS:"), None);
    }

    #[test]
    fn this_process_can_be_measured_and_one_that_is_not_there_cannot() {
        let process = Process::new(std::process::id()).unwrap();
        assert!(process.memory().unwrap().rss > 0);
        assert!(Process::new(u32::MAX).unwrap_err().to_string().contains("4294967295"));
    }
}
