use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;
use yurt_api::names::{ANNOTATION_CONVERSION, LABEL_EDGE_WORKER, LABEL_KUBELET_PORT};

use super::*;

/// What a Node is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Edge,
    Vanilla,
    Cloud,
    Converting,
}

fn node(name: &str, day: u32, address: &str, what: As) -> Node {
    let report = |state: &str| json!({"state": state, "version": "1", "time": "t"}).to_string();
    let (label, state) = match what {
        As::Edge => (Some("true"), Some("Converted")),
        As::Converting => (Some("true"), Some("Converting")),
        As::Cloud => (Some("false"), None),
        As::Vanilla => (None, None),
    };
    let mut node = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {}, "annotations": {},
            "creationTimestamp": format!("2026-01-{:02}T00:00:00Z", day % 28 + 1)},
        "status": {"addresses": [{"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}},
    });
    if let Some(label) = label {
        node["metadata"]["labels"][LABEL_EDGE_WORKER] = label.into();
    }
    if let Some(state) = state {
        node["metadata"]["annotations"][ANNOTATION_CONVERSION] = report(state).into();
    }
    serde_json::from_value(node).unwrap()
}

fn given(nodes: &[Node], ports: &mut Ports) -> BTreeMap<String, u16> {
    assert_eq!(give(nodes, ports), Vec::<String>::new());
    ports.iter().map(|(name, given)| (name.clone(), given.port)).collect()
}

fn is(found: &BTreeMap<String, u16>, expected: &[(&str, u16)]) {
    let found: Vec<_> = found.iter().map(|(name, port)| (name.as_str(), *port)).collect();
    assert_eq!(found, expected);
}

const SHOP: &str = "192.168.0.100";

#[test]
fn the_eldest_keeps_kubelets_port_and_the_others_get_their_own() {
    let nodes = [
        node("c", 3, SHOP, As::Edge),
        node("a", 2, SHOP, As::Edge),
        node("b", 2, SHOP, As::Edge),
        node("alone", 1, "192.168.0.101", As::Edge),
    ];
    is(&given(&nodes, &mut Ports::new()), &[("b", 40_000), ("c", 40_001)]);
}

#[test]
fn a_port_stays_when_the_other_leaves_and_goes_to_nobody_else() {
    let (a, b) = (node("a", 1, SHOP, As::Edge), node("b", 2, SHOP, As::Edge));
    let mut ports = Ports::new();
    is(&given(&[a, b.clone()], &mut ports), &[("b", 40_000)]);
    is(&given(std::slice::from_ref(&b), &mut ports), &[("b", 40_000)]);
    // 10250 is free again, and the next one takes it.
    let c = node("c", 3, SHOP, As::Edge);
    is(&given(&[b.clone(), c.clone()], &mut ports), &[("b", 40_000)]);
    let d = node("d", 4, SHOP, As::Edge);
    is(&given(&[b, c, d], &mut ports), &[("b", 40_000), ("d", 40_001)]);
}

#[test]
fn a_node_without_a_hub_is_given_nothing_and_the_other_gives_way() {
    for other in [As::Vanilla, As::Cloud, As::Converting] {
        let nodes = [node("a", 1, SHOP, As::Edge), node("b", 2, SHOP, other)];
        is(&given(&nodes, &mut Ports::new()), &[("a", 40_000)]);
        let nodes = [node("a", 1, SHOP, other), node("b", 2, SHOP, As::Converting)];
        is(&given(&nodes, &mut Ports::new()), &[]);
    }
}

#[test]
fn nodes_whose_kubelets_have_different_ports_are_told_apart_already() {
    let mut other = node("b", 2, SHOP, As::Edge);
    let endpoints = json!({"kubeletEndpoint": {"Port": 10350}});
    other.status.as_mut().unwrap().daemon_endpoints = serde_json::from_value(endpoints).unwrap();
    is(&given(&[node("a", 1, SHOP, As::Edge), other], &mut Ports::new()), &[]);
}

