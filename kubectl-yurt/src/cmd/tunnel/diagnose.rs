//! `tunnel diagnose`: the way from here to a node, hop by hop, and where it ends.
//!
//! ```text
//! here ─▶ tunnel servers ─▶ their rules ─▶ session ─▶ kubelet        each server looks at its part itself
//!      ─▶ Node and Lease, and what the node's keeper says of its agent: told by the API server, also without a tunnel
//!      ─▶ a log, through the endpoint and through the API server: what a person wants of it all
//! ```

use std::time::{Duration, Instant};

use http::Request;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{Api, Client, api::ListParams};
use serde_json::json;
use yurt_api::{
    diagnosis::{Check, Diagnosis, Verdict},
    status::{AgentStatus, RedirectState, RedirectStatus, TunnelFault},
};

use crate::{
    cluster::node,
    connect::{
        agents::{self, AGENTS},
        session::Session,
        tunnel::{self, Tunnel},
    },
    error::{Error, is_not_found, phrase},
    options::Diagnose,
    output::{API_VERSION, Console, Tone, words::human},
};

/// Where kubelets keep their Leases.
const LEASES: &str = "kube-node-lease";
/// Four renewals missed. The node controller waits for 40 s or more.
const LEASE_OLD: Duration = Duration::from_secs(40);
/// How long a server may take for its part of the way; it bounds each hop itself.
const WALK: Duration = Duration::from_secs(90);
/// How long a log may take.
const LOG: Duration = Duration::from_secs(30);

/// Runs the command.
///
/// # Errors
///
/// [`Error::Unhealthy`] when the way ends before the node; [`Error::Failed`] when there is no such node.
pub async fn run(session: &Session, console: Console, options: &Diagnose) -> Result<(), Error> {
    let checks = walk(session, &options.node).await?;
    let reaches = !checks.iter().any(Check::is_failed);
    match options.document {
        Some(document) => console.document(
            document,
            &json!({
                "apiVersion": API_VERSION, "kind": "TunnelDiagnosis", "node": options.node, "reaches": reaches,
                "checks": checks,
            }),
        )?,
        None => print(console, &checks)?,
    }
    if reaches { Ok(()) } else { Err(Error::Unhealthy) }
}

async fn walk(session: &Session, name: &str) -> Result<Vec<Check>, Error> {
    let nodes: Api<Node> = Api::all(session.client.clone());
    let leases: Api<Lease> = Api::namespaced(session.client.clone(), LEASES);
    let (node, lease) = tokio::join!(nodes.get(name), leases.get(name));
    let node = match node {
        Err(error) if is_not_found(&error) => {
            return Err(Error::Failed(format!("there is no node {name:?} in this cluster")));
        }
        node => node?,
    };
    let age = lease.ok().as_ref().and_then(age_of);
    let mut checks = vec![of_node(&node, age)];
    let tunnels = match tunnel::open(session).await {
        Ok(tunnels) => tunnels,
        Err(error) => {
            let why = error.plain(&session.server());
            checks.push(Check::failed(
                "servers",
                "NoTunnel",
                why,
                "`kubectl yurt status` shows the components",
            ));
            return Ok(checks);
        }
    };
    let mut found = agents::Sessions::default();
    let mut walks = Vec::new();
    for tunnel in &tunnels {
        let began = Instant::now();
        let seen = agents::ask_all(std::slice::from_ref(tunnel)).await;
        checks.push(of_server(tunnel, seen.silent.get(&tunnel.address), began.elapsed()));
        checks.extend(seen.redirects.values().map(of_redirect));
        // The one that has the session sees all of the way.
        if seen.answered > 0 {
            let mut servers = seen.redirects.keys().map(|server| (name.to_owned(), server.clone()));
            walks.push((!servers.any(|holds| seen.agents.contains_key(&holds)), tunnel));
        }
        found.agents.extend(seen.agents);
    }
    walks.sort_by_key(|(lacks, _)| *lacks);
    let connected = found.has(name);
    let seen = found.agents.values().find(|agent| agent.node == name);
    checks.extend(seen.and_then(of_address));
    if let Some((_, tunnel)) = walks.first() {
        match ask(tunnel, name).await {
            Ok(diagnosis) => checks.extend(told(diagnosis.checks, age)),
            Err(why) => checks.push(Check::skipped("session", why)),
        }
    }
    if !connected && node::is_edge(&node) {
        let said = node::conversion(&node).map(|report| report.tunnel).unwrap_or_default();
        checks.extend(of_agent(&said, age));
    }
    let reaching = walks.first().map(|(_, tunnel)| *tunnel).filter(|_| connected);
    logs(session, reaching, name, &mut checks).await;
    passable(&mut checks);
    Ok(checks)
}

