//! `convert`, `revert`, `autonomy` and `status` of the real program against an API server in this process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Output;

use serde_json::{Value, json};
use yurt_api::names;
use yurt_fakes::cluster::{self, FakeCluster};
use yurt_fakes::node::vanilla as node;

async fn cluster() -> FakeCluster {
    FakeCluster::start(&[
        node("master", true, true),
        node("edge-1", false, true),
        node("edge-2", false, true),
    ])
    .await
}

async fn yurt(fake: &FakeCluster, line: &str) -> Output {
    let server = format!("http://{}", fake.address);
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(words)
        .args(["--server", &server])
        .env_clear()
        .env("HOME", "/nonexistent")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn state_of(fake: &FakeCluster, node: &str) -> Option<String> {
    let node = fake.node(node);
    let report: Value =
        serde_json::from_str(node["metadata"]["annotations"][names::ANNOTATION_CONVERSION].as_str()?).ok()?;
    report["state"].as_str().map(str::to_owned)
}

const CONVERT: &str = "convert --cloud-nodes master --image r/yurtd:v1 -y --timeout 20s";

#[tokio::test]
async fn there_and_back_again_leaves_nothing() {
    let fake = cluster().await;
    let before = fake.snapshot();
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        stdout.contains("node/edge-1 converted\nnode/edge-2 converted\n2 nodes converted in"),
        "{stdout}"
    );
    assert_eq!(state_of(&fake, "edge-1").as_deref(), Some("Converted"));
    assert_eq!(fake.node("master")["metadata"]["labels"][names::LABEL_EDGE_WORKER], "false");
    assert!(fake.names("leases").is_empty(), "the lock is gone");

    // The same again: says so, changes nothing.
    let converted = fake.snapshot();
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).starts_with("already converted: 2 nodes (edge-1, edge-2)"), "{}", text(&output));
    assert_eq!(fake.snapshot(), converted);

    // What components and people leave behind goes too.
    {
        let secret = json!({ "metadata": { "name": names::TUNNEL_CA_SECRET } });
        fake.api.put("/api/v1/namespaces/kube-system/secrets", secret);
        fake.edit("/api/v1/nodes/edge-1", |edge| {
            edge["metadata"]["annotations"][names::ANNOTATION_AUTONOMY] = json!("true");
            let condition = json!({ "type": "Autonomy", "status": "True" });
            edge["status"]["conditions"].as_array_mut().unwrap().push(condition);
        });
    }
    let output = yurt(&fake, "revert -y --timeout 20s").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("node/edge-1 reverted\n"), "{}", text(&output));
    assert!(text(&output).contains("daemonset.apps/yurtd deleted\n"), "{}", text(&output));
    assert_eq!(fake.snapshot(), before);

    let output = yurt(&fake, "revert").await;
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).contains("is vanilla"), "{}", text(&output));
}

#[tokio::test]
async fn a_missing_image_is_named_and_everything_is_undone() {
    let fake = cluster().await;
    fake.behave(|world| world.no_image = true);
    let before = fake.snapshot();
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("image r/yurtd:v1 is not on node master"), "{said}");
    assert!(said.contains("everything that this run made was undone"), "{said}");
    assert_eq!(fake.snapshot(), before);
}

#[tokio::test]
async fn a_pull_that_hiccups_is_waited_for_and_the_timeout_says_what_it_waited_for() {
    let fake = cluster().await;
    fake.behave(|world| world.unpulled = ["edge-1".to_owned()].into());
    let before = fake.snapshot();
    let output = yurt(&fake, "convert --cloud-nodes master --image r/yurtd:v1 -y --timeout 3s").await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("node edge-1: timed out after 3s: image r/yurtd:v1 is not on node edge-1")
            && said.contains("i/o timeout")
            && said.contains("everything that this run made was undone"),
        "{said}"
    );
    assert_eq!(fake.snapshot(), before);

    let (server, waits) = (fake.clone(), async |fake: &FakeCluster| {
        fake.until(|fake| fake.names("pods").contains(&format!("{}-edge-1", names::KEEPER))).await;
        fake.behave(|world| world.unpulled.clear());
    });
    let (output, ()) = tokio::join!(yurt(&fake, CONVERT), waits(&server));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("2 nodes converted in"), "{}", text(&output));
}