#[test]
fn one_who_was_given_a_port_and_has_not_published_it_yet_is_not_in_the_way() {
    let nodes = [node("a", 1, SHOP, As::Edge), node("b", 2, SHOP, As::Edge)];
    let mut ports = Ports::new();
    let first = given(&nodes, &mut ports);
    assert_eq!(given(&nodes, &mut ports), first);
}

#[test]
fn one_who_was_given_a_port_and_has_lost_its_hub_is_found_at_kubelets_own() {
    let a = node("a", 1, SHOP, As::Edge);
    let mut ports = Ports::new();
    is(&given(&[a.clone(), node("b", 2, SHOP, As::Edge)], &mut ports), &[("b", 40_000)]);
    // Made anew under its Node, which says 10250 until the hub is there.
    is(&given(&[a, node("b", 2, SHOP, As::Converting)], &mut ports), &[("a", 40_001), ("b", 40_000)]);
}

#[test]
fn what_was_kept_and_lost_is_made_of_the_labels() {
    let mut nodes =
        [node("a", 1, SHOP, As::Edge), node("b", 2, SHOP, As::Edge), node("c", 3, SHOP, As::Edge)];
    let mut label = |at: usize, port: &str| {
        let labels = nodes[at].metadata.labels.as_mut().unwrap();
        labels.insert(LABEL_KUBELET_PORT.to_owned(), port.to_owned());
    };
    label(0, "40007");
    label(1, "40007");
    label(2, "80");
    is(&given(&nodes, &mut Ports::new()), &[("a", 40_007), ("c", 40_000)]);
}

#[test]
fn a_port_goes_back_with_its_node_and_when_the_node_is_vanilla_again() {
    let given = Given { port: 40_000, uid: "uid-a".to_owned() };
    let over = |node: &Node| is_over(&given, Some(node));
    assert!(is_over(&given, None));
    assert!(!over(&node("a", 1, SHOP, As::Edge)) && !over(&node("a", 1, SHOP, As::Converting)));
    assert!(over(&node("a", 1, SHOP, As::Vanilla)) && over(&node("a", 1, SHOP, As::Cloud)));
    let mut silent = node("a", 1, SHOP, As::Edge);
    silent.metadata.annotations = None;
    assert!(!over(&silent), "its report will be there again");
    let mut anew = node("a", 1, SHOP, As::Edge);
    anew.metadata.uid = Some("uid-b".to_owned());
    assert!(over(&anew));
}

#[test]
fn what_is_kept_is_read_again() {
    let given = Given { port: 40_000, uid: "uid-a".to_owned() };
    assert_eq!(Given::of_text(&given.to_text()), Some(given));
    for text in ["", "40000", "40000 ", "80 uid", "x uid"] {
        assert_eq!(Given::of_text(text), None, "{text:?}");
    }
}

#[test]
fn a_range_that_is_used_up_is_used_again_at_other_addresses() {
    let shops: Vec<Node> = (0..3)
        .flat_map(|shop| (0..4001).map(move |number| (shop, number)))
        .map(|(shop, number)| node(&format!("{shop}-{number:04}"), 1, &format!("10.0.0.{shop}"), As::Edge))
        .collect();
    let mut ports = Ports::new();
    let found = given(&shops, &mut ports);
    assert_eq!(found.len(), 3 * 4000);
    for shop in 0..3 {
        let at = |name: &&String| name.starts_with(&format!("{shop}-"));
        let here: HashSet<u16> = found.keys().filter(at).map(|name| found[name]).collect();
        assert_eq!(here.len(), 4000);
    }
    // Two of different addresses come to the same one.
    let (first, port) = found.iter().next().unwrap();
    let twin = found.iter().find(|(name, other)| *other == port && *name != first).unwrap().0.clone();
    let mut moved = shops;
    let at = moved.iter().position(|node| node.name_any() == *first).unwrap();
    moved[at] = node(first, 1, "10.0.0.9", As::Edge);
    let at = moved.iter().position(|node| node.name_any() == twin).unwrap();
    moved[at] = node(&twin, 2, "10.0.0.9", As::Edge);
    let after = given(&moved, &mut ports);
    assert_eq!(after[first], *port);
    assert!(after.get(&twin) != Some(port));
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8, u8, As),
    Remove(u8),
    Move(u8, u8),
    Become(u8, As),
    /// What was kept is lost.
    Forget,
}

