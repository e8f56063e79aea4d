//! After the nodes: have their tunnels come up? That they have not is worth a warning and no more: the nodes are
//! edge nodes, and whether agents reach the tunnel server is often a matter of a firewall that somebody else opens.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;
use yurt_api::status::ClusterConfig;

use crate::{
    connect::{
        agents::{Sessions, ask_all, fault_of},
        session::Session,
        tunnel,
    },
    output::words::join,
};

/// How long the sessions are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often they are asked for.
const AGAIN: Duration = Duration::from_millis(500);

/// Waits for the sessions of these nodes; what to warn about if they do not come, or if nobody here can see them.
pub async fn check(session: &Session, config: &ClusterConfig, nodes: &BTreeSet<String>) -> Option<String> {
    let deadline = Instant::now() + PATIENCE;
    let tunnels = match tunnel::open(session).await {
        Ok(tunnels) => tunnels,
        Err(error) => return Some(unknown(&error.plain(&session.server()))),
    };
    let mut last = Sessions::default();
    loop {
        if let Ok(found) = tokio::time::timeout_at(deadline, ask_all(&tunnels)).await {
            last = found;
        }
        let warning = verdict(&last, config, nodes)?;
        // From where nobody answers now nobody will.
        if last.answered == 0 || Instant::now() + AGAIN >= deadline {
            return Some(warning);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is wrong, if anything.
fn verdict(found: &Sessions, config: &ClusterConfig, nodes: &BTreeSet<String>) -> Option<String> {
    if found.answered == 0 {
        let mut why: Vec<String> =
            found.silent.iter().map(|(address, why)| format!("{address}: {why}")).collect();
        if why.is_empty() {
            why.push(format!("{} did not answer", config.tunnel_api_addresses.join(", ")));
        }
        return Some(unknown(&why.join("; ")));
    }
    let missing: BTreeSet<String> = nodes.iter().filter(|name| !found.has(name)).cloned().collect();
    if missing.is_empty() {
        return found.redirects.values().find_map(fault_of);
    }
    Some(format!(
        "no tunnel from {} yet: agents cannot reach the tunnel server at {}, so kubectl logs and exec do not work \
         there; `kubectl yurt tunnel status` shows when they do, `kubectl yurt convert … --tunnel-address HOST:PORT` \
         changes the address",
        join(&missing),
        config.tunnel_addresses.join(", ")
    ))
}

fn unknown(why: &str) -> String {
    format!(
        "whether the edge nodes' agents reach the tunnel server cannot be seen from here ({why}); \
         `kubectl yurt convert … --tunnel-api-address HOST:PORT` changes where it is asked, --tunnel-address where \
         agents look for it"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn found(agents: &[&str], silent: &[(&str, &str)], answered: usize) -> Sessions {
        let agent = |node: &&str| {
            let agent = json!({ "node": node, "server": "", "version": "", "remoteAddress": "", "connectedSince": "",
                "rttMicros": null, "streams": 0, "bytesSent": 0, "bytesReceived": 0 });
            (((*node).to_owned(), String::new()), serde_json::from_value(agent).unwrap())
        };
        Sessions {
            lost: BTreeMap::new(),
            agents: agents.iter().map(agent).collect(),
            redirects: BTreeMap::new(),
            answered,
            silent: silent.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        }
    }

    #[test]
    fn a_tunnel_that_does_not_come_is_warned_about_with_its_address() {
        let config = ClusterConfig {
            tunnel_addresses: vec!["10.80.0.2:10262".into()],
            tunnel_api_addresses: vec!["10.80.0.2:10263".into()],
        };
        let nodes: BTreeSet<String> = ["a".to_owned(), "b".to_owned()].into();
        assert_eq!(verdict(&found(&["a", "b", "c"], &[("x:1", "gone")], 1), &config, &nodes), None);
        let mut blind = found(&["a", "b"], &[], 1);
        let redirect = json!({ "server": "cp-1", "state": "failing", "kubelets": 0, "repaired": 0, "since": "",
            "message": "Operation not permitted" });
        blind.redirects.insert("cp-1".into(), serde_json::from_value(redirect).unwrap());
        let text = verdict(&blind, &config, &nodes).unwrap();
        assert!(text.starts_with("tunnel server on cp-1: ") && text.contains("not permitted"), "{text}");
        let text = verdict(&found(&["a"], &[], 1), &config, &nodes).unwrap();
        assert!(
            text.starts_with(
                "no tunnel from b yet: agents cannot reach the tunnel server at 10.80.0.2:10262"
            )
        );
        assert!(text.contains("--tunnel-address"), "{text}");
        let text = verdict(&found(&[], &[("x:1", "refused")], 0), &config, &nodes).unwrap();
        assert!(text.contains("cannot be seen from here (x:1: refused)"), "{text}");
        let text = verdict(&Sessions::default(), &config, &nodes).unwrap();
        assert!(text.contains("(10.80.0.2:10263 did not answer)"), "{text}");
    }
}
