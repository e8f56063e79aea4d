//! A converted node stays as it should be, and gets new releases.

use std::collections::BTreeMap;

use yurt_api::names;
use yurt_api::status::ConversionState;

use super::super::engine::Target;
use super::super::sim::{Holder, snapshot};
use super::super::units;
use super::{Node, pass};

#[tokio::test]
async fn a_converted_node_is_left_alone() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.kill_after(0);
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.revive();
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
    assert_eq!(node.world.borrow().hub_restarts, 1);
}

#[tokio::test]
async fn drift_is_repaired_also_without_a_link() {
    let drifts: [fn(&Node); 7] = [
        |node| {
            std::fs::remove_file(node.root().join("etc/systemd/system/kubelet.service.d/zz-yurt.conf"))
                .unwrap()
        },
        |node| node.world.borrow_mut().stop_behind_its_back(units::SERVICE.name),
        |node| node.world.borrow_mut().stop_behind_its_back(units::ADDRESS.name),
        |node| std::fs::write(node.root().join("opt/yurt/etc/edge.json"), "{}").unwrap(),
        |node| std::fs::write(node.root().join("etc/systemd/system/yurtd.socket"), "[Socket]\n").unwrap(),
        |node| {
            std::fs::remove_file(node.root().join("etc/systemd/system/sockets.target.wants/yurtd.socket"))
                .unwrap();
        },
        |node| std::fs::remove_dir_all(node.root().join("opt/yurt/etc")).unwrap(),
    ];
    for (number, drift) in drifts.into_iter().enumerate() {
        let node = Node::new();
        node.reach(Target::Edge).await.unwrap();
        let good = snapshot(node.root());
        node.world.borrow_mut().link_down = true;
        drift(&node);
        pass(&mut node.keeper(), Target::Edge).await.unwrap();
        assert_eq!(snapshot(node.root()), good, "drift {number}");
        node.assert_converted();
    }
}

#[tokio::test]
async fn a_drop_in_removed_and_reloaded_is_put_back_with_kubelet() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    std::fs::remove_file(node.root().join("etc/systemd/system/kubelet.service.d/zz-yurt.conf")).unwrap();
    node.world.borrow_mut().power_cut();
    assert!(!node.world.borrow().kubelet_uses_hub());
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
}

#[tokio::test]
async fn a_changed_configuration_restarts_the_hub_once_and_a_new_tunnel_ca_does_not() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let mut keeper = node.keeper();
    node.set_config(&["cloud:10262", "cloud-2:10262"]);
    for _ in 0..3 {
        pass(&mut keeper, Target::Edge).await.unwrap();
    }
    assert_eq!(node.world.borrow().hub_restarts, 2);
    assert_eq!(node.world.borrow().address_restarts, 1, "the pods' address stays");
    assert_eq!(node.world.borrow().kubelet_restarts, 1);

    let ca = BTreeMap::from([("ca.crt".to_owned(), "tunnel".to_owned())]);
    node.world.borrow_mut().config_maps.insert(names::TUNNEL_CA_CONFIG_MAP.into(), ca);
    pass(&mut keeper, Target::Edge).await.unwrap();
    let installed = || std::fs::read_to_string(node.root().join("opt/yurt/etc/tunnel-ca.crt")).unwrap();
    assert_eq!(installed(), "tunnel");
    std::fs::create_dir(node.pod.path().join("tunnel-ca")).unwrap();
    std::fs::write(node.pod.path().join("tunnel-ca/ca.crt"), "rotated").unwrap();
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(installed(), "rotated");
    assert_eq!(node.world.borrow().hub_restarts, 2);
}

#[tokio::test]
async fn a_configuration_that_is_not_valid_is_reported_and_changes_nothing() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let good = snapshot(node.root());
    std::fs::write(node.pod.path().join(names::CONFIG_KEY), "{\"tunnelAddresses\":1}").unwrap();
    assert!(pass(&mut node.keeper(), Target::Edge).await.is_err());
    assert_eq!(snapshot(node.root()), good);
    assert!(node.last_report().message.contains(names::CONFIG_MAP), "{:?}", node.last_report());
    assert_eq!(node.last_report().state, ConversionState::Converted);
}

