//! What the product weighs on a node: the budget is part of the design (a Raspberry Pi), so it is a check.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Story;
use crate::cluster::EDGE;
use crate::machine::Machine;
use crate::observe::memory::{self, Held};

const KIB: u64 = 1024;
/// As `ps` and `/proc` count.
const MB: u64 = KIB * KIB;
/// The program on the node's disk.
const PROGRAM: u64 = 12 * MB;
/// Resident memory of a role at rest.
const BUDGETS: [(&str, u64); 2] = [("edge", 12 * MB), ("keeper", 6 * MB)];

/// Given a converted cluster that nobody asks anything of; the published build.
pub(super) fn size(story: &mut Story) -> Result<()> {
    let program = program_of(&story.cluster.edge)?;
    story.teller.figure("program on the disk", &mb(program));
    let held = memory::at_rest(Duration::from_secs(300))?;
    for Held { role, total_kib, anonymous_kib, file_kib, peak_kib, .. } in &held {
        let parts = format!(
            "{} (its own {}, of its program {}; peak {})",
            mb(total_kib * KIB),
            mb(anonymous_kib * KIB),
            mb(file_kib * KIB),
            mb(peak_kib * KIB)
        );
        story.teller.figure(&format!("{role} at rest"), &parts);
    }
    ensure!(program <= PROGRAM, "the program has {}, not at most {}", mb(program), mb(PROGRAM));
    for (role, budget) in BUDGETS {
        let mut found = held.iter().filter(|held| held.role == role).peekable();
        ensure!(found.peek().is_some(), "no {role} runs");
        for held in found {
            let (holds, may) = (mb(held.total_kib * KIB), mb(budget));
            ensure!(held.total_kib * KIB <= budget, "{role} holds {holds}, not at most {may}");
        }
    }
    Ok(())
}

/// Size of the program that the keeper installed.
fn program_of(edge: &Machine) -> Result<u64> {
    let found = edge.exec(["stat", "--dereference", "--format=%s", "/opt/yurt/current/yurtd"])?;
    let text = found.success()?;
    text.trim().parse().with_context(|| format!("stat on {EDGE} says {text:?}"))
}

fn mb(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "for a person")]
    let mb = bytes as f64 / MB as f64;
    format!("{mb:.1} MB")
}
