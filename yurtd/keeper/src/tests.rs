//! Whole conversions and reverts on a temporary folder.

mod agents;
mod kept;
mod killed;
mod trouble;
mod trust;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use yurt_api::names;
use yurt_api::status::{ClusterConfig, ConversionState};

use super::containers::Running;
use super::engine::{Engine, KeeperError, Settings, Sources, Target};
use super::host::{self, Host};
use super::journal::{Journal, Phase, Release};
use super::sim::{self, FakeCluster, FakeSystemd, Shared, World, replace, snapshot};
use super::units;

type TestEngine = Engine<FakeSystemd, FakeCluster>;

struct Node {
    folder: TempDir,
    pod: TempDir,
    world: Shared,
    before: BTreeMap<String, String>,
}

impl Node {
    fn new() -> Self {
        let (folder, pod) = (in_memory(), in_memory());
        std::fs::write(pod.path().join("yurtd"), "program 1").unwrap();
        let world = World::vanilla(folder.path());
        let before = snapshot(folder.path());
        let node = Self { folder, pod, world, before };
        node.set_config(&["cloud:10262"]);
        node
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn set_config(&self, tunnel: &[&str]) {
        let config = ClusterConfig {
            tunnel_addresses: tunnel.iter().map(|&address| address.into()).collect(),
            tunnel_api_addresses: Vec::new(),
        };
        std::fs::write(self.pod.path().join(names::CONFIG_KEY), serde_json::to_vec(&config).unwrap())
            .unwrap();
    }

    fn set_program(&self, content: &str) {
        std::fs::write(self.pod.path().join("yurtd"), content).unwrap();
    }

    /// A keeper that has just started: nothing of an earlier one but what is on the disk.
    fn keeper(&self) -> TestEngine {
        let executable = self.pod.path().join("yurtd");
        let release = Release { version: "0.1.0".into(), digest: host::digest(&executable).unwrap() };
        let settings = Settings {
            hub_limit: Duration::from_millis(5),
            upgrade_limit: Duration::from_millis(5),
            kubelet_limit: Duration::from_millis(5),
            settle: Duration::from_millis(1),
            agent_limit: Duration::from_millis(50),
            agent_settle: Duration::from_millis(1),
            agents_limit: Duration::from_millis(500),
            way_in_limit: Duration::from_millis(5),
            poll: Duration::from_micros(100),
            ports: Vec::new(),
            free_bytes: 1,
            clock_skew: 300,
            now: sim::now,
        };
        Engine::new(
            Host::with_fuse(self.root(), self.world.borrow().fuse.clone()),
            FakeSystemd(self.world.clone()),
            FakeCluster { world: self.world.clone(), access: None, believed: None },
            "edge-node",
            Sources {
                executable,
                config_dir: self.pod.path().into(),
                tunnel_ca_dir: self.pod.path().join("tunnel-ca"),
            },
            settings,
            release,
        )
    }

    /// Passes until one succeeds, as the root's loop does.
    async fn reach(&self, target: Target) -> Result<(), KeeperError> {
        let mut keeper = self.keeper();
        let mut outcome = Ok(());
        for _ in 0..6 {
            outcome = pass(&mut keeper, target).await;
            if outcome.is_ok() {
                // What was being undone is undone now; the target has its turn.
                return pass(&mut keeper, target).await;
            }
        }
        outcome
    }

    fn kill_after(&self, effects: u32) {
        self.world.borrow().fuse.set(effects);
    }

    fn revive(&self) -> bool {
        let world = self.world.borrow();
        let killed = world.fuse.is_blown();
        world.fuse.set(u32::MAX);
        killed
    }

    fn journal(&self) -> Option<Journal> {
        Journal::load(&Host::with_fuse(self.root(), self.world.borrow().fuse.clone())).unwrap()
    }

    fn last_report(&self) -> yurt_api::status::ConversionStatus {
        self.world.borrow().reports.last().unwrap().clone()
    }

    fn assert_converted(&self) {
        let world = self.world.borrow();
        assert!(world.kubelet_uses_hub() && world.kubelet_works());
        assert_eq!(world.agents_left_behind(), [""; 0]);
        for unit in units::ALL {
            assert!(world.is_active(unit.name), "{}", unit.name);
            assert!(
                self.root().join(unit.wants_link().trim_start_matches('/')).is_symlink(),
                "{}",
                unit.name
            );
        }
        drop(world);
        assert_eq!(self.journal().unwrap().phase, Phase::Converted);
        assert_eq!(self.last_report().state, ConversionState::Converted);
        let leftovers: Vec<_> =
            snapshot(self.root()).into_keys().filter(|name| name.contains("yurt-tmp")).collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
    }

    fn assert_vanilla(&self) {
        let after = snapshot(self.root());
        let differing: Vec<_> = self
            .before
            .iter()
            .filter(|entry| after.get_key_value(entry.0).is_none_or(|found| found != *entry))
            .chain(after.iter().filter(|entry| !self.before.contains_key(entry.0)))
            .collect();
        assert!(differing.is_empty(), "{differing:#?}");
        let world = self.world.borrow();
        assert!(!world.kubelet_uses_hub() && world.kubelet_works());
        assert!(!world.address_held && !world.table_held);
        assert_eq!(world.agents_left_behind(), [""; 0]);
        for unit in units::ALL {
            assert!(!world.is_active(unit.name), "{}", unit.name);
        }
    }
}

/// A folder in memory where there is one: every effect is synced to the disk, thousands of times in these tests.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

async fn pass(keeper: &mut TestEngine, target: Target) -> Result<(), KeeperError> {
    keeper.identify().await?;
    keeper.reconcile(target, None).await
}

#[tokio::test]
async fn a_node_is_converted_and_reverted_without_a_trace() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
    let config = yurt_node::config::EdgeConfig::load(&node.root().join("opt/yurt/etc/edge.json")).unwrap();
    assert_eq!(config.api_servers, ["https://10.80.0.2:6443"]);
    assert_eq!(config.client_ca_file, Path::new("/etc/kubernetes/pki/ca.crt"));
    assert_eq!(config.tunnel_servers, ["cloud:10262"]);
    assert_eq!(config.kubelet_address, "127.0.0.1:10250");
    assert_eq!(config.kubelet_version, "v1.36.3");
    assert_eq!(std::fs::read(node.root().join("opt/yurt/etc/ca.crt")).unwrap(), b"certificate");

    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
    assert_eq!(node.last_report().state, ConversionState::Reverted);

    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
}

