//! By which way pods of an edge node come to the hub.

use serde::{Deserialize, Serialize};

/// How a pod is led to the hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WayIn {
    /// At the address that Kubernetes gives it: new connections to the ClusterIP of Service `default/kubernetes` are sent
    /// to the hub by an nftables table of the node's.
    Service,
    /// By its environment: kubelet is shown that Service with the hub's address. What releases did that knew no other way.
    #[default]
    #[serde(other)]
    Environment,
}

impl WayIn {
    /// As it is written in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Environment => "environment",
        }
    }

    /// The way of this name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Service, Self::Environment].into_iter().find(|way| way.name() == name.trim())
    }

    /// True for the way of releases that knew no other.
    pub fn is_environment(&self) -> bool {
        *self == Self::Environment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_in_documents() {
        for way in [WayIn::Service, WayIn::Environment] {
            assert_eq!(serde_json::to_string(&way).unwrap(), format!("\"{}\"", way.name()));
            assert_eq!(WayIn::of(way.name()), Some(way));
        }
        assert_eq!(WayIn::of("Service"), None);
    }
}
