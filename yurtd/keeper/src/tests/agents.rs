//! The node's infrastructure agents go kubelet's way.

use std::time::Duration;

use jiff::Timestamp;
use yurt_api::agent::Turn;
use yurt_api::names;
use yurt_api::status::ConversionState;
use yurt_api::way_in::WayIn;

use super::super::engine::{KeeperError, Target};
use super::super::host::Host;
use super::super::journal::Journal;
use super::super::sim::{Fuse, VANILLA_ARGUMENTS, agent};
use super::super::units;
use super::{Node, pass};

const NAMES: [&str; 2] = ["kube-system/kube-proxy-x", "kube-flannel/kube-flannel-y"];

#[tokio::test]
async fn agents_are_restarted_once_by_a_conversion_and_once_by_a_revert() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().ended, NAMES.map(|name| format!("{name}-0")));
    assert_eq!(node.last_report().agents.restarted, NAMES);
    node.world.borrow_mut().ended.clear();
    // Passes that only look keep the report, and restart nothing.
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(node.last_report().agents.restarted, NAMES);
    assert!(node.world.borrow().ended.is_empty());

    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().ended, NAMES.map(|name| format!("{name}-0+")));
    assert_eq!(node.last_report().state, ConversionState::Reverted);
    assert_eq!(node.last_report().agents.restarted, NAMES);
}

#[tokio::test]
async fn only_what_began_before_kubelet_changed_its_way_is_restarted() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().ended.clear();
    // Every container begins anew with the hub; then the node is reverted in that boot.
    node.world.borrow_mut().power_cut();
    node.reach(Target::Edge).await.unwrap();
    assert!(node.world.borrow().ended.is_empty());
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().ended, NAMES.map(|name| format!("{name}-0++")));
}

#[tokio::test]
async fn an_agent_that_does_not_come_back_is_reported_and_undoes_nothing() {
    let node = Node::new();
    node.world.borrow_mut().agents_broken = true;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    let agents = node.last_report().agents;
    assert!(agents.restarted.is_empty(), "{agents:?}");
    let failed: Vec<&str> = agents.failed.iter().map(|failure| failure.pod.as_str()).collect();
    assert_eq!(failed, NAMES);
    assert!(agents.failed[0].message.contains("it is not Ready"), "{agents:?}");
    assert_eq!(node.world.borrow().kubelet_restarts, 1);

    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn agents_that_are_to_be_kept_are_named_and_left() {
    let node = Node::new();
    node.world.borrow_mut().keep_agents = true;
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert!(node.world.borrow().ended.is_empty());
    assert_eq!(node.last_report().state, ConversionState::Converted);
    assert_eq!(node.last_report().agents.kept, NAMES);
    // They have never known the hub, so leaving it is nothing to them.
    pass(&mut node.keeper(), Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert!(node.world.borrow().ended.is_empty());
    assert!(node.last_report().agents.is_empty());
}

#[tokio::test]
async fn a_link_that_is_lost_while_agents_are_restarted_does_not_stop_a_conversion_and_stops_a_revert() {
    let node = Node::new();
    node.world.borrow_mut().cut_at_first_agent = true;
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().ended.len(), 2, "through the hub they are seen all the same");
    node.world.borrow_mut().link_down = false;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();

    node.world.borrow_mut().ended.clear();
    node.world.borrow_mut().cut_at_first_agent = true;
    let outcome = pass(&mut node.keeper(), Target::Vanilla).await;
    assert!(matches!(outcome, Err(KeeperError::Offline(_))), "{outcome:?}");
    node.world.borrow_mut().link_down = false;
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().ended.len(), 2);
    assert_eq!(node.last_report().agents.restarted, NAMES);
}

#[tokio::test]
async fn agents_of_which_the_hub_cannot_tell_have_their_turn_when_it_can() {
    let node = Node::new();
    node.world.borrow_mut().agents_unknown = true;
    node.reach(Target::Edge).await.unwrap();
    for _ in 0..2 {
        pass(&mut node.keeper(), Target::Edge).await.unwrap();
        let agents = node.last_report().agents;
        assert_eq!((agents.failed.len(), agents.restarted.len()), (1, 0), "{agents:?}");
    }
    assert_eq!(node.world.borrow().ended, [""; 0]);
    node.world.borrow_mut().agents_unknown = false;
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().ended, NAMES.map(|name| format!("{name}-0")));
    let agents = node.last_report().agents;
    assert_eq!((&*agents.restarted, agents.failed.len()), (&NAMES.map(str::to_owned)[..], 0));
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().ended.len(), 2, "once");
}