#[tokio::test]
async fn an_upgrade_is_followed_until_each_node_has_it_or_has_swapped_it_back() {
    let fake = cluster().await;
    assert_eq!(yurt(&fake, CONVERT).await.status.code(), Some(0));
    fake.behave(|world| world.swapping = ["edge-2".to_owned()].into());
    let upgrade = "convert --cloud-nodes master --image r/yurtd:v0.2.0 -y --timeout 20s";
    let output = yurt(&fake, upgrade).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("node/edge-1 upgraded\n") && !said.contains("already converted"), "{said}");
    assert!(said.contains("edge-2: still v0.1.0: version 0.2.0 did not work and was swapped back"), "{said}");
    assert!(said.contains("1 of 2 nodes not upgraded"), "{said}");

    // Nothing is left to apply, and it is still not what it should be.
    let output = yurt(&fake, upgrade).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    fake.behave(|world| world.swapping.clear());
    let output = yurt(&fake, upgrade).await;
    assert!(text(&output).starts_with("already converted"), "{}", text(&output));
}

#[tokio::test]
async fn a_first_node_that_fails_stops_the_run_and_is_taken_back() {
    let fake = cluster().await;
    fake.behave(|world| world.failing = ["edge-1".to_owned()].into());
    let before = fake.snapshot();
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("step preflight: port 10261 is in use"), "{}", text(&output));
    assert_eq!(fake.snapshot(), before, "edge-2 was never touched and nothing is left");
}

#[tokio::test]
async fn a_later_failure_is_3_and_trying_again_finishes() {
    let fake = cluster().await;
    fake.behave(|world| world.failing = ["edge-2".to_owned()].into());
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("node/edge-1 converted"), "{}", text(&output));
    assert!(text(&output).contains("edge-2: step preflight"), "{}", text(&output));
    fake.behave(|world| world.failing.clear());
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("node/edge-1 already converted\nnode/edge-2 converted"),
        "{}",
        text(&output)
    );
}

#[tokio::test]
async fn a_run_that_was_killed_is_continued() {
    let fake = cluster().await;
    fake.behave(|world| world.asleep = ["edge-1".to_owned(), "edge-2".to_owned()].into());
    let server = format!("http://{}", fake.address);
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(CONVERT.split_whitespace())
        .args(["--server", &server])
        .env_clear()
        .env("HOME", "/nonexistent")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    fake.until(|fake| fake.node("edge-1")["metadata"]["labels"][names::LABEL_EDGE_WORKER] == "true").await;
    child.kill().await.unwrap();
    assert_eq!(fake.names("leases"), [names::CONVERT_LEASE], "killed while it held the lock");
    fake.behave(|world| world.asleep.clear());
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(state_of(&fake, "edge-2").as_deref(), Some("Converted"));
    assert!(fake.names("leases").is_empty());
}

#[tokio::test]
async fn while_one_converter_is_at_work_another_one_is_refused() {
    let fake = cluster().await;
    fake.behave(|world| world.asleep = ["edge-1".to_owned(), "edge-2".to_owned()].into());
    // The first one has to last longer than the second one waits.
    let patient = CONVERT.replace("20s", "90s");
    let second = async {
        fake.until(|fake| !fake.names("leases").is_empty()).await;
        let output = yurt(&fake, CONVERT).await;
        fake.behave(|world| world.asleep.clear());
        output
    };
    let (first, second) = tokio::join!(yurt(&fake, &patient), second);
    assert_eq!(second.status.code(), Some(2), "{}", text(&second));
    let said = text(&second);
    assert!(said.contains("waiting up to 10 s: another convert or revert (unknown@"), "{said}");
    assert!(said.contains("another convert or revert is at work: unknown@"), "{said}");
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    assert!(fake.names("leases").is_empty());
}

