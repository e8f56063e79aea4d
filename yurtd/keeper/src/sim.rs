//! A node in memory, for tests: systemd, kubelet, the hub and the API server around a real temporary folder, and a
//! fuse that stops the world before any one of its effects, as `kill -9` would.

mod cluster;
mod fuse;
mod systemd;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use yurt_api::doctor::TunnelSession;
use yurt_api::names;
use yurt_api::status::ConversionStatus;
use yurt_api::way_in::WayIn;

pub(crate) use self::cluster::FakeCluster;
pub(crate) use self::fuse::Fuse;
pub(crate) use self::systemd::FakeSystemd;
use crate::agents::{Agent, Started};
use crate::cluster::{ClusterError, HubWayIn};
use crate::containers::{Container, End, Running};
use crate::systemd::SystemdError;
use crate::{arguments, kubeconfig, units};

/// The node and what is around it.
#[derive(Debug)]
pub(crate) struct World {
    pub root: PathBuf,
    pub fuse: Fuse,
    pub systemd_version: String,
    /// Units of other programs that run.
    pub others: BTreeSet<String>,
    /// kubelet's arguments as its unit has them.
    pub exec_start: Vec<String>,
    /// kubelet's other drop-ins and its environment files.
    pub drop_ins: Vec<String>,
    pub environment_files: Vec<String>,
    /// What kubeadm's drop-in sets the variable to.
    pub vanilla_arguments: String,
    /// Text of every unit file as systemd last read it.
    loaded: BTreeMap<String, String>,
    active: BTreeSet<String>,
    /// `KUBELET_KUBECONFIG_ARGS` as systemd last read it.
    kubelet_arguments: String,
    kubelet_pid: u32,
    /// Its process has ended, and systemd has not started another one yet.
    pub kubelet_down: bool,
    /// Somebody has stopped its unit.
    pub kubelet_stopped: bool,
    /// What a drop-in of somebody else, behind ours, sets the variable to.
    pub foreign_arguments: Option<String>,
    pub kubelet_restarts: u32,
    pub hub_restarts: u32,
    pub address_restarts: u32,
    /// Content of the program that the service runs. One that begins with `old` is a release whose hub has a
    /// certificate of the cluster's CA.
    hub_program: Option<Vec<u8>>,
    /// CAs that hubs have made on this node.
    cas_made: u32,
    /// What the kubelet that runs believes: it reads its kubeconfig when it starts.
    kubelet_believes: String,
    /// Somebody who listens where the hub does while systemd does not, and the CA that he would be believed by.
    pub impostor: Option<String>,
    renewals: i64,
    pub link_down: bool,
    /// The link goes down when kubelet is restarted.
    pub cut_at_kubelet_restart: bool,
    pub hub_broken: bool,
    /// A program that does not work.
    pub broken_program: Option<Vec<u8>>,
    /// A program that answers the keeper and not kubelet.
    pub broken_for_kubelet: Option<Vec<u8>>,
    /// kubelet cannot work through the hub.
    pub kubelet_broken: bool,
    /// The node is not Ready whatever kubelet does.
    pub not_ready: bool,
    /// What happens to the containers when kubelet is restarted through the hub.
    pub churn: fn(&mut Running),
    pub containers: Running,
    pub agents: Vec<Agent>,
    /// By container id: whether kubelet worked through the hub when it started that container of an agent.
    through_hub: BTreeMap<String, bool>,
    pub keep_agents: bool,
    /// Agents whose containers do not become ready again.
    pub agents_broken: bool,
    /// Agents whose containers end again as soon as somebody has looked at them.
    pub agents_crash: bool,
    /// The hub cannot say which agents there are: the link was lost before it knew.
    pub agents_unknown: bool,
    /// Their pods are deleted when a container of theirs is ended.
    pub delete_ended_agents: bool,
    /// The link goes down when the next one is restarted.
    pub cut_at_first_agent: bool,
    /// The hub's address is on `lo`.
    pub address_held: bool,
    /// The table leads there.
    pub table_held: bool,
    /// How the process fares that holds both.
    pub holder: Holder,
    /// The container that kubelet starts anew as the last thing that it does.
    pub late: Option<String>,
    /// The hub leads pods by their environment whatever it is told.
    pub kernel_knows_no_tables: bool,
    /// How pods were led to the hub at each of these moments, if somebody asks for it.
    pub way_in_when_an_agent_ends: Option<Vec<HubWayIn>>,
    /// How the sessions of the hub's tunnel agent fare.
    pub tunnel: Vec<TunnelSession>,
    /// Ids of the containers that were ended, in order.
    pub ended: Vec<String>,
    boots: u32,
    /// What the next questions get for an answer.
    pub hiccups: VecDeque<ClusterError>,
    /// The same once kubelet has been restarted.
    pub hiccups_after_restart: Vec<ClusterError>,
    pub clock_skew: i64,
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    pub reports: Vec<ConversionStatus>,
    pub kubelet_version: String,
}

