//! One node's autonomy: what its annotations ask for and what the controller made of that. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{ResourceExt as _, api::DynamicObject};
use serde::Serialize;

use crate::{
    cluster::{definition, node},
    output::{Tone, words::human},
};

/// One node's autonomy, as `-o json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAutonomy {
    /// The node.
    pub name: String,
    /// The annotations ask for it.
    pub enabled: bool,
    /// The annotation that does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// For how long, in seconds; absent for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<u64>,
    /// The policies protect the node's pods.
    pub in_effect: bool,
    /// Status of the node condition `Autonomy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What is wrong with the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// The node is there.
    pub ready: bool,
}

/// Puts together what a node's annotations ask for and what became of it. Pure.
pub fn describe(node: &Node, parameter: Option<&DynamicObject>) -> NodeAutonomy {
    let name = node.name_any();
    let asked = node::autonomy(node);
    let on = asked.is_on();
    let condition = node::condition(node, node::CONDITION_AUTONOMY);
    let protected = parameter.is_some_and(|parameter| definition::names_node(parameter, &name));
    NodeAutonomy {
        enabled: on,
        source: asked.source().map(str::to_owned),
        limit_seconds: asked.limit().map(|limit| limit.as_secs()),
        in_effect: protected,
        condition: condition.map(|condition| condition.status.clone()),
        reason: condition.and_then(|condition| condition.reason.clone()),
        message: condition.and_then(|condition| condition.message.clone()),
        since: condition
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0.to_string()),
        fault: asked.fault().filter(|_| on).map(|(_, error)| error.to_string()),
        ready: node::is_ready(node),
        name,
    }
}

impl NodeAutonomy {
    /// The word for the request.
    pub fn request(&self) -> String {
        match (self.enabled, self.limit_seconds) {
            (false, _) => "off".into(),
            (true, None) => "on".into(),
            (true, Some(seconds)) => {
                format!("on for {}", human(Duration::from_secs(seconds)))
            }
        }
    }

    /// The word for its effect.
    pub fn effect(&self) -> (&'static str, Tone) {
        match (self.enabled, self.in_effect) {
            (true, true) => ("yes", Tone::Good),
            (true, false) => ("not yet", Tone::Warn),
            (false, true) => ("still", Tone::Warn),
            (false, false) => ("no", Tone::Faint),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use yurt_api::names;

    use super::*;
    use crate::cluster::samples::node;

    fn parameter(names: &[&str]) -> DynamicObject {
        let nodes: serde_json::Map<String, serde_json::Value> =
            names.iter().map(|name| ((*name).to_owned(), json!(""))).collect();
        serde_json::from_value(json!({ "metadata": {}, "spec": { "nodes": nodes } })).unwrap()
    }

    #[test]
    fn the_request_and_its_effect_are_two_things() {
        let asked = node("true", json!({ names::ANNOTATION_AUTONOMY: "true" }));
        let pending = describe(&asked, Some(&parameter(&[])));
        assert_eq!((pending.request().as_str(), pending.effect().0), ("on", "not yet"));
        let effective = describe(&asked, Some(&parameter(&["edge"])));
        assert_eq!(effective.effect().0, "yes");
        let ended = describe(&node("true", json!({})), Some(&parameter(&["edge"])));
        assert_eq!((ended.request().as_str(), ended.effect().0), ("off", "still"));
        let limited = describe(&node("true", json!({ names::ANNOTATION_AUTONOMY_DURATION: "2h" })), None);
        assert_eq!(limited.request(), "on for 2h0m");
    }

    #[test]
    fn a_duration_that_cannot_be_read_is_a_fault_of_an_autonomous_node() {
        let soon = json!({ names::ANNOTATION_AUTONOMY: "true", names::ANNOTATION_AUTONOMY_DURATION: "soon" });
        assert!(describe(&node("true", soon), None).fault.is_some());
    }
}
