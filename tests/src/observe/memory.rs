//! What our processes hold in memory, by role, as `ps` counts it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// One process of ours, on whatever machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// `edge`, `keeper`, `tunnel-server`, `controller`.
    pub role: String,
    pub pid: i32,
    /// Resident: all of it, what is its own, what is of files (its program).
    pub total_kib: u64,
    pub anonymous_kib: u64,
    pub file_kib: u64,
    /// The largest it ever was.
    pub peak_kib: u64,
}

/// Every process of ours, in the order of their roles.
pub fn of_roles() -> Vec<Held> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Held> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(held)
        .collect();
    found.sort_by(|a, b| (&a.role, a.pid).cmp(&(&b.role, b.pid)));
    found
}

/// The same when nothing has moved for a while: what was allocated at the start has been given back.
pub fn at_rest(limit: Duration) -> Result<Vec<Held>> {
    const STILL: Duration = Duration::from_secs(20);
    let deadline = Instant::now() + limit;
    let (mut last, mut since) = (of_roles(), Instant::now());
    while since.elapsed() < STILL {
        ensure!(Instant::now() < deadline, "memory still moves after {limit:?}: {last:?}");
        std::thread::sleep(Duration::from_millis(500));
        let now = of_roles();
        let moved = now.len() != last.len()
            || now.iter().zip(&last).any(|(now, last)| now.total_kib.abs_diff(last.total_kib) > 256);
        if moved {
            (last, since) = (now, Instant::now());
        }
    }
    ensure!(!last.is_empty(), "no process of ours runs");
    Ok(last)
}

fn held(pid: i32) -> Option<Held> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let role = role(&line)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let of = |name: &str| field(&status, name).ok();
    Some(Held {
        role,
        pid,
        total_kib: of("VmRSS")?,
        anonymous_kib: of("RssAnon")?,
        file_kib: of("RssFile")?,
        peak_kib: of("VmHWM")?,
    })
}

/// The role that a command line names, if it is one of ours.
fn role(line: &[u8]) -> Option<String> {
    let mut words = line.split(|byte| *byte == 0);
    let program = std::str::from_utf8(words.next()?).ok()?;
    match program.rsplit('/').next()? {
        "yurtd" | "yurtd-cloud" => Some(String::from_utf8_lossy(words.next()?).into_owned()),
        "yurtd-keeper" => Some("keeper".into()),
        _ => None,
    }
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(':'));
    let value = line.and_then(|line| line.split_whitespace().nth(1)).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_program_has_a_role() {
        assert_eq!(role(b"/opt/yurt/current/yurtd\0edge\0").as_deref(), Some("edge"));
        assert_eq!(role(b"/yurtd-cloud\0tunnel-server\0--node-name\0x\0").as_deref(), Some("tunnel-server"));
        assert_eq!(role(b"/yurtd-keeper\0").as_deref(), Some("keeper"));
        assert_eq!(role(b"/usr/bin/kubelet\0--config\0"), None);
        assert_eq!(role(b"yurtd\0"), Some(String::new()));
        assert_eq!(role(b""), None);
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let status = "VmRSSx:\t1 kB\nVmRSS:\t  12345 kB\n";
        assert_eq!(field(status, "VmRSS").unwrap(), 12345);
        assert!(field(status, "VmHWM").is_err());
    }
}
