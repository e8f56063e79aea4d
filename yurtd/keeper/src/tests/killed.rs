//! Killed between any two effects, a keeper leaves what the next one finishes or undoes.

use super::super::engine::Target;
use super::{Node, pass};

/// Runs `act` on a fresh node again and again, killed one effect later each time, until it was not killed.
async fn killed_everywhere(prepare: Option<Target>, act: Target, then: Target, check: fn(&Node)) {
    for effects in 0.. {
        let node = Node::new();
        if let Some(target) = prepare {
            node.reach(target).await.unwrap();
        }
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), act).await;
        let killed = node.revive();
        node.reach(then).await.unwrap_or_else(|error| panic!("killed after {effects} effects: {error}"));
        check(&node);
        if !killed {
            assert!(effects > 10, "only {effects} effects");
            return;
        }
    }
}

#[tokio::test]
async fn a_conversion_killed_anywhere_is_finished_by_the_next_keeper() {
    killed_everywhere(None, Target::Edge, Target::Edge, Node::assert_converted).await;
}

#[tokio::test]
async fn a_conversion_killed_anywhere_can_be_reverted_without_a_trace() {
    killed_everywhere(None, Target::Edge, Target::Vanilla, Node::assert_vanilla).await;
}

#[tokio::test]
async fn a_revert_killed_anywhere_is_finished_by_the_next_keeper() {
    killed_everywhere(Some(Target::Edge), Target::Vanilla, Target::Vanilla, Node::assert_vanilla).await;
}

#[tokio::test]
async fn a_revert_killed_anywhere_can_be_converted_again() {
    killed_everywhere(Some(Target::Edge), Target::Vanilla, Target::Edge, Node::assert_converted).await;
}

#[tokio::test]
async fn a_power_cut_anywhere_in_a_conversion_ends_in_a_clean_state() {
    for effects in 0.. {
        let node = Node::new();
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        node.world.borrow_mut().power_cut();
        node.reach(Target::Edge).await.unwrap_or_else(|error| panic!("after {effects} effects: {error}"));
        node.assert_converted();
        if !killed {
            return;
        }
    }
}

#[tokio::test]
async fn an_undoing_killed_anywhere_is_finished() {
    for effects in 0.. {
        let node = Node::new();
        node.world.borrow_mut().kubelet_broken = true;
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        let mut keeper = node.keeper();
        for _ in 0..3 {
            let _ = pass(&mut keeper, Target::Edge).await;
        }
        node.assert_vanilla();
        if !killed {
            return;
        }
    }
}

/// Upgrades a node from `first` to another program, good or broken, killed one effect later each time.
async fn upgrade_killed_everywhere(first: &str, broken: bool) {
    for effects in 0.. {
        let node = Node::new();
        node.set_program(first);
        node.reach(Target::Edge).await.unwrap();
        node.set_program("program 2");
        node.world.borrow_mut().broken_program = broken.then(|| b"program 2".to_vec());
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        node.reach(Target::Edge).await.unwrap_or_else(|error| panic!("after {effects} effects: {error}"));
        node.assert_converted();
        let expected: &[u8] = if broken { first.as_bytes() } else { b"program 2" };
        let found = std::fs::read(node.root().join("opt/yurt/current/yurtd")).unwrap();
        assert_eq!(found, expected, "{effects}");
        if !killed {
            return;
        }
    }
}

#[tokio::test]
async fn an_upgrade_killed_anywhere_is_finished() {
    upgrade_killed_everywhere("program 1", false).await;
}

#[tokio::test]
async fn an_upgrade_to_a_broken_program_killed_anywhere_is_swapped_back() {
    upgrade_killed_everywhere("program 1", true).await;
}

/// Its hub has a certificate of the cluster's CA.
#[tokio::test]
async fn an_upgrade_from_an_older_release_killed_anywhere_is_finished() {
    upgrade_killed_everywhere("old program", false).await;
}

#[tokio::test]
async fn an_upgrade_from_an_older_release_to_a_broken_program_killed_anywhere_is_swapped_back() {
    upgrade_killed_everywhere("old program", true).await;
}
