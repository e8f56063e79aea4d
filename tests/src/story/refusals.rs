//! Requests that cannot be met: a clear message, the right exit code, nothing changed.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::access::with_token;
use super::convert::CONVERT;
use super::{Story, reads_well};
use crate::kubectl::Kubectl;
use crate::observe::objects;
use crate::run::Finished;

/// On a vanilla cluster.
pub(super) fn refusals(story: &mut Story) -> Result<()> {
    let admin = story.cluster.kubectl.clone();
    let folder = tempfile::tempdir()?;

    story.teller.step("a node that does not exist");
    let finished = try_it(story, &admin, &["yurt", "convert", "--cloud-nodes", "master-nod", "--yes"])?;
    refused(story, &finished, 2, &["master-nod"])?;

    story.teller.step("every node would become an edge node");
    let finished =
        try_it(story, &admin, &["yurt", "convert", "--edge-nodes", "master-node,edge-node", "--yes"])?;
    refused(story, &finished, 2, &["master-node"])?;

    story.teller.step("no terminal to ask at, and no --yes");
    let finished = try_it(story, &admin, &["yurt", "convert", "--cloud-nodes", "master-node"])?;
    refused(story, &finished, 2, &["--yes"])?;

    story.teller.step("usage");
    let finished = try_it(story, &admin, &["yurt", "convert"])?;
    refused(story, &finished, 2, &["--cloud-nodes"])?;

    story.teller.step("nobody's ServiceAccount");
    admin.ok(["create", "serviceaccount", "nobody"])?;
    let nobody = with_token(&admin, "nobody", folder.path())?;
    let finished = try_it(story, &nobody, CONVERT)?;
    let code = finished.code.unwrap_or_default();
    // What the API server refuses outright is an error; what the preflight finds is a refusal.
    refused(story, &finished, if code == 1 { 1 } else { 2 }, &["orbidden"])?;
    admin.ok(["delete", "serviceaccount", "nobody"])?;

    story.teller.step("an API server that does not answer");
    let path = folder.path().join("unreachable");
    let mut config = admin.json(["config", "view", "--raw", "--minify"])?;
    config["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    fs::write(&path, config.to_string())?;
    let unreachable = admin.with_kubeconfig(&path);
    for words in [CONVERT, &["yurt", "status"]] {
        let finished = try_it(story, &unreachable, words)?;
        refused(story, &finished, 1, &["127.0.0.1:1"])?;
    }

    story.teller.step("a dry run");
    let finished =
        try_it(story, &admin, &["yurt", "convert", "--cloud-nodes", "master-node", "--dry-run=client"])?;
    story.teller.check(
        finished.ok() && finished.stdout().contains("yurtd"),
        "prints what would be applied",
        &finished,
    )?;

    let left = objects::of_ours(&admin)?;
    story.teller.check_none(&left, "after all of this there is no object of ours in the cluster")
}

fn try_it(story: &Story, kubectl: &Kubectl, words: &[&str]) -> Result<Finished> {
    story.teller.command("kubectl", words);
    let finished = kubectl.run_for(Duration::from_secs(60), words)?;
    story.teller.output(&finished.stderr());
    Ok(finished)
}

/// The exit code, what the message must name, and that it is for a person.
pub(super) fn refused(story: &Story, finished: &Finished, code: i32, names: &[&str]) -> Result<()> {
    reads_well(finished)?;
    let text = finished.stderr();
    let named = names.iter().all(|name| text.contains(name));
    story.teller.check(
        finished.code == Some(code) && named,
        &format!("exit code {code}, and says {}", names.join(", ")),
        finished,
    )
}