/// Of several servers one may be out of reach from here, or not redirect, and the way leads to the node all the same. What
/// plain kubectl makes of that, `api-server` says.
fn passable(checks: &mut [Check]) {
    if !checks.iter().any(|check| check.check == "kubelet" && check.verdict == Verdict::Passed) {
        return;
    }
    let passed_by = ["ServerUnreachable", "ServerCertificate", "RulesMissing"];
    for check in checks.iter_mut().filter(|check| check.is_failed()) {
        if check.code.as_deref().is_some_and(|code| passed_by.contains(&code)) {
            check.verdict = Verdict::Warning;
        }
    }
}

fn age_of(lease: &Lease) -> Option<Duration> {
    let renewed = lease.spec.as_ref()?.renew_time.as_ref()?;
    Duration::try_from(jiff::Timestamp::now().duration_since(renewed.0)).ok()
}

fn of_node(node: &Node, lease: Option<Duration>) -> Check {
    let check = "node";
    if !node::is_edge(node) {
        return Check::failed(
            check,
            "NotAnEdgeNode",
            "it is not an edge node: nothing of it goes through the tunnel",
            "plain kubectl reaches it as the API server does; `kubectl yurt convert` makes it one",
        );
    }
    let renewed = |age: Duration| format!("its kubelet renewed its Lease {} ago", human(age));
    match lease {
        Some(age) if age >= LEASE_OLD => Check::failed(
            check,
            "NodeSilent",
            renewed(age),
            "the node is off, its link is lost, or kubelet or yurtd is stopped; when it has a session below, it is kubelet",
        ),
        Some(age) => Check::passed(check, renewed(age)),
        None => Check::passed(check, if node::is_ready(node) { "it is Ready" } else { "it is there" }),
    }
}

fn of_server(tunnel: &Tunnel, silent: Option<&String>, took: Duration) -> Check {
    let (check, address) = ("server", &tunnel.address);
    match silent {
        None => Check::passed(check, format!("{address} answers in {} ms", took.as_millis())),
        Some(why) if why.contains("certificate") => Check::failed(
            check,
            "ServerCertificate",
            format!("{address}: {why}"),
            "it is not the tunnel server of this cluster, or its certificate is not of the CA in ConfigMap yurt-tunnel-ca",
        ),
        Some(why) if why.contains("Forbidden") || why.contains("forbidden") => Check::skipped(
            check,
            format!(
                "{address}: {why}: `list` and `get` on agents.tunnel.openyurt.io, `get` on agents/diagnosis are needed"
            ),
        ),
        Some(why) => Check::failed(
            check,
            "ServerUnreachable",
            format!("{address}: {why}"),
            "`kubectl yurt status` shows whether it runs; a firewall may be between here and it; \
             `kubectl yurt convert --tunnel-api-address` changes the address",
        ),
    }
}

fn of_redirect(redirect: &RedirectStatus) -> Check {
    let check = "rules";
    match redirect.state {
        RedirectState::InPlace => {
            let repaired = match redirect.repaired {
                0 => String::new(),
                times => format!("; somebody else had changed them {times} times, and they were put back"),
            };
            Check::passed(
                check,
                format!("on {} for {} kubelets{repaired}", redirect.server, redirect.kubelets),
            )
        }
        RedirectState::Waiting | RedirectState::Failing => Check::failed(
            check,
            "RulesMissing",
            format!("on {}: {}", redirect.server, redirect.message),
            "plain kubectl logs, exec and port-forward fail there; `kubectl yurt logs` and exec do not need the rules",
        ),
    }
}

