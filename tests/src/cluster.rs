//! Kubernetes on the machines: `kubeadm init` on the master, `kubeadm join` on every edge node.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build::{self, Artifacts};
use crate::kubectl::Kubectl;
use crate::lock::Lock;
use crate::machine::{self, Machine};
use crate::net::{self, Site};
use crate::wait::{self, Seen};
use crate::{deps, leftovers, paths};

pub const MASTER: &str = "master-node";
pub const EDGE: &str = "edge-node";
pub const SHOP: &str = "shop";

/// The services network is 10.96.0.0/16; pods of the n-th machine live in 10.244.n.0/24.
const POD_SUBNET: &str = "10.244";

/// How a cluster is laid out.
#[derive(Debug, Clone)]
pub struct Options {
    /// kube-proxy's mode: `nftables` or `iptables`.
    pub proxy: String,
    pub network: Network,
}

/// What gives pods their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A bridge a node, configured before kubelet starts: nobody has to be asked.
    Bridge,
    /// flannel: its agent asks the API server, and kubelet is Ready when it has.
    Flannel,
}

impl Default for Options {
    fn default() -> Self {
        // Debian's nft 1.0.6 in kube-proxy's image loses the maps of a kube-proxy that is restarted, with or without us
        // (kubernetes#136786), and a conversion restarts it.
        Self { proxy: "iptables".to_owned(), network: Network::Bridge }
    }
}

/// A running cluster. Dropping it takes it down, unless [`Cluster::keep`] said otherwise.
#[derive(Debug)]
pub struct Cluster {
    pub master: Machine,
    pub edge: Machine,
    pub shop: Site,
    pub kubectl: Kubectl,
    artifacts: Artifacts,
    network: Network,
    nodes: u8,
    extra_images: Vec<PathBuf>,
    keep: bool,
    _lock: Lock,
}

impl Cluster {
    /// From nothing to a Ready two-node cluster: `master-node`, and `edge-node` behind the NAT of a shop.
    pub fn start(options: &Options) -> Result<Self> {
        deps::install()?;
        if let Some(reason) = deps::impossible() {
            bail!("{reason}");
        }
        let artifacts = build::all()?;
        let flannel = match options.network {
            Network::Bridge => None,
            Network::Flannel => Some(build::flannel(&artifacts)?),
        };
        let lock = Lock::take()?;
        let dead = leftovers::describe();
        if !dead.is_empty() {
            eprintln!("testbed: removing what an earlier run left: {}", dead.join(", "));
        }
        leftovers::remove()?;
        fs::create_dir_all(paths::state())?;
        net::create_wan()?;
        let shop = Site::create(SHOP, Ipv4Addr::new(10, 80, 0, 11), Ipv4Addr::new(192, 168, 0, 1))?;

        let master_namespace = net::attach_to_wan(MASTER, net::MASTER)?;
        let edge_address = Ipv4Addr::new(192, 168, 0, 100);
        let edge_namespace = shop.attach(EDGE, edge_address)?;
        // Two machines boot while the other waits for its disk; kubeadm needs them one after the other.
        let (master, edge) = thread::scope(|scope| {
            let artifacts = &artifacts;
            let network = options.network;
            let edge = scope.spawn(move || boot(artifacts, network, EDGE, &edge_namespace, edge_address, 1));
            let master = boot(artifacts, network, MASTER, &master_namespace, net::MASTER, 0)
                .and_then(|machine| init(options, machine));
            let edge = edge.join().map_err(|_| anyhow::anyhow!("booting {EDGE} panicked"))?;
            anyhow::Ok((master?, edge?))
        })?;
        fs::copy(master.root().join("etc/kubernetes/admin.conf"), paths::kubeconfig())?;
        let kubectl = Kubectl::new(&artifacts.bin, &paths::kubeconfig());
        let mut cluster = Self {
            network: options.network,
            master,
            edge,
            shop,
            kubectl,
            artifacts,
            nodes: 2,
            extra_images: Vec::new(),
            keep: false,
            _lock: lock,
        };
        if let Some(flannel) = flannel {
            cluster.import_image(&flannel)?;
            let manifest = include_str!("../testbed/cluster/flannel.yaml").replace("@IMAGE@", build::FLANNEL);
            cluster.kubectl.apply(&manifest)?;
        }
        cluster.join(&cluster.edge.clone(), edge_address)?;
        cluster.wait_ready(MASTER)?;
        cluster.wait_ready(EDGE)?;
        Ok(cluster)
    }