#[tokio::test]
async fn steps_are_reported_in_order() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    let world = node.world.borrow();
    let steps: Vec<_> = world.reports.iter().filter_map(|report| report.step.clone()).collect();
    assert_eq!(
        steps,
        [
            "look",
            "preflight",
            "install",
            "service",
            "warm",
            "kubelet",
            "verify",
            "agents",
            "agents",
            "agents"
        ]
    );
    assert!(world.reports.iter().all(|report| report.steps == 8));
}

async fn fails_and_is_undone(node: &Node, step: &str) -> String {
    let mut keeper = node.keeper();
    let outcome = pass(&mut keeper, Target::Edge).await;
    assert!(matches!(outcome, Err(KeeperError::Undone { .. })), "{outcome:?}");
    node.assert_vanilla();
    let report = node.last_report();
    assert_eq!(report.state, ConversionState::Failed);
    assert_eq!(report.step.as_deref(), Some(step));
    report.message
}

#[tokio::test]
async fn a_hub_that_does_not_become_ready_never_gets_near_kubelet() {
    let node = Node::new();
    node.world.borrow_mut().hub_broken = true;
    let message = fails_and_is_undone(&node, "service").await;
    assert!(message.contains("the hub is not ready"), "{message}");
    assert_eq!(node.world.borrow().kubelet_restarts, 0);
}

#[tokio::test]
async fn a_kubelet_that_does_not_work_through_the_hub_is_given_back_to_the_api_server() {
    let node = Node::new();
    node.world.borrow_mut().kubelet_broken = true;
    let message = fails_and_is_undone(&node, "verify").await;
    assert!(message.contains("has not renewed its Lease"), "{message}");
    assert_eq!(node.world.borrow().kubelet_restarts, 2);
}

