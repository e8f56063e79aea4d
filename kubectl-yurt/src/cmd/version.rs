//! `version`: of the plugin, of the API server, and of yurtd on each edge node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use crate::{
    cluster::node,
    connect::session::Session,
    error::Error,
    options::{Version, connection::Connection},
    output::{API_VERSION, Console, Document, words::version},
};

/// What is printed with `-o`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    api_version: &'static str,
    kind: &'static str,
    client_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_version: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, String>,
}

/// Runs the command. With `--client` nothing is read and nobody is asked.
///
/// # Errors
///
/// The server's answer.
pub async fn run(connection: &Connection, console: Console, options: Version) -> Result<(), (Error, String)> {
    let mut versions = Versions {
        api_version: API_VERSION,
        kind: "Version",
        client_version: version(env!("CARGO_PKG_VERSION")),
        server_version: None,
        nodes: BTreeMap::new(),
    };
    let mut server = String::new();
    let asked = if options.client {
        Ok(())
    } else {
        match Session::open(connection) {
            Ok(session) => {
                server = session.server();
                ask(&session, &mut versions).await
            }
            Err(error) => Err(error),
        }
    };
    // The plugin's own version is printed even when the server does not answer, as kubectl does.
    print(console, options.document, &versions).and(asked).map_err(|error| (error, server))
}

async fn ask(session: &Session, versions: &mut Versions) -> Result<(), Error> {
    versions.server_version = Some(session.client.apiserver_version().await?.git_version);
    let nodes: Api<Node> = Api::all(session.client.clone());
    for node in nodes.list(&ListParams::default()).await?.items {
        if let Some(report) = node::conversion(&node) {
            versions.nodes.insert(node.name_any(), version(&report.version));
        }
    }
    Ok(())
}

fn print(console: Console, document: Option<Document>, versions: &Versions) -> Result<(), Error> {
    if let Some(document) = document {
        return console.document(document, versions);
    }
    console.line(format!("Client Version: {}", versions.client_version))?;
    if let Some(server) = &versions.server_version {
        console.line(format!("Server Version: {server}"))?;
    }
    for (node, version) in &versions.nodes {
        console.line(format!("Node {node}: {version}"))?;
    }
    Ok(())
}
