//! The verbs that go through the tunnel to a pod: `logs`, `exec`, `port-forward`. Flags, messages and exit codes are
//! kubectl's.

use std::{net::IpAddr, time::Duration};

use super::{
    Faults,
    ports::{self, Wanted},
    target::Target,
};
use crate::{
    args::pods::{ExecArgs, LogsArgs, PortForwardArgs},
    error::Error,
};

/// Lines to print of each log with a selector, as kubectl.
const TAIL_OF_SELECTED: i64 = 10;

/// `logs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// Whose logs.
    pub of: LogsOf,
    /// Which of a pod's containers.
    pub containers: Containers,
    /// Keep printing.
    pub follow: bool,
    /// Of the container's previous instance.
    pub previous: bool,
    /// How many lines; `None` for all.
    pub tail: Option<i64>,
    /// From when on; `None` from the beginning.
    pub since: Option<Since>,
    /// Put the time in front of each line.
    pub timestamps: bool,
    /// Put pod and container in front of each line.
    pub prefix: bool,
    /// At most this many bytes of each log.
    pub limit_bytes: Option<u32>,
    /// Go on when one of several logs fails.
    pub ignore_errors: bool,
    /// How many logs to follow at once.
    pub max_log_requests: usize,
    /// How long to wait until a pod runs.
    pub pod_running_timeout: Duration,
}

/// Whose logs are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogsOf {
    /// One pod's.
    Target(Target),
    /// Those of every pod with these labels.
    Labelled(String),
}

/// Which containers of a pod are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Containers {
    /// The one that the pod's annotation or order says.
    Default,
    /// This one.
    Named(String),
    /// Every one.
    All,
}

/// Where a log is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Seconds ago.
    Seconds(i64),
    /// At this time.
    Time(jiff::Timestamp),
}

impl Logs {
    pub(super) fn resolve(args: LogsArgs, faults: &mut Faults) -> Option<Self> {
        let of = match (args.selector, args.target) {
            (Some(selector), _) => Some(LogsOf::Labelled(selector)),
            // Without a selector the parser wants a target.
            (None, target) => faults.take(Target::parse(&target.unwrap_or_default())).map(LogsOf::Target),
        };
        let since = match (args.since, args.since_time) {
            (Some(_), Some(_)) => {
                faults.add(Error::Failed(
                    "at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
                ));
                None
            }
            (Some(ago), None) => Some(Since::Seconds(whole_seconds(ago))),
            (None, time) => time.map(Since::Time),
        };
        if args.tail.is_some_and(|tail| tail < -1) {
            faults.add(Error::Failed("--tail must be greater than or equal to -1".into()));
        }
        let selected = matches!(of, Some(LogsOf::Labelled(_)));
        let tail = args.tail.or_else(|| selected.then_some(TAIL_OF_SELECTED));
        let containers = match args.container.or(args.container_name) {
            _ if args.all_containers => Containers::All,
            Some(name) => Containers::Named(name),
            None => Containers::Default,
        };
        Some(Self {
            of: of?,
            containers,
            follow: args.follow,
            previous: args.previous,
            tail: tail.filter(|lines| *lines >= 0),
            since,
            timestamps: args.timestamps,
            prefix: args.prefix,
            limit_bytes: args.limit_bytes,
            ignore_errors: args.ignore_errors,
            max_log_requests: args.max_log_requests.into(),
            pod_running_timeout: args.pod_running_timeout,
        })
    }
}

/// Rounded up: half a second ago is within the last second.
fn whole_seconds(duration: Duration) -> i64 {
    let up = u64::from(duration.subsec_nanos() > 0);
    i64::try_from(duration.as_secs().saturating_add(up)).unwrap_or(i64::MAX)
}

/// `exec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Where.
    pub target: Target,
    /// The container; `None` for the pod's default.
    pub container: Option<String>,
    /// Pass stdin.
    pub stdin: bool,
    /// With a terminal, if there is one.
    pub tty: bool,
    /// Print nothing but the command's output.
    pub quiet: bool,
    /// How long to wait until a pod runs.
    pub pod_running_timeout: Duration,
    /// The command and its arguments.
    pub command: Vec<String>,
}