#[tokio::test]
async fn a_node_that_is_away_is_left_reverting_and_finished_later() {
    let fake = cluster().await;
    assert_eq!(yurt(&fake, CONVERT).await.status.code(), Some(0));
    let set_ready = |ready: &str| {
        fake.edit("/api/v1/nodes/edge-2", |edge| edge["status"]["conditions"][0]["status"] = json!(ready));
    };
    fake.behave(|world| world.asleep = ["edge-2".to_owned()].into());
    set_ready("Unknown");
    let output = yurt(&fake, "revert -y --timeout 20s").await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("edge-2: not reachable"), "{}", text(&output));
    assert_eq!(
        fake.node("edge-2")["metadata"]["annotations"][names::ANNOTATION_TARGET],
        names::TARGET_VANILLA
    );
    assert!(fake.names("daemonsets").contains(&names::KEEPER.to_owned()), "its keeper is still needed");
    assert_eq!(state_of(&fake, "edge-1"), None);

    set_ready("True");
    fake.behave(|world| world.asleep.clear());
    let output = yurt(&fake, "revert -y --timeout 20s").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(fake.names("daemonsets").is_empty());
}

#[tokio::test]
async fn pods_that_know_the_hub_are_named_before_and_after_a_revert() {
    let fake = cluster().await;
    assert_eq!(yurt(&fake, CONVERT).await.status.code(), Some(0));
    {
        let pod = json!({
            "metadata": { "name": "web", "namespace": "shop", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "web", "uid": "", "controller": true } ] },
            "spec": { "nodeName": "edge-1", "containers": [], "volumes": [
                { "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } } ] },
            "status": { "phase": "Running", "containerStatuses": [
                { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                  "state": { "running": { "startedAt": "2026-01-02T00:00:00Z" } } } ] }
        });
        fake.api.put("/api/v1/namespaces/shop/pods", pod);
    }
    let output = yurt(&fake, "revert").await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("if they use the API server: shop/web. Go on?"), "{}", text(&output));
    let output = yurt(&fake, "revert -y --timeout 20s").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Warning: 1 pod started while"), "{said}");
    assert!(said.contains("\n  kubectl -n shop delete pod web\n"), "{said}");
}

#[tokio::test]
async fn what_may_not_be_done_is_refused_before_anything_is_changed() {
    let fake = cluster().await;
    let before = fake.snapshot();
    fake.behave(|world| world.denied = ["patch nodes".to_owned(), "create clusterroles".to_owned()].into());
    let output = yurt(&fake, CONVERT).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("create clusterroles.rbac.authorization.k8s.io"), "{}", text(&output));
    assert!(text(&output).contains("patch nodes"), "{}", text(&output));
    for line in ["convert --cloud-nodes nobody -y", "convert --cloud-nodes master"] {
        fake.behave(|world| world.denied.clear());
        let output = yurt(&fake, line).await;
        assert_eq!(output.status.code(), Some(2), "{line}: {}", text(&output));
    }
    assert_eq!(fake.snapshot(), before);
}

#[tokio::test]
async fn a_dry_run_shows_and_changes_nothing() {
    let fake = cluster().await;
    let before = fake.snapshot();
    let output = yurt(&fake, "convert --cloud-nodes master --dry-run=client").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.starts_with("---\n") && stdout.contains("kind: DaemonSet"), "{stdout}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("node/edge-1 converted to edge node (dry run)"));
    let output = yurt(&fake, "convert --cloud-nodes master --dry-run=server").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(
        text(&output).contains("daemonset.apps/yurtd serverside-applied (server dry run)"),
        "{}",
        text(&output)
    );
    assert_eq!(fake.snapshot(), before);
}

