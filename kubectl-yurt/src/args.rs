//! The command line as it is typed. Names, short forms and defaults of what kubectl has are kubectl's; the completion
//! scripts are made from the same definition. Nothing here looks at anything but the words.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint};
use yurt_api::{
    duration::{self, DurationError},
    names,
};

/// Turn a running Kubernetes cluster into an edge cluster, and back
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-yurt",
    bin_name = "kubectl yurt",
    version,
    max_term_width = 110,
    disable_help_flag = true,
    after_help = "Connection flags are kubectl's and may stand anywhere after the plugin's name."
)]
pub struct Cli {
    /// How to reach the cluster.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// How to show what is found.
    #[command(flatten)]
    pub display: DisplayArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// kubectl's connection flags.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// Path of the kubeconfig file
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Namespace of the workloads
    #[arg(short, long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Address of the API server
    #[arg(short, long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Bearer token
    #[arg(long, global = true, hide_env_values = true)]
    pub token: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub impersonate_groups: Vec<String>,
    /// UID to impersonate
    #[arg(long = "as-uid", global = true, value_name = "UID", requires = "impersonate")]
    pub impersonate_uid: Option<String>,
    /// File with the certificate of the API server's authority
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub certificate_authority: Option<PathBuf>,
    /// File with the client certificate
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub client_certificate: Option<PathBuf>,
    /// File with the client certificate's key
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub client_key: Option<PathBuf>,
    /// Name to verify in the API server's certificate
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Do not verify the API server's certificate
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_skip_tls_verify: Option<bool>,
    /// Give up a request to the server after this long; 0 never
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub request_timeout: Option<Duration>,
    /// Namespace of the components of kubectl-yurt
    #[arg(long, global = true, value_name = "NAMESPACE", default_value = names::DEFAULT_NAMESPACE, env = "KUBECTL_YURT_NAMESPACE")]
    pub yurt_namespace: String,
}

/// How output looks.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Display")]
pub struct DisplayArgs {
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
    /// Print help
    #[arg(short, long, global = true, action = ArgAction::HelpShort)]
    pub help: Option<bool>,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR or TERM=dumb
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn nodes of this cluster into edge nodes
    Convert(ConvertArgs),
    /// Bring the cluster back to vanilla Kubernetes
    Revert(RevertArgs),
    /// Let nodes keep their pods while they are away
    #[command(subcommand)]
    Autonomy(AutonomyCommand),
    /// Show the state of the nodes and components
    Status(StatusArgs),
    /// Look at the tunnel to the edge nodes
    #[command(subcommand)]
    Tunnel(TunnelCommand),
    /// Print the logs of a container, through the tunnel
    Logs(LogsArgs),
    /// Execute a command in a container, through the tunnel
    Exec(ExecArgs),
    /// Forward local ports to a pod, through the tunnel
    PortForward(PortForwardArgs),
    /// Print the versions of the plugin, the cluster and the edge nodes
    Version(VersionArgs),
    /// Print a completion script
    Completion(CompletionArgs),
}

/// `convert`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["cloud_nodes", "edge_nodes", "selector"]))]
pub struct ConvertArgs {
    /// Nodes that stay in the cloud; every other node becomes an edge node
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    pub cloud_nodes: Vec<String>,
    /// Nodes that become edge nodes
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    pub edge_nodes: Vec<String>,
    /// Nodes with these labels become edge nodes
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Image of yurtd [default: this plugin's version]
    #[arg(long)]
    pub image: Option<String>,
    /// Show what would be done, as this program knows it or as the server answers
    #[arg(long, value_name = "STRATEGY", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub dry_run: DryRun,
    /// How long to wait for the components, and then for each node
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How many nodes to convert at once, after the first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_parallel: u16,
    /// Where edge nodes reach the tunnel server [default: the control-plane nodes' addresses, port 10262]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "skip_tunnel")]
    pub tunnel_address: Vec<String>,
    /// Where this plugin reaches the tunnel server [default: the control-plane nodes' addresses, port 10263]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', conflicts_with = "skip_tunnel")]
    pub tunnel_api_address: Vec<String>,
    /// Do without the tunnel
    #[arg(long)]
    pub skip_tunnel: bool,
}

/// `--dry-run`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Do it
    #[default]
    None,
    /// Print the objects and the plan
    Client,
    /// Send the objects to the server, which stores nothing
    Server,
}

/// `revert`.
#[derive(Debug, Clone, Args)]
pub struct RevertArgs {
    /// How long to wait for each node
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How many nodes to revert at once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_parallel: u16,
}

/// `autonomy`.
#[derive(Debug, Subcommand)]
pub enum AutonomyCommand {
    /// Keep the pods of these nodes when their link is lost
    Enable(AutonomyChangeArgs),
    /// Let Kubernetes evict the pods of these nodes again when they are away
    Disable(AutonomyChangeArgs),
    /// Show which nodes are autonomous and whether that is in effect
    Status(AutonomyStatusArgs),
}