fn kind() -> impl Strategy<Value = As> {
    prop_oneof![4 => Just(As::Edge), 1 => Just(As::Vanilla), 1 => Just(As::Cloud), 1 => Just(As::Converting)]
}

fn step() -> impl Strategy<Value = Step> {
    let (name, ip) = (0..12_u8, 0..3_u8);
    prop_oneof![
        4 => (name.clone(), ip.clone(), kind()).prop_map(|(name, ip, what)| Step::Add(name, ip, what)),
        1 => name.clone().prop_map(Step::Remove),
        1 => (name.clone(), ip).prop_map(|(name, ip)| Step::Move(name, ip)),
        1 => (name, kind()).prop_map(|(name, what)| Step::Become(name, what)),
        1 => Just(Step::Forget),
    ]
}

proptest! {
    /// Whatever comes, goes, moves and is forgotten: no two at one address ever have the same port, who has one keeps it,
    /// and two who can be moved are always told apart.
    #[test]
    fn no_two_ever_share_address_and_port_and_what_was_given_stays(steps in prop::collection::vec(step(), 1..40)) {
        let mut world: BTreeMap<u8, (u32, u8, As, Option<u16>)> = BTreeMap::new();
        let mut ports = Ports::new();
        for (time, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(name, ip, what) => {
                    world.entry(name).or_insert((u32::try_from(time).unwrap(), ip, what, None));
                }
                Step::Remove(name) => drop(world.remove(&name)),
                Step::Move(name, ip) => drop(world.get_mut(&name).map(|node| node.1 = ip)),
                Step::Become(name, what) => drop(world.get_mut(&name).map(|node| node.2 = what)),
                Step::Forget => ports.clear(),
            }
            let nodes: Vec<Node> = world
                .iter()
                .map(|(name, (day, ip, what, label))| {
                    let mut node = node(&format!("n-{name:02}"), *day, &format!("10.0.0.{ip}"), *what);
                    let labels = node.metadata.labels.as_mut().unwrap();
                    labels.extend(label.map(|port| (LABEL_KUBELET_PORT.to_owned(), port.to_string())));
                    node
                })
                .collect();
            let find = |name: &str| nodes.iter().find(|node| node.name_any() == name);
            ports.retain(|name, given| !is_over(given, find(name)));
            let before = ports.clone();
            prop_assert!(give(&nodes, &mut ports).is_empty());
            prop_assert!(before.iter().all(|(name, given)| ports.get(name) == Some(given)));
            for (name, (_, _, what, label)) in &mut world {
                let port = ports.get(&format!("n-{name:02}")).map(|given| given.port);
                prop_assert!(label.is_none() || *what != As::Edge || *label == port, "it keeps its port");
                *label = port;
            }
            // Who has no hub says kubelet's own port, and may have been given one.
            let at = |one: &(u32, u8, As, Option<u16>)| -> Vec<(u8, u16)> {
                let own = (one.2 != As::Edge || one.3.is_none()).then_some(10250);
                own.into_iter().chain(one.3).map(|port| (one.1, port)).collect()
            };
            for (name, one) in &world {
                for (other, two) in world.iter().filter(|(other, _)| *other > name) {
                    let told_apart = at(one).iter().all(|place| !at(two).contains(place));
                    let movable = one.2 == As::Edge || two.2 == As::Edge;
                    prop_assert!(told_apart || !movable, "{name} and {other} at {:?}", at(one));
                }
            }
        }
    }
}