/// Whether the rules lead to this node; a server of before does not say.
fn of_address(agent: &AgentStatus) -> Option<Check> {
    let (check, redirected, not_redirected) = ("rules", &agent.redirected, &agent.not_redirected);
    if !redirected.is_empty() {
        return Some(Check::passed(check, format!("its kubelet is found at {}", redirected.join(", "))));
    }
    (!not_redirected.is_empty()).then(|| {
        Check::failed(
            check,
            "NotRedirected",
            not_redirected.join("; "),
            "where another node has the address this one gets a kubelet port some seconds after both are converted; \
             `kubectl yurt logs` and exec do not need it",
        )
    })
}

async fn ask(tunnel: &Tunnel, node: &str) -> Result<Diagnosis, String> {
    let request = Request::get(format!("{AGENTS}/{node}/diagnosis"))
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    match tokio::time::timeout(WALK, tunnel.client.request::<Diagnosis>(request)).await {
        Ok(Ok(diagnosis)) => Ok(diagnosis),
        Ok(Err(error)) => Err(phrase(&error, &tunnel.address)
            .trim_start_matches("error: ")
            .trim_start_matches("Error from server ")
            .to_owned()),
        Err(_) => Err(format!("{}: no answer within {} s", tunnel.address, WALK.as_secs())),
    }
}

/// A kubelet that refuses connections and renews its Lease runs, and listens elsewhere.
fn told(mut checks: Vec<Check>, lease: Option<Duration>) -> Vec<Check> {
    for check in &mut checks {
        if check.code.as_deref() == Some("KubeletRefuses")
            && let Some(age) = lease
        {
            let (code, hint) = if age < LEASE_OLD {
                (
                    "KubeletPortClosed",
                    "kubelet runs and renews its Lease: it listens on another port than `yurtd` was told, or a firewall on \
                     the node rejects the agent's connections; run `kubectl yurt convert` again after the port was changed",
                )
            } else {
                (
                    "KubeletStopped",
                    "kubelet does not run: `systemctl status kubelet` and `journalctl -u kubelet` on the node",
                )
            };
            (check.code, check.hint) = (Some(code.to_owned()), Some(hint.to_owned()));
        }
    }
    checks
}

/// What the node itself says of why it has no session, by way of the API server.
fn of_agent(said: &[TunnelFault], lease: Option<Duration>) -> Vec<Check> {
    let check = "agent";
    if said.is_empty() {
        let why = match lease {
            Some(age) if age >= LEASE_OLD => "nothing is heard of the node",
            _ => {
                "the node does not say why its agent has no session: it says so within a minute, if yurtd runs there"
            }
        };
        return vec![Check::skipped(check, why)];
    }
    said.iter().map(|fault| of_fault(check, fault)).collect()
}

fn of_fault(check: &str, TunnelFault { server, error, code }: &TunnelFault) -> Check {
    let code = code.as_deref().unwrap_or("AgentFails");
    let hint = match code {
        "Refused" => {
            "nothing listens at that address: the tunnel server is down, or the address is not its; \
             `kubectl yurt convert --tunnel-address` changes it"
        }
        "Silent" => {
            "a firewall between the node and the tunnel server drops the connection, or the address leads nowhere; \
             the node has to reach it on TCP"
        }
        "Unreachable" => "the node has no route to that address",
        "NoAddress" => "the node's name servers do not know that name",
        "WrongAddress" => "`kubectl yurt convert --tunnel-address HOST:PORT` changes it",
        "WrongCa" => {
            "what answers there is not this cluster's tunnel server, or something on the way opens TLS; the CA is in \
             ConfigMap yurt-tunnel-ca and on the node in /var/lib/yurt"
        }
        "CertificateExpired" => {
            "the tunnel server's certificate has expired, or the node's clock is ahead: compare `date` on both"
        }
        "ClockBehind" => "the node's clock is behind: set it (`timedatectl`, chrony)",
        "OwnCertificateExpired" | "OwnCertificateRefused" => {
            "kubelet's client certificate: `journalctl -u kubelet` on the node, `kubectl get csr` here"
        }
        "NoCertificate" => {
            "a file that the agent needs is missing on the node: `yurtd doctor` there names it"
        }
        "NotATunnelServer" => {
            "something else listens at that address, or it is of another release: upgrade the older one"
        }
        "Broken" => {
            "the connection breaks before it is a session: the tunnel server has just started and does not know the cluster's \
             client CA yet (its log says so), or something on the way cuts it"
        }
        "TwoMachines" => {
            "another machine shows this node's certificate: give the copy a name and a certificate of its own"
        }
        _ => "`yurtd doctor` and `journalctl -u yurtd` on the node",
    };
    Check::failed(check, code, format!("the node says of {server}: {error}"), hint)
}

