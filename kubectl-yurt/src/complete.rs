//! Live completion: names of nodes, pods, namespaces and contexts, within a second or not at all. Nothing is
//! ever printed about a failure: a completion that complains is worse than none.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::Parser;
use clap_complete::engine::CompletionCandidate;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, Client, api::ListParams, config::Kubeconfig};

use crate::{args::ConnectionArgs, resolve::kubeconfig};

/// How long a person waits for Tab.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names of nodes.
pub fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(|client, _| async move {
        let list = Api::<Node>::all(client).list_metadata(&ListParams::default()).await?;
        Ok(list.items.into_iter().filter_map(|node| node.metadata.name).collect())
    });
    candidates(&names, "", current)
}

/// Names of nodes in a comma-separated list.
pub fn node_list(current: &OsStr) -> Vec<CompletionCandidate> {
    // The engine splits at the delimiter and puts what stands in front of it back.
    nodes(current)
}

/// Names of pods, and the types that may stand in front of a slash.
pub fn targets(current: &OsStr) -> Vec<CompletionCandidate> {
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
pub fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = ask(|client, _| async move {
        let list = Api::<Namespace>::all(client).list_metadata(&ListParams::default()).await?;
        Ok(list.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    });
    candidates(&names, "", current)
}

/// Contexts of the kubeconfig.
pub fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
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
        let config = kubeconfig::load(&typed(std::env::args_os())).ok()?.config;
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