    /// The cluster that an earlier run left up. It stays up when this value is dropped.
    pub fn attach() -> Result<Self> {
        let lock = Lock::take()?;
        if !paths::kubeconfig().exists() {
            bail!("no cluster is up; start one with `testbed up`");
        }
        let artifacts = build::all()?;
        let nodes = fs::read_dir(machine::machines())?.count();
        let kubectl = Kubectl::new(&artifacts.bin, &paths::kubeconfig());
        let flannel = kubectl.run(["get", "namespace", "kube-flannel"])?.ok();
        Ok(Self {
            master: Machine::find(MASTER)?,
            edge: Machine::find(EDGE)?,
            shop: Site::find(SHOP)?,
            kubectl,
            artifacts,
            network: if flannel { Network::Flannel } else { Network::Bridge },
            nodes: u8::try_from(nodes)?,
            extra_images: Vec::new(),
            keep: true,
            _lock: lock,
        })
    }

    /// Leaves the cluster running when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// Adds an edge node to a site, as an administrator would: a new machine, `kubeadm join`.
    /// Returns when its Node object exists; whether it is Ready is for the caller to wait on.
    pub fn add_edge(&mut self, name: &str, site: &Site, address: Ipv4Addr) -> Result<Machine> {
        let namespace = site.attach(name, address)?;
        let machine = boot(&self.artifacts, self.network, name, &namespace, address, self.nodes)?;
        self.nodes += 1;
        for image in &self.extra_images {
            import(&machine, image)?;
        }
        self.join(&machine, address)?;
        Ok(machine)
    }

    fn join(&self, machine: &Machine, address: Ipv4Addr) -> Result<()> {
        let config = include_str!("../testbed/cluster/join.yaml")
            .replace("@MASTER@", &net::MASTER.to_string())
            .replace("@NAME@", machine.name())
            .replace("@ADDRESS@", &address.to_string());
        machine.write("/etc/kubernetes/join.yaml", config)?;
        machine
            .exec([
                "kubeadm",
                "join",
                "--config",
                "/etc/kubernetes/join.yaml",
                "--ignore-preflight-errors=all",
            ])?
            .success()?;
        let name = machine.name();
        wait::until_true(&format!("the Node object of {name}"), Duration::from_secs(60), || {
            let found = self.kubectl.run(["get", "node", name])?;
            Ok((!found.ok()).then(|| found.stderr()))
        })?;
        Ok(())
    }

    /// Imports an image archive on every machine, and on those that join later.
    pub fn import_image(&mut self, archive: &Path) -> Result<()> {
        for machine in [&self.master, &self.edge] {
            import(machine, archive)?;
        }
        self.extra_images.push(archive.to_owned());
        Ok(())
    }

    pub fn node(&self, name: &str) -> Result<Value> {
        self.kubectl.json(["get", "node", name])
    }

    /// Waits until a node is Ready; returns how long that took.
    pub fn wait_ready(&self, name: &str) -> Result<Duration> {
        wait::until_true(&format!("node {name} to be Ready"), Duration::from_secs(120), || {
            let status = ready_condition(&self.node(name)?);
            Ok((status != "True").then(|| format!("Ready is {status}")))
        })
    }

    /// Waits until a node is not Ready any more (`False` or `Unknown`).
    pub fn wait_not_ready(&self, name: &str, timeout: Duration) -> Result<Duration> {
        wait::until_true(&format!("node {name} to be NotReady"), timeout, || {
            let status = ready_condition(&self.node(name)?);
            Ok((status == "True").then(|| "Ready is True".to_owned()))
        })
    }