#[tokio::test]
async fn a_second_convert_keeps_the_image_unless_it_is_told_another() {
    let fake = cluster().await;
    assert_eq!(yurt(&fake, CONVERT).await.status.code(), Some(0));
    let converted = fake.snapshot();
    let output = yurt(&fake, "convert --cloud-nodes master -y --timeout 20s").await;
    assert!(text(&output).starts_with("already converted"), "{}", text(&output));
    assert_eq!(fake.snapshot(), converted);
    let output = yurt(&fake, "convert --cloud-nodes master --dry-run --image r/yurtd:v2").await;
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("image r/yurtd:v1 -> r/yurtd:v2 (dry run)"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = yurt(&fake, "convert --cloud-nodes master --image r/yurtd:v2").await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("This will change image r/yurtd:v1 -> r/yurtd:v2; "), "{}", text(&output));
    assert_eq!(fake.snapshot(), converted);
}

#[tokio::test]
async fn another_namespace_is_made_and_goes_again() {
    let fake = cluster().await;
    let before = fake.snapshot();
    let output = yurt(&fake, &format!("{CONVERT} --yurt-namespace yurt-system")).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(fake.names("namespaces").contains(&"yurt-system".to_owned()));
    let output = yurt(&fake, "revert -y --yurt-namespace yurt-system").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(fake.snapshot(), before);
}

#[tokio::test]
async fn autonomy_is_for_edge_nodes_and_shows_whether_it_is_in_effect() {
    let fake = cluster().await;
    let output = yurt(&fake, "autonomy enable edge-1").await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("not an edge node: edge-1"), "{}", text(&output));
    assert_eq!(yurt(&fake, CONVERT).await.status.code(), Some(0));
    let output = yurt(&fake, "autonomy enable edge-1").await;
    assert_eq!(text(&output), "node/edge-1 autonomy enabled\n");
    let output = yurt(&fake, "autonomy status -o json").await;
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["nodes"][0]["enabled"], true);
    assert_eq!(document["nodes"][0]["inEffect"], false);
    fake.edit(&cluster::parameter(), |parameter| parameter["spec"] = json!({ "nodes": { "edge-1": "" } }));
    let output = yurt(&fake, "autonomy status edge-1 -o json").await;
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["nodes"][0]["inEffect"], true);
    let output = yurt(&fake, "autonomy disable edge-1").await;
    assert_eq!(text(&output), "node/edge-1 autonomy disabled\n");
}

#[tokio::test]
async fn status_tells_a_vanilla_cluster_from_a_converted_and_a_broken_one() {
    let fake = cluster().await;
    let output = yurt(&fake, "status").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("is not converted"), "{}", text(&output));
    let line = "convert --cloud-nodes master --image r/yurtd:v1 -y --timeout 20s --skip-tunnel";
    let output = yurt(&fake, line).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let output = yurt(&fake, "status -o json").await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["kind"], &document["healthy"]), (&json!("Status"), &json!(true)));
    assert_eq!(document["nodes"][1]["conversion"], "Converted");
    fake.behave(|world| world.no_image = true);
    let output = yurt(&fake, "status").await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not ready"), "{}", text(&output));
    let output = yurt(&fake, "logs nginx").await;
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn the_tunnel_s_absence_is_explained() {
    let fake = cluster().await;
    {
        let pod = json!({ "metadata": { "name": "nginx", "namespace": "default" },
            "spec": { "containers": [{ "name": "nginx" }] }, "status": { "phase": "Running" } });
        fake.api.put("/api/v1/namespaces/default/pods", pod);
    }
    for line in ["logs nginx", "exec nginx -- date", "port-forward nginx 80", "tunnel status"] {
        let (words, command) = line.split_once(" -- ").unwrap_or((line, ""));
        let server = format!("http://{}", fake.address);
        let mut args: Vec<&str> = words.split(' ').collect();
        args.extend(["--server", &server]);
        if !command.is_empty() {
            args.extend(["--", command]);
        }
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
            .args(&args)
            .env_clear()
            .env("HOME", "/nonexistent")
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {}", text(&output));
        let said = text(&output);
        assert!(
            said.contains("this cluster has no tunnel: run `kubectl yurt convert` first"),
            "{line}: {said}"
        );
    }
}
