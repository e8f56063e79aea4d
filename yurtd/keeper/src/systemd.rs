//! systemd over D-Bus: the keeper's hands for everything that is not a file.
//!
//! The bus's socket is mounted from the host. systemd takes orders from uid 0 without any capability, so the pod
//! needs neither `privileged` nor `nsenter`. Interface: `org.freedesktop.systemd1(5)`.

mod bus;

use std::time::Duration;

pub(crate) use self::bus::Bus;

/// How long a unit may take to start or stop before that counts as failed: longer than systemd's own limit of
/// 90 s, so that systemd's word comes first.
const JOB_LIMIT: Duration = Duration::from_secs(100);

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemdError {
    #[error("cannot reach systemd over D-Bus at {address}: {source}")]
    Connect { address: String, source: zbus::Error },
    #[error("systemd refused to {action}: {source}")]
    Call { action: String, source: zbus::Error },
    #[error("{unit}: {action} ended with {result:?}{detail}")]
    Job { unit: String, action: &'static str, result: String, detail: String },
    #[error("{unit}: {action} did not end within {} s", JOB_LIMIT.as_secs())]
    Late { unit: String, action: &'static str },
    #[cfg(test)]
    #[error("{0}")]
    Simulated(String),
}

/// What systemd knows about a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    /// `loaded`, `not-found`, …
    pub load_state: String,
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active_state: String,
    /// Whether the unit's files changed since systemd read them.
    pub need_reload: bool,
    /// Its drop-ins, in the order in which they are read.
    pub drop_in_paths: Vec<String>,
    /// What only services have; default for other units.
    pub service: Service,
}

/// What systemd knows about a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Process id, 0 when not running.
    pub main_pid: u32,
    /// When that process started, microseconds since 1970.
    pub started_micros: u64,
    /// Arguments of `ExecStart=` as written, variables not expanded.
    pub exec_start: Vec<String>,
    /// Every `Environment=` assignment (`NAME=value`) of its files, later ones in the place of earlier ones.
    pub environment: Vec<String>,
    /// Paths of its `EnvironmentFile=`, as written.
    pub environment_files: Vec<String>,
    /// Why the service last ended (`success`, `exit-code`, `watchdog`, …).
    pub result: String,
    /// What the service last said of itself (`sd_notify` `STATUS=`).
    pub status_text: String,
    /// How often it was restarted automatically.
    pub restarts: u32,
}

impl Unit {
    pub(crate) fn is_active(&self) -> bool {
        self.active_state == "active"
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.load_state != "not-found"
    }
}

/// systemd, as far as the keeper needs it. Implemented over D-Bus and in memory for the tests that kill the keeper
/// between any two steps.
pub(crate) trait Systemd {
    /// Version text (`252.39-1~deb12u1`).
    async fn version(&mut self) -> Result<String, SystemdError>;
    /// State of a unit; a unit that does not exist has the load state `not-found`.
    async fn unit(&mut self, unit: &str) -> Result<Unit, SystemdError>;
    /// `daemon-reload`.
    async fn reload(&mut self) -> Result<(), SystemdError>;
    /// Starts a unit and waits until it has started.
    async fn start(&mut self, unit: &str) -> Result<(), SystemdError>;
    /// Restarts a unit and waits until it has started.
    async fn restart(&mut self, unit: &str) -> Result<(), SystemdError>;
    /// Stops a unit and waits until it has stopped.
    async fn stop(&mut self, unit: &str) -> Result<(), SystemdError>;
    /// Removes the state folder of a stopped service.
    async fn clean_state(&mut self, unit: &str) -> Result<(), SystemdError>;
    /// Runs a program of the host in a unit of this name, which exists for that long, and waits until it has ended. If one
    /// of an earlier keeper still does, there is nothing to do.
    async fn run(&mut self, unit: &str, command: &[String]) -> Result<(), SystemdError>;
    /// Forgets that a unit failed.
    async fn reset_failed(&mut self, unit: &str) -> Result<(), SystemdError>;
}

/// Leading number of systemd's version text.
pub(crate) fn major(version: &str) -> Option<u32> {
    let digits: String = version.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_what_comes_first() {
        assert_eq!(major("252.39-1~deb12u1"), Some(252));
        assert_eq!(major("v249.11-0ubuntu3"), Some(249));
        assert_eq!(major("257"), Some(257));
        assert_eq!(major("unknown"), None);
    }
}
