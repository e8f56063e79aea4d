//! The node's infrastructure agents, and which of them still talk to the API server by the old way. Pure.
//!
//! The rule is [`Moment`]'s.

use jiff::Timestamp;
use yurt_api::agent::Moment;

/// A pod that is an agent ([`yurt_api::agent`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    /// `namespace/name`
    pub name: String,
    pub uid: String,
    pub ready: bool,
    /// Seconds that its containers have to end.
    pub grace: u32,
    /// Those that run.
    pub containers: Vec<Started>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    /// As the runtime knows it, without `containerd://`.
    pub id: String,
    /// Whole seconds.
    pub at: Timestamp,
}

impl Agent {
    /// Ids of its containers that `is_stale` says began with the old way.
    pub(crate) fn stale(&self, is_stale: impl Fn(Timestamp) -> bool) -> Vec<String> {
        let containers = self.containers.iter().filter(|container| is_stale(container.at));
        containers.map(|container| container.id.clone()).collect()
    }

    /// Whether one of these runs.
    pub(crate) fn has_any(&self, ids: &[String]) -> bool {
        self.containers.iter().any(|container| ids.contains(&container.id))
    }
}

/// Whether a container began while kubelet worked through the hub: before it `left`, and not before it came.
pub(crate) fn began_through_hub(
    started: Timestamp,
    came: Option<&Moment>,
    left: &Moment,
    boot_id: Option<&str>,
) -> bool {
    let started = started.as_second();
    left.is_after(started, boot_id) && !came.is_some_and(|came| came.is_after(started, boot_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(boot: &str, second: i64) -> Moment {
        Moment { boot_id: Some(boot.into()), second }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_container_that_began_between_coming_and_leaving_talks_to_the_hub() {
        let (came, left) = (moment("one", 100), moment("one", 200));
        let began = |second| began_through_hub(at(second), Some(&came), &left, Some("one"));
        assert!(!began(50) && began(150) && !began(250));
        let unknown = |second| began_through_hub(at(second), None, &left, Some("one"));
        assert!(unknown(50) && !unknown(250));
        let left = moment("two", 200);
        let rebooted = |second| began_through_hub(at(second), Some(&came), &left, Some("two"));
        assert!(rebooted(50) && rebooted(150) && !rebooted(250), "every container began in this boot");
    }
}
