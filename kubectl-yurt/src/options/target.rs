//! kubectl's `POD` and `TYPE/NAME`: what somebody wrote. Which pods that means the cluster
//! is asked later.

use crate::error::Error;

/// The kinds that have pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A pod itself.
    Pod,
    /// A Service: the pods behind it.
    Service,
    /// A kind with `spec.selector`: group, version, kind, plural.
    Owner(&'static str, &'static str, &'static str, &'static str),
}

/// A parsed `POD` or `TYPE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: TargetKind,
    /// The name.
    pub name: String,
}

impl Target {
    /// Parses `NAME` or `TYPE/NAME`.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] in kubectl's words.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (kind, name) = match text.split_once('/') {
            None => ("pod", text),
            Some(pair) => pair,
        };
        if kind.is_empty() || name.is_empty() || name.contains('/') {
            return Err(Error::Failed(
                "arguments in resource/name form must have a single resource and name".into(),
            ));
        }
        // `deployments.apps` and `deployments.v1.apps` are the same to us: only built-in kinds have pods.
        let short = kind.split('.').next().unwrap_or(kind).to_ascii_lowercase();
        let kind = match short.as_str() {
            "po" | "pod" | "pods" => TargetKind::Pod,
            "svc" | "service" | "services" => TargetKind::Service,
            "deploy" | "deployment" | "deployments" => {
                TargetKind::Owner("apps", "v1", "Deployment", "deployments")
            }
            "rs" | "replicaset" | "replicasets" => {
                TargetKind::Owner("apps", "v1", "ReplicaSet", "replicasets")
            }
            "sts" | "statefulset" | "statefulsets" => {
                TargetKind::Owner("apps", "v1", "StatefulSet", "statefulsets")
            }
            "ds" | "daemonset" | "daemonsets" => TargetKind::Owner("apps", "v1", "DaemonSet", "daemonsets"),
            "job" | "jobs" => TargetKind::Owner("batch", "v1", "Job", "jobs"),
            "rc" | "replicationcontroller" | "replicationcontrollers" => {
                TargetKind::Owner("", "v1", "ReplicationController", "replicationcontrollers")
            }
            _ => return Err(Error::Failed(format!("the server doesn't have a resource type {kind:?}"))),
        };
        Ok(Self { kind, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_short_types_are_understood() {
        assert_eq!(Target::parse("nginx").unwrap().kind, TargetKind::Pod);
        assert_eq!(Target::parse("svc/web").unwrap().kind, TargetKind::Service);
        assert!(matches!(
            Target::parse("deployments.apps/web").unwrap().kind,
            TargetKind::Owner("apps", "v1", "Deployment", _)
        ));
        assert_eq!(
            Target::parse("frob/x").unwrap_err().to_string(),
            "the server doesn't have a resource type \"frob\""
        );
        for bad in ["/x", "pod/", "a/b/c"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
