//! S5: unmodified kubectl reaches the pod, and so does the plugin where nothing can be redirected.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Story, reads_well, seconds};
use crate::kubectl::Kubectl;
use crate::observe::running::Running;
use crate::run;
use crate::wait::until_true;

const SOON: Duration = Duration::from_secs(30);
const MEGABYTES: usize = 20;

/// S5.
pub(super) fn access(story: &mut Story) -> Result<()> {
    first_log(story)?;
    logs(story, &[])?;
    exec(story, &[])?;
    terminal(story, &[])?;
    attach(story)?;
    port_forward(story, &[], 8888)?;
    copy(story)?;
    through_the_plugin(story)
}

/// The tunnel may be up a moment after the node is.
fn first_log(story: &mut Story) -> Result<()> {
    story.teller.step("plain kubectl, the same that failed in S1");
    let words = ["logs", "--tail=3", "nginx"];
    until_true("the tunnel to be up", SOON, || {
        let finished = story.cluster.kubectl.run_for(SOON, words)?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    let finished = story.kubectl(&words)?;
    story.teller.check(finished.ok(), "kubectl logs works", &finished)?;
    story.teller.figure("kubectl logs", &seconds(finished.took));
    Ok(())
}

/// `logs -f`: what is logged while it runs arrives.
fn logs(story: &mut Story, plugin: &[&str]) -> Result<()> {
    let words = [plugin, &["logs", "-f", "--tail=1", "nginx"]].concat();
    story.teller.command("kubectl", &words);
    let running = Running::start(story.cluster.kubectl.command(&words))?;
    running.wait_for("\"", SOON)?;
    let delay = log_line_arrives(story, &running)?;
    story.teller.figure(
        &format!("a line of {} after it was logged", words[..plugin.len() + 2].join(" ")),
        &seconds(delay),
    );
    Ok(())
}

/// Asks nginx for a page that nobody asked for before, and waits until its log line is printed.
fn log_line_arrives(story: &Story, running: &Running) -> Result<Duration> {
    let marker = format!("marker-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
    story.ask_on_edge(&format!("http://{}/?{marker}", story.nginx_address()?))?;
    running.wait_for(&marker, SOON)
}

/// `exec`: standard input, both outputs, the exit code.
fn exec(story: &mut Story, plugin: &[&str]) -> Result<()> {
    let words = [plugin, &["exec", "-i", "nginx", "--", "cat"]].concat();
    let typed = words.join(" ");
    story.teller.typed(&format!("echo hello from here | kubectl {typed}"));
    let finished = run::run_with(
        story.cluster.kubectl.command(&words),
        Some(b"hello from here\n"),
        Duration::from_secs(60),
    )?;
    story.teller.output(&finished.stdout());
    story.teller.check(
        finished.ok() && finished.stdout() == "hello from here\n",
        "standard input goes in and comes out",
        &finished,
    )?;
    let words = [plugin, &["exec", "nginx", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]].concat();
    let finished = story.kubectl(&words)?;
    story.teller.check(
        finished.code == Some(7) && finished.stdout() == "out\n" && finished.stderr().contains("err\n"),
        "both streams and exit code 7 come back",
        &finished,
    )
}

/// `exec -it` with a real terminal on this side.
fn terminal(story: &mut Story, plugin: &[&str]) -> Result<()> {
    let typed = format!("kubectl {}", [plugin, &["exec", "-it", "nginx", "--", "sh"]].concat().join(" "));
    story.teller.typed(&typed);
    let mut command = Command::new("script");
    story.cluster.kubectl.environment(&mut command);
    command.env("SHELL", "/bin/sh").env("TERM", "xterm").args(["-qec", &typed, "/dev/null"]);
    let mut running = Running::start(command)?;
    running.wait_for("# ", SOON)?;
    running.say("tty; echo $((6 * 7)) is the answer\n")?;
    running.wait_for("/dev/pts/", SOON)?;
    running.wait_for("42 is the answer", SOON)?;
    running.say("exit 5\n")?;
    // The shell asks the terminal where its cursor is.
    story.teller.output(&running.output().replace('\r', "").replace("\x1b[6n", ""));
    let code = running.end(SOON)?;
    story.teller.check(code == 5, "a shell on a terminal, and its exit code 5", code)
}

/// `attach`: the output of the container's own process.
fn attach(story: &mut Story) -> Result<()> {
    let words = ["attach", "nginx"];
    story.teller.command("kubectl", &words);
    let running = Running::start(story.cluster.kubectl.command(words))?;
    // kubectl says nothing when it is attached: readiness probes show up in nginx's output.
    running.wait_for("\"GET / ", SOON)?;
    log_line_arrives(story, &running)?;
    story.teller.holds("what nginx prints arrives");
    Ok(())
}

/// `port-forward` and HTTP through it.
fn port_forward(story: &mut Story, plugin: &[&str], port: u16) -> Result<()> {
    let ports = format!("{port}:80");
    let words = [plugin, &["port-forward", "pod/nginx", ports.as_str()]].concat();
    story.teller.command("kubectl", &words);
    let running = Running::start(story.cluster.kubectl.command(&words))?;
    running.wait_for(&format!("Forwarding from 127.0.0.1:{port} -> 80"), SOON)?;
    let url = format!("http://127.0.0.1:{port}/");
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let started = Instant::now();
        let page = run::sh("curl", &["-sS", "-f", "-m", "10", &url])?;
        anyhow::ensure!(page.contains("nginx on the edge"), "{page}");
        slowest = slowest.max(started.elapsed());
    }
    story.teller.typed(&format!("curl {url}"));
    story.teller.holds(&format!("nginx answers ten times, the slowest after {} ms", slowest.as_millis()));
    Ok(())
}

/// `cp` of a file that is larger than every window and buffer.
fn copy(story: &mut Story) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("story-").tempdir()?;
    let (sent, back) = (folder.path().join("picture"), folder.path().join("picture.back"));
    let random = fs::File::open("/dev/urandom")?;
    let mut contents = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(random, (MEGABYTES << 20) as u64), &mut contents)?;
    fs::write(&sent, &contents)?;
    let (sent, back) = (text(&sent)?, text(&back)?);
    for (from, to, way) in [(sent, "nginx:/tmp/copied", "to"), ("nginx:/tmp/copied", back, "from")] {
        let finished = story.kubectl_ok(&["cp", from, to])?;
        let rate = MEGABYTES as f64 / finished.took.as_secs_f64();
        story
            .teller
            .figure(&format!("kubectl cp of {MEGABYTES} MB {way} the pod"), &format!("{rate:.0} MB/s"));
    }
    let inside = story.cluster.kubectl.ok(["exec", "nginx", "--", "sha256sum", "/tmp/copied"])?;
    let sum: String = Sha256::digest(&contents).iter().map(|byte| format!("{byte:02x}")).collect();
    story.teller.check(inside.starts_with(&sum), "the sum in the pod is the file's", &inside)?;
    story.teller.check(fs::read(back)? == contents, "what came back is what was sent", "it differs")?;
    story.cluster.kubectl.ok(["exec", "nginx", "--", "rm", "/tmp/copied"])?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// Nothing reaches the intercept port, whatever is redirected to it.
const SHUT: &str = "nft -f - <<'RULES'
table inet story {
  chain incoming {
    type filter hook input priority 0; policy accept;
    tcp dport 10264 reject with tcp reset
  }
}
RULES";

/// `kubectl yurt logs|exec|port-forward` without any redirect.
fn through_the_plugin(story: &mut Story) -> Result<()> {
    story.teller.step("the same through the plugin, with the redirect rules removed");
    let master = story.cluster.master.clone();
    // The server puts a table that somebody deleted back within seconds, so its intercept port is shut too.
    story.teller.typed("nft delete table inet yurt            (on master-node, and port 10264 shut)");
    master.sh(SHUT)?;
    master.sh("nft delete table inet yurt")?;
    let plain = story.cluster.kubectl.run_for(Duration::from_secs(60), ["logs", "--tail=1", "nginx"])?;
    story.teller.check(!plain.ok(), "plain kubectl cannot reach the pod (control)", &plain)?;
    let yurt = ["yurt"];
    let started = Instant::now();
    logs(story, &yurt)?;
    exec(story, &yurt)?;
    terminal(story, &yurt)?;
    port_forward(story, &yurt, 8889)?;
    story.teller.figure("everything through the plugin alone", &seconds(started.elapsed()));

    story.teller.step("as somebody who may read logs and not execute");
    let folder = tempfile::tempdir()?;
    let limited = limited_user(story, folder.path())?;
    let read = limited.run_for(Duration::from_secs(60), ["yurt", "logs", "--tail=1", "nginx"])?;
    story.teller.check(read.ok(), "kubectl yurt logs works", &read)?;
    let words = ["yurt", "exec", "nginx", "--", "id"];
    story.teller.command("kubectl", &words);
    let refused = limited.run_for(Duration::from_secs(60), words)?;
    story.teller.output(&refused.stderr());
    reads_well(&refused)?;
    story.teller.check(
        refused.code == Some(1) && refused.stderr().contains("Forbidden") && refused.stdout().is_empty(),
        "kubectl yurt exec is refused",
        &refused,
    )?;
    let acting = ["--as=system:serviceaccount:default:limited"];
    let read = story.kubectl(&[&["yurt", "logs", "--tail=1", "nginx"][..], &acting].concat())?;
    story.teller.check(read.ok(), "as with --as, for an administrator", &read)?;
    let words = ["yurt", "exec", acting[0], "nginx", "--", "id"];
    let refused = story.kubectl(&words)?;
    story.teller.check(refused.code == Some(1), "who may then do no more", &refused)?;
    let audit = audit_of_the_server(story)?;
    let forbidden = audit.iter().any(|event| {
        event["responseStatus"]["code"] == 403
            && event["impersonatedUser"]["username"] == "system:serviceaccount:default:limited"
            && event["objectRef"]["subresource"] == "exec"
    });
    story.teller.check(
        forbidden,
        "and the tunnel server's audit log has it all",
        format!("{} records", audit.len()),
    )?;
    past_no_admission(story)?;
    for (kind, name) in [("rolebinding", LIMITED), ("role", LIMITED), ("serviceaccount", LIMITED)] {
        story.cluster.kubectl.ok(["delete", kind, name])?;
    }

    story.teller.step("the tunnel server puts its rules back");
    master.sh("nft delete table inet story")?;
    let back = until_true("plain kubectl logs to work again", Duration::from_secs(90), || {
        let rules = master.exec(["nft", "list", "table", "inet", "yurt"])?;
        if !rules.ok() {
            return Ok(Some(rules.stderr()));
        }
        let finished =
            story.cluster.kubectl.run_for(Duration::from_secs(10), ["logs", "--tail=1", "nginx"])?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    story.teller.figure("kubectl logs works again without our doing", &seconds(back));
    Ok(())
}

/// A policy for CONNECT: the tunnel server's port is no way around it.
fn past_no_admission(story: &mut Story) -> Result<()> {
    let policy = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "no-shells"},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "resources": ["pods/exec"]}]},
                "validations": [{"expression": "false", "message": "no shells here"}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "no-shells"}, "spec": {"policyName": "no-shells", "validationActions": ["Deny"]},
        },
    ]});
    story.cluster.kubectl.apply(&policy.to_string())?;
    for words in [&["exec", "nginx", "--", "true"][..], &["yurt", "exec", "nginx", "--", "true"]] {
        let kubectl = &story.cluster.kubectl;
        until_true("the policy to be known", Duration::from_secs(30), || {
            let finished = kubectl.run_for(Duration::from_secs(20), words)?;
            Ok((!finished.stderr().contains("no-shells")).then(|| finished.to_string()))
        })?;
        story.teller.holds(&format!("where a policy forbids it, kubectl {} is refused", words.join(" ")));
    }
    let kubectl = &story.cluster.kubectl;
    kubectl.ok(["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "no-shells"])?;
    until_true("exec to work again", Duration::from_secs(30), || {
        let finished = kubectl.run_for(Duration::from_secs(20), ["yurt", "exec", "nginx", "--", "true"])?;
        Ok((!finished.ok()).then(|| finished.to_string()))
    })?;
    Ok(())
}

/// What the tunnel server has written down of the requests at its own port.
fn audit_of_the_server(story: &Story) -> Result<Vec<serde_json::Value>> {
    let logs = story.cluster.kubectl.ok(["logs", "-n", "kube-system", "daemonset/yurt-tunnel-server"])?;
    let events = logs.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(events.filter(|event| event["apiVersion"] == "audit.k8s.io/v1").collect())
}

const LIMITED: &str = "limited";

/// A ServiceAccount that may look at pods and their logs.
fn limited_user(story: &Story, folder: &Path) -> Result<Kubectl> {
    let kubectl = &story.cluster.kubectl;
    kubectl.ok(["create", "serviceaccount", LIMITED])?;
    kubectl.ok(["create", "role", LIMITED, "--verb=get,list", "--resource=pods,pods/log"])?;
    kubectl.ok(["create", "rolebinding", LIMITED, "--role=limited", "--serviceaccount=default:limited"])?;
    with_token(kubectl, LIMITED, folder)
}

/// The same cluster with the token of a ServiceAccount of `default`.
pub(super) fn with_token(kubectl: &Kubectl, account: &str, folder: &Path) -> Result<Kubectl> {
    let token = kubectl.ok(["create", "token", account])?;
    let mut config = kubectl.json(["config", "view", "--raw", "--minify"])?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = folder.join("kubeconfig");
    fs::write(&path, config.to_string())?;
    Ok(kubectl.with_kubeconfig(&path))
}
