//! The words of the verbs that go through the tunnel to a pod: `logs`, `exec`, `port-forward`. Names, short forms and
//! defaults are kubectl's.

use std::time::Duration;

use clap::Args;

use super::duration;

/// `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The pod, or an object that has pods
    #[arg(value_name = "POD | TYPE/NAME", required_unless_present = "selector")]
    pub target: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER", conflicts_with_all = ["container", "selector"])]
    pub container_name: Option<String>,
    /// Keep printing what is logged
    #[arg(short, long)]
    pub follow: bool,
    /// Print the logs of the container's previous instance
    #[arg(short, long)]
    pub previous: bool,
    /// Print the logs of this container
    #[arg(short, long, value_name = "CONTAINER")]
    pub container: Option<String>,
    /// Print the logs of every container of the pod
    #[arg(long, conflicts_with_all = ["container", "container_name"])]
    pub all_containers: bool,
    /// Pods with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "target")]
    pub selector: Option<String>,
    /// Lines of recent log to print [default: all, or 10 with a selector]
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    pub tail: Option<i64>,
    /// Only logs newer than this long ago
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub since: Option<Duration>,
    /// Only logs after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub since_time: Option<jiff::Timestamp>,
    /// Put the time in front of each line
    #[arg(long)]
    pub timestamps: bool,
    /// Put the pod and container in front of each line
    #[arg(long)]
    pub prefix: bool,
    /// Print at most this many bytes of each log
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<u32>,
    /// Go on when one of several logs fails
    #[arg(long)]
    pub ignore_errors: bool,
    /// How many logs to follow at once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_log_requests: u16,
    /// How long to wait until a pod runs
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = duration)]
    pub pod_running_timeout: Duration,
}

/// `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// The pod, or an object that has pods
    #[arg(value_name = "POD | TYPE/NAME")]
    pub target: String,
    /// A command without `--` in front of it, which is refused as kubectl does
    #[arg(hide = true)]
    pub misplaced: Vec<String>,
    /// The container
    #[arg(short, long, value_name = "CONTAINER")]
    pub container: Option<String>,
    /// Pass stdin to the container
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Stdin is a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Only print the output of the command
    #[arg(short, long)]
    pub quiet: bool,
    /// How long to wait until a pod runs
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub pod_running_timeout: Duration,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `port-forward`.
#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// The pod, or an object that has pods
    #[arg(value_name = "POD | TYPE/NAME")]
    pub target: String,
    /// Ports; without LOCAL the same one, with an empty LOCAL a free one
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<String>,
    /// Local addresses to listen on
    #[arg(long, value_delimiter = ',', default_value = "localhost", value_name = "ADDRESS,…")]
    pub address: Vec<String>,
    /// How long to wait until a pod runs
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub pod_running_timeout: Duration,
}
