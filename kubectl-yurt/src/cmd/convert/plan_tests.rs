use clap::Parser as _;
use serde_json::json;

use super::*;
use crate::{
    args::Cli,
    options::{Options, Verb, nodes::Convert},
};

fn options(line: &str) -> Result<Convert, Error> {
    let words = ["kubectl-yurt", "convert"].into_iter().chain(line.split_whitespace());
    match Options::resolve(Cli::try_parse_from(words).unwrap())?.verb {
        Verb::Convert(options) => Ok(options),
        _ => unreachable!("the line says convert"),
    }
}

fn node(name: &str, labels: &[(&str, &str)], ready: bool, state: Option<&str>) -> Node {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let mut annotations = BTreeMap::new();
    if let Some(state) = state {
        let report = json!({ "state": state, "version": "0.1.0", "time": "2026-01-01T00:00:00Z" });
        annotations.insert(names::ANNOTATION_CONVERSION, report.to_string());
    }
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels, "annotations": annotations },
        "status": {
            "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "Unknown" } }],
            "addresses": [{ "type": "InternalIP", "address": "10.80.0.2" }]
        }
    }))
    .unwrap()
}

const CONTROL_PLANE: (&str, &str) = (names::LABEL_CONTROL_PLANE, "");
const EDGE: (&str, &str) = (names::LABEL_EDGE_WORKER, "true");

fn cluster() -> Vec<Node> {
    vec![node("master", &[CONTROL_PLANE], true, None), node("a", &[], true, None), node("b", &[], true, None)]
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn pick(nodes: &[Node], line: &str) -> Result<Choice, Error> {
    choose(nodes, &options(line)?.which, &BTreeSet::new())
}

#[test]
fn every_node_that_is_not_a_cloud_node_becomes_an_edge_node() {
    let choice = pick(&cluster(), "--cloud-nodes master").unwrap();
    assert_eq!(choice, Choice { edge: set(&["a", "b"]), cloud: set(&["master"]) });
}

#[test]
fn named_edge_nodes_leave_the_others_in_the_cloud() {
    let choice = pick(&cluster(), "--edge-nodes a").unwrap();
    assert_eq!(choice, Choice { edge: set(&["a"]), cloud: set(&["b", "master"]) });
}

#[test]
fn an_edge_node_of_an_earlier_run_stays_one() {
    let mut nodes = cluster();
    nodes[2] = node("b", &[EDGE], true, Some("Converted"));
    let choice = pick(&nodes, "--edge-nodes a").unwrap();
    assert_eq!(choice, Choice { edge: set(&["a"]), cloud: set(&["master"]) });
    assert!(matches!(pick(&nodes, "--cloud-nodes master,b"), Err(Error::Refused(_))));
}

#[test]
fn an_unknown_name_is_refused_with_those_that_exist() {
    let error = pick(&cluster(), "--cloud-nodes mastre").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_eq!(error.to_string(), "node \"mastre\" not found; the cluster has: a, b, master");
}

#[test]
fn the_whole_control_plane_may_not_become_edge() {
    let error = pick(&cluster(), "--cloud-nodes a,b").unwrap_err();
    assert!(error.to_string().contains("control-plane node (master)"), "{error}");
    let two = [node("m1", &[CONTROL_PLANE], true, None), node("m2", &[CONTROL_PLANE], true, None)];
    assert!(pick(&two, "--cloud-nodes m1").is_ok());
}

#[test]
fn nothing_to_convert_is_refused() {
    assert!(matches!(pick(&cluster(), "--cloud-nodes master,a,b"), Err(Error::Refused(_))));
    assert!(matches!(pick(&cluster(), "-l site=x"), Err(Error::Refused(_))));
}

#[test]
fn a_node_that_is_down_is_refused_by_name() {
    let mut nodes = cluster();
    nodes[1] = node("a", &[], false, None);
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    let error = work(&nodes, &choice, true).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("1 node not ready: a;"), "{error}");
}

#[test]
fn a_converted_node_that_is_away_is_no_reason_to_refuse() {
    let mut nodes = cluster();
    nodes[1] = node("a", &[EDGE], false, Some("Converted"));
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    let work = work(&nodes, &choice, true).unwrap();
    assert_eq!(work.away, set(&["a"]));
    assert_eq!(work.converted, set(&["a"]));
    assert_eq!(work.convert, set(&["b"]));
    assert_eq!(work.label, set(&["master"]));
}

#[test]
fn a_node_of_another_release_is_upgraded_if_it_is_there() {
    let mut nodes = cluster();
    nodes[1] = node("a", &[EDGE], true, Some("Converted"));
    nodes[2] = node("b", &[EDGE], false, Some("Converted"));
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    let work = work(&nodes, &choice, true).unwrap();
    assert_eq!(upgrades(&nodes, &work, Some("0.2.0")), set(&["a"]));
    assert!(upgrades(&nodes, &work, Some("0.1.0")).is_empty(), "it is there already");
    assert!(upgrades(&nodes, &work, None).is_empty(), "nobody knows what is in the image");
}

