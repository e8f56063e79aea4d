//! The changes themselves, each on one object: whether there was anything to change.

use std::net::Ipv6Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use yurt_api::names::{HUB_POD_ADDRESS, HUB_POD_IPV6, HUB_POD_PORT, HUB_PORT};

pub(super) fn lead_service_to_hub(service: &mut Value) -> bool {
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    // Pods have an address of the Service's first family in any case.
    let first = spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default();
    let hub =
        if first.parse::<Ipv6Addr>().is_ok() { HUB_POD_IPV6.to_string() } else { HUB_POD_ADDRESS.into() };
    if spec.contains_key("clusterIPs") {
        spec.insert("clusterIPs".into(), vec![hub.as_str()].into());
    }
    spec.insert("clusterIP".into(), hub.into());
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if port["name"] == "https" || port["port"] == 443 {
            port["port"] = HUB_POD_PORT.into();
        }
    }
    true
}

pub(super) fn lead_kube_proxy_to_hub(config_map: &mut Value) -> bool {
    let Some(Value::String(kubeconfig)) =
        config_map.get_mut("data").and_then(|data| data.get_mut("kubeconfig.conf"))
    else {
        return false;
    };
    let mut changed = false;
    let lines: Vec<String> = kubeconfig
        .split('\n')
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            if line[indent..].starts_with("server:") {
                changed = true;
                format!("{}server: https://127.0.0.1:{HUB_PORT}", &line[..indent])
            } else {
                line.to_owned()
            }
        })
        .collect();
    *kubeconfig = lines.join("\n");
    changed
}

pub(super) fn is_kube_proxys(config_map: &Value) -> bool {
    config_map["metadata"]["name"] == "kube-proxy"
}

/// `ca.crt` of a ConfigMap: text.
pub(super) fn believe_node_ca(config_map: &mut Value, node_ca: &str) -> bool {
    let Some(Value::String(bundle)) = config_map.get_mut("data").and_then(|data| data.get_mut("ca.crt"))
    else {
        return false;
    };
    let with = with_node_ca(bundle.as_bytes(), node_ca).and_then(|with| String::from_utf8(with).ok());
    with.map(|with| *bundle = with).is_some()
}

/// `ca.crt` of a Secret: base64.
pub(super) fn believe_node_ca_in_secret(secret: &mut Value, node_ca: &str) -> bool {
    let Some(Value::String(bundle)) = secret.get_mut("data").and_then(|data| data.get_mut("ca.crt")) else {
        return false;
    };
    let with = STANDARD.decode(&*bundle).ok().and_then(|bundle| with_node_ca(&bundle, node_ca));
    with.map(|with| *bundle = STANDARD.encode(with)).is_some()
}

/// The bundle with the node's CA at its end; nothing when it has it already.
fn with_node_ca(bundle: &[u8], node_ca: &str) -> Option<Vec<u8>> {
    let mut with = bundle.trim_ascii_end().to_vec();
    if with.ends_with(node_ca.trim_ascii_end().as_bytes()) {
        return None;
    }
    if !with.is_empty() {
        with.push(b'\n');
    }
    with.extend_from_slice(node_ca.as_bytes());
    Some(with)
}

pub(super) fn pull_if_not_present(pod: &mut Value) -> bool {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return false };
    let mut changed = false;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if container["imagePullPolicy"] == "Always" {
                container["imagePullPolicy"] = "IfNotPresent".into();
                changed = true;
            }
        }
    }
    changed
}