#[tokio::test]
async fn containers_that_change_undo_the_conversion() {
    // Seen to have been ended by kubelet, or not seen at all.
    let churns: [fn(&mut Running); 3] =
        [|all| replace(all, None), |all| replace(all, Some(137)), |all| replace(all, Some(0))];
    for churn in churns {
        let node = Node::new();
        node.world.borrow_mut().churn = churn;
        let message = fails_and_is_undone(&node, "verify").await;
        assert!(message.contains("uid/nginx"), "{message}");
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_before_anything_is_touched() {
    type Change = fn(&mut World);
    let cases: [(&str, Change, &str); 8] = [
        (
            "look",
            |world| {
                let path = "/etc/systemd/system/kubelet.service.d/zzz-mine.conf";
                let file = world.root.join(path.trim_start_matches('/'));
                std::fs::create_dir(file.parent().unwrap()).unwrap();
                std::fs::write(file, "[Service]\nEnvironment=KUBELET_KUBECONFIG_ARGS=--kubeconfig=/mine\n")
                    .unwrap();
                world.drop_ins = vec![path.into()];
            },
            "zzz-mine.conf",
        ),
        (
            "look",
            |world| {
                std::fs::write(world.root.join("etc/kubelet.env"), "KUBELET_KUBECONFIG_ARGS=--v=2\n")
                    .unwrap();
                world.environment_files = vec!["/etc/kubelet.env".into()];
            },
            "/etc/kubelet.env",
        ),
        ("look", |world| world.others = ["k3s-agent.service".to_owned()].into(), "k3s"),
        ("look", |world| world.systemd_version = "241".into(), "too old"),
        ("look", |world| world.exec_start = vec!["/usr/bin/kubelet".into()], "KUBELET_KUBECONFIG_ARGS"),
        ("preflight", |world| world.clock_skew = -4000, "4000 s behind"),
        (
            "look",
            |world| {
                let path = world.root.join("etc/kubernetes/kubelet.conf");
                let text = std::fs::read_to_string(&path).unwrap().replace("client-key:", "tokenFile:");
                std::fs::write(path, text).unwrap();
            },
            "client-key",
        ),
        ("preflight", |world| world.hub_broken = false, "cannot be used"),
    ];
    for (step, change, expected) in cases {
        let mut node = Node::new();
        change(&mut node.world.borrow_mut());
        node.before = snapshot(node.root());
        let mut keeper = node.keeper();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        if expected == "cannot be used" {
            keeper.settings.ports = vec![taken.local_addr().unwrap()];
        }
        let identified = keeper.identify().await;
        let outcome = keeper.reconcile(Target::Edge, None).await;
        assert!(matches!(&outcome, Err(KeeperError::Undone { .. })), "{expected}: {outcome:?}");
        let text = outcome.unwrap_err().to_string();
        assert!(text.starts_with(step) && text.contains(expected), "{text}");
        assert_eq!(snapshot(node.root()), node.before, "{expected}");
        if identified.is_ok() {
            assert_eq!(node.last_report().state, ConversionState::Failed);
        }
    }
}

#[tokio::test]
async fn a_link_that_is_lost_half_way_stops_the_conversion_and_undoes_nothing() {
    let node = Node::new();
    node.world.borrow_mut().cut_at_kubelet_restart = true;
    let mut keeper = node.keeper();
    let outcome = pass(&mut keeper, Target::Edge).await;
    assert!(matches!(outcome, Err(KeeperError::Offline(_))), "{outcome:?}");
    assert!(node.world.borrow().kubelet_uses_hub());
    node.world.borrow_mut().cut_at_kubelet_restart = false;
    node.world.borrow_mut().link_down = false;
    pass(&mut keeper, Target::Edge).await.unwrap();
    node.assert_converted();
    assert_eq!(node.world.borrow().kubelet_restarts, 1);
}

#[tokio::test]
async fn a_vanilla_node_without_a_link_is_not_touched() {
    let node = Node::new();
    node.world.borrow_mut().link_down = true;
    let outcome = pass(&mut node.keeper(), Target::Edge).await;
    assert!(matches!(outcome, Err(KeeperError::Offline(_))), "{outcome:?}");
    assert_eq!(snapshot(node.root()), node.before);
}

#[tokio::test]
async fn a_revert_waits_for_the_link_with_kubelet_on_the_hub() {
    let node = Node::new();
    node.reach(Target::Edge).await.unwrap();
    node.world.borrow_mut().link_down = true;
    let mut keeper = node.keeper();
    let outcome = pass(&mut keeper, Target::Vanilla).await;
    assert!(matches!(outcome, Err(KeeperError::Offline(_))), "{outcome:?}");
    assert!(node.world.borrow().kubelet_uses_hub() && node.world.borrow().is_active(units::SERVICE.name));
    node.world.borrow_mut().link_down = false;
    pass(&mut keeper, Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn nothing_new_is_begun_on_a_node_that_nobody_asked_for() {
    let node = Node::new();
    pass(&mut node.keeper(), Target::Unchanged).await.unwrap();
    assert_eq!(snapshot(node.root()), node.before);
    node.reach(Target::Edge).await.unwrap();
    pass(&mut node.keeper(), Target::Unchanged).await.unwrap();
    node.assert_converted();
}

#[tokio::test]
async fn a_folder_for_drop_ins_that_was_there_stays() {
    let mut node = Node::new();
    std::fs::create_dir(node.root().join("etc/systemd/system/kubelet.service.d")).unwrap();
    node.before = snapshot(node.root());
    node.reach(Target::Edge).await.unwrap();
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}

#[tokio::test]
async fn other_flags_in_kubelets_variable_survive() {
    let node = Node::new();
    let flags = "--kubeconfig=/etc/kubernetes/kubelet.conf --node-ip=192.168.0.100";
    {
        let mut world = node.world.borrow_mut();
        world.vanilla_arguments = flags.into();
        world.power_cut();
    }
    node.reach(Target::Edge).await.unwrap();
    node.assert_converted();
    let drop_in = std::fs::read_to_string(node.root().join(&names::KUBELET_DROP_IN[1..])).unwrap();
    assert!(drop_in.contains(" --node-ip=192.168.0.100\""), "{drop_in}");
    node.reach(Target::Vanilla).await.unwrap();
    node.assert_vanilla();
}
