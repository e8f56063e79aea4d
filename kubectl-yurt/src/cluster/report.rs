//! What a node reports of itself on its way to *edge*, to another release, or back to *vanilla*: what its keeper wrote, what
//! keeps the keeper's pod from running, and whether the node is there. Pure.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use yurt_api::status::{ConversionState, ConversionStatus};

use crate::{
    cluster::{
        node,
        pods::{self, Trouble},
        rollout::Report,
        view::View,
    },
    output::words::version,
};

/// What is to be seen of a node's keeper of this run.
struct Seen<'a> {
    keeper: &'a Pod,
    trouble: Option<Trouble>,
    status: Option<ConversionStatus>,
    /// To be put behind a text.
    away: &'static str,
}

impl<'a> Seen<'a> {
    /// Looks for the keeper with this image; what to report instead if it is not there or cannot run.
    fn look(view: &'a View, name: &str, image: &str, now: Instant) -> Result<Self, Report> {
        let node = view.nodes.get(name).ok_or_else(|| Report::Failed("the node has been deleted".into()))?;
        let keeper = view.keeper(name).ok_or_else(|| Report::Working("waiting for its keeper".into()))?;
        if pods::image_of(keeper) != Some(image) {
            return Err(Report::Working("waiting for its new keeper".into()));
        }
        let trouble = view.trouble(keeper, now);
        if let Some(Trouble::Fatal(text)) = trouble {
            return Err(Report::Failed(text));
        }
        let away = if node::is_ready(node) { "" } else { " (the node is not ready)" };
        Ok(Self { keeper, trouble, status: node::conversion(node), away })
    }

    fn starting(&self) -> Report {
        let text = self.trouble.as_ref().map_or("keeper is starting", Trouble::text);
        Report::Working(format!("{text}{}", self.away))
    }

    /// What every state but *converted* means.
    fn under_way(&self, status: &ConversionStatus) -> Report {
        match status.state {
            ConversionState::Failed => {
                let step = status.step.as_ref().map(|step| format!("step {step}: ")).unwrap_or_default();
                Report::Failed(format!("{step}{}", status.message))
            }
            // A step failed and is being undone: the message says which and why.
            ConversionState::Converting | ConversionState::Reverting => {
                Report::Working(step_text(status) + self.away)
            }
            ConversionState::Converted | ConversionState::Reverted => self.trouble.as_ref().map_or_else(
                || Report::Working(format!("waiting for its keeper to begin{}", self.away)),
                |_| self.starting(),
            ),
        }
    }
}

/// What a node reports on its way to *edge*.
pub fn converting(view: &View, name: &str, image: &str, now: Instant) -> Report {
    let seen = match Seen::look(view, name, image, now) {
        Ok(seen) => seen,
        Err(report) => return report,
    };
    match &seen.status {
        None if seen.trouble.is_none() && pods::is_ready(seen.keeper) => {
            Report::Working(format!("keeper is looking{}", seen.away))
        }
        None => seen.starting(),
        Some(status) if status.state == ConversionState::Converted => {
            if pods::is_ready(seen.keeper) {
                Report::Done(format!("converted ({})", version(&status.version)))
            } else {
                seen.starting()
            }
        }
        Some(status) => seen.under_way(status),
    }
}

/// What an edge node reports on its way to another release.
pub fn upgrading(view: &View, name: &str, image: &str, release: &str, now: Instant) -> Report {
    let seen = match Seen::look(view, name, image, now) {
        Ok(seen) => seen,
        Err(report) => return report,
    };
    let Some(status) = &seen.status else { return seen.starting() };
    if status.state != ConversionState::Converted {
        return seen.under_way(status);
    }
    if !pods::is_ready(seen.keeper) {
        return seen.starting();
    }
    let (has, wants) = (version(&status.version), version(release));
    if has == wants {
        return Report::Done(format!("upgraded ({has})"));
    }
    // The keeper keeps the reason for as long as it keeps the old release.
    if status.message.contains("swapped back") && status.message.contains(wants.trim_start_matches('v')) {
        return Report::Failed(format!("still {has}: {}", status.message));
    }
    let message = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    Report::Working(format!("upgrading from {has} to {wants}{message}{}", seen.away))
}

