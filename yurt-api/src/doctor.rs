//! What an edge node says of itself to a person who stands at it: what `yurtd doctor` prints, and gives as it is with
//! `--output json`. It names users, namespaces and objects and is for root alone.
//!
//! Ages and remaining times are in seconds when the report was made, so that nobody has to trust the clock of a board
//! without a battery. A reader does not mind fields that it does not know, and takes those that are missing for their
//! defaults.

use serde::{Deserialize, Serialize};

/// [`Report::version`] of what this build writes.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Raised when a field changes its meaning.
    pub version: u32,
    /// What the hub says; nothing if it cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,
    /// What can be seen without the hub, when it cannot be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
    /// The tunnel's sessions, one a server; none on a cluster without a tunnel.
    pub tunnel: Vec<TunnelSession>,
    /// What needs somebody's attention. Filled by who prints the report.
    pub attention: Vec<Attention>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attention {
    /// What.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

/// What is seen of the hub when it cannot be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outside {
    /// Why it cannot be asked.
    pub error: String,
    /// What `/readyz` on the health port answers with, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readyz: Option<String>,
    /// Bytes of the store's file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_bytes: Option<u64>,
}

/// What the hub says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hub {
    /// The node's name.
    pub node: String,
    /// When this was, by the node's clock, RFC 3339.
    pub time: String,
    /// The link to the API servers.
    pub link: Link,
    /// Addresses that the hub listens on and the node does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_addresses: Vec<String>,
    /// What it proves itself with.
    pub certificate: Certificate,
    /// Its store.
    pub store: Store,
    /// What waits for the link.
    pub waiting: Waiting,
    /// What kubelet needs before it starts any pod, and is not stored: its Node, pods, Services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_stored: Vec<String>,
    /// By which way pods come to the hub: `service`, `environment`.
    pub way_in: String,
    /// Why it is not the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in_why: Option<String>,
    /// Why pods are not led to the hub as they should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in_missing: Option<String>,
    /// The addresses of Service `default/kubernetes`, with its port, at which pods are led to the hub.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub way_in_services: Vec<String>,
    /// Pods on the host's network that run from before, `namespace/name`: because of them all of the host's own
    /// connections keep to the API server.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host_held_up_by: Vec<String>,
    /// So they do because the hub's API server is at the Service's address: the hub would be led to itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_would_loop: bool,
    /// The node's pods; nothing while they are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<Vec<Pod>>,
    /// Why it is not known which pods talk past the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ways_unknown: Option<String>,
    /// Everything that is kept, by identity and collection.
    pub views: Vec<View>,
}

/// The link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Link {
    /// Where it stands.
    pub state: LinkState,
    /// For how many seconds, as far as this process has seen it.
    pub for_seconds: u64,
    /// `host:port` of the API servers that are asked, those of kubelet's kubeconfig before those that the cluster has
    /// named.
    pub servers: Vec<String>,
}

/// Where the link stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkState {
    /// An API server answers.
    Online,
    /// None does.
    Offline,
    /// The process has just started.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The serving certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    /// Whether there is one.
    pub present: bool,
    /// Its end, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
    /// Seconds until then; negative afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_in_seconds: Option<i64>,
    /// Why it is not on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Store {
    /// Bytes of the file on the disk.
    pub file_bytes: u64,
    /// Bytes that hold something.
    pub used_bytes: u64,
    /// What it may have at most.
    pub limit_bytes: u64,
    /// What was to be written lately did not fit.
    pub full: bool,
}

/// What waits for the link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Waiting {
    /// Paths of the objects whose status waits.
    pub status_patches: Vec<String>,
    /// Events.
    pub events: usize,
    /// Events that were dropped because too many waited.
    pub dropped_events: u64,
}

/// How a pod's processes reach the API server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// Through the hub.
    Hub,
    /// A container that runs began before kubelet worked through the hub: it talks past it.
    Past,
    /// It has no credential for the API server.
    None,
    /// It is the keeper, which does so itself, on purpose.
    Own,
    /// It is not known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A pod of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `status.phase`
    pub phase: String,
    /// How its processes reach the API server.
    pub way: Way,
    /// Something makes it again when it is deleted.
    pub controlled: bool,
    /// What becomes of it in a reboot without a link.
    pub reboot: Reboot,
    /// What it needs and is not stored: `ConfigMap shop/settings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_stored: Vec<String>,
    /// Seconds until the first of its stored tokens ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ends_in_seconds: Option<i64>,
}

/// What becomes of a pod in a reboot without a link. Whether its images are on the node is not checked, nor what its
/// volumes need beyond ConfigMaps, Secrets and tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reboot {
    /// It comes back.
    ComesBack,
    /// It does not: something is not stored.
    DoesNot,
    /// kubelet starts it from a file of the node.
    Static,
    /// It has ended, or is being deleted.
    Ended,
    /// It is not known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What is kept of a collection for an identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct View {
    /// Who may read it.
    pub user: String,
    /// `/api/v1/namespaces/shop/pods`
    pub path: String,
    /// `labelSelector`, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label_selector: String,
    /// `fieldSelector`, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_selector: String,
    /// `json` or `protobuf`.
    pub encoding: String,
    /// What it is worth.
    pub state: ViewState,
    /// Why nobody follows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The hub's own trouble: what it should follow and cannot.
    pub troubled: bool,
    /// Seconds since it was last certain to be what the API server has; 0 while it is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
    /// Whether the node's pods or kubelet need it, used or not.
    pub kept: bool,
    /// The wider view of this collection that it is fed from, by its user and its selectors; nothing when it is asked for
    /// over the uplink itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// What a view is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ViewState {
    /// It is what the API server has.
    Following,
    /// It is as it was once.
    Behind,
    /// The API server refuses it.
    Refused,
    /// No whole list has come yet.
    Empty,
    /// It is not known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A session to a tunnel server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelSession {
    /// `host:port`
    pub server: String,
    /// Whether it is there.
    pub connected: bool,
    /// Nobody gave the address: the cluster names the API server beside which the tunnel server would be. Perhaps it cannot
    /// be reached from the node, and need not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub found: bool,
    /// For how many seconds it has been, or has not.
    pub for_seconds: u64,
    /// The address that has a session with the same server; this one takes over when that ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stands_by_for: Option<String>,
    /// Why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The same for programs, a word that stays: `WrongCa`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_another_release_is_read() {
        let newer = r#"{"version":1,"new":{},"hub":{"link":{"state":"sideways"},"pods":[{"way":"tunnelled",
            "reboot":"perhaps"}],"views":[{"state":"derived"}]},"tunnel":[],"attention":[]}"#;
        let report: Report = serde_json::from_str(newer).unwrap();
        let hub = report.hub.unwrap();
        assert_eq!(hub.link.state, LinkState::Unknown);
        let pods = hub.pods.unwrap();
        assert_eq!((pods[0].way, pods[0].reboot), (Way::Unknown, Reboot::Unknown));
        assert_eq!(hub.views[0].state, ViewState::Unknown);
        assert_eq!(serde_json::from_str::<Report>("{}").unwrap(), Report::default());
    }

    #[test]
    fn a_report_survives_its_codec() {
        let report = Report {
            version: VERSION,
            hub: Some(Hub {
                link: Link { state: LinkState::Offline, for_seconds: 7, servers: vec!["cloud:6443".into()] },
                pods: Some(vec![Pod { way: Way::Past, reboot: Reboot::DoesNot, ..Pod::default() }]),
                views: vec![View { state: ViewState::Behind, ..View::default() }],
                ..Hub::default()
            }),
            ..Report::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report, "{text}");
    }
}
