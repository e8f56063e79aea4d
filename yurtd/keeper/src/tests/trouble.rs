//! What a busy cluster does while a node is converted, and a keeper that cannot report.

use std::time::Duration;

use yurt_api::doctor::TunnelSession;
use yurt_api::status::TunnelFault;

use super::super::cluster::{ApiCluster, ClusterError};
use super::super::containers::Running;
use super::super::engine::{Engine, Target};
use super::super::journal::Phase;
use super::super::passes::watch_over;
use super::super::sim::{replace, snapshot};
use super::{Node, fails_and_is_undone, pass};

#[tokio::test]
async fn containers_that_come_and_go_by_themselves_undo_nothing() {
    let churns: [fn(&mut Running); 2] = [|all| replace(all, Some(1)), Running::clear];
    for churn in churns {
        let node = Node::new();
        node.world.borrow_mut().churn = churn;
        pass(&mut node.keeper(), Target::Edge).await.unwrap();
        node.assert_converted();
        assert_eq!(node.journal().unwrap().before, None, "of no use any more");
    }
}

/// A node whose keeper was killed right after it had restarted kubelet, which did this to its containers.
async fn killed_after_the_restart(churn: fn(&mut Running)) -> Node {
    for effects in 0.. {
        let node = Node::new();
        node.world.borrow_mut().churn = churn;
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        let killed = node.revive();
        if node.world.borrow().kubelet_uses_hub() {
            assert!(killed && node.journal().unwrap().before.is_some());
            return node;
        }
    }
    unreachable!("there is an end to the effects of a conversion")
}

#[tokio::test]
async fn what_a_restart_replaced_is_found_by_the_next_keeper_too() {
    let node = killed_after_the_restart(|all| replace(all, Some(143))).await;
    fails_and_is_undone(&node, "verify").await;
}

#[tokio::test]
async fn containers_of_an_earlier_boot_are_not_compared() {
    let node = killed_after_the_restart(|_| {}).await;
    node.world.borrow_mut().power_cut();
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
}

#[tokio::test]
async fn what_ran_is_looked_at_again_until_kubelet_is_restarted() {
    let node = Node::new();
    for effects in 0.. {
        node.kill_after(effects);
        let _ = pass(&mut node.keeper(), Target::Edge).await;
        assert!(node.revive() && !node.world.borrow().kubelet_uses_hub());
        if node.journal().is_some_and(|journal| journal.before.is_some()) {
            break;
        }
    }
    // Somebody updates the program before the next keeper comes.
    replace(&mut node.world.borrow_mut().containers, Some(0));
    pass(&mut node.keeper(), Target::Edge).await.unwrap();
    node.assert_converted();
}

fn hiccups() -> Vec<ClusterError> {
    let refused =
        |code: u16, text: &str| ClusterError::Refused { what: "the API server", code, message: text.into() };
    let lost = ClusterError::Unreachable { what: "the API server", message: "connection reset".into() };
    vec![
        lost,
        refused(500, "etcdserver: leader changed"),
        refused(429, "too many requests"),
        refused(503, ""),
    ]
}

