//! Applies [`kubelet_ports`]: keeps who was given which port in a ConfigMap, and tells hubs and tunnel servers by a label.
//!
//! The ConfigMap is the one place where ports are given. It is replaced as it was read, so of two controllers that work at
//! a time (there should never be) one is refused, and reads what the other gave. Labels are made of it. One object is what
//! the guarantee needs: two Nodes cannot be written in one step. A port goes back when the API server itself says that its
//! node is over, and not when the cache does, which may be old.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use yurt_api::kubelet_port;
use yurt_api::names::{self, KUBELET_PORTS_CONFIG_MAP, LABEL_KUBELET_PORT};
use yurt_api::status::ClusterConfig;

use super::context::{Context, Unwritten, label_ours, version, within};
use super::kubelet_ports::{Given, Ports, give, is_over};
use super::nodes::Pass;

/// Gives ports, and tells of them.
pub(super) struct KubeletPorts {
    context: Arc<Context>,
    config_file: PathBuf,
    /// What was given, as last read or written.
    known: Option<Ports>,
    /// resourceVersion at which a Node's label was written, until the cache has caught up.
    written: HashMap<String, u128>,
    /// The last trouble that was told.
    told: String,
}

impl KubeletPorts {
    /// `config_file` is the mounted configuration; without a tunnel in it nobody is given a port.
    pub(super) fn new(context: Arc<Context>, config_file: PathBuf) -> Self {
        Self { context, config_file, known: None, written: HashMap::new(), told: String::new() }
    }

    /// One pass; repeated passes write nothing. Trouble is told once until it changes.
    pub(super) async fn reconcile(&mut self, pass: Pass) {
        let trouble = match self.try_reconcile(pass).await {
            Ok(without) if without.is_empty() => String::new(),
            Ok(without) => format!("no kubelet port is left for {}", without.join(", ")),
            Err(error) => {
                self.known = None;
                error.to_string()
            }
        };
        if !trouble.is_empty() && trouble != self.told {
            tracing::error!(error = trouble, "kubelet ports of nodes that share an address");
        }
        self.told = trouble;
    }

    async fn try_reconcile(&mut self, pass: Pass) -> Result<Vec<String>, Unwritten> {
        let nodes = self.context.nodes.all();
        let with_tunnel = self.with_tunnel().await;
        let mut without = Vec::new();
        // Most changes of nodes are heartbeats and concern nobody here.
        let known = self.known.clone().filter(|_| pass == Pass::Changed);
        let settled = known.filter(|known| {
            let (mut wanted, find) = (known.clone(), find(&nodes));
            wanted.retain(|name, given| !is_over(given, find.get(name.as_str()).copied()));
            if with_tunnel {
                without = give(nodes.iter().map(Arc::as_ref), &mut wanted);
            }
            wanted == *known
        });
        let ports = match settled {
            Some(known) => known,
            None => {
                let (ports, left_over) = self.settle(&nodes, with_tunnel).await?;
                without = left_over;
                ports
            }
        };
        self.known = Some(ports.clone());
        self.written.retain(|name, _| nodes.iter().any(|node| node.metadata.name.as_ref() == Some(name)));
        for node in &nodes {
            self.label(node, &ports).await;
        }
        Ok(without)
    }

