//! Which nodes are autonomous, and how that is shown. Pure; `nodes` applies it.
//!
//! A node is autonomous while it is an edge node and its annotations say so. The names of these nodes are
//! listed in an AutonomousNodes object, the parameter of the two admission policies that keep their pods where they
//! are: the policies go on working while this controller does not.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use yurt_api::names;

/// What a node's annotations say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Autonomy {
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
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    label(names::LABEL_EDGE_WORKER).or_else(|| label(names::LABEL_EDGE_WORKER_LEGACY)).map(String::as_str)
        == Some("true")
}

/// Reads label and annotations. `None`: not an edge node, autonomy does not concern it.
pub(super) fn of(node: &Node) -> Option<Autonomy> {
    if !is_edge(node) {
        return None;
    }
    let annotations = node.metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|annotations| annotations.get(name)).map(|v| v.trim());
    let plain = [names::ANNOTATION_AUTONOMY, names::ANNOTATION_AUTONOMY_LEGACY]
        .into_iter()
        .find(|name| annotation(name) == Some("true"));
    let duration = annotation(names::ANNOTATION_AUTONOMY_DURATION);

    let mut fault = String::new();
    if let Some(text) = duration {
        match go_duration(text) {
            Some(length) => {
                let limit = if length.is_zero() {
                    "for ever".to_owned()
                } else {
                    // The time limit is a later version's; saying otherwise would be a lie.
                    format!("(the limit of {text} is not yet enforced)")
                };
                return Some(Autonomy {
                    on: true,
                    reason: "AutonomyDuration",
                    message: format!("pods stay on the node while its link is lost {limit}"),
                    fault: false,
                });
            }
            None => {
                fault = format!(
                    "; annotation {} has {text:?}, which is not a duration like 30m or 2h45m",
                    names::ANNOTATION_AUTONOMY_DURATION
                );
            }
        }
    }
    Some(match plain {
        Some(name) => Autonomy {
            on: true,
            reason: "AutonomyAnnotation",
            message: format!("pods stay on the node while its link is lost (annotation {name}){fault}"),
            fault: !fault.is_empty(),
        },
        None => Autonomy {
            on: false,
            reason: "NotAutonomous",
            message: format!("pods are evicted when the node's link is lost for long{fault}"),
            fault: !fault.is_empty(),
        },
    })
}

/// A duration as Go's `time.ParseDuration` reads it: `1h30m`, `2.5s`, `0`. Negative ones have no meaning
/// here. `None`: not a duration.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole_length = digits(rest);
        let (whole, after) = rest.split_at(whole_length);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_length = after.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let (unit, after) = (after.get(..unit_length)?, after.get(unit_length..)?);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        // Go's range is an i64 of nanoseconds, 292 years.
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok() };
        nanos = nanos.checked_add(u128::from(number(whole)?).checked_mul(unit)?)?;
        // Digits beyond a nanosecond change nothing.
        let fraction = fraction.get(..fraction.len().min(15))?;
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        nanos = nanos.checked_add(u128::from(number(fraction)?).checked_mul(unit)? / scale)?;
        if nanos > u128::try_from(i64::MAX).ok()? {
            return None;
        }
        rest = after;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// The policies' parameter, `spec.nodes`: a key for every autonomous node.
pub(super) fn parameter<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, String> {
    nodes
        .filter(|node| of(node).is_some_and(|autonomy| autonomy.on))
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
        autonomy: Autonomy,
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
        (Some(autonomy), None) if !autonomy.on && !autonomy.fault => Change::None,
        (Some(autonomy), None) => Change::Set { turned: autonomy.on, autonomy },
        (Some(autonomy), Some(shown)) => {
            let turned = (shown.status == "True") != autonomy.on;
            let told = shown.reason.as_deref() == Some(autonomy.reason)
                && shown.message.as_deref() == Some(&autonomy.message);
            if turned || !told { Change::Set { autonomy, turned } } else { Change::None }
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
    fn durations_are_read_as_go_reads_them() {
        let seconds = |text| go_duration(text).map(|duration| duration.as_secs_f64());
        for (text, expected) in [
            ("0", 0.0),
            ("0s", 0.0),
            ("+5s", 5.0),
            ("1h15m30.5s", 4530.5),
            ("1.5h", 5400.0),
            (".5m", 30.0),
            ("5.s", 5.0),
            ("100ms", 0.1),
            ("3us", 0.000_003),
            ("3µs", 0.000_003),
            ("1m1m", 120.0),
            ("0.1234567890123456789s", 0.123_456_789),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in
            ["", "+", "-5m", "5", "5 m", "m", "1d", "1h ", "1..5s", ".s", "五分", "9999999h", "1h-5m", "é"]
        {
            assert_eq!(go_duration(text), None, "{text}");
        }
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
        let Change::Set { autonomy, turned: true } = change(&on) else { panic!() };
        let shown = with_condition(on, "True", autonomy.reason, &autonomy.message);
        assert_eq!(change(&shown), Change::None);
        let back = with_condition(off, "True", autonomy.reason, &autonomy.message);
        let Change::Set { autonomy, turned: true } = change(&back) else { panic!() };
        assert!(!autonomy.on);
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
