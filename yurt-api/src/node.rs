//! What a Node's labels and annotations say about it: whether it is an edge node, and how autonomous it is asked to be.
//! One reading for plugin, keeper, controller and tunnel server. Pure, over the maps of an object's metadata.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    duration::{self, DurationError},
    names,
};

/// Labels or annotations as an object's metadata has them; `None` is the same as empty.
pub type Map = BTreeMap<String, String>;

/// What a node is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Labelled as an edge node.
    Edge,
    /// Labelled as a cloud node.
    Cloud,
    /// Not labelled, or with a value that is neither `true` nor `false`.
    Unlabelled,
}

impl Kind {
    /// Reads the labels: ours ([`names::LABEL_EDGE_WORKER`]) decides, its synonym counts only where ours is not there.
    pub fn of(labels: Option<&Map>) -> Self {
        let label = |name: &str| labels.and_then(|labels| labels.get(name));
        let value = label(names::LABEL_EDGE_WORKER).or_else(|| label(names::LABEL_EDGE_WORKER_LEGACY));
        match value.map(String::as_str) {
            Some("true") => Self::Edge,
            Some("false") => Self::Cloud,
            _ => Self::Unlabelled,
        }
    }

    /// True for an edge node.
    pub fn is_edge(self) -> bool {
        self == Self::Edge
    }
}

/// What a node's annotations ask for. They mean something on edge nodes only, see [`Kind::of`].
///
/// There are two ways to ask: a switch ([`names::ANNOTATION_AUTONOMY`] or its synonym) and a duration
/// ([`names::ANNOTATION_AUTONOMY_DURATION`]), either of which suffices. A duration that cannot be read asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autonomy<'a> {
    /// The annotation whose value is `true`.
    pub switch: Option<&'static str>,
    /// The annotation with a duration.
    pub duration: Option<Limit<'a>>,
}

/// A duration as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit<'a> {
    /// The annotation's value, without blanks around it.
    pub text: &'a str,
    /// What it says; zero stands for *for ever*.
    pub length: Result<Duration, DurationError>,
}

impl<'a> Autonomy<'a> {
    /// Reads the annotations. Blanks around a value do not count.
    pub fn of(annotations: Option<&'a Map>) -> Self {
        let value = |name: &str| annotations.and_then(|all| all.get(name)).map(|value| value.trim());
        Self {
            switch: [names::ANNOTATION_AUTONOMY, names::ANNOTATION_AUTONOMY_LEGACY]
                .into_iter()
                .find(|name| value(name) == Some("true")),
            duration: value(names::ANNOTATION_AUTONOMY_DURATION)
                .map(|text| Limit { text, length: duration::parse(text) }),
        }
    }

    /// The node is to keep its pods while its link is lost.
    pub fn is_on(&self) -> bool {
        self.switch.is_some() || self.length().is_some()
    }

    /// The duration that can be read.
    fn length(&self) -> Option<Duration> {
        self.duration.as_ref().and_then(|limit| limit.length.as_ref().ok()).copied()
    }

    /// For how long at most; `None` when for ever, or when the node is not autonomous.
    pub fn limit(&self) -> Option<Duration> {
        self.length().filter(|length| !length.is_zero())
    }

    /// The duration that somebody asked for and does not get, and why.
    pub fn fault(&self) -> Option<(&'a str, &DurationError)> {
        let limit = self.duration.as_ref()?;
        limit.length.as_ref().err().map(|error| (limit.text, error))
    }

    /// The annotation that makes the node autonomous; the switch goes before the duration.
    pub fn source(&self) -> Option<&'static str> {
        self.switch.or_else(|| self.length().map(|_| names::ANNOTATION_AUTONOMY_DURATION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Map {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn our_label_decides_and_its_synonym_is_read() {
        let kind = |pairs: &[(&str, &str)]| Kind::of(Some(&map(pairs)));
        assert_eq!(Kind::of(None), Kind::Unlabelled);
        assert_eq!(kind(&[(names::LABEL_EDGE_WORKER, "true")]), Kind::Edge);
        assert_eq!(kind(&[(names::LABEL_EDGE_WORKER, "false")]), Kind::Cloud);
        assert_eq!(kind(&[(names::LABEL_EDGE_WORKER_LEGACY, "true")]), Kind::Edge);
        assert_eq!(
            kind(&[(names::LABEL_EDGE_WORKER, "false"), (names::LABEL_EDGE_WORKER_LEGACY, "true")]),
            Kind::Cloud
        );
        // A value that means nothing does not uncover the synonym.
        assert_eq!(
            kind(&[(names::LABEL_EDGE_WORKER, "yes"), (names::LABEL_EDGE_WORKER_LEGACY, "true")]),
            Kind::Unlabelled
        );
    }

    #[test]
    fn a_switch_or_a_duration_makes_a_node_autonomous() {
        let on = |pairs: &[(&str, &str)]| Autonomy::of(Some(&map(pairs))).source();
        assert_eq!(Autonomy::of(None), Autonomy { switch: None, duration: None });
        assert_eq!(on(&[(names::ANNOTATION_AUTONOMY, "false")]), None);
        assert_eq!(on(&[(names::ANNOTATION_AUTONOMY, " true ")]), Some(names::ANNOTATION_AUTONOMY));
        assert_eq!(
            on(&[(names::ANNOTATION_AUTONOMY_LEGACY, "true")]),
            Some(names::ANNOTATION_AUTONOMY_LEGACY)
        );
        assert_eq!(
            on(&[(names::ANNOTATION_AUTONOMY_DURATION, "0")]),
            Some(names::ANNOTATION_AUTONOMY_DURATION)
        );
    }

    #[test]
    fn a_duration_limits_and_zero_does_not() {
        let limit = |text: &str| {
            let annotations = map(&[(names::ANNOTATION_AUTONOMY_DURATION, text)]);
            let autonomy = Autonomy::of(Some(&annotations));
            (autonomy.is_on(), autonomy.limit(), autonomy.fault().is_some())
        };
        assert_eq!(limit("2h"), (true, Some(Duration::from_secs(7200)), false));
        assert_eq!(limit("0"), (true, None, false));
        assert_eq!(limit("soon"), (false, None, true));
        assert_eq!(limit("-2h"), (false, None, true));
        assert_eq!(limit("30"), (false, None, true), "Go wants a unit");
    }

    #[test]
    fn a_duration_that_cannot_be_read_leaves_the_switch_to_decide() {
        let annotations =
            map(&[(names::ANNOTATION_AUTONOMY, "true"), (names::ANNOTATION_AUTONOMY_DURATION, "soon")]);
        let autonomy = Autonomy::of(Some(&annotations));
        assert!(autonomy.is_on());
        assert_eq!(autonomy.fault().map(|(text, _)| text), Some("soon"));
    }
}