    /// Reads what was given, takes back what is over, gives what is needed, and keeps it.
    async fn settle(
        &self,
        nodes: &[Arc<Node>],
        with_tunnel: bool,
    ) -> Result<(Ports, Vec<String>), Unwritten> {
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), &self.context.namespace);
        let found = within(api.get_opt(KUBELET_PORTS_CONFIG_MAP)).await?;
        let exists = found.is_some();
        let mut map = found.unwrap_or_default();
        let kept: Ports = map
            .data
            .iter()
            .flatten()
            .filter_map(|(name, text)| Some((name.clone(), Given::of_text(text)?)))
            .collect();
        let (mut ports, find) = (kept.clone(), find(nodes));
        let seem_over = kept.iter().filter(|(name, given)| is_over(given, find.get(name.as_str()).copied()));
        for (name, given) in seem_over {
            let live: Api<Node> = Api::all(self.context.client.clone());
            if is_over(given, within(live.get_opt(name)).await?.as_ref()) {
                ports.remove(name);
            }
        }
        let without = match with_tunnel {
            true => give(nodes.iter().map(Arc::as_ref), &mut ports),
            false => Vec::new(),
        };
        let labelled = label_ours(&mut map.metadata);
        if ports == kept && (labelled || !exists) {
            return Ok((ports, without));
        }
        let data: BTreeMap<String, String> =
            ports.iter().map(|(name, given)| (name.clone(), given.to_text())).collect();
        map.metadata.name = Some(KUBELET_PORTS_CONFIG_MAP.to_owned());
        map.data = Some(data);
        if exists {
            // With the resourceVersion that was read.
            within(api.replace(KUBELET_PORTS_CONFIG_MAP, &PostParams::default(), &map)).await?;
        } else {
            within(api.create(&PostParams::default(), &map)).await?;
        }
        for (name, given) in ports.iter().filter(|(name, given)| kept.get(*name) != Some(given)) {
            tracing::info!(
                node = name,
                port = given.port,
                "another node has its address: it gets a kubelet port"
            );
        }
        Ok((ports, without))
    }

    /// Makes the node's label what was given, if the Node is still as it was when that was decided.
    async fn label(&mut self, node: &Node, ports: &Ports) {
        let name = node.name_any();
        let given = ports.get(&name).filter(|given| node.metadata.uid.as_deref() == Some(&given.uid));
        let wanted = given.map(|given| given.port);
        let labels = node.metadata.labels.as_ref();
        let is_there = labels.is_some_and(|labels| labels.contains_key(LABEL_KUBELET_PORT));
        if kubelet_port::of(labels) == wanted && is_there == wanted.is_some() {
            return;
        }
        if self.written.get(&name).is_some_and(|written| version(node) < *written) {
            return;
        }
        let label = wanted.map_or(Value::Null, |port| port.to_string().into());
        let metadata = json!({"resourceVersion": node.metadata.resource_version,
            "labels": {LABEL_KUBELET_PORT: label}});
        let api: Api<Node> = Api::all(self.context.client.clone());
        let params = PatchParams { field_manager: Some(names::CONTROLLER.into()), ..PatchParams::default() };
        // The right to patch the status suffices: labels and annotations may be changed through it.
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        match within(api.patch_status(&name, &params, &patch)).await {
            Ok(answer) => {
                self.written.insert(name.clone(), version(&answer));
                tracing::info!(node = name, port = wanted, "the node's kubelet port is on its label");
            }
            // It has changed meanwhile, of which the cache hears.
            Err(Unwritten::Api(kube::Error::Api(status))) if status.code == 409 => {}
            Err(error) => tracing::warn!(node = name, %error, "cannot write the node's kubelet port"),
        }
    }

    /// Without a tunnel a port of its own would lead nowhere. A configuration that cannot be read says nothing.
    async fn with_tunnel(&self) -> bool {
        let text = tokio::fs::read(&self.config_file).await.unwrap_or_default();
        serde_json::from_slice::<ClusterConfig>(&text).is_ok_and(|config| !config.tunnel_addresses.is_empty())
    }
}

fn find(nodes: &[Arc<Node>]) -> HashMap<&str, &Node> {
    nodes.iter().filter_map(|node| Some((node.metadata.name.as_deref()?, node.as_ref()))).collect()
}

#[cfg(test)]
mod tests {
    use yurt_fakes::api_server::{Fault, When};

    use super::*;
    use crate::testing::FakeCluster;

    const MAP: &str = "/api/v1/namespaces/kube-system/configmaps/yurt-kubelet-ports";