#[test]
fn a_half_converted_node_is_continued() {
    for state in ["Converting", "Failed", "Reverting", "Reverted"] {
        let mut nodes = cluster();
        nodes[1] = node("a", &[EDGE], true, Some(state));
        let choice = pick(&nodes, "--cloud-nodes master").unwrap();
        assert!(work(&nodes, &choice, true).unwrap().convert.contains("a"), "{state}");
    }
}

#[test]
fn a_windows_node_is_refused() {
    let mut nodes = cluster();
    nodes[1] = node("a", &[("kubernetes.io/os", "windows")], true, None);
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    assert!(work(&nodes, &choice, true).unwrap_err().to_string().contains("no Linux: a"));
}

#[test]
fn tunnel_addresses_are_asked_for_remembered_or_found() {
    let nodes = cluster();
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    let config = |line: &str, earlier: Option<ClusterConfig>| {
        let options = options(&format!("--cloud-nodes master {line}"))?;
        cluster_config(&nodes, &choice, options.tunnel.as_ref(), earlier)
    };
    let found = config("", None).unwrap();
    assert_eq!(found.tunnel_addresses, ["10.80.0.2:10262"]);
    assert_eq!(found.tunnel_api_addresses, ["10.80.0.2:10263"]);
    let earlier = ClusterConfig {
        tunnel_addresses: vec!["edge.example.com:443".into()],
        tunnel_api_addresses: vec!["10.0.0.9:10263".into()],
    };
    assert_eq!(config("", Some(earlier.clone())).unwrap(), earlier);
    let asked = config("--tunnel-address x.example.com:10262", Some(earlier)).unwrap();
    assert_eq!(asked.tunnel_addresses, ["x.example.com:10262"]);
    assert_eq!(asked.tunnel_api_addresses, ["10.0.0.9:10263"]);
    assert_eq!(config("--skip-tunnel", None).unwrap(), ClusterConfig::default());
    assert!(config("--tunnel-address nowhere", None).is_err());
}

#[test]
fn ipv6_addresses_get_brackets() {
    assert_eq!(host_port("fd00::2", 10262), "[fd00::2]:10262");
}

#[test]
fn servers_before_1_30_are_refused_and_1_36_mutates() {
    let version = |minor: &str| ServerVersion::parse("1", minor).unwrap();
    assert!(version("29").check().is_err());
    assert!(version("30+").check().is_ok());
    assert!(!version("35").has_mutating_policies());
    assert!(version("36").has_mutating_policies());
    assert_eq!(ServerVersion::parse("1", ""), None);
}

fn with_version(mut node: Node, version: &str) -> Node {
    let info = json!({ "architecture": "", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": version, "machineID": "", "operatingSystem": "", "osImage": "",
        "systemUUID": "" });
    node.status.get_or_insert_default().node_info = serde_json::from_value(info).unwrap();
    node
}

#[test]
fn a_layout_that_is_not_supported_is_refused_where_something_would_be_done() {
    let mut nodes = cluster();
    nodes[1] = with_version(node("a", &[], true, None), "v1.34.1+k3s1");
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    let error = work(&nodes, &choice, true).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("not supported yet: a (k3s);"), "{error}");
    assert!(error.to_string().ends_with("nothing was changed"), "{error}");
    // Left alone, or ours already.
    let choice = pick(&nodes, "--edge-nodes b").unwrap();
    assert!(work(&nodes, &choice, true).is_ok());
    nodes[1] = with_version(node("a", &[EDGE], true, Some("Converted")), "v1.34.1+k3s1");
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    assert!(work(&nodes, &choice, true).is_ok());
    // The tunnel server's nodes.
    let mut nodes = cluster();
    nodes[0] = with_version(node("master", &[CONTROL_PLANE], true, None), "v1.34.1+rke2r1");
    let choice = pick(&nodes, "--cloud-nodes master").unwrap();
    assert!(work(&nodes, &choice, true).unwrap_err().to_string().contains("master (RKE2)"));
    assert!(work(&nodes, &choice, false).is_ok());
}

#[test]
fn one_dead_control_plane_node_of_several_is_named_and_no_reason_to_refuse() {
    let mut nodes = cluster();
    nodes.push(node("master-2", &[CONTROL_PLANE], false, None));
    let choice = pick(&nodes, "--edge-nodes a,b").unwrap();
    assert_eq!(work(&nodes, &choice, true).unwrap().later, set(&["master-2"]));
    assert!(work(&nodes, &choice, false).unwrap().later.is_empty());
    nodes[0] = node("master", &[CONTROL_PLANE], false, None);
    let error = work(&nodes, &choice, true).unwrap_err();
    assert!(error.to_string().contains("is ready (master, master-2)"), "{error}");
}
