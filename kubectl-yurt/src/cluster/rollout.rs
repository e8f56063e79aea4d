//! Bringing many nodes to another state, some at a time. A state machine that is told what the nodes report and
//! what time it is, and answers which node to start next and what to show. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::output::words::human;

/// What a node reports at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It is at work, or something is being waited for.
    Working(String),
    /// It is where it should be.
    Done(String),
    /// It will not get there by itself.
    Failed(String),
}

/// Something to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A node is at work.
    Step(String),
    /// A node is done.
    Done(String),
    /// A node has failed.
    Failed(String),
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Not started.
    Queued,
    /// Started, and what it reported last.
    Active(Instant, String),
    /// Done.
    Done,
    /// Failed, and why.
    Failed(String),
}

/// The nodes of one run.
#[derive(Debug, Clone)]
pub struct Rollout {
    nodes: BTreeMap<String, Stage>,
    max_parallel: usize,
    timeout: Duration,
    /// The first node goes alone, and if it fails no other is started.
    canary: bool,
}

impl Rollout {
    /// A run over `nodes`. With `canary` the first of them goes alone.
    pub fn new(
        nodes: impl IntoIterator<Item = String>,
        max_parallel: usize,
        timeout: Duration,
        canary: bool,
    ) -> Self {
        let nodes = nodes.into_iter().map(|name| (name, Stage::Queued)).collect();
        Self { nodes, max_parallel: max_parallel.max(1), timeout, canary }
    }

    /// The nodes to start now; they count as started.
    pub fn start(&mut self, now: Instant) -> Vec<String> {
        if self.canary_failed() {
            return Vec::new();
        }
        let active = self.active().count();
        let limit =
            if self.canary && self.count(|stage| *stage == Stage::Done) == 0 { 1 } else { self.max_parallel };
        let queued = self.nodes.iter_mut().filter(|(_, stage)| **stage == Stage::Queued);
        queued
            .take(limit.saturating_sub(active))
            .map(|(name, stage)| {
                *stage = Stage::Active(now, "waiting for its keeper".into());
                name.clone()
            })
            .collect()
    }

    /// Takes note of what a node reports.
    pub fn observe(&mut self, node: &str, report: Report, now: Instant) -> Option<News> {
        let timeout = self.timeout;
        let stage = self.nodes.get_mut(node)?;
        let Stage::Active(since, last) = stage else { return None };
        let event = match report {
            Report::Done(text) => {
                *stage = Stage::Done;
                News::Done(text)
            }
            Report::Failed(why) => {
                *stage = Stage::Failed(why.clone());
                News::Failed(why)
            }
            Report::Working(text) if now.duration_since(*since) >= timeout => {
                let why = format!("timed out after {}: {text}", human(timeout));
                *stage = Stage::Failed(why.clone());
                News::Failed(why)
            }
            Report::Working(text) => {
                if *last == text {
                    return None;
                }
                last.clone_from(&text);
                News::Step(text)
            }
        };
        Some(event)
    }

    /// The nodes at work.
    pub fn active(&self) -> impl Iterator<Item = &str> {
        self.nodes
            .iter()
            .filter(|(_, stage)| matches!(stage, Stage::Active(..)))
            .map(|(name, _)| name.as_str())
    }

    /// The nodes that failed, and why.
    pub fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes.iter().filter_map(|(name, stage)| match stage {
            Stage::Failed(why) => Some((name.as_str(), why.as_str())),
            _ => None,
        })
    }

    /// The nodes that are done.
    pub fn done(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, stage)| **stage == Stage::Done).map(|(name, _)| name.as_str())
    }

    /// The nodes that were never started.
    pub fn queued(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, stage)| **stage == Stage::Queued).map(|(name, _)| name.as_str())
    }

    /// True when nothing is left to wait for.
    pub fn is_finished(&self) -> bool {
        self.active().next().is_none() && (self.canary_failed() || self.queued().next().is_none())
    }

    /// True if the first node failed, so that no other was started.
    pub fn canary_failed(&self) -> bool {
        self.canary && self.done().next().is_none() && self.failed().next().is_some()
    }

    fn count(&self, want: impl Fn(&Stage) -> bool) -> usize {
        self.nodes.values().filter(|stage| want(stage)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(300);

    fn rollout(count: usize, canary: bool) -> Rollout {
        Rollout::new((0..count).map(|index| format!("n{index}")), 2, TIMEOUT, canary)
    }

    fn done() -> Report {
        Report::Done("converted".into())
    }

    #[test]
    fn the_first_node_goes_alone_and_then_as_many_as_allowed() {
        let now = Instant::now();
        let mut run = rollout(4, true);
        assert_eq!(run.start(now), ["n0"]);
        assert!(run.start(now).is_empty());
        assert_eq!(run.observe("n0", done(), now), Some(News::Done("converted".into())));
        assert_eq!(run.start(now), ["n1", "n2"]);
        assert!(run.start(now).is_empty());
        run.observe("n2", done(), now);
        assert_eq!(run.start(now), ["n3"]);
    }

    #[test]
    fn a_failed_first_node_stops_the_run() {
        let now = Instant::now();
        let mut run = rollout(3, true);
        run.start(now);
        run.observe("n0", Report::Failed("no systemd".into()), now);
        assert!(run.canary_failed() && run.is_finished());
        assert!(run.start(now).is_empty());
        assert_eq!(run.queued().count(), 2);
        assert_eq!(run.failed().next(), Some(("n0", "no systemd")));
    }

    #[test]
    fn a_later_failure_does_not_stop_the_others() {
        let now = Instant::now();
        let mut run = rollout(3, true);
        run.start(now);
        run.observe("n0", done(), now);
        run.start(now);
        run.observe("n1", Report::Failed("x".into()), now);
        assert!(!run.is_finished());
        run.observe("n2", done(), now);
        assert!(run.is_finished() && !run.canary_failed());
    }

    #[test]
    fn a_node_that_takes_too_long_fails_with_what_it_was_doing() {
        let start = Instant::now();
        let mut run = rollout(1, true);
        run.start(start);
        let working = Report::Working("step 2 of 6".into());
        assert_eq!(run.observe("n0", working.clone(), start), Some(News::Step("step 2 of 6".into())));
        assert_eq!(run.observe("n0", working.clone(), start + TIMEOUT / 2), None, "nothing new to say");
        let event = run.observe("n0", working, start + TIMEOUT);
        assert_eq!(event, Some(News::Failed("timed out after 5m0s: step 2 of 6".into())));
    }

    #[test]
    fn without_a_canary_all_may_start_at_once() {
        assert_eq!(rollout(3, false).start(Instant::now()).len(), 2);
    }

    #[test]
    fn a_report_of_a_node_that_is_not_at_work_changes_nothing() {
        let mut run = rollout(2, true);
        assert_eq!(run.observe("n1", done(), Instant::now()), None);
        assert_eq!(run.observe("stranger", done(), Instant::now()), None);
        assert_eq!(run.done().count(), 0);
    }
}