#[tokio::test]
async fn an_agent_whose_pod_was_deleted_meanwhile_is_not_waited_for() {
    let node = Node::new();
    node.world.borrow_mut().agents = vec![agent("kube-system/goes")];
    node.world.borrow_mut().delete_ended_agents = true;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert!(node.last_report().agents.failed.is_empty());
}

#[tokio::test]
async fn a_kubelet_that_does_not_run_costs_no_agent() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().ended.clear();
    node.world.borrow_mut().kubelet_down = true;
    for _ in 0..3 {
        pass(&mut node.keeper(), Target::Edge).await.unwrap();
    }
    node.world.borrow_mut().kubelet_down = false;
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().ended, [""; 0]);
    assert_eq!(node.last_report().agents.restarted, NAMES);
}

#[tokio::test]
async fn agents_wait_until_kubelet_that_was_led_past_the_hub_is_back_on_it() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().ended.clear();
    node.world.borrow_mut().foreign_arguments = Some(VANILLA_ARGUMENTS.into());
    node.world.borrow_mut().power_cut();
    for _ in 0..3 {
        let outcome = pass(&mut node.keeper(), Target::Edge).await;
        assert!(matches!(outcome, Err(KeeperError::KubeletNotBack { .. })), "{outcome:?}");
    }
    // Also while nobody sees that kubelet is not back.
    node.world.borrow_mut().link_down = true;
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.world.borrow_mut().link_down = false;
    assert_eq!(node.world.borrow().ended, [""; 0]);
    node.world.borrow_mut().foreign_arguments = None;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().ended, NAMES.map(|name| format!("{name}-0++")));
}

#[tokio::test]
async fn an_agent_whose_container_ends_again_and_again_was_not_restarted() {
    let node = Node::new();
    node.world.borrow_mut().agents_crash = true;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    let agents = node.last_report().agents;
    assert!(agents.restarted.is_empty(), "{agents:?}");
    assert!(agents.failed[0].message.contains("ends again and again"), "{agents:?}");
}

#[tokio::test]
async fn agents_whose_turn_does_not_come_in_time_are_left_and_told_of() {
    let node = Node::new();
    let mut keeper = node.keeper();
    keeper.settings.agents_limit = Duration::ZERO;
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().ended, [""; 0]);
    let agents = node.last_report().agents;
    assert!(agents.restarted.is_empty(), "{agents:?}");
    let messages: Vec<&str> = agents.failed.iter().map(|failure| failure.message.as_str()).collect();
    assert_eq!(messages, ["there was no time left for it"; 2]);
}

#[tokio::test]
async fn a_report_says_since_when_what_begins_on_the_node_knows_the_hub() {
    let node = Node::new();
    let mut keeper = node.keeper();
    for _ in 0..2 {
        pass(&mut keeper, Target::Edge).await.unwrap();
        let since: Timestamp = node.last_report().since.unwrap().parse().unwrap();
        for agent in &node.world.borrow().agents {
            assert!(agent.containers.iter().all(|container| container.at > since), "{agent:?}");
        }
    }
    node.reach(Target::Vanilla).await.unwrap();
    assert_eq!(node.last_report().since, None);
}

/// The way by which pods come to the hub, as the plugin writes it down.
fn choose(node: &Node, way: &str) {
    std::fs::write(node.pod.path().join(names::CONFIG_WAY_IN_KEY), way).unwrap();
}

#[tokio::test]
async fn agents_are_restarted_when_the_way_in_is_as_if_they_had_been() {
    let node = Node::new();
    choose(&node, "service");
    node.world.borrow_mut().way_in_when_an_agent_ends = Some(Vec::new());
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    let config = std::fs::read_to_string(node.root().join("opt/yurt/etc/edge.json")).unwrap();
    assert!(config.contains("\"wayIn\": \"service\""), "{config}");
    let seen = node.world.borrow_mut().way_in_when_an_agent_ends.replace(Vec::new()).unwrap();
    assert_eq!(seen.len(), NAMES.len());
    assert!(seen.iter().all(|way_in| way_in.open && way_in.turn.is_some()), "{seen:?}");
    assert_eq!(node.world.borrow().way_in().turn, None, "the turn is over");

    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    let seen = node.world.borrow_mut().way_in_when_an_agent_ends.take().unwrap();
    assert_eq!(seen.len(), NAMES.len());
    assert!(
        seen.iter().all(|way_in| !way_in.open),
        "what begins anew is not led to a hub that goes: {seen:?}"
    );
}