#[tokio::test]
async fn a_question_that_was_not_answered_is_asked_again() {
    let node = Node::new();
    // Enough for each question: the first Lease, the next, the node, the containers.
    let many = || (0..4).flat_map(|_| hiccups()).collect::<Vec<_>>();
    node.world.borrow_mut().hiccups_after_restart = many();
    let mut keeper = node.keeper();
    keeper.settings.kubelet_limit = Duration::from_secs(60);
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.assert_converted();
    assert!(node.world.borrow().hiccups.is_empty());

    node.world.borrow_mut().hiccups_after_restart = many();
    keeper.settings.kubelet_limit = Duration::from_secs(60);
    pass(&mut keeper, Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn an_api_server_that_is_busy_before_anything_is_touched_is_waited_for() {
    let node = Node::new();
    node.world.borrow_mut().hiccups = hiccups().into_iter().skip(1).collect();
    let mut keeper = node.keeper();
    keeper.settings.kubelet_limit = Duration::from_secs(60);
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.assert_converted();
}

#[tokio::test]
async fn an_api_server_that_goes_on_refusing_undoes_the_conversion_with_its_words() {
    let node = Node::new();
    let mut keeper = node.keeper();
    keeper.settings.kubelet_limit = Duration::from_millis(20);
    let refused = || ClusterError::Refused {
        what: "the API server",
        code: 500,
        message: "etcdserver: no leader".into(),
    };
    node.world.borrow_mut().hiccups_after_restart = (0..2000).map(|_| refused()).collect();
    let outcome = pass(&mut keeper, Target::Edge).await;
    // Undoing has to wait for the API server as well.
    assert!(outcome.is_err(), "{outcome:?}");
    let journal = node.journal().unwrap();
    let Phase::Undoing { failure: Some(failure) } = &journal.phase else { panic!("{:?}", journal.phase) };
    assert!(failure.message.contains("etcdserver: no leader"), "{failure:?}");
    node.world.borrow_mut().hiccups.clear();
    fails_and_is_undone(&node, "verify").await;
}

/// The keeper's whole loop on a node whose kubelet has this kubeconfig; how it ended, if it did, and its last words.
async fn last_words(node: &Node, change: fn(String) -> String) -> (Option<String>, String) {
    let path = node.root().join("etc/kubernetes/kubelet.conf");
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    let before = snapshot(node.root());
    let file = node.pod.path().join("termination-log");
    std::fs::write(&file, "").unwrap();
    let keeper = node.keeper();
    let engine = Engine::new(
        keeper.host,
        keeper.systemd,
        ApiCluster::new("edge-node", "kube-system"),
        "edge-node",
        keeper.sources,
        keeper.settings,
        keeper.release,
    );
    let said = async {
        while std::fs::read(&file).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // It has had its chance to end, on a busy machine too.
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let ended = tokio::select! {
        biased;
        end = watch_over(engine, "edge-node", &file) => Some(format!("{:#}", end.unwrap_err())),
        () = said => None,
    };
    assert_eq!(snapshot(node.root()), before);
    (ended, std::fs::read_to_string(file).unwrap())
}

#[tokio::test]
async fn a_keeper_that_cannot_report_ends_with_its_reason_where_kubelet_reads_it() {
    type Change = fn(String) -> String;
    let cases: [(Change, &str); 4] = [
        (|text| text.replace("    server:", "    proxy-url: http://proxy:3128\n    server:"), "proxy"),
        (|text| text.replace("client-key: /", "client-key-data: "), "client-key"),
        (
            |text| {
                text.replace(
                    "certificate-authority-data: Y2VydGlmaWNhdGU=",
                    "certificate-authority: /srv/ca.crt",
                )
            },
            "/srv/ca.crt is not mounted",
        ),
        // Its files are there, but are no certificate and no key.
        (|text| text, "client certificate cannot be used"),
    ];
    for (change, expected) in cases {
        let (end, words) = last_words(&Node::new(), change).await;
        assert!(words.contains(expected), "{words:?}");
        assert!(
            end.is_some_and(|end| end.contains(&words)),
            "it ends, and says the same to whoever reads its log"
        );
    }
}

#[tokio::test]
async fn a_keeper_of_a_converted_node_that_cannot_report_stays() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let (end, words) = last_words(&node, |_| "{ half".into()).await;
    assert_eq!(end, None);
    assert!(words.contains("kubelet.conf"), "{words:?}");
}

#[tokio::test]
async fn why_the_tunnel_has_no_session_is_told_and_forgotten_when_it_has_one() {
    let node = Node::new();
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    let told = || node.world.borrow().reports.last().unwrap().tunnel.clone();
    assert_eq!(told(), []);
    let error = "TLS: invalid peer certificate: Expired".to_owned();
    let session = TunnelSession {
        server: "cloud:10262".into(),
        for_seconds: 60,
        error: Some(error.clone()),
        code: Some("CertificateExpired".into()),
        ..TunnelSession::default()
    };
    node.world.borrow_mut().tunnel = vec![session.clone()];
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(
        told(),
        [TunnelFault { server: "cloud:10262".into(), error, code: Some("CertificateExpired".into()) }]
    );
    let reports = node.world.borrow().reports.len();
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(node.world.borrow().reports.len(), reports, "nothing new, nothing written");
    node.world.borrow_mut().tunnel = vec![TunnelSession { connected: true, error: None, ..session }];
    pass(&mut keeper, Target::Edge).await.unwrap();
    assert_eq!(told(), []);
}

#[tokio::test]
async fn a_kubelet_that_somebody_has_stopped_stays_stopped_and_is_told_of() {
    let node = Node::new();
    let mut keeper = node.keeper();
    pass(&mut keeper, Target::Edge).await.unwrap();
    let message = || node.world.borrow().reports.last().unwrap().message.clone();
    node.world.borrow_mut().kubelet_stopped = true;
    for _ in 0..3 {
        pass(&mut keeper, Target::Edge).await.unwrap();
        assert!(node.world.borrow().kubelet_stopped, "somebody knows why");
        assert!(message().starts_with("kubelet.service is stopped"), "{}", message());
    }
    node.world.borrow_mut().power_cut();
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(message(), "");
}
