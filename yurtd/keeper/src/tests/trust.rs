//! Whom kubelet believes, and that it is told in time.

use yurt_api::agent::Course;
use yurt_api::names;
use yurt_api::status::ConversionState;

use super::super::engine::Target;
use super::super::host::Host;
use super::super::journal::Journal;
use super::super::kubeconfig::{self, CaSource};
use super::super::sim::{self, Fuse, snapshot};
use super::super::units;
use super::{Node, pass};

/// What kubelet's kubeconfig says it is to believe.
fn bundle(node: &Node) -> String {
    let path = node.root().join(names::KUBELET_KUBECONFIG.trim_start_matches('/'));
    match kubeconfig::parse(&std::fs::read_to_string(path).unwrap()).unwrap().ca {
        CaSource::Inline(bundle) => String::from_utf8(bundle).unwrap(),
        CaSource::File(path) => panic!("a file: {path}"),
    }
}

fn lose_the_ca(node: &Node) {
    std::fs::remove_file(node.root().join("var/lib/yurt/ca.pem")).unwrap();
    node.world.borrow_mut().stop_behind_its_back(units::SERVICE.name);
}

#[tokio::test]
async fn kubelet_believes_the_node_beside_the_cluster() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(bundle(&node), "certificate\nnode CA 1\n");
    let mode = snapshot(node.root())["opt/yurt/etc/kubelet.conf"].clone();
    assert!(mode.starts_with("600 "), "{mode}");
}

#[tokio::test]
async fn a_ca_that_the_hub_made_anew_reaches_kubelet_also_without_a_link() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().link_down = true;
    lose_the_ca(&node);
    node.world.borrow_mut().ended.clear();
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(bundle(&node), "certificate\nnode CA 2\n");
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    assert_eq!(node.world.borrow().ended.len(), 2, "agents that believe the other one");
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().kubelet_restarts, 2, "once");
}

#[tokio::test]
async fn it_reaches_kubelet_wherever_the_keeper_is_killed() {
    for effects in 0.. {
        let node = Node::new();
        node.reach(Target::Edge).await.unwrap();
        lose_the_ca(&node);
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        node.reach(Target::Edge).await.unwrap_or_else(|error| panic!("after {effects} effects: {error}"));
        node.assert_converted();
        if !killed {
            assert!(effects > 3, "only {effects} effects");
            return;
        }
    }
}

#[tokio::test]
async fn a_hub_that_does_not_answer_leaves_kubelet_with_what_it_believes() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let good = snapshot(node.root());
    node.world.borrow_mut().hub_broken = true;
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    assert_eq!(snapshot(node.root()), good);
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
}

#[tokio::test]
async fn whoever_listens_in_the_hubs_place_is_not_believed() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let mut keeper = node.keeper();
    keeper.identify().await.unwrap();
    assert_eq!(keeper.meet_hub().await.unwrap().as_deref(), Some("node CA 1\n"));
    node.world.borrow_mut().impostor = Some("another CA\n".into());
    node.world.borrow_mut().stop_behind_its_back(units::SOCKET.name);
    let error = keeper.meet_hub().await.unwrap_err();
    assert!(error.to_string().contains("nobody knows who listens"), "{error}");
    assert_eq!(keeper.cluster().believed.as_deref(), Some("node CA 1\n"));
}

#[tokio::test]
async fn an_upgrade_from_a_hub_of_the_clusters_ca_tells_kubelet_of_the_nodes() {
    let node = Node::new();
    node.set_program("old program");
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(bundle(&node), "certificate");
    node.set_program("program 2");
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(bundle(&node), "certificate\nnode CA 1\n");
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn a_new_release_with_which_kubelet_does_not_come_back_is_swapped_back() {
    let node = Node::new();
    node.set_program("old program");
    node.reach(Target::Edge).await.unwrap();
    node.set_program("program 2");
    node.world.borrow_mut().broken_for_kubelet = Some(b"program 2".to_vec());
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    let report = node.last_report();
    assert_eq!(report.state, ConversionState::Converted);
    assert!(report.message.contains("swapped back") && report.message.contains("Lease"), "{report:?}");
    assert_eq!(std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap(), b"old program");
}

#[tokio::test]
async fn a_domain_of_its_own_is_told_to_the_hub_that_knows_the_field_and_to_no_other() {
    let node = Node::new();
    let path = node.root().join("var/lib/kubelet/config.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}clusterDomain: shop.example\n")).unwrap();
    let told = || {
        let text = std::fs::read(node.root().join("opt/yurt/etc/edge.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["clusterDomain"].clone()
    };
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(told(), "shop.example");
    node.set_program("program 2");
    node.world.borrow_mut().broken_program = Some(b"program 2".to_vec());
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    assert!(node.last_report().message.contains("swapped back"));
    assert_eq!(told(), serde_json::Value::Null, "the one that was put back may not know it");
}

#[tokio::test]
async fn a_node_that_was_not_ready_before_gets_a_new_release_all_the_same() {
    let node = Node::new();
    node.set_program("old program");
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().not_ready = true;
    node.set_program("program 2");
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    assert_eq!(std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap(), b"program 2");
}

/// What the hub is told of it.
fn course(node: &Node) -> Course {
    let journal = node.root().join(names::KEEPER_JOURNAL.trim_start_matches('/'));
    crate::came::read(&journal).unwrap()
}

#[tokio::test]
async fn which_ca_kubelet_believes_and_since_when_is_written_down_when_it_has_been_restarted() {
    let node = Node::new();
    node.set_program("old program");
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(course(&node).believed, None, "the cluster's alone");
    let mut last = sim::now().as_second();
    let mut expect = |ca: &str| {
        let believed = course(&node).believed.unwrap();
        assert_eq!(believed.ca, ca);
        assert!(last < believed.since.second, "{believed:?} when kubelet had ended, not {last}");
        last = believed.since.second;
    };
    node.set_program("program 2");
    node.reach(Target::Edge).await.unwrap();
    expect("node CA 1");
    let before = course(&node);
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(course(&node), before, "a pass that only looks");
    lose_the_ca(&node);
    node.reach(Target::Edge).await.unwrap();
    expect("node CA 2");
    assert_eq!(course(&node).came, before.came);
}

#[tokio::test]
async fn a_journal_that_does_not_say_which_ca_kubelet_believes_is_completed() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let host = Host::with_fuse(node.root(), Fuse::default());
    let mut journal = Journal::load(&host).unwrap().unwrap();
    journal.believed = None;
    journal.save(&host).unwrap();
    let begin = sim::now().as_second();
    node.reach(Target::Edge).await.unwrap();
    let believed = course(&node).believed.unwrap();
    assert_eq!(believed.ca, "node CA 1");
    assert!(believed.since.second >= begin, "whatever runs may be from before");
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
}
