//! Every label, annotation, object name, port and path that more than one component uses.
//!
//! Names under `openyurt.io` and `alibabacloud.com` are those of OpenYurt, so that its users keep
//! what they know.

use std::net::Ipv6Addr;

/// Node label: `true` on edge nodes, `false` on cloud nodes.
pub const LABEL_EDGE_WORKER: &str = "openyurt.io/is-edge-worker";
/// Synonym of [`LABEL_EDGE_WORKER`] from the first releases of OpenYurt; read, never written.
pub const LABEL_EDGE_WORKER_LEGACY: &str = "alibabacloud.com/is-edge-worker";
/// Node label that kubeadm puts on control-plane nodes.
pub const LABEL_CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// Label on every object that `convert` creates; `revert` finds leftovers by it.
pub const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";
/// Value of [`LABEL_PART_OF`] on our objects.
pub const PART_OF: &str = "kubectl-yurt";

/// Node annotation: `true` makes the node autonomous.
pub const ANNOTATION_AUTONOMY: &str = "node.beta.openyurt.io/autonomy";
/// Synonym of [`ANNOTATION_AUTONOMY`]; read, never written.
pub const ANNOTATION_AUTONOMY_LEGACY: &str = "node.beta.alibabacloud.com/autonomy";
/// Node annotation, a Go duration: autonomous for at most that long, `0` for ever.
pub const ANNOTATION_AUTONOMY_DURATION: &str = "node.openyurt.io/autonomy-duration";

/// Node annotation that tells the keeper which state to bring the node to:
/// [`TARGET_EDGE`] (also when absent) or [`TARGET_VANILLA`]. Written by the plugin.
pub const ANNOTATION_TARGET: &str = "openyurt.io/conversion-target";
/// Value of [`ANNOTATION_TARGET`]: be an edge node.
pub const TARGET_EDGE: &str = "edge";
/// Value of [`ANNOTATION_TARGET`]: be a vanilla node again.
pub const TARGET_VANILLA: &str = "vanilla";
/// Node annotation with a [`crate::status::ConversionStatus`] as JSON. Written by the keeper with the
/// node's own credentials.
pub const ANNOTATION_CONVERSION: &str = "openyurt.io/conversion-state";

/// Node annotation that tells the keeper what to do with the node's infrastructure agents ([`crate::agent`]) when the node
/// is converted or reverted: restart them once (when absent) or [`AGENTS_KEEP`]. Written by the plugin.
pub const ANNOTATION_AGENTS: &str = "openyurt.io/conversion-agents";
/// Value of [`ANNOTATION_AGENTS`]: leave them as they are.
pub const AGENTS_KEEP: &str = "keep";

/// Node label with the kubelet port that the controller has given to an edge node whose address another node has, too
/// ([`crate::kubelet_port`]). A label of this domain is what a kubelet cannot put on its own Node (NodeRestriction), as it
/// could an annotation: a node does not choose which connections are led to it.
pub const LABEL_KUBELET_PORT: &str = "openyurt.io.node-restriction.kubernetes.io/kubelet-port";

/// Lease annotation: `true` has the hub answer the renewals of a holder on its node while there is no link.
pub const ANNOTATION_OFFLINE_LEASE: &str = "openyurt.io/offline-lease";