/// One line of a log of a pod of the node, both ways.
async fn logs(session: &Session, through: Option<&Tunnel>, node: &str, checks: &mut Vec<Check>) {
    let kinds = ["log", "api-server"];
    let skip = |checks: &mut Vec<Check>, why: &str| {
        checks.extend(kinds.map(|check| Check::skipped(check, why)));
    };
    let Some(tunnel) = through else { return skip(checks, "there is no session") };
    if checks.iter().any(|check| check.check == "kubelet" && check.verdict != Verdict::Passed) {
        return skip(checks, "kubelet does not answer");
    }
    let path = match running_pod(session, node).await {
        Ok(Some(path)) => path,
        Ok(None) => return skip(checks, "no container of a pod runs on the node"),
        Err(error) => {
            let why = format!("pods cannot be listed: {}", Error::from(error).plain(&session.server()));
            return skip(checks, &why);
        }
    };
    let ways: [(&str, &Client, &str, &str); 2] = [
        (kinds[0], &tunnel.client, &tunnel.address, "the tunnel server's log says why"),
        (
            kinds[1],
            &session.client,
            &session.server(),
            "plain kubectl needs the rules on the host of each API server; `kubectl yurt logs` does not",
        ),
    ];
    for (check, client, server, hint) in ways {
        let Ok(request) = Request::get(&path).body(Vec::new()) else { continue };
        let began = Instant::now();
        let answer = tokio::time::timeout(LOG, client.request_text(request)).await;
        let took = began.elapsed().as_millis();
        checks.push(match answer {
            Ok(Ok(_)) => Check::passed(check, format!("a log comes through {server} in {took} ms")),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => {
                Check::skipped(check, format!("{server}: {}", status.message))
            }
            Ok(Err(error)) => Check::failed(check, "NoLog", phrase(&error, server), hint),
            Err(_) => {
                Check::failed(check, "NoLog", format!("{server}: no log within {} s", LOG.as_secs()), hint)
            }
        });
    }
}

/// Path of the log of a container that runs there.
async fn running_pod(session: &Session, node: &str) -> kube::Result<Option<String>> {
    let api: Api<Pod> = Api::all(session.client.clone());
    let there = ListParams::default().fields(&format!("spec.nodeName={node},status.phase=Running")).limit(50);
    let pods = api.list(&there).await?;
    Ok(pods.items.iter().find_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let runs = |state: &&k8s_openapi::api::core::v1::ContainerStatus| {
            state.state.as_ref().is_some_and(|state| state.running.is_some())
        };
        let container = &statuses.iter().find(runs)?.name;
        let (namespace, name) = (pod.metadata.namespace.as_ref()?, pod.metadata.name.as_ref()?);
        Some(format!(
            "/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&tailLines=1&limitBytes=1024"
        ))
    }))
}