/// The process that holds address and table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Holder {
    #[default]
    Well,
    /// It puts the table there and is killed.
    Dies,
    /// The same, and systemd gives up.
    DiesWithItsUnit,
}

pub(crate) type Shared = Rc<RefCell<World>>;

/// kubeadm's value.
pub(crate) const VANILLA_ARGUMENTS: &str =
    "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf";

const KUBECONFIG: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Y2VydGlmaWNhdGU=
    server: https://10.80.0.2:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: node
  name: node@kubernetes
current-context: node@kubernetes
kind: Config
users:
- name: node
  user:
    client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem
    client-key: /var/lib/kubelet/pki/kubelet-client-current.pem
";

/// The cluster's CA in that kubeconfig.
const CLUSTER_CA: &str = "certificate";
/// Where the hub keeps the node's CA.
const CA_FILE: &str = "/var/lib/yurt/ca.pem";

impl World {
    /// A hub whose kernel can do all: it does at once what is in its configuration and in the journal.
    pub(crate) fn way_in(&self) -> HubWayIn {
        let file = |path: &str| self.root.join(path.trim_start_matches('/'));
        let config = std::fs::read(file(names::EDGE_CONFIG)).unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        if config["wayIn"] != "service" || self.kernel_knows_no_tables {
            let why = (config["wayIn"] == "service").then(|| "no nf_tables".to_owned());
            return HubWayIn { why, ..HubWayIn::default() };
        }
        let course = crate::came::read(&file(names::KEEPER_JOURNAL)).unwrap_or_default();
        let open = course.came.is_some();
        let turn = course.turn.filter(|_| open).map(|turn| turn.second);
        HubWayIn { way: WayIn::Service, why: None, open, turn }
    }