/// Field manager of everything the plugin applies.
pub const FIELD_MANAGER: &str = "kubectl-yurt";
/// Namespace of our components unless `--yurt-namespace` says otherwise.
pub const DEFAULT_NAMESPACE: &str = "kube-system";
/// DaemonSet of the keeper, and its ServiceAccount.
pub const KEEPER: &str = "yurtd";
/// Deployment of the controller, and its ServiceAccount.
pub const CONTROLLER: &str = "yurt-controller";
/// DaemonSet of the tunnel server on control-plane nodes, and its ServiceAccount.
pub const TUNNEL_SERVER: &str = "yurt-tunnel-server";
/// User name (common name) of the tunnel server's client certificate: what kubelets know it by.
pub const TUNNEL_SERVER_USER: &str = "yurt-tunnel-server";
/// ConfigMap with the cluster-wide configuration ([`crate::status::ClusterConfig`] under
/// [`CONFIG_KEY`]), written by the plugin, mounted by keeper, controller and tunnel server.
pub const CONFIG_MAP: &str = "yurt-config";
/// Key of the JSON document in [`CONFIG_MAP`].
pub const CONFIG_KEY: &str = "config.json";
/// Key in [`CONFIG_MAP`] with the name of the way by which pods come to the hub ([`crate::way_in::WayIn`]); a key of its
/// own, which components of before do not look at.
pub const CONFIG_WAY_IN_KEY: &str = "way-in";
/// Key in [`CONFIG_MAP`]: `true` where the tunnel server's endpoint serves what only the API server could admit.
pub const CONFIG_CONNECT_BYPASS_KEY: &str = "allow-connect-admission-bypass";
/// ConfigMap that publishes the certificate of our tunnel CA (key `ca.crt`), written by the controller.
pub const TUNNEL_CA_CONFIG_MAP: &str = "yurt-tunnel-ca";
/// ConfigMap in which the controller keeps which kubelet port it has given to which Node; made with the first one.
pub const KUBELET_PORTS_CONFIG_MAP: &str = "yurt-kubelet-ports";
/// Secret with the tunnel CA's certificate and key (`tls.crt`, `tls.key`); the controller's alone.
pub const TUNNEL_CA_SECRET: &str = "yurt-tunnel-ca";
/// Secret with the tunnel server's serving certificate and key (`tls.crt`, `tls.key`).
pub const TUNNEL_SERVER_SECRET: &str = "yurt-tunnel-server-tls";
/// API group of the custom resource that is the parameter of both admission policies.
pub const AUTONOMY_GROUP: &str = "autonomy.openyurt.io";
/// Version in [`AUTONOMY_GROUP`].
pub const AUTONOMY_VERSION: &str = "v1alpha1";
/// Kind of that custom resource; cluster-scoped.
pub const AUTONOMOUS_NODES_KIND: &str = "AutonomousNodes";
/// Its resource name.
pub const AUTONOMOUS_NODES_PLURAL: &str = "autonomousnodes";
/// Its only object: the keys of `spec.nodes` are the names of the autonomous nodes. The plugin makes it, the
/// controller fills it.
pub const AUTONOMOUS_NODES: &str = "yurt-autonomous-nodes";
/// Name of the ValidatingAdmissionPolicy and of its binding.
pub const EVICTION_POLICY: &str = "yurt-autonomy-eviction";
/// Name of the MutatingAdmissionPolicy (or, before Kubernetes 1.36, of the second
/// ValidatingAdmissionPolicy) and of its binding.
pub const READINESS_POLICY: &str = "yurt-autonomy-readiness";
/// The policy that bounds what the controller may approve.
pub const APPROVAL_POLICY: &str = "yurt-controller-approval";
/// Lease that keeps two converters apart.
pub const CONVERT_LEASE: &str = "kubectl-yurt-convert";
/// DNS name in the tunnel server's certificate that every agent and plugin verifies.
pub const TUNNEL_SERVER_NAME: &str = "yurt-tunnel-server.kube-system.svc";

