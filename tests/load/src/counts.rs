//! What a process has used so far, from `/proc`: counts are steady where times depend on whatever else the machine does.

use std::fs;
use std::ops::AddAssign;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Of all threads that a process has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) on_cpu: Duration,
    /// Context switches, wanted or not.
    pub(crate) switches: u64,
}

impl Counts {
    /// Until now.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let tasks = Path::new("/proc").join(process.to_string()).join("task");
        let mut sum = Self::default();
        for task in fs::read_dir(&tasks).with_context(|| format!("process {process} is not there"))? {
            let task = task?.path();
            // A thread may end meanwhile.
            if let (Ok(time), Ok(status)) =
                (fs::read_to_string(task.join("schedstat")), fs::read_to_string(task.join("status")))
            {
                sum += Self::parse(&time, &status).with_context(|| format!("{} is odd", task.display()))?;
            }
        }
        Ok(sum)
    }

    /// From a thread's `schedstat` and `status` (proc(5)).
    fn parse(time: &str, status: &str) -> Option<Self> {
        let nanoseconds = time.split_whitespace().next()?.parse().ok()?;
        let switches = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        let switches: Vec<u64> = switches.filter_map(|(_, count)| count.trim().parse().ok()).collect();
        let both = switches.len() == 2;
        both.then(|| Self { on_cpu: Duration::from_nanos(nanoseconds), switches: switches.iter().sum() })
    }

    /// What came since. A thread that ended meanwhile is missing.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            on_cpu: self.on_cpu.saturating_sub(before.on_cpu),
            switches: self.switches.saturating_sub(before.switches),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.on_cpu += other.on_cpu;
        self.switches += other.switches;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_as_proc_writes_it() {
        let status = "Name:\tyurtd\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        let counts = Counts::parse("1500 20 3\n", status).unwrap();
        assert_eq!(counts, Counts { on_cpu: Duration::from_nanos(1500), switches: 695 });
        assert_eq!(Counts::parse("1500 20 3\n", "Name:\tyurtd\n"), None);
        assert_eq!(Counts::parse("", status), None);
    }

    #[test]
    fn a_process_uses_what_it_works() {
        let before = Counts::of(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Counts::of(std::process::id()).unwrap().since(before).on_cpu < Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
