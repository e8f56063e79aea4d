//! Which nodes are autonomous, and how that is shown. Pure; `nodes` applies it.
//!
//! A node is autonomous while it is an edge node and its annotations say so. The names of these nodes are
//! listed in an AutonomousNodes object, the parameter of the two admission policies that keep their pods where they
//! are: the policies go on working while this controller does not.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use yurt_api::names;
use yurt_api::node::{Autonomy, Kind, Limit};

/// What becomes of a node by its annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Whether the node's pods stay when its link is lost.
    pub on: bool,
    /// CamelCase, for the condition.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
    /// The duration cannot be read; what somebody asked for is not what he gets.
    pub fault: bool,
}

/// Whether the node is an edge node.
pub(super) fn is_edge(node: &Node) -> bool {
    Kind::of(node.metadata.labels.as_ref()).is_edge()
}

/// Reads label and annotations. `None`: not an edge node, autonomy does not concern it.
pub(super) fn of(node: &Node) -> Option<Verdict> {
    if !is_edge(node) {
        return None;
    }
    let asked = Autonomy::of(node.metadata.annotations.as_ref());
    if let Some(Limit { text, length: Ok(length) }) = &asked.duration {
        let limit = if length.is_zero() {
            "for ever".to_owned()
        } else {
            // The time limit is a later version's; saying otherwise would be a lie.
            format!("(the limit of {text} is not yet enforced)")
        };
        return Some(Verdict {
            on: true,
            reason: "AutonomyDuration",
            message: format!("pods stay on the node while its link is lost {limit}"),
            fault: false,
        });
    }
    let fault = asked.fault().map_or_else(String::new, |(text, _)| {
        format!(
            "; annotation {} has {text:?}, which is not a duration like 30m or 2h45m",
            names::ANNOTATION_AUTONOMY_DURATION
        )
    });
    Some(match asked.switch {
        Some(name) => Verdict {
            on: true,
            reason: "AutonomyAnnotation",
            message: format!("pods stay on the node while its link is lost (annotation {name}){fault}"),
            fault: !fault.is_empty(),
        },
        None => Verdict {
            on: false,
            reason: "NotAutonomous",
            message: format!("pods are evicted when the node's link is lost for long{fault}"),
            fault: !fault.is_empty(),
        },
    })
}

/// The policies' parameter, `spec.nodes`: a key for every autonomous node.
pub(super) fn parameter<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, String> {
    nodes
        .filter(|node| of(node).is_some_and(|verdict| verdict.on))
        .filter_map(|node| node.metadata.name.clone())
        .map(|name| (name, String::new()))
        .collect()
}

/// Type of the node's condition.
pub(super) const CONDITION: &str = "Autonomy";

/// What has to happen to a node's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It is as it should be.
    None,
    /// Write this; `turned` when the node has become autonomous, or has ceased to be.
    Set {
        /// What to write.
        verdict: Verdict,
        /// Whether the status changed, not only its explanation.
        turned: bool,
    },
    /// The node is no edge node any more: take the condition away.
    Remove,
}

