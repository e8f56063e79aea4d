//! S8: vanilla again, down to the last file and object.

use std::time::Duration;

use anyhow::Result;

use super::convert::{before, edge_is_vanilla, only_agents_restarted, snapshot};
use super::{Story, reads_well, seconds};
use crate::observe::difference;
use crate::wait::until_true;

pub(super) const REVERT: &[&str] = &["yurt", "revert", "--yes"];

/// kubelet removes containers and logs of pods that are gone in rounds, one a minute, and what a first round
/// leaves in the next.
pub(super) const KUBELET_COLLECTS: Duration = Duration::from_secs(150);

/// S8.
pub(super) fn revert(story: &mut Story) -> Result<()> {
    let containers = story.containers()?;
    story.teller.step("revert");
    let finished = story.kubectl_ok(REVERT)?;
    reads_well(&finished)?;
    story.teller.figure("revert", &seconds(finished.took));

    let edge = story.cluster.edge.clone();
    edge_is_vanilla(story, &edge)?;
    only_agents_restarted(story, &containers, &finished)?;

    story.teller.step("compare both machines and all objects with before convert");
    let before = before()?;
    // Pods and what they own go a moment after the object that had them made, their logs later.
    let took = until_true("nothing to be left", KUBELET_COLLECTS, || {
        let left = difference(&before, &snapshot(story)?);
        Ok((!left.is_empty()).then(|| format!("{} differences\n  {}", left.len(), left.join("\n  "))))
    })?;
    story.teller.figure("compared, with no difference", &format!("{} sections", before.len()));
    story.teller.holds(&format!(
        "files, units, sockets, addresses, routes, rules, kernel settings, processes, users and every object are as before, {} after revert",
        seconds(took)
    ));
    Ok(())
}