fn releases(node: &Node) -> usize {
    std::fs::read_dir(node.root().join("opt/yurt"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().join("yurtd").exists())
        .filter(|entry| !entry.as_ref().unwrap().path().is_symlink())
        .count()
}

#[tokio::test]
async fn a_new_release_takes_the_place_of_the_old() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.set_program("program 2");
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap(), b"program 2");
    assert_eq!(releases(&node), 1);
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn a_release_that_does_not_work_is_swapped_back_and_not_tried_again() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.set_program("program 2");
    node.world.borrow_mut().broken_program = Some(b"program 2".to_vec());
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    let restarts = node.world.borrow().hub_restarts;
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().hub_restarts, restarts);
    node.assert_converted();
    assert_eq!(std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap(), b"program 1");
    assert!(node.last_report().message.contains("swapped back"), "{:?}", node.last_report());
}

#[tokio::test]
async fn a_rotated_client_certificate_is_read_again() {
    let node = Node::new();
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    let pki = node.root().join("var/lib/kubelet/pki");
    std::fs::write(pki.join("kubelet-client-2027.pem"), "next certificate").unwrap();
    std::fs::remove_file(pki.join("kubelet-client-current.pem")).unwrap();
    std::os::unix::fs::symlink(
        "/var/lib/kubelet/pki/kubelet-client-2027.pem",
        pki.join("kubelet-client-current.pem"),
    )
    .unwrap();
    keeper.identify().await.unwrap();
    assert_eq!(keeper.cluster().access.as_ref().unwrap().certificate, b"next certificate");
}

#[tokio::test]
async fn a_configuration_that_nobody_can_be_asked_for_stays_as_it_is() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let good = snapshot(node.root());
    std::fs::remove_file(node.pod.path().join(names::CONFIG_KEY)).unwrap();
    node.world.borrow_mut().link_down = true;
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    assert_eq!(snapshot(node.root()), good);
    assert_eq!(node.world.borrow().hub_restarts, 1);
}

#[tokio::test]
async fn a_release_of_before_is_swapped_back_under_units_that_it_understands() {
    let node = Node::new();
    node.set_program("old program");
    node.reach(Target::Edge).await.unwrap();
    node.set_program("program 2");
    node.world.borrow_mut().broken_program = Some(b"program 2".to_vec());
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap(), b"old program");
    for unit in units::ALL {
        assert!(node.world.borrow().is_active(unit.name), "{}", unit.name);
    }
    // What the old program does not know is done by the one that this keeper has installed.
    node.world.borrow_mut().ended.clear();
    node.world.borrow_mut().power_cut();
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().ended.len(), 2);
}

#[tokio::test]
async fn a_release_that_failed_is_not_tried_again_wherever_the_keeper_that_swaps_back_is_killed() {
    for effects in 0.. {
        let node = Node::new();
        node.reach(Target::Edge).await.unwrap();
        node.set_program("program 2");
        node.world.borrow_mut().broken_program = Some(b"program 2".to_vec());
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        for _ in 0..3 {
            pass(&mut node.keeper(), Target::Edge).await.unwrap();
        }
        let rejected = node.journal().unwrap().rejected.unwrap();
        assert_eq!(rejected, node.keeper().release, "after {effects} effects");
        assert_eq!(node.journal().unwrap().previous, None);
        if !killed {
            return;
        }
    }
}

#[tokio::test]
async fn the_table_goes_with_a_release_that_is_swapped_back_however_its_holder_fares() {
    for holder in [Holder::Well, Holder::Dies, Holder::DiesWithItsUnit] {
        let node = Node::new();
        node.set_program("old program");
        node.reach(Target::Edge).await.unwrap();
        assert!(!node.world.borrow().table_held, "of a release that knows none");
        node.set_program("program 2");
        node.world.borrow_mut().holder = holder;
        node.world.borrow_mut().broken_program = Some(b"program 2".to_vec());
        pass(&mut node.keeper(), Target::Edge).await.unwrap();
        assert!(node.last_report().message.contains("swapped back"), "{:?}", node.last_report());
        let world = node.world.borrow();
        assert!(world.address_held && !world.table_held, "{holder:?}");
    }
}
