//! Live completion: names of nodes, pods, namespaces and contexts, within a second or not at all. Nothing is
//! ever printed about a failure: a completion that complains is worse than none.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::{CommandFactory as _, Parser};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, Client, api::ListParams, config::Kubeconfig};

use crate::{
    args::{Cli, ConnectionArgs},
    connect::kubeconfig::{self, Surroundings},
};

/// How long a person waits for Tab.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds values for an argument.
type Completer = fn(&OsStr) -> Vec<CompletionCandidate>;

/// The command line with what is known about values.
pub fn command() -> clap::Command {
    let on_nodes = |verb| with(verb, &[("nodes", nodes)]);
    let on_pods = |verb| with(verb, &[("target", targets)]);
    with(Cli::command(), &[("context", contexts), ("namespace", namespaces)])
        .bin_name("kubectl-yurt")
        .mut_subcommand("convert", |verb| with(verb, &[("cloud_nodes", nodes), ("edge_nodes", nodes)]))
        .mut_subcommand("autonomy", |verb| {
            let verb = verb.mut_subcommand("enable", on_nodes).mut_subcommand("disable", on_nodes);
            verb.mut_subcommand("status", on_nodes)
        })
        .mut_subcommand("tunnel", |verb| {
            verb.mut_subcommand("diagnose", |verb| with(verb, &[("node", nodes)]))
        })
        .mut_subcommand("logs", on_pods)
        .mut_subcommand("exec", on_pods)
        .mut_subcommand("port-forward", on_pods)
}

/// Adds completers to arguments. All arguments are passed through, because changing a single one makes it the last, and
/// the order of positional ones is their meaning.
fn with(command: clap::Command, completers: &[(&str, Completer)]) -> clap::Command {
    command.mut_args(|argument| {
        let found = completers.iter().find(|(id, _)| *id == argument.get_id().as_str());
        match found {
            Some((_, completer)) => argument.add(ArgValueCompleter::new(*completer)),
            None => argument,
        }
    })
}

/// Names of nodes. In a comma-separated list the engine splits at the delimiter and puts what stands in front back.
fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(|client, _| async move {
        let list = Api::<Node>::all(client).list_metadata(&ListParams::default()).await?;
        Ok(list.items.into_iter().filter_map(|node| node.metadata.name).collect())
    });
    candidates(&names, "", current)
}

/// Names of pods, and the types that may stand in front of a slash.
fn targets(current: &OsStr) -> Vec<CompletionCandidate> {
    let text = current.to_string_lossy();
    let (prefix, wanted) = match text.split_once('/') {
        Some((kind, _)) => (format!("{kind}/"), kind.to_owned()),
        None => (String::new(), "pod".to_owned()),
    };
    if !matches!(wanted.as_str(), "po" | "pod" | "pods") {
        return Vec::new();
    }
    let names = ask(|client, namespace| async move {
        let list = Api::<Pod>::namespaced(client, &namespace).list_metadata(&ListParams::default()).await?;
        Ok(list.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
    });
    candidates(&names, &prefix, current)
}

/// Names of namespaces.
fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(|client, _| async move {
        let list = Api::<Namespace>::all(client).list_metadata(&ListParams::default()).await?;
        Ok(list.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    });
    candidates(&names, "", current)
}

/// Contexts of the kubeconfig.
fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    let names: Vec<String> = Kubeconfig::read()
        .map(|kubeconfig| kubeconfig.contexts.into_iter().map(|context| context.name).collect())
        .unwrap_or_default();
    candidates(&names, "", current)
}

fn candidates(names: &[String], prefix: &str, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    names
        .iter()
        .map(|name| format!("{prefix}{name}"))
        .filter(|value| value.starts_with(&*current))
        .map(CompletionCandidate::new)
        .collect()
}