    /// A vanilla node as kubeadm leaves it, running.
    pub(crate) fn vanilla(root: &Path) -> Shared {
        for folder in [
            "opt",
            "etc/kubernetes/pki",
            "etc/systemd/system/multi-user.target.wants",
            "var/lib/kubelet/pki",
            "proc",
        ] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let write = |path: &str, text: &str| std::fs::write(root.join(path), text).unwrap();
        write("etc/kubernetes/kubelet.conf", KUBECONFIG);
        write("etc/kubernetes/pki/ca.crt", "certificate");
        write("var/lib/kubelet/pki/kubelet-client-2026.pem", "client certificate and key");
        write(
            "var/lib/kubelet/config.yaml",
            "authentication:\n  x509:\n    clientCAFile: /etc/kubernetes/pki/ca.crt\nkind: KubeletConfiguration\n",
        );
        std::os::unix::fs::symlink(
            "/var/lib/kubelet/pki/kubelet-client-2026.pem",
            root.join("var/lib/kubelet/pki/kubelet-client-current.pem"),
        )
        .unwrap();
        let mut world = Self {
            root: root.into(),
            fuse: Fuse::default(),
            systemd_version: "252.39-1~deb12u1".into(),
            others: BTreeSet::new(),
            exec_start: ["/usr/bin/kubelet", "$KUBELET_KUBECONFIG_ARGS", "$KUBELET_CONFIG_ARGS"]
                .map(Into::into)
                .into(),
            drop_ins: Vec::new(),
            environment_files: Vec::new(),
            vanilla_arguments: VANILLA_ARGUMENTS.into(),
            loaded: BTreeMap::new(),
            active: BTreeSet::new(),
            kubelet_arguments: VANILLA_ARGUMENTS.into(),
            kubelet_pid: 100,
            kubelet_down: false,
            kubelet_stopped: false,
            foreign_arguments: None,
            kubelet_restarts: 0,
            hub_restarts: 0,
            address_restarts: 0,
            hub_program: None,
            cas_made: 0,
            kubelet_believes: String::new(),
            impostor: None,
            renewals: 0,
            link_down: false,
            cut_at_kubelet_restart: false,
            hub_broken: false,
            broken_program: None,
            broken_for_kubelet: None,
            kubelet_broken: false,
            not_ready: false,
            churn: |_| {},
            containers: Running::from([("uid/nginx".into(), container("containerd://1"))]),
            agents: vec![agent("kube-system/kube-proxy-x"), agent("kube-flannel/kube-flannel-y")],
            through_hub: BTreeMap::new(),
            keep_agents: false,
            agents_broken: false,
            agents_crash: false,
            delete_ended_agents: false,
            cut_at_first_agent: false,
            agents_unknown: false,
            address_held: false,
            table_held: false,
            holder: Holder::default(),
            late: None,
            kernel_knows_no_tables: false,
            way_in_when_an_agent_ends: None,
            tunnel: Vec::new(),
            ended: Vec::new(),
            boots: 0,
            hiccups: VecDeque::new(),
            hiccups_after_restart: Vec::new(),
            clock_skew: 0,
            config_maps: BTreeMap::new(),
            reports: Vec::new(),
            kubelet_version: "v1.36.3".into(),
        };
        world.boot();
        world.start_kubelet();
        world.kubelet_restarts = 0;
        Rc::new(RefCell::new(world))
    }

    fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.file(path)).ok()
    }

    fn drop_in_arguments(&self) -> String {
        if let Some(foreign) = &self.foreign_arguments {
            return foreign.clone();
        }
        let prefix = format!("Environment=\"{}=", units::KUBECONFIG_VARIABLE);
        self.text(names::KUBELET_DROP_IN)
            .and_then(|text| {
                text.lines().find_map(|line| line.strip_prefix(&prefix)?.strip_suffix('"').map(str::to_owned))
            })
            .unwrap_or_else(|| self.vanilla_arguments.clone())
    }

    fn start_kubelet(&mut self) {
        self.kubelet_stopped = false;
        if let Some(id) = self.late.take() {
            self.start_anew(&id);
        }
        // It takes a while, so that what it starts begins later than what ran before.
        pass_time(5);
        self.kubelet_pid += 1;
        self.kubelet_restarts += 1;
        let words = self.kubelet_arguments.split(' ').map(|word| format!("{word}\0")).collect::<String>();
        let cmdline = format!("/usr/bin/kubelet\0{words}--config=/var/lib/kubelet/config.yaml\0");
        let folder = self.root.join(format!("proc/{}", self.kubelet_pid));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cmdline"), cmdline).unwrap();
        self.link_down |= self.cut_at_kubelet_restart;
        self.hiccups.extend(self.hiccups_after_restart.drain(..));
        let kubeconfig = self.kubelets_kubeconfig();
        self.kubelet_believes = match kubeconfig.map(|kubeconfig| kubeconfig.ca) {
            Some(kubeconfig::CaSource::Inline(bundle)) => String::from_utf8(bundle).unwrap(),
            _ => String::new(),
        };
        if self.kubelet_uses_hub() {
            (self.churn)(&mut self.containers);
        }
    }

    fn boot(&mut self) {
        self.boots += 1;
        let folder = self.file("proc/sys/kernel/random");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("boot_id"), format!("boot-{}\n", self.boots)).unwrap();
    }

    /// Cuts the power: units that are enabled come back, everything else does not, and every container is another one.
    pub(crate) fn power_cut(&mut self) {
        self.boot();
        replace(&mut self.containers, None);
        let agents: Vec<String> =
            self.agents.iter().flat_map(|agent| &agent.containers).map(|it| it.id.clone()).collect();
        self.active.clear();
        self.address_held = false;
        self.table_held = false;
        self.loaded.clear();
        self.hub_program = None;
        self.reload();
        for unit in units::ALL {
            if self.text(&unit.wants_link()).is_some() {
                self.start(unit.name).ok();
            }
        }
        self.start_kubelet();
        for id in agents {
            self.start_anew(&id);
        }
    }

    /// A container of an agent has ended, and kubelet starts another in its place.
    pub(super) fn start_anew(&mut self, id: &str) {
        pass_time(1);
        let through_hub = self.kubelet_uses_hub();
        for agent in &mut self.agents {
            for container in agent.containers.iter_mut().filter(|container| container.id == id) {
                *container = Started { id: format!("{id}+"), at: now() };
                self.through_hub.insert(container.id.clone(), through_hub);
                agent.ready = !self.agents_broken;
            }
        }
    }

    /// Agents with a container that was started with another way to the API server than kubelet's.
    pub(crate) fn agents_left_behind(&self) -> Vec<String> {
        let is = |container: &Started| self.through_hub.get(&container.id).copied().unwrap_or_default();
        let behind = |agent: &&Agent| agent.containers.iter().any(|it| is(it) != self.kubelet_uses_hub());
        self.agents.iter().filter(behind).map(|agent| agent.name.clone()).collect()
    }

    pub(crate) fn kubelet_uses_hub(&self) -> bool {
        let arguments = arguments::Arguments::of(&arguments::split(
            &std::fs::read(self.root.join(format!("proc/{}/cmdline", self.kubelet_pid))).unwrap_or_default(),
        ));
        arguments.kubeconfig.as_deref() == Some(names::KUBELET_KUBECONFIG)
    }

    fn kubelets_kubeconfig(&self) -> Option<kubeconfig::Kubeconfig> {
        let path =
            if self.kubelet_uses_hub() { names::KUBELET_KUBECONFIG } else { "/etc/kubernetes/kubelet.conf" };
        self.text(path).and_then(|text| kubeconfig::parse(&text).ok())
    }

    /// Whether kubelet reaches the API server by the way that its kubeconfig names, and believes whom it finds there.
    pub(crate) fn kubelet_works(&self) -> bool {
        let Some(kubeconfig) = self.kubelets_kubeconfig() else { return false };
        match kubeconfig.server.as_str() {
            "https://10.80.0.2:6443" => self.kubelet_believes.contains(CLUSTER_CA),
            "https://127.0.0.1:10261" => {
                let believed = self.kubelet_believes.contains(&self.hub_ca().unwrap_or(CLUSTER_CA.into()));
                let broken = self.kubelet_broken
                    || self.hub_program.is_some() && self.hub_program == self.broken_for_kubelet;
                self.hub_answers() && believed && !broken
            }
            _ => false,
        }
    }

    /// The CA of the hub that runs; nothing of an old release's.
    pub(crate) fn hub_ca(&self) -> Option<String> {
        let old = self.hub_program.as_ref().is_some_and(|program| program.starts_with(b"old"));
        if old { None } else { self.text(CA_FILE) }
    }

    pub(crate) fn is_active(&self, unit: &str) -> bool {
        self.active.contains(unit)
    }

    pub(crate) fn stop_behind_its_back(&mut self, unit: &str) {
        self.active.remove(unit);
    }

    fn hub_answers(&self) -> bool {
        self.is_active(units::SERVICE.name)
            && self.is_active(units::SOCKET.name)
            && !self.hub_broken
            && self.hub_program.is_some()
            && self.hub_program != self.broken_program
    }

    /// The unit that holds address and table is stopped.
    fn stop_address(&mut self) {
        if self.holder == Holder::Well {
            self.table_held = false;
        }
        // `ExecStopPost=`
        self.remove_address("/opt/yurt/current/yurtd");
    }

    /// `address remove`; whether there is such a program.
    fn remove_address(&mut self, program: &str) -> bool {
        let Some(program) = self.program(program) else { return false };
        self.address_held = false;
        // One of before knows no table.
        self.table_held &= program.starts_with(b"old");
        true
    }

    /// What is in a program's file on the node.
    fn program(&self, path: &str) -> Option<Vec<u8>> {
        let path = path.strip_prefix("/opt/yurt/")?;
        let folder = self.root.join("opt/yurt");
        let path = match path.strip_prefix("current/") {
            Some(rest) => folder.join(std::fs::read_link(folder.join("current")).ok()?).join(rest),
            None => folder.join(path),
        };
        std::fs::read(path).ok()
    }

    fn reload(&mut self) {
        self.loaded.clear();
        for unit in units::ALL {
            if let Some(text) = self.text(&unit.path()) {
                self.loaded.insert(unit.name.into(), text);
            }
        }
        self.kubelet_arguments = self.drop_in_arguments();
    }

    fn start(&mut self, unit: &str) -> Result<(), SystemdError> {
        if unit == units::KUBELET {
            self.start_kubelet();
            return Ok(());
        }
        if !self.loaded.contains_key(unit) {
            return Err(SystemdError::Simulated(format!("unit {unit} not found")));
        }
        if unit == units::ADDRESS.name {
            self.address_restarts += 1;
            // It knows `address add` and `address remove`; anything else is a usage error.
            let old =
                self.program("/opt/yurt/current/yurtd").is_none_or(|program| program.starts_with(b"old"));
            let text = self.loaded.get(unit).map(String::as_str).unwrap_or_default();
            let adds = text.contains("ExecStartPre=/opt/yurt/current/yurtd address add\n");
            if old && !(adds && text.contains("\nSuccessExitStatus=2\n")) {
                self.active.remove(unit);
                return Err(SystemdError::Simulated(format!("{unit} failed to start: exit status 2")));
            }
            self.address_held = true;
            if !old {
                self.table_held = true;
                if self.holder == Holder::DiesWithItsUnit {
                    self.active.remove(unit);
                    return Ok(());
                }
            }
        }
        if unit == units::SERVICE.name {
            let program = self.program("/opt/yurt/current/yurtd");
            let config = yurt_node::config::EdgeConfig::load(&self.file(names::EDGE_CONFIG));
            if program.is_none() || config.is_err() {
                return Err(SystemdError::Simulated(format!("{unit} failed to start: {config:?}")));
            }
            std::fs::create_dir_all(self.root.join("var/lib/yurt")).unwrap();
            std::fs::write(self.root.join("var/lib/yurt/data.mdb"), "store").unwrap();
            self.hub_program = program;
            if !self.hub_program.as_ref().is_some_and(|program| program.starts_with(b"old"))
                && self.text(CA_FILE).is_none()
            {
                self.cas_made += 1;
                std::fs::write(self.file(CA_FILE), format!("node CA {}\n", self.cas_made)).unwrap();
            }
            self.hub_restarts += 1;
            self.active.insert(units::SOCKET.name.into());
        }
        self.active.insert(unit.into());
        Ok(())
    }
}