    fn node(name: &str, day: u32) -> Value {
        let report = json!({"state": "Converted", "version": "1", "time": "t"}).to_string();
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {"name": name, "uid": format!("uid-{name}"),
                "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z"),
                "labels": {names::LABEL_EDGE_WORKER: "true"},
                "annotations": {names::ANNOTATION_CONVERSION: report}},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.100"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}
        })
    }

    fn path(name: &str) -> String {
        format!("/api/v1/nodes/{name}")
    }

    fn label(cluster: &FakeCluster, name: &str) -> Value {
        cluster.get(&path(name)).unwrap()["metadata"]["labels"][LABEL_KUBELET_PORT].clone()
    }

    struct World {
        cluster: FakeCluster,
        folder: tempfile::TempDir,
    }

    impl World {
        async fn new(tunnel: &[&str]) -> Self {
            let (cluster, folder) = (FakeCluster::start().await, tempfile::tempdir().unwrap());
            let config = json!({"tunnelAddresses": tunnel, "tunnelApiAddresses": []});
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            for (name, day) in [("a", 1), ("b", 2)] {
                cluster.put(&path(name), node(name, day));
            }
            Self { cluster, folder }
        }

        async fn controller(&self) -> KubeletPorts {
            KubeletPorts::new(self.cluster.context().await, self.folder.path().join("config.json"))
        }
    }

    #[tokio::test]
    async fn the_second_node_of_an_address_gets_a_port_once_and_keeps_it_over_a_restart() {
        let world = World::new(&["203.0.113.9:10262"]).await;
        let cluster = &world.cluster;
        let mut ports = world.controller().await;
        ports.reconcile(Pass::Changed).await;
        assert_eq!((label(cluster, "a"), label(cluster, "b")), (Value::Null, "40000".into()));
        let map = cluster.get(MAP).unwrap();
        assert_eq!(map["data"], json!({"b": "40000 uid-b"}));
        assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/part-of"], "kubectl-yurt");
        // The cache has not seen our own write: nothing is written a second time.
        let writes = cluster.writes();
        ports.reconcile(Pass::Full).await;
        ports.reconcile(Pass::Changed).await;
        assert_eq!(cluster.writes(), writes);

        cluster.delete(&path("a"));
        let mut ports = world.controller().await;
        ports.reconcile(Pass::Full).await;
        assert_eq!(label(cluster, "b"), "40000");
        assert_eq!(cluster.writes(), writes);

        // A label that somebody changed is put right, and what was kept and deleted is made of the label.
        let mut changed = cluster.get(&path("b")).unwrap();
        changed["metadata"]["labels"][LABEL_KUBELET_PORT] = "40009".into();
        cluster.put(&path("b"), changed);
        world.controller().await.reconcile(Pass::Full).await;
        assert_eq!(label(cluster, "b"), "40000");
        cluster.delete(MAP);
        world.controller().await.reconcile(Pass::Full).await;
        assert_eq!(cluster.get(MAP).unwrap()["data"], json!({"b": "40000 uid-b"}));

        // Vanilla again: label and port go.
        let mut vanilla = cluster.get(&path("b")).unwrap();
        vanilla["metadata"]["labels"][names::LABEL_EDGE_WORKER] = "false".into();
        cluster.put(&path("b"), vanilla);
        world.controller().await.reconcile(Pass::Full).await;
        assert_eq!((label(cluster, "b"), &cluster.get(MAP).unwrap()["data"]), (Value::Null, &json!({})));
    }

    #[tokio::test]
    async fn of_two_controllers_at_a_time_one_is_refused_and_gives_another_port() {
        let world = World::new(&["203.0.113.9:10262"]).await;
        let cluster = &world.cluster;
        let map =
            |data: Value| json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {}, "data": data});
        cluster.put(MAP, map(json!({})));
        // This one has read that nothing was given, and its write is under way.
        let when = When::path(MAP).method("PUT");
        cluster.fault(when, Fault::Stall);
        let mut old = world.controller().await;
        let writing = tokio::spawn(async move {
            old.reconcile(Pass::Full).await;
            old
        });
        while cluster.seen("PUT", MAP).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // Meanwhile another one is elected, and gives a port to a node that the first has never heard of.
        cluster.put(&path("c"), node("c", 3));
        cluster.put(MAP, map(json!({"c": "40000 uid-c"})));
        cluster.no_faults();
        let mut old = writing.await.unwrap();
        assert_eq!(
            (label(cluster, "b"), &cluster.get(MAP).unwrap()["data"]["b"]),
            (Value::Null, &Value::Null)
        );
        old.reconcile(Pass::Changed).await;
        assert_eq!(label(cluster, "b"), "40001");
        assert_eq!(cluster.get(MAP).unwrap()["data"], json!({"b": "40001 uid-b", "c": "40000 uid-c"}));
    }

    #[tokio::test]
    async fn without_a_tunnel_nobody_is_given_a_port() {
        let world = World::new(&[]).await;
        world.controller().await.reconcile(Pass::Full).await;
        assert_eq!(world.cluster.writes(), 0);
    }
}