impl Exec {
    pub(super) fn resolve(args: ExecArgs, faults: &mut Faults) -> Option<Self> {
        if !args.misplaced.is_empty() {
            faults.add(Error::Failed(
                "exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead".into(),
            ));
        } else if args.command.is_empty() {
            faults.add(Error::Failed("you must specify at least one command for the container".into()));
        }
        Some(Self {
            target: faults.take(Target::parse(&args.target))?,
            container: args.container,
            stdin: args.stdin,
            // Without input a terminal is of no use.
            tty: args.tty && args.stdin,
            quiet: args.quiet,
            pod_running_timeout: args.pod_running_timeout,
            command: args.command,
        })
    }
}

/// `port-forward`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// Where to.
    pub target: Target,
    /// Which ports.
    pub ports: Vec<Wanted>,
    /// Where to listen.
    pub addresses: Vec<LocalAddress>,
    /// How long to wait until a pod runs.
    pub pod_running_timeout: Duration,
}

/// A place to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAddress {
    /// `localhost`: both loopback addresses, of which one must work.
    Localhost,
    /// An address of this machine.
    Ip(IpAddr),
}

impl LocalAddress {
    fn parse(text: &str) -> Result<Self, Error> {
        if text == "localhost" {
            return Ok(Self::Localhost);
        }
        text.parse().map(Self::Ip).map_err(|_| Error::Failed(format!("{text:?} is not a valid IP")))
    }
}

impl std::fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Localhost => f.write_str("localhost"),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl PortForward {
    pub(super) fn resolve(args: PortForwardArgs, faults: &mut Faults) -> Option<Self> {
        let target = faults.take(Target::parse(&args.target));
        let ports = faults.take_all(args.ports.iter().map(|text| ports::parse(text)));
        let addresses = faults.take_all(args.address.iter().map(|text| LocalAddress::parse(text)));
        Some(Self {
            target: target?,
            ports: ports?,
            addresses: addresses?,
            pod_running_timeout: args.pod_running_timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::Cli,
        options::{Options, Verb},
    };

    fn resolve(line: &str) -> Result<Verb, Error> {
        let words = ["kubectl-yurt"].into_iter().chain(line.split_whitespace());
        Options::resolve(Cli::try_parse_from(words).unwrap()).map(|options| options.verb)
    }

    fn logs(line: &str) -> Logs {
        let Verb::Logs(logs) = resolve(&format!("logs {line}")).unwrap() else { panic!("{line}") };
        logs
    }

    #[test]
    fn a_selector_shortens_the_logs_unless_told_otherwise() {
        assert_eq!(logs("nginx").tail, None);
        assert_eq!(logs("-l app=web").tail, Some(10));
        assert_eq!(logs("-l app=web --tail=-1").tail, None);
        assert_eq!(logs("nginx --tail 3").tail, Some(3));
    }

    #[test]
    fn a_part_of_a_second_counts_as_one() {
        assert_eq!(logs("nginx --since 1500ms").since, Some(Since::Seconds(2)));
        assert_eq!(logs("nginx --since 1m").since, Some(Since::Seconds(60)));
    }

    #[test]
    fn two_beginnings_are_one_too_many() {
        let error = resolve("logs nginx --since 5m --since-time 2026-01-01T00:00:00Z").unwrap_err();
        assert_eq!(error.to_string(), "at most one of `sinceTime` or `sinceSeconds` may be specified");
        assert!(resolve("logs nginx --tail=-2").is_err());
        assert!(logs("nginx -f --since 5m").follow);
    }

    #[test]
    fn a_container_is_named_behind_the_pod_or_by_its_flag() {
        assert_eq!(logs("nginx").containers, Containers::Default);
        assert_eq!(logs("nginx app").containers, Containers::Named("app".into()));
        assert_eq!(logs("nginx -c app").containers, Containers::Named("app".into()));
        assert_eq!(logs("nginx --all-containers").containers, Containers::All);
    }

    #[test]
    fn the_command_stands_behind_two_dashes() {
        assert!(resolve("exec nginx -- date").is_ok());
        let error = resolve("exec nginx date").unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead"
        );
        assert!(resolve("exec nginx").is_err());
    }

    #[test]
    fn what_is_no_address_cannot_be_listened_at() {
        let Verb::PortForward(forward) = resolve("port-forward a 80 --address localhost,::1").unwrap() else {
            panic!()
        };
        let expected = [LocalAddress::Localhost, LocalAddress::Ip("::1".parse().unwrap())];
        assert_eq!(forward.addresses, expected);
        let error = resolve("port-forward a 80 --address example.com").unwrap_err();
        assert_eq!(error.to_string(), "\"example.com\" is not a valid IP");
    }
}