/// `step 3 of 6: start the hub`
pub fn step_text(status: &ConversionStatus) -> String {
    let step = status.step.as_deref().unwrap_or("");
    let position = if status.steps > 0 {
        format!("step {} of {}", status.step_index, status.steps)
    } else {
        "at work".into()
    };
    match (step.is_empty(), status.message.is_empty()) {
        (true, true) => position,
        (true, false) => format!("{position}: {}", status.message),
        (false, true) => format!("{position}: {step}"),
        (false, false) => format!("{position}: {step}: {}", status.message),
    }
}

/// What a node reports on its way back to *vanilla*.
pub fn reverting(view: &View, name: &str, now: Instant) -> Report {
    let Some(node) = view.nodes.get(name) else {
        return Report::Done("the node has been deleted".into());
    };
    let keeper = view.keeper(name);
    let trouble = keeper.and_then(|keeper| view.trouble(keeper, now));
    let away = if node::is_ready(node) { "" } else { " (the node is not ready)" };
    let Some(status) = node::conversion(node) else {
        return match trouble {
            // No keeper has ever reported from this node, and none can start on it: nothing is installed.
            Some(Trouble::Fatal(_) | Trouble::Pull(_)) => Report::Done("nothing was installed".into()),
            Some(Trouble::Passing(text)) => Report::Working(text + away),
            None => Report::Working(format!("waiting for its keeper{away}")),
        };
    };
    match (status.state, trouble) {
        (ConversionState::Reverted, _) => Report::Done("vanilla".into()),
        (_, Some(Trouble::Fatal(why))) => Report::Failed(why),
        (ConversionState::Reverting, _) => Report::Working(step_text(&status) + away),
        (ConversionState::Failed, _) if node::is_reverting(node) && !status.message.is_empty() => {
            Report::Working(format!("{}{away}", status.message))
        }
        (_, Some(trouble)) => Report::Working(format!("{}{away}", trouble.text())),
        (_, None) => Report::Working(format!("waiting for its keeper to begin{away}")),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::ResourceExt as _;
    use serde_json::json;
    use yurt_api::names;

    use super::*;
    use crate::cluster::samples::pod;

    const IMAGE: &str = "r/yurtd:v1";

    fn converting(view: &View, name: &str, image: &str) -> Report {
        super::converting(view, name, image, Instant::now())
    }

    fn node(state: Option<&str>) -> Node {
        let annotations = state.map(|state| {
            let report = json!({ "state": state, "step": "start", "stepIndex": 3, "steps": 6, "message": "port in use",
                "version": "0.1.0", "time": "2026-01-01T00:00:00Z" });
            json!({ names::ANNOTATION_CONVERSION: report.to_string() })
        });
        serde_json::from_value(json!({
            "metadata": { "name": "edge", "annotations": annotations.unwrap_or(json!({})) },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] }
        }))
        .unwrap()
    }

    fn view(state: Option<&str>, keeper: Option<Pod>) -> View {
        View {
            nodes: [node(state)].into_iter().collect(),
            pods: keeper.into_iter().collect(),
            ..View::default()
        }
    }

    fn keeper(waiting: Option<&str>) -> Option<Pod> {
        Some(pod(("DaemonSet", names::KEEPER), IMAGE, waiting))
    }

    #[test]
    fn a_converted_node_is_done_when_its_keeper_runs() {
        let report = converting(&view(Some("Converted"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Done("converted (v0.1.0)".into()));
        let old = converting(&view(Some("Converted"), keeper(None)), "edge", "r/yurtd:v2");
        assert!(matches!(old, Report::Working(_)), "the report of the old keeper does not count");
        assert!(matches!(converting(&view(Some("Converted"), None), "edge", IMAGE), Report::Working(_)));
    }

    #[test]
    fn a_failed_step_is_named_with_its_reason() {
        let report = converting(&view(Some("Failed"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Failed("step start: port in use".into()));
    }

    #[test]
    fn a_missing_image_fails_the_node_at_once() {
        let report = converting(&view(None, keeper(Some("ErrImageNeverPull"))), "edge", IMAGE);
        assert!(matches!(report, Report::Failed(text) if text.contains(IMAGE) && text.contains("edge")));
    }

    #[test]
    fn progress_names_the_step() {
        let report = converting(&view(Some("Converting"), keeper(None)), "edge", IMAGE);
        assert_eq!(report, Report::Working("step 3 of 6: start: port in use".into()));
    }

    #[test]
    fn an_upgrade_is_through_when_the_new_keeper_reports_the_new_release() {
        let at = |version: &str, message: &str, keeper: Option<Pod>| {
            let report = json!({ "state": "Converted", "message": message, "version": version, "time": "" });
            let mut node = node(None);
            node.annotations_mut().insert(names::ANNOTATION_CONVERSION.into(), report.to_string());
            let view = View {
                nodes: [node].into_iter().collect(),
                pods: keeper.into_iter().collect(),
                ..View::default()
            };
            upgrading(&view, "edge", IMAGE, "0.2.0", Instant::now())
        };
        assert_eq!(at("0.2.0", "", keeper(None)), Report::Done("upgraded (v0.2.0)".into()));
        let old = Some(pod(("DaemonSet", names::KEEPER), "r/yurtd:v0", None));
        assert_eq!(at("0.1.0", "", old), Report::Working("waiting for its new keeper".into()));
        assert_eq!(at("0.1.0", "", keeper(None)), Report::Working("upgrading from v0.1.0 to v0.2.0".into()));
        let swapped =
            |release: &str| format!("version {release} did not work and was swapped back: no health");
        let report = at("0.1.0", &swapped("0.2.0"), keeper(None));
        assert!(matches!(&report, Report::Failed(text) if text.ends_with("no health")), "{report:?}");
        let report = at("0.1.0", &swapped("0.1.5"), keeper(None));
        assert!(
            matches!(report, Report::Working(_)),
            "what an earlier release did says nothing about this one"
        );
        let unpulled = keeper(Some("ErrImageNeverPull"));
        assert!(matches!(at("0.1.0", "", unpulled), Report::Failed(_)));
    }

    #[test]
    fn a_pull_that_fails_is_shown_while_it_may_pass() {
        let report = converting(&view(None, keeper(Some("ErrImagePull"))), "edge", IMAGE);
        assert!(matches!(&report, Report::Working(text) if text.contains(IMAGE)), "{report:?}");
    }

    fn reverting(view: &View, name: &str) -> Report {
        super::reverting(view, name, Instant::now())
    }

    #[test]
    fn only_a_report_of_vanilla_ends_the_waiting() {
        assert_eq!(reverting(&view(Some("Reverted"), None), "edge"), Report::Done("vanilla".into()));
        for state in ["Converted", "Converting", "Failed", "Reverting"] {
            assert!(
                matches!(reverting(&view(Some(state), keeper(None)), "edge"), Report::Working(_)),
                "{state}"
            );
        }
        assert!(matches!(reverting(&view(None, None), "edge"), Report::Working(_)));
    }

    #[test]
    fn a_keeper_that_cannot_start_means_nothing_was_installed_or_nothing_can_be_removed() {
        let broken = || keeper(Some("ErrImageNeverPull"));
        assert!(matches!(reverting(&view(None, broken()), "edge"), Report::Done(_)));
        assert!(matches!(reverting(&view(Some("Converted"), broken()), "edge"), Report::Failed(_)));
        let unpulled = || keeper(Some("ErrImagePull"));
        assert!(matches!(reverting(&view(None, unpulled()), "edge"), Report::Done(_)));
        let waits = reverting(&view(Some("Converted"), unpulled()), "edge");
        assert!(matches!(waits, Report::Working(text) if text.starts_with("image r/yurtd:v1")));
    }

    #[test]
    fn a_deleted_node_is_done() {
        assert!(matches!(reverting(&View::default(), "edge"), Report::Done(_)));
    }
}
