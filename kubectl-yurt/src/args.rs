//! The command line as it is typed. Names, short forms and defaults of what kubectl has are kubectl's; the completion
//! scripts are made from the same definition. Nothing here looks at anything but the words.

pub mod nodes;
pub mod pods;

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use yurt_api::{
    duration::{self, DurationError},
    names,
};

use nodes::{AutonomyCommand, ConvertArgs, RevertArgs};
use pods::{ExecArgs, LogsArgs, PortForwardArgs};

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
    Status(TunnelStatusArgs),
    /// Walk the way to a node and name the hop where it ends
    Diagnose(DiagnoseArgs),
}

/// `tunnel status`.
#[derive(Debug, Clone, Args)]
pub struct TunnelStatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Go on, and print what changes
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub watch: Option<bool>,
}

/// `tunnel diagnose`.
#[derive(Debug, Clone, Args)]
pub struct DiagnoseArgs {
    /// The node at the end of the way
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Output format
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<StructuredFormat>,
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

    use super::{nodes::DryRun, *};

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