fn print(console: Console, checks: &[Check]) -> Result<(), Error> {
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    for check in checks {
        let (mark, tone) = match check.verdict {
            Verdict::Passed => ("✓", Tone::Good),
            Verdict::Warning => ("!", Tone::Warn),
            Verdict::Failed => ("✗", Tone::Bad),
            Verdict::Skipped | Verdict::Unknown => ("-", Tone::Faint),
        };
        let code = check.code.as_ref().map(|code| format!("{code}: ")).unwrap_or_default();
        let line = format!("{} {:width$}  {code}{}", console.paint(tone, mark), check.check, check.message);
        console.line(line)?;
        if let Some(hint) = &check.hint {
            console.line(format!("  {:width$}  {}", "", console.paint(Tone::Faint, hint)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::samples;

    fn code(check: &Check) -> Option<&str> {
        check.code.as_deref()
    }

    #[test]
    fn a_silent_node_is_told_apart_from_one_whose_agent_has_no_session() {
        let edge = samples::node("true", json!({}));
        let fresh = Some(Duration::from_secs(3));
        assert_eq!(of_node(&edge, fresh).verdict, Verdict::Passed);
        assert_eq!(code(&of_node(&edge, Some(Duration::from_secs(90)))), Some("NodeSilent"));
        assert_eq!(code(&of_node(&samples::node("false", json!({})), fresh)), Some("NotAnEdgeNode"));
        let fault = |code: &str| TunnelFault {
            server: "10.80.0.2:10262".into(),
            error: "no".into(),
            code: Some(code.into()),
        };
        let told = of_agent(&[fault("WrongCa"), fault("Silent")], fresh);
        assert_eq!(told.iter().map(code).collect::<Vec<_>>(), [Some("WrongCa"), Some("Silent")]);
        assert!(told[1].hint.as_ref().unwrap().contains("firewall"));
        assert_eq!(of_agent(&[], fresh)[0].verdict, Verdict::Skipped);
        // An agent of before has no word for it.
        let words = TunnelFault { code: None, ..fault("") };
        assert_eq!(code(&of_agent(&[words], fresh)[0]), Some("AgentFails"));
    }

    #[test]
    fn a_kubelet_that_refuses_is_stopped_or_listens_elsewhere() {
        let refuses = || vec![Check::failed("kubelet", "KubeletRefuses", "refused", "?")];
        let with = |age: Option<u64>| told(refuses(), age.map(Duration::from_secs))[0].code.clone().unwrap();
        assert_eq!(with(Some(3)), "KubeletPortClosed");
        assert_eq!(with(Some(300)), "KubeletStopped");
        assert_eq!(with(None), "KubeletRefuses");
    }

    #[test]
    fn a_server_that_is_passed_by_does_not_end_the_way() {
        let mut checks = vec![
            Check::failed("server", "ServerUnreachable", "refused", "?"),
            Check::failed("log", "NoLog", "no", "?"),
        ];
        passable(&mut checks);
        assert!(checks.iter().all(Check::is_failed));
        checks.push(Check::passed("kubelet", "it answers"));
        passable(&mut checks);
        assert_eq!(checks.iter().map(Check::is_failed).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn rules_that_are_not_in_place_are_the_hop() {
        let of = |state| RedirectStatus {
            server: "cp-1".into(),
            state,
            kubelets: 3,
            repaired: 1,
            since: String::new(),
            message: "the kernel refuses".into(),
        };
        assert_eq!(code(&of_redirect(&of(RedirectState::Failing))), Some("RulesMissing"));
        let mut agent: AgentStatus = serde_json::from_value(json!({ "node": "edge-1", "server": "cp-1",
            "version": "yurtd/0.1.0", "remoteAddress": "192.0.2.7:40000", "connectedSince": "2026-11-28T08:00:00Z",
            "rttMicros": 1, "streams": 0, "bytesSent": 0, "bytesReceived": 0 }))
        .unwrap();
        assert_eq!(of_address(&agent), None);
        agent.not_redirected.push("192.168.0.100:10250: it is an address of edge-2 too".into());
        assert_eq!(code(&of_address(&agent).unwrap()), Some("NotRedirected"));
        agent.redirected.push("192.168.0.100:40000".into());
        assert_eq!(of_address(&agent).unwrap().message, "its kubelet is found at 192.168.0.100:40000");
        let well = of_redirect(&of(RedirectState::InPlace));
        assert!(well.verdict == Verdict::Passed && well.message.contains("changed them 1 times"), "{well:?}");
    }
}
