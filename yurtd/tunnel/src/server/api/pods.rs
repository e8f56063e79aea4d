//! From a pod's name to its node and container.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::status::{self, ApiError};
use super::target::PodTarget;

/// Annotation that names the container kubectl takes when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// How long the API server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint needs to know about a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    name: String,
    node: String,
    default_container: Option<String>,
    containers: Vec<String>,
    init_containers: Vec<String>,
    ephemeral_containers: Vec<String>,
}

impl From<Pod> for PodFacts {
    fn from(pod: Pod) -> Self {
        let spec = pod.spec.unwrap_or_default();
        Self {
            name: pod.metadata.name.unwrap_or_default(),
            node: spec.node_name.unwrap_or_default(),
            default_container: pod.metadata.annotations.unwrap_or_default().remove(DEFAULT_CONTAINER),
            containers: spec.containers.into_iter().map(|container| container.name).collect(),
            init_containers: spec
                .init_containers
                .unwrap_or_default()
                .into_iter()
                .map(|container| container.name)
                .collect(),
            ephemeral_containers: spec
                .ephemeral_containers
                .unwrap_or_default()
                .into_iter()
                .map(|container| container.name)
                .collect(),
        }
    }
}

/// Where the request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The node.
    pub node: String,
    /// The container; empty where the request concerns the whole pod.
    pub container: String,
}

impl PodFacts {
    /// Node and container for `target`. `None`: the pod has no node yet, so it has no log either.
    ///
    /// # Errors
    ///
    /// [`ApiError::BadRequest`] in the API server's words.
    pub(super) fn place(&self, target: &PodTarget) -> Result<Option<Place>, ApiError> {
        let container = if target.action.needs_container() {
            self.container(target.container.as_deref())?
        } else {
            String::new()
        };
        if !self.node.is_empty() {
            return Ok(Some(Place { node: self.node.clone(), container }));
        }
        if target.action.is_upgrade() {
            return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", self.name)));
        }
        Ok(None)
    }

    fn has(&self, container: &str) -> bool {
        [&self.containers, &self.init_containers, &self.ephemeral_containers]
            .into_iter()
            .flatten()
            .any(|name| name == container)
    }

    fn container(&self, wanted: Option<&str>) -> Result<String, ApiError> {
        if let Some(wanted) = wanted {
            return if self.has(wanted) {
                Ok(wanted.to_owned())
            } else {
                Err(ApiError::BadRequest(format!("container {wanted} is not valid for pod {}", self.name)))
            };
        }
        if let Some(default) = self.default_container.as_deref().filter(|name| self.has(name)) {
            return Ok(default.to_owned());
        }
        if let [single] = self.containers.as_slice() {
            return Ok(single.clone());
        }
        let mut message = format!("a container name must be specified for pod {}", self.name);
        if !self.containers.is_empty() {
            message.push_str(&format!(", choose one of: [{}]", self.containers.join(" ")));
            if !self.init_containers.is_empty() {
                message.push_str(&format!(
                    " or one of the init containers: [{}]",
                    self.init_containers.join(" ")
                ));
            }
        }
        Err(ApiError::BadRequest(message))
    }
}

/// Asks the API server, with the server's own ServiceAccount; the caller has been authorised before.
///
/// # Errors
///
/// [`ApiError::NotFound`], or [`ApiError::Unavailable`] when the API server does not say.
pub(super) async fn find(client: &kube::Client, target: &PodTarget) -> Result<PodFacts, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &target.namespace);
    let answer = tokio::time::timeout(TIMEOUT, api.get(&target.pod)).await;
    match answer {
        Ok(Ok(pod)) => Ok(pod.into()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            Err(ApiError::NotFound { group: "", resource: "pods", name: target.pod.clone() })
        }
        Ok(Err(error)) => Err(status::api_server_error("read the pod", &error)),
        Err(_) => Err(status::api_server_silent("read the pod")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Action;
    use super::*;

    fn facts(containers: &[&str]) -> PodFacts {
        PodFacts {
            name: "till-0".into(),
            node: "edge-1".into(),
            containers: containers.iter().map(|&name| name.into()).collect(),
            ..PodFacts::default()
        }
    }

    fn target(container: Option<&str>, action: Action) -> PodTarget {
        PodTarget {
            namespace: "shop".into(),
            pod: "till-0".into(),
            container: container.map(Into::into),
            action,
        }
    }

    fn container(facts: &PodFacts, wanted: Option<&str>) -> Result<String, String> {
        facts
            .place(&target(wanted, Action::Log(Vec::new())))
            .map(|place| place.unwrap().container)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_only_container_needs_no_name() {
        assert_eq!(container(&facts(&["app"]), None).unwrap(), "app");
    }

    #[test]
    fn the_annotated_default_is_taken_when_it_exists() {
        let mut pod = facts(&["app", "proxy"]);
        pod.default_container = Some("proxy".into());
        assert_eq!(container(&pod, None).unwrap(), "proxy");
        pod.default_container = Some("gone".into());
        assert!(container(&pod, None).is_err());
    }

    #[test]
    fn several_containers_are_listed_as_the_api_server_lists_them() {
        let mut pod = facts(&["app", "proxy"]);
        assert_eq!(
            container(&pod, None).unwrap_err(),
            "a container name must be specified for pod till-0, choose one of: [app proxy]"
        );
        pod.init_containers = vec!["setup".into()];
        assert_eq!(
            container(&pod, None).unwrap_err(),
            "a container name must be specified for pod till-0, choose one of: [app proxy] \
             or one of the init containers: [setup]"
        );
    }

    #[test]
    fn init_and_ephemeral_containers_can_be_named() {
        let mut pod = facts(&["app"]);
        pod.init_containers = vec!["setup".into()];
        pod.ephemeral_containers = vec!["debugger".into()];
        assert_eq!(container(&pod, Some("setup")).unwrap(), "setup");
        assert_eq!(container(&pod, Some("debugger")).unwrap(), "debugger");
        assert_eq!(
            container(&pod, Some("other")).unwrap_err(),
            "container other is not valid for pod till-0"
        );
    }

    #[test]
    fn a_pod_without_a_node_has_no_log_and_takes_no_exec() {
        let mut pod = facts(&["app"]);
        pod.node.clear();
        assert_eq!(pod.place(&target(None, Action::Log(Vec::new()))).unwrap(), None);
        let error = pod.place(&target(None, Action::Exec(Vec::new()))).unwrap_err();
        assert_eq!(error.to_string(), "pod till-0 does not have a host assigned");
    }

    #[test]
    fn a_port_forward_asks_for_no_container() {
        let place = facts(&["app", "proxy"]).place(&target(None, Action::PortForward(Vec::new()))).unwrap();
        assert_eq!(place, Some(Place { node: "edge-1".into(), container: String::new() }));
    }
}