/// The hub for processes on the node: TLS on loopback.
pub const HUB_PORT: u16 = 10261;
/// The hub's health: plain HTTP on loopback.
pub const HUB_HEALTH_PORT: u16 = 10267;
/// The hub for pods: TLS on [`HUB_POD_ADDRESS`] and [`HUB_POD_IPV6`].
pub const HUB_POD_PORT: u16 = 10268;
/// The address on `lo` at which pods find the hub.
pub const HUB_POD_ADDRESS: &str = "169.254.2.1";
/// Its twin, on nodes of clusters whose Service `default/kubernetes` has an IPv6 address: a unique local one (RFC 4193),
/// since the kernel needs a scope id with a link-local one. It is a /128 on `lo` and on no network, the same on every node.
pub const HUB_POD_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x7975, 0x7274, 0, 0, 0, 0, 1);
/// The tunnel server for agents: mutual TLS, WebSocket.
pub const TUNNEL_AGENT_PORT: u16 = 10262;
/// The tunnel server for the plugin: Kubernetes API paths.
pub const TUNNEL_API_PORT: u16 = 10263;
/// The tunnel server's intercept port, where redirected connections of the API server arrive.
pub const TUNNEL_INTERCEPT_PORT: u16 = 10264;
/// The controller's port for probes.
pub const CONTROLLER_HEALTH_PORT: u16 = 10269;
/// The kubelet's port.
pub const KUBELET_PORT: u16 = 10250;
/// nftables table (family `inet`) of the tunnel server.
pub const NFT_TABLE: &str = "yurt";
/// nftables table (family `inet`) of an edge node, which leads pods to the hub.
pub const NFT_EDGE_TABLE: &str = "yurt-edge";

/// Everything that the keeper puts on a node lives below this folder, but for the units and the
/// kubelet drop-in in [`SYSTEMD_DIR`] and the service's state in [`STATE_DIR`].
pub const INSTALL_DIR: &str = "/opt/yurt";
/// Symlink in [`INSTALL_DIR`] to the version in use, a folder with `yurtd` in it.
pub const CURRENT_LINK: &str = "/opt/yurt/current";
/// Configuration that the keeper writes for `yurtd edge`.
pub const EDGE_CONFIG: &str = "/opt/yurt/etc/edge.json";
/// Kubeconfig for kubelet that leads to the hub.
pub const KUBELET_KUBECONFIG: &str = "/opt/yurt/etc/kubelet.conf";
/// Certificate of the tunnel CA on the node.
pub const TUNNEL_CA_FILE: &str = "/opt/yurt/etc/tunnel-ca.crt";
/// The keeper's journal.
pub const KEEPER_JOURNAL: &str = "/opt/yurt/keeper/journal.json";
/// State of `yurtd edge` (systemd's `StateDirectory=yurt`): store, the node's CA, the hub's certificate.
pub const STATE_DIR: &str = "/var/lib/yurt";
/// What `yurtd edge` has while it runs (systemd's `RuntimeDirectory=yurt`), root's alone.
pub const RUNTIME_DIR: &str = "/run/yurt";
/// Socket in [`RUNTIME_DIR`] at which `yurtd doctor` is told a [`crate::doctor::Report`].
pub const DOCTOR_SOCKET: &str = "doctor.sock";
/// What the holder of [`HUB_POD_ADDRESS`] has while it runs (`RuntimeDirectory=yurt-address`).
pub const ADDRESS_RUNTIME_DIR: &str = "/run/yurt-address";
/// File in [`RUNTIME_DIR`] that says who is to be led to the hub, and in [`ADDRESS_RUNTIME_DIR`] that says who is.
pub const WAY_IN_FILE: &str = "way-in.json";
/// Where units go.
pub const SYSTEMD_DIR: &str = "/etc/systemd/system";
/// The hub and tunnel agent.
pub const UNIT_SERVICE: &str = "yurtd.service";
/// The hub's listening sockets.
pub const UNIT_SOCKET: &str = "yurtd.socket";
/// Service that holds [`HUB_POD_ADDRESS`] on `lo`.
pub const UNIT_ADDRESS: &str = "yurt-address.service";
/// Drop-in that points kubelet at [`KUBELET_KUBECONFIG`]. systemd reads drop-ins in the order of their file names, and
/// those of distributions (`kubeadm.conf`) and administrators (`90-local.conf`) come before this one.
pub const KUBELET_DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/zz-yurt.conf";

/// Image of `yurtd` without its tag.
pub const IMAGE_REPOSITORY: &str = "ghcr.io/kubectl-yurt/yurtd";
