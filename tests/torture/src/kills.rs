//! `kill -9` at random moments. Whatever the hub was doing, its next start serves lists that are exactly the API
//! server's at their resourceVersion, and has every status patch that it had acknowledged.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::line::Trouble;
use crate::random::Random;
use crate::report::Report;
use crate::rig::Rig;

/// What the hub is doing when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Nothing.
    Idle,
    /// Objects change all the while.
    Busy,
    /// A list of thousands of objects is fetched and stored.
    Listing,
    /// The link is cut and status patches are journaled.
    Offline,
    /// It has been started a moment ago.
    Starting,
    /// It has been told to end.
    Stopping,
}

const MOMENTS: [Moment; 6] =
    [Moment::Idle, Moment::Busy, Moment::Listing, Moment::Offline, Moment::Starting, Moment::Stopping];

/// How long an offline hub may take to know that it is.
const KNOWS_WITHIN: Duration = Duration::from_secs(15);

pub(crate) fn run(rig: &mut Rig, random: &mut Random, times: u32, report: &mut Report) -> Result<()> {
    println!("torture: {times} kills");
    // Everything is followed, as it is on a node that works.
    rig.clients.ask("write")?;
    std::thread::sleep(Duration::from_secs(1));
    rig.clients.ask("rest")?;
    report.checked("before the kills", &rig.clients.ask("check")?);
    for round in 0..times {
        // Each moment comes in its turn, so that few rounds have all of them.
        let moment = MOMENTS[round as usize % MOMENTS.len()];
        let what = format!("kill {round}, {moment:?}");
        if let Err(error) = kill(rig, random, moment, round, report) {
            report.fault(format!("{what}: {error:#}"));
            rig.line.restore()?;
        }
        for end in rig.hub.ends() {
            report.fault(format!("{what}: the hub ended by itself ({end})"));
        }
        rig.lives()?;
        report.kills += 1;
    }
    Ok(())
}

fn kill(rig: &mut Rig, random: &mut Random, moment: Moment, round: u32, report: &mut Report) -> Result<()> {
    let milliseconds = Duration::from_millis;
    match moment {
        Moment::Idle => {}
        Moment::Busy => {
            rig.clients.ask("write")?;
            std::thread::sleep(random.duration(Duration::ZERO, milliseconds(400)));
        }
        Moment::Listing => {
            rig.clients.ask_with("bulk", json!({"number": round}))?;
            std::thread::sleep(random.duration(Duration::ZERO, milliseconds(600)));
        }
        Moment::Offline => return offline(rig, random, report),
        Moment::Starting => {
            rig.hub.kill()?;
            rig.hub.start()?;
            std::thread::sleep(random.duration(Duration::ZERO, milliseconds(80)));
        }
        Moment::Stopping => rig.hub.stop(Some(random.duration(Duration::ZERO, milliseconds(40))))?,
    }
    rig.hub.kill()?;
    serves_again(rig, report)?;
    if moment == Moment::Busy {
        rig.clients.ask("rest")?;
    }
    report.checked(&format!("after kill {round}, {moment:?}"), &rig.clients.ask("check")?);
    Ok(())
}

/// Starts the hub and waits for a list of what it has.
fn serves_again(rig: &mut Rig, report: &mut Report) -> Result<()> {
    let started = Instant::now();
    rig.hub.start()?;
    rig.clients.ask("list")?;
    report.recoveries.push(started.elapsed());
    Ok(())
}

/// Status patches without a link, a kill, a look, and the link again.
fn offline(rig: &mut Rig, random: &mut Random, report: &mut Report) -> Result<()> {
    rig.clients.ask_with("patch", json!({"times": 1}))?;
    // The hub has the pod when its list has it.
    report.checked("before the cut", &rig.clients.ask("check")?);
    rig.line.set(Trouble::Reset)?;
    let before = acknowledged(&rig.clients.ask_with("patch", json!({"times": 0}))?);
    let started = Instant::now();
    let times = 1 + random.below(8);
    let mut after = before;
    while after < before + times {
        let answer = rig.clients.ask_with("patch", json!({"times": before + times - after}))?;
        after = acknowledged(&answer);
        ensure!(started.elapsed() < KNOWS_WITHIN, "no status patch is taken without a link: {answer}");
    }
    rig.hub.kill()?;
    report.patches += after - before;
    serves_again(rig, report)?;
    rig.clients.ask("patched")?;
    let refusals_allowed = json!({"offline": true});
    let answer = rig.clients.ask_with("check", refusals_allowed)?;
    // The patched pod is not what the API server has; all else is.
    report.checked_but("after a kill without a link", &answer, "bulk/patched");
    rig.line.restore()?;
    rig.clients.ask("replayed")?;
    report.checked("after the replay", &rig.clients.ask("check")?);
    Ok(())
}

fn acknowledged(answer: &Value) -> u64 {
    answer["acknowledged"].as_u64().unwrap_or_default()
}
