//! Whether kubelet left the containers alone when it was restarted.
//!
//! On any node containers come and go: Jobs complete, programs crash, somebody deletes a pod. Only what a kubelet does
//! that takes its containers for others is of interest: a container of the same pod runs again, begun after kubelet's
//! restart, and the one before did not end by itself.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A container that runs for less is expected to come and go.
const SETTLED: SignedDuration = SignedDuration::from_secs(60);
/// How kubelet ends a container: by its stop signal (HUP, INT, QUIT or TERM, on which many programs end with 0), then
/// by KILL. What it says when it ran out of memory is [`OUT_OF_MEMORY`].
const ASKED_TO_END: [i32; 6] = [0, 129, 130, 131, 137, 143];
const OUT_OF_MEMORY: &str = "OOMKilled";

/// What had been running for a while before kubelet was restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Before {
    /// The kernel's boot id: after a reboot every container is another one.
    pub boot_id: Option<String>,
    /// Ids by `pod uid/container`.
    pub ids: BTreeMap<String, String>,
    /// When kubelet was first restarted after this was written, seconds since 1970.
    pub restarted: Option<i64>,
}

/// The containers that run, by `pod uid/container`.
pub(crate) type Running = BTreeMap<String, Container>;

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub id: String,
    /// By the node's clock, as everything here; whole seconds.
    pub started: Timestamp,
    /// The end of the one before it.
    pub previous: Option<End>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub id: Option<String>,
    pub finished: Option<Timestamp>,
    pub code: i32,
    pub reason: String,
}

impl End {
    /// Whether nobody asked it to end, or not the kubelet that was started at `restarted`.
    fn was_by_itself(&self, restarted: i64) -> bool {
        self.finished.is_some_and(|finished| finished.as_second() < restarted)
            || self.reason == OUT_OF_MEMORY
            || !ASKED_TO_END.contains(&self.code)
    }
}

/// Ids of those that have been running for a while.
pub(crate) fn settled(running: &Running, now: Timestamp) -> BTreeMap<String, String> {
    running
        .iter()
        .filter(|(_, container)| now.duration_since(container.started) >= SETTLED)
        .map(|(name, container)| (name.clone(), container.id.clone()))
        .collect()
}

/// The containers that kubelet replaced.
pub(crate) fn replaced(before: &Before, now: &Running) -> Vec<String> {
    let Some(restarted) = before.restarted else { return Vec::new() };
    let is_replaced = |name: &String, id: &String| {
        now.get(name).is_some_and(|container| {
            let ended = container.previous.as_ref();
            let ended = ended.filter(|end| end.id.as_ref().is_none_or(|ended| ended == id));
            container.id != *id
                && container.started.as_second() >= restarted
                && !ended.is_some_and(|end| end.was_by_itself(restarted))
        })
    };
    before.ids.iter().filter(|(name, id)| is_replaced(name, id)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::cluster::Pod;
    use super::*;

    const RESTARTED: &str = "2026-01-01T00:10:00Z";

    fn running(statuses: Value, metadata: Value) -> Running {
        let mut metadata = metadata;
        metadata["uid"] = json!("uid");
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "status": statuses})).unwrap();
        let mut running = Running::new();
        pod.add_to(&mut running);
        running
    }

    fn status(id: &str, state: Value, last: Value) -> Value {
        json!({"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": id, "state": state, "lastState": last})
    }

    fn runs(id: &str, started: &str) -> Value {
        status(id, json!({"running": {"startedAt": started}}), json!({}))
    }

    fn runs_after(code: i32, reason: &str, finished: &str) -> Value {
        status(
            "new",
            json!({"running": {"startedAt": "2026-01-01T00:10:02Z"}}),
            json!({"terminated": {"containerID": "old", "exitCode": code, "reason": reason, "finishedAt": finished}}),
        )
    }

    fn before() -> Before {
        let restarted: Timestamp = RESTARTED.parse().unwrap();
        Before {
            boot_id: None,
            ids: [("uid/app".to_owned(), "old".to_owned())].into(),
            restarted: Some(restarted.as_second()),
        }
    }

    fn replaced_by(kind: &str, now: Value) -> Vec<String> {
        replaced(&before(), &running(json!({kind: [now]}), json!({})))
    }

    #[test]
    fn only_containers_that_run_for_a_while_are_held_to_stay() {
        let now: Timestamp = RESTARTED.parse().unwrap();
        let ids = |started: &str, metadata: Value| {
            let found = running(json!({"containerStatuses": [runs("old", started)]}), metadata);
            settled(&found, now).into_keys().collect::<Vec<_>>()
        };
        assert_eq!(ids("2026-01-01T00:00:00Z", json!({})), ["uid/app"]);
        assert!(ids("2026-01-01T00:09:30Z", json!({})).is_empty());
        assert!(ids("2026-01-01T00:00:00Z", json!({"deletionTimestamp": RESTARTED})).is_empty());
    }

    #[test]
    fn a_container_that_kubelet_began_anew_was_replaced() {
        let unseen = runs("new", "2026-01-01T00:10:02Z");
        assert_eq!(replaced_by("containerStatuses", unseen.clone()), ["uid/app"]);
        assert_eq!(replaced_by("initContainerStatuses", unseen), ["uid/app"], "a sidecar");
        for code in [0, 137, 143] {
            let killed = runs_after(code, "Completed", "2026-01-01T00:10:01Z");
            assert_eq!(replaced_by("containerStatuses", killed), ["uid/app"], "exit code {code}");
        }
        let first = status(
            "new",
            json!({"running": {"startedAt": "2026-01-01T00:10:02Z"}}),
            json!({"terminated": {"containerID": "another", "exitCode": 1, "finishedAt": "2026-01-01T00:10:01Z"}}),
        );
        assert_eq!(replaced_by("containerStatuses", first), ["uid/app"], "the old one's end is not known");
    }

    #[test]
    fn what_comes_and_goes_by_itself_was_not() {
        let cases = [
            ("the same", runs("old", "2026-01-01T00:00:00Z")),
            ("begun before the restart", runs("new", "2026-01-01T00:09:59Z")),
            ("a crash", runs_after(1, "Error", "2026-01-01T00:10:01Z")),
            ("a segmentation fault", runs_after(139, "Error", "2026-01-01T00:10:01Z")),
            ("out of memory", runs_after(137, "OOMKilled", "2026-01-01T00:10:01Z")),
            ("ended before the restart", runs_after(0, "Completed", "2026-01-01T00:09:58Z")),
            (
                "a crash loop",
                status(
                    "old",
                    json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                    json!({"terminated": {"exitCode": 1}}),
                ),
            ),
            ("a Job that is done", status("old", json!({"terminated": {"exitCode": 0}}), json!({}))),
        ];
        for (what, now) in cases {
            assert!(replaced_by("containerStatuses", now).is_empty(), "{what}");
        }
        let ephemeral = runs("new", "2026-01-01T00:10:02Z");
        assert!(replaced_by("ephemeralContainerStatuses", ephemeral).is_empty());
        assert!(replaced(&before(), &Running::new()).is_empty(), "a pod that somebody deleted");
    }

    #[test]
    fn a_pod_that_is_being_deleted_does_not_count() {
        let statuses = json!({"containerStatuses": [runs("new", "2026-01-01T00:10:02Z")]});
        let going = running(statuses, json!({"deletionTimestamp": "2026-01-01T00:10:01Z"}));
        assert!(replaced(&before(), &going).is_empty());
    }
}
