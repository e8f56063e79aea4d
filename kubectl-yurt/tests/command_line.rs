//! The program as a person meets it without a cluster: usage, exit codes, what goes to stdout and what to stderr.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn yurt(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_wrong_line_is_refused_on_stderr_with_2() {
    for args in [
        &["frob"][..],
        &["convert"],
        &["convert", "--cloud-nodes", "a", "--edge-nodes", "b"],
        &["convert", "--cloud-nodes", "a", "--timeout", "soon"],
        &["convert", "--cloud-nodes", "a", "--max-parallel", "0"],
        &["convert", "--cloud-nodes", "a", "--skip-tunnel", "--tunnel-address", "b:1"],
        &["autonomy", "enable"],
        &["logs"],
        &["status", "-o", "xml"],
        &["port-forward", "nginx"],
        &["status", "--as-group", "x"],
    ] {
        let output = yurt(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).starts_with("error: "), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn help_is_a_result_and_names_the_plugin_as_kubectl_does() {
    for args in [&["--help"][..], &["-h"], &["help"]] {
        let output = yurt(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("Usage: kubectl yurt [OPTIONS] <COMMAND>"), "{args:?}");
    }
    let output = yurt(&["convert", "--help"]);
    assert!(stdout(&output).contains("Usage: kubectl yurt convert"), "{}", stdout(&output));
}

#[test]
fn the_client_s_version_needs_no_cluster() {
    let output = yurt(&["version", "--client"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), format!("Client Version: v{}\n", env!("CARGO_PKG_VERSION")));
    let output = yurt(&["version", "--client", "-o", "json"]);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["kind"], "Version");
    assert_eq!(document["clientVersion"], format!("v{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_server_that_refuses_is_named() {
    // A port that was free a moment ago, so that nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = format!("https://127.0.0.1:{port}");
    for args in [&["status"][..], &["revert", "-y"], &["convert", "--cloud-nodes", "a"], &["logs", "nginx"]] {
        let output = yurt(&[args, &["--server", &server]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(
            stderr(&output),
            format!(
                "The connection to the server 127.0.0.1:{port} was refused - did you specify the right host or port?\n"
            )
        );
    }
}

#[test]
fn the_environment_s_proxy_is_not_for_this_machine() {
    // Something that listens and never answers: a proxy that is asked holds the request up.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(["status", "--request-timeout", "10s", "--server", &format!("https://127.0.0.1:{port}")])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("HTTPS_PROXY", format!("http://{}", proxy.local_addr().unwrap()))
        .env("NO_PROXY", "10.0.0.0/8,,example.com")
        .output()
        .unwrap();
    assert!(stderr(&output).contains(&format!("server 127.0.0.1:{port} was refused")), "{}", stderr(&output));
}

#[test]
fn without_any_configuration_it_says_what_to_set() {
    let output = yurt(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: no configuration has been provided"), "{}", stderr(&output));
    let output = yurt(&["status", "--kubeconfig", "/nonexistent/config"]);
    assert!(stderr(&output).starts_with("error: cannot read /nonexistent/config"), "{}", stderr(&output));
}

#[test]
fn what_kubectl_refuses_before_it_asks_anybody_is_refused_in_its_words() {
    let server = ["--server", "https://127.0.0.1:1"];
    let output = yurt(&[&["exec", "nginx", "date"][..], &server].concat());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "error: exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead\n"
    );
    let output = yurt(&[&["port-forward", "pod/a", "x:80"][..], &server].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: error parsing local port"), "{}", stderr(&output));
    let output = yurt(&[&["logs", "frob/x"][..], &server].concat());
    assert_eq!(stderr(&output), "error: the server doesn't have a resource type \"frob\"\n");
}

#[test]
fn completions_come_live_and_never_complain() {
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(["--", "kubectl-yurt", "autonomy", "enable", "e"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("COMPLETE", "fish")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
    let output = Command::new(env!("CARGO_BIN_EXE_kubectl-yurt"))
        .args(["--", "kubectl-yurt", "autonomy", ""])
        .env_clear()
        .env("COMPLETE", "fish")
        .output()
        .unwrap();
    assert!(stdout(&output).contains("enable\tKeep the pods of these nodes"), "{}", stdout(&output));
}