/// Compares the node's condition with its annotations.
pub(super) fn change(node: &Node) -> Change {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let shown: Option<&NodeCondition> =
        conditions.and_then(|all| all.iter().find(|condition| condition.type_ == CONDITION));
    match (of(node), shown) {
        (None, None) => Change::None,
        (None, Some(_)) => Change::Remove,
        // A node that never was autonomous needs no condition that says so, unless somebody mistyped.
        (Some(verdict), None) if !verdict.on && !verdict.fault => Change::None,
        (Some(verdict), None) => Change::Set { turned: verdict.on, verdict },
        (Some(verdict), Some(shown)) => {
            let turned = (shown.status == "True") != verdict.on;
            let told = shown.reason.as_deref() == Some(verdict.reason)
                && shown.message.as_deref() == Some(&verdict.message);
            if turned || !told { Change::Set { verdict, turned } } else { Change::None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeStatus;

    fn node(name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Node {
        let map = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.metadata.labels = map(labels);
        node.metadata.annotations = map(annotations);
        node
    }

    const EDGE: (&str, &str) = (names::LABEL_EDGE_WORKER, "true");
    const ON: (&str, &str) = (names::ANNOTATION_AUTONOMY, "true");

    fn with_condition(mut node: Node, status: &str, reason: &str, message: &str) -> Node {
        node.status = Some(NodeStatus {
            conditions: Some(vec![NodeCondition {
                type_: CONDITION.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                ..NodeCondition::default()
            }]),
            ..NodeStatus::default()
        });
        node
    }

    #[test]
    fn only_annotated_edge_nodes_are_parameters() {
        let nodes = [
            node("plain-edge", &[EDGE], &[]),
            node("autonomous", &[EDGE], &[ON]),
            node("legacy", &[EDGE], &[(names::ANNOTATION_AUTONOMY_LEGACY, "true")]),
            node("legacy-label", &[(names::LABEL_EDGE_WORKER_LEGACY, "true")], &[ON]),
            node("timed", &[EDGE], &[(names::ANNOTATION_AUTONOMY_DURATION, "2h")]),
            node("for-ever", &[EDGE], &[(names::ANNOTATION_AUTONOMY_DURATION, "0")]),
            node("mistyped", &[EDGE], &[(names::ANNOTATION_AUTONOMY_DURATION, "2 hours")]),
            node("mistyped-on", &[EDGE], &[ON, (names::ANNOTATION_AUTONOMY_DURATION, "soon")]),
            node("off", &[EDGE], &[(names::ANNOTATION_AUTONOMY, "false")]),
            node("cloud", &[(names::LABEL_EDGE_WORKER, "false")], &[ON]),
            node("vanilla", &[], &[ON]),
            // The new label decides where both are there.
            node(
                "both",
                &[(names::LABEL_EDGE_WORKER, "false"), (names::LABEL_EDGE_WORKER_LEGACY, "true")],
                &[ON],
            ),
        ];
        let names: Vec<_> = parameter(nodes.iter()).into_keys().collect();
        assert_eq!(names, ["autonomous", "for-ever", "legacy", "legacy-label", "mistyped-on", "timed"]);
    }

    #[test]
    fn a_mistyped_duration_is_shown_and_the_plain_annotation_decides() {
        let bad = (names::ANNOTATION_AUTONOMY_DURATION, "soon");
        let off = of(&node("a", &[EDGE], &[bad])).unwrap();
        assert!(!off.on && off.fault && off.message.contains("\"soon\""), "{off:?}");
        assert!(matches!(change(&node("a", &[EDGE], &[bad])), Change::Set { turned: false, .. }));
        let on = of(&node("a", &[EDGE], &[ON, bad])).unwrap();
        assert!(on.on && on.fault, "{on:?}");
    }

    #[test]
    fn the_condition_appears_with_autonomy_and_turns_once() {
        let off = node("a", &[EDGE], &[]);
        assert_eq!(change(&off), Change::None);
        let on = node("a", &[EDGE], &[ON]);
        let Change::Set { verdict, turned: true } = change(&on) else { panic!() };
        let shown = with_condition(on, "True", verdict.reason, &verdict.message);
        assert_eq!(change(&shown), Change::None);
        let back = with_condition(off, "True", verdict.reason, &verdict.message);
        let Change::Set { verdict, turned: true } = change(&back) else { panic!() };
        assert!(!verdict.on);
    }

    #[test]
    fn another_explanation_is_written_without_a_turn() {
        let node = with_condition(node("a", &[EDGE], &[ON]), "True", "Other", "other");
        assert!(matches!(change(&node), Change::Set { turned: false, .. }));
    }

    #[test]
    fn a_node_that_is_no_edge_node_any_more_loses_the_condition() {
        assert_eq!(change(&with_condition(node("a", &[], &[ON]), "True", "r", "m")), Change::Remove);
        assert_eq!(change(&node("a", &[], &[ON])), Change::None);
    }
}