#[tokio::test]
async fn a_node_that_changes_from_the_environment_says_since_when() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let way_in = || node.last_report().way_in.unwrap();
    assert_eq!((way_in().way, way_in().environment_until), (WayIn::Environment, None));
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
    choose(&node, "service");
    node.world.borrow_mut().kernel_knows_no_tables = true;
    node.reach(Target::Edge).await.unwrap();
    assert_eq!((way_in().way, way_in().why.as_deref()), (WayIn::Environment, Some("no nf_tables")));
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
    // kubelet has the Service as it was shown, until it begins anew.
    node.world.borrow_mut().kernel_knows_no_tables = false;
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    assert_eq!((way_in().way, way_in().why), (WayIn::Service, None));
    let until = way_in().environment_until.unwrap();
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(way_in().environment_until, Some(until));
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn address_and_table_go_also_when_their_unit_or_the_program_is_half_gone() {
    type Harm = fn(&Node);
    let harms: [Harm; 3] = [
        |node| std::fs::remove_file(node.root().join("opt/yurt/current")).unwrap(),
        |node| node.world.borrow_mut().stop_behind_its_back(units::ADDRESS.name),
        |node| {
            node.world.borrow_mut().stop_behind_its_back(units::ADDRESS.name);
            std::fs::remove_file(node.root().join(units::ADDRESS.path().trim_start_matches('/'))).unwrap();
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        let node = Node::new();
        node.reach(Target::Edge).await.unwrap();
        assert!(node.world.borrow().address_held);
        harm(&node);
        node.reach(Target::Vanilla).await.unwrap();
        assert!(!node.world.borrow().address_held, "{number}");
        node.assert_vanilla();
    }
}

#[tokio::test]
async fn a_hub_is_told_the_way_of_the_cluster_and_one_of_before_none() {
    let node = Node::new();
    let told = || -> serde_json::Value {
        let text = std::fs::read(node.root().join("opt/yurt/etc/edge.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    node.reach(Target::Edge).await.unwrap();
    assert!(told().get("wayIn").is_none(), "of a plugin that knew one way alone");
    choose(&node, "service\n");
    node.reach(Target::Edge).await.unwrap();
    assert_eq!(told()["wayIn"], "service");
    choose(&node, "sideways");
    assert!(matches!(pass(&mut node.keeper(), Target::Edge).await, Err(KeeperError::Refused(_))));
    assert!(node.last_report().message.contains("sideways"), "{:?}", node.last_report());
    assert_eq!(told()["wayIn"], "service");
    choose(&node, "environment");
    node.reach(Target::Edge).await.unwrap();
    assert!(told().get("wayIn").is_none());
}

#[tokio::test]
async fn what_kubelet_starts_while_it_is_being_ended_knows_the_way_of_before() {
    let node = Node::new();
    node.world.borrow_mut().late = Some(format!("{}-0", NAMES[0]));
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().ended, [format!("{}-0+", NAMES[0]), format!("{}-0", NAMES[1])]);
    node.world.borrow_mut().ended.clear();
    node.world.borrow_mut().late = Some(format!("{}-0++", NAMES[0]));
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().ended, [format!("{}-0+++", NAMES[0]), format!("{}-0+", NAMES[1])]);
}

/// As a keeper leaves it that was killed between two agents.
fn leave_a_turn(node: &Node) {
    let host = Host::with_fuse(node.root(), Fuse::default());
    let mut journal = Journal::load(&host).unwrap().unwrap();
    journal.turn = Some(Turn { second: 1, pods: NAMES.map(str::to_owned).into() });
    journal.save(&host).unwrap();
}

#[tokio::test]
async fn a_turn_that_nobody_carries_out_does_not_stay() {
    type Change = fn(&Node);
    let changes: [(&str, Change); 3] = [
        ("none is due", |_| {}),
        ("kubelet is led past the hub", |node| {
            node.world.borrow_mut().foreign_arguments = Some(VANILLA_ARGUMENTS.into());
            node.world.borrow_mut().power_cut();
        }),
        ("kubelet does not run", |node| node.world.borrow_mut().kubelet_down = true),
    ];
    for (what, change) in changes {
        let node = Node::new();
        node.reach(Target::Edge).await.unwrap();
        leave_a_turn(&node);
        change(&node);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        assert_eq!(node.journal().unwrap().turn, None, "{what}");
    }
}