/// Asks the API server with the connection flags of the line being completed.
fn ask<F>(question: impl FnOnce(Client, String) -> F) -> Vec<String>
where
    F: Future<Output = Result<Vec<String>, kube::Error>>,
{
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let work = async {
        let options = typed(std::env::args_os()).into();
        let config = kubeconfig::load(&options, Surroundings::read()).ok()?.config;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).ok()?;
        question(client, namespace).await.ok()
    };
    // The timer needs the runtime around it when it is made.
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await });
    runtime.shutdown_background();
    answer.ok().flatten().unwrap_or_default()
}

/// The flags that are already on the line. What does not parse is left out.
fn typed(args: impl Iterator<Item = OsString>) -> ConnectionArgs {
    #[derive(Parser)]
    #[command(no_binary_name = true, disable_help_flag = true, ignore_errors = true)]
    struct Flags {
        #[command(flatten)]
        connection: ConnectionArgs,
        #[arg(hide = true)]
        rest: Vec<String>,
    }
    let line: Vec<OsString> = args.skip_while(|word| word != "--").skip(1).collect();
    Flags::try_parse_from(connection_flags(&line)).map(|flags| flags.connection).unwrap_or_default()
}

/// Keeps the connection flags of a line and their values: the other words may be unfinished or mean something
/// else to another parser.
fn connection_flags(line: &[OsString]) -> Vec<OsString> {
    const WITH_VALUE: &[&str] = &[
        "--kubeconfig",
        "--context",
        "--cluster",
        "--user",
        "--namespace",
        "-n",
        "--server",
        "-s",
        "--token",
        "--as",
        "--as-group",
        "--as-uid",
        "--certificate-authority",
        "--client-certificate",
        "--client-key",
        "--tls-server-name",
    ];
    let mut kept = Vec::new();
    let mut words = line.iter().peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--" {
            break;
        }
        if WITH_VALUE.contains(&&*text) {
            if let Some(value) = words.next().filter(|value| !value.is_empty()) {
                kept.push(word.clone());
                kept.push(value.clone());
            }
        } else if text.split_once('=').is_some_and(|(name, _)| WITH_VALUE.contains(&name))
            || text.starts_with("--insecure-skip-tls-verify")
        {
            kept.push(word.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completers_are_where_names_are_wanted() {
        fn completed(command: &clap::Command, found: &mut Vec<String>) {
            let has = |argument: &&clap::Arg| argument.get::<ArgValueCompleter>().is_some();
            let name = command.get_name();
            found.extend(
                command.get_arguments().filter(has).map(|argument| format!("{name} {}", argument.get_id())),
            );
            command.get_subcommands().for_each(|command| completed(command, found));
        }
        let mut found = Vec::new();
        completed(&command(), &mut found);
        let expected = [
            "kubectl-yurt context",
            "kubectl-yurt namespace",
            "convert cloud_nodes",
            "convert edge_nodes",
            "enable nodes",
            "disable nodes",
            "status nodes",
            "diagnose node",
            "logs target",
            "exec target",
            "port-forward target",
        ];
        assert_eq!(found, expected);
        command().debug_assert();
    }

    fn line(text: &str) -> impl Iterator<Item = OsString> {
        text.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn the_flags_before_the_cursor_are_used() {
        let flags = typed(line("kubectl-yurt -- kubectl-yurt logs -f --context east -n=web --tail ng"));
        assert_eq!(flags.context.as_deref(), Some("east"));
        assert_eq!(flags.namespace.as_deref(), Some("web"));
    }

    #[test]
    fn an_unfinished_flag_is_left_out() {
        let flags = typed(line("kubectl-yurt -- kubectl-yurt status --context"));
        assert_eq!(flags.context, None);
    }

    #[test]
    fn only_matching_names_are_offered_with_what_is_typed() {
        let names = ["edge-1".to_owned(), "master".to_owned()];
        let offered = candidates(&names, "pod/", OsStr::new("pod/ed"));
        assert_eq!(offered.len(), 1);
        assert_eq!(offered[0].get_value(), "pod/edge-1");
    }
}