/// A container that has been running for an hour.
fn container(id: &str) -> Container {
    Container { id: id.into(), started: now() - SignedDuration::from_hours(1), previous: None }
}

/// An agent that has been running for an hour.
pub(crate) fn agent(name: &str) -> Agent {
    let container = Started { id: format!("{name}-0"), at: now() - SignedDuration::from_hours(1) };
    Agent { name: name.into(), uid: name.into(), ready: true, grace: 1, containers: vec![container] }
}

thread_local! {
    /// Seconds by which the world's clock is ahead of the test's.
    static AHEAD: Cell<i64> = const { Cell::new(0) };
}

/// The node's clock.
pub(crate) fn now() -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(AHEAD.get())
}

fn pass_time(seconds: i64) {
    AHEAD.set(AHEAD.get() + seconds);
}

/// Every container is another one from now on; the old ones ended with this code.
pub(crate) fn replace(containers: &mut Running, code: Option<i32>) {
    for found in containers.values_mut() {
        let end =
            |code| End { id: Some(found.id.clone()), finished: Some(now()), code, reason: String::new() };
        *found = Container { id: format!("{}-again", found.id), started: now(), previous: code.map(end) };
    }
}

/// Everything on the node's disk: kind, mode and content by path.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if name == "proc" {
                continue;
            }
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display())
            } else if metadata.is_dir() {
                walk(root, &path, found);
                "folder".into()
            } else {
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
            };
            found.insert(name, format!("{:o} {content}", metadata.permissions().mode() & 0o7777));
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}