    /// Waits until a pod is Ready; returns it.
    pub fn wait_pod_ready(&self, namespace: &str, name: &str, timeout: Duration) -> Result<Value> {
        let (pod, _) = wait::until(&format!("pod {namespace}/{name} to be Ready"), timeout, || {
            let pod = self.kubectl.json(["get", "pod", "-n", namespace, name])?;
            if condition(&pod, "Ready") == "True" {
                return Ok(Seen::Yes(pod));
            }
            Ok(Seen::NotYet(format!("{}", pod["status"])))
        })?;
        Ok(pod)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = leftovers::remove() {
            eprintln!("testbed: taking the cluster down: {error:#}");
        }
    }
}

/// A condition's status (`True`, `False`, `Unknown`), or that it is absent.
pub fn condition(object: &Value, kind: &str) -> String {
    object["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|condition| condition["type"] == kind))
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("absent")
        .to_owned()
}

pub fn ready_condition(node: &Value) -> String {
    condition(node, "Ready")
}

/// Makes and starts a machine with all images in its store.
fn boot(
    artifacts: &Artifacts,
    network: Network,
    name: &str,
    namespace: &str,
    address: Ipv4Addr,
    index: u8,
) -> Result<Machine> {
    // A node must resolve its own name, and everybody knows the master.
    let hosts = format!("{address} {name}\n");
    let machine = Machine::create(name, namespace, &artifacts.root, &hosts, "10.80.0.254")?;
    if network == Network::Bridge {
        machine.write(
            "/etc/cni/net.d/10-pods.conflist",
            include_str!("../testbed/cluster/cni.json")
                .replace("@SUBNET@", &format!("{POD_SUBNET}.{index}.0/24")),
        )?;
    }
    machine.start()?;
    wait::until_true(&format!("containerd on {name}"), Duration::from_secs(60), || {
        let state = machine.exec(["ctr", "version"])?;
        Ok((!state.ok()).then(|| state.to_string()))
    })?;
    let mut archives: Vec<PathBuf> = fs::read_dir(&artifacts.images)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    // The control plane's programs are of no use on an edge node, but for kube-proxy in the same archive.
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    archives.sort();
    for archive in archives {
        import(&machine, &archive)?;
    }
    Ok(machine)
}

/// Imports an image archive into a machine's containerd, where kubelet looks for it.
pub fn import(machine: &Machine, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    machine
        .feed(["ctr", "-n", "k8s.io", "images", "import", "-"], file)
        .with_context(|| format!("importing {} on {}", archive.display(), machine.name()))?;
    Ok(())
}

fn init(options: &Options, machine: Machine) -> Result<Machine> {
    let started = Instant::now();
    let config = include_str!("../testbed/cluster/init.yaml")
        .replace("@ADDRESS@", &net::MASTER.to_string())
        .replace("@NAME@", MASTER)
        .replace("@KUBERNETES@", build::KUBERNETES_VERSION)
        .replace("@REPOSITORY@", build::REPOSITORY)
        .replace("@COREDNS@", build::COREDNS_VERSION)
        .replace("@ETCD@", build::ETCD_VERSION)
        .replace("@PROXY@", &options.proxy);
    if config.contains('@')
        && config.lines().any(|line| line.contains('@') && !line.trim_start().starts_with('#'))
    {
        bail!("a placeholder of init.yaml was not filled in");
    }
    machine.write("/etc/kubernetes/init.yaml", config)?;
    machine.write("/etc/kubernetes/audit/policy.yaml", include_str!("../testbed/cluster/audit.yaml"))?;
    machine
        .exec(["kubeadm", "init", "--config", "/etc/kubernetes/init.yaml", "--ignore-preflight-errors=all"])?
        .success()?;
    eprintln!("testbed: control plane up after {:.0?}", started.elapsed());
    Ok(machine)
}