/// `autonomy enable`, `autonomy disable`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["nodes", "selector", "all"]))]
pub struct AutonomyChangeArgs {
    /// The nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Edge nodes with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Every edge node
    #[arg(long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `autonomy status`.
#[derive(Debug, Clone, Args)]
pub struct AutonomyStatusArgs {
    /// The nodes [default: every edge node]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

/// `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
}

/// `tunnel`.
#[derive(Debug, Subcommand)]
pub enum TunnelCommand {
    /// Show the edge nodes' sessions
    Status(StatusArgs),
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// A table with more columns
    Wide,
    /// Names alone
    Name,
}

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

/// `version`.
#[derive(Debug, Clone, Args)]
pub struct VersionArgs {
    /// The plugin's version only; nothing is asked of a server
    #[arg(long)]
    pub client: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<StructuredFormat>,
}

/// Output formats of what is no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StructuredFormat {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// `completion`.
#[derive(Debug, Clone, Args)]
pub struct CompletionArgs {
    /// The shell; `kubectl` is the program that kubectl asks for completions of its plugins
    #[arg(value_enum)]
    pub shell: CompletionShell,
}

/// What a completion script is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompletionShell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// PowerShell
    Powershell,
    /// `kubectl_complete-yurt`, to be put on the PATH
    Kubectl,
}

/// A duration as kubectl's flags take one: in Go's form, or in whole seconds.
fn duration(text: &str) -> Result<Duration, DurationError> {
    text.parse().map(Duration::from_secs).or_else(|_| duration::parse(text))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn connection_flags_may_stand_before_and_after_the_verb() {
        let cli = parse("kubectl-yurt --context a -n web status --kubeconfig /k -o json").unwrap();
        assert_eq!(cli.connection.context.as_deref(), Some("a"));
        assert_eq!(cli.connection.namespace.as_deref(), Some("web"));
        assert_eq!(cli.connection.kubeconfig, Some("/k".into()));
        let cli =
            parse("kubectl-yurt exec nginx -n web --as bob --as-group x --as-group y -- id -n").unwrap();
        assert_eq!(cli.connection.impersonate_groups, ["x", "y"]);
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        assert_eq!(exec.command, ["id", "-n"]);
    }

    #[test]
    fn kubectl_s_boolean_form_is_understood() {
        let cli = parse("kubectl-yurt status --insecure-skip-tls-verify").unwrap();
        assert_eq!(cli.connection.insecure_skip_tls_verify, Some(true));
        let cli = parse("kubectl-yurt status --insecure-skip-tls-verify=false").unwrap();
        assert_eq!(cli.connection.insecure_skip_tls_verify, Some(false));
    }

    #[test]
    fn convert_wants_exactly_one_way_to_choose_nodes() {
        assert!(parse("kubectl-yurt convert").is_err());
        let error = parse("kubectl-yurt convert --cloud-nodes a --edge-nodes b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
        let cli = parse("kubectl-yurt convert --cloud-nodes a,b --max-parallel 3 -y").unwrap();
        let Command::Convert(convert) = cli.command else { panic!("not convert") };
        assert_eq!(convert.cloud_nodes, ["a", "b"]);
        assert_eq!(convert.timeout, Duration::from_secs(300));
    }

    #[test]
    fn a_bare_dry_run_is_the_client_s_as_with_kubectl() {
        let dry_run = |flag: &str| {
            let cli = parse(&format!("kubectl-yurt convert --cloud-nodes a {flag}")).unwrap();
            let Command::Convert(convert) = cli.command else { panic!("not convert") };
            convert.dry_run
        };
        assert_eq!(dry_run(""), DryRun::None);
        assert_eq!(dry_run("--dry-run"), DryRun::Client);
        assert_eq!(dry_run("--dry-run -y"), DryRun::Client);
        for (value, expected) in
            [("none", DryRun::None), ("client", DryRun::Client), ("server", DryRun::Server)]
        {
            assert_eq!(dry_run(&format!("--dry-run={value}")), expected);
        }
        // kubectl, too, takes what stands behind a bare --dry-run for something else.
        assert!(parse("kubectl-yurt convert --cloud-nodes a --dry-run server").is_err());
    }

    #[test]
    fn exec_keeps_clustered_short_flags_and_the_command_apart() {
        let cli = parse("kubectl-yurt exec -it deploy/web -c app -- sh -c ls").unwrap();
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        assert!(exec.stdin && exec.tty);
        assert_eq!(exec.target, "deploy/web");
        assert_eq!(exec.container.as_deref(), Some("app"));
        assert_eq!(exec.command, ["sh", "-c", "ls"]);
        assert!(exec.misplaced.is_empty());
    }

    #[test]
    fn logs_takes_a_selector_instead_of_a_pod() {
        assert!(parse("kubectl-yurt logs").is_err());
        let cli = parse("kubectl-yurt logs -f -l app=web --tail -1 --since 5m").unwrap();
        let Command::Logs(logs) = cli.command else { panic!("not logs") };
        assert_eq!(logs.tail, Some(-1));
        assert_eq!(logs.since, Some(Duration::from_secs(300)));
    }

    #[test]
    fn a_duration_may_be_whole_seconds() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        for text in ["", "-5m", "-5", "1h30", "1.5"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
