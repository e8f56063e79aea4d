//! What clients hear through the hub, compared with what they hear from the API server: while objects change, and the
//! link is cut, slow, narrow and broken, and the hub killed.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::line::Trouble;
use crate::random::Random;
use crate::report::Report;
use crate::rig::Rig;

/// Time without any fault, at the beginning and at the end.
const CALM: Duration = Duration::from_secs(3);
/// A run is compared in pieces of this length, so that all it has heard fits into memory.
const PIECE: Duration = Duration::from_secs(600);

/// What is done to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Trouble(Trouble),
    Kill,
    /// While the link is cut.
    KillInCut(Trouble),
}

pub(crate) fn run(rig: &mut Rig, random: &mut Random, time: Duration, report: &mut Report) -> Result<()> {
    println!("torture: clients are compared for {} s", time.as_secs());
    let end = Instant::now() + time;
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        piece(rig, random, left.min(PIECE), report)?;
    }
    Ok(())
}

fn piece(rig: &mut Rig, random: &mut Random, time: Duration, report: &mut Report) -> Result<()> {
    rig.clients.ask("follow")?;
    rig.clients.ask("write")?;
    let started = Instant::now();
    std::thread::sleep(CALM.min(time / 4));
    let last = time.saturating_sub(CALM.min(time / 4));
    // Faults get longer with the time there is for them.
    let longest = (time / 8).clamp(Duration::from_secs(1), Duration::from_secs(12));
    while started.elapsed() < last {
        let fault = draw(random);
        println!("torture: {:6.1} s: {fault:?}", started.elapsed().as_secs_f64());
        inflict(rig, random, fault, longest)?;
        report.faults_inflicted += 1;
        std::thread::sleep(random.duration(Duration::from_millis(100), longest / 2));
        for end in rig.hub.ends() {
            report.fault(format!("after {fault:?} the hub ended by itself ({end})"));
        }
        rig.lives()?;
    }
    std::thread::sleep(time.saturating_sub(started.elapsed()));
    let written = rig.clients.ask("rest")?;
    report.writes += written["writes"].as_u64().unwrap_or_default();
    let compared = rig.clients.ask("compare")?;
    report.compared(&compared);
    rig.clients.ask("unfollow")?;
    report.checked("after the comparison", &rig.clients.ask("check")?);
    Ok(())
}

fn draw(random: &mut Random) -> Fault {
    let cut = if random.below(2) == 0 { Trouble::Reset } else { Trouble::BlackHole };
    match random.below(10) {
        0 | 1 => Fault::Trouble(cut),
        2 => Fault::Trouble(Trouble::Slow(Duration::from_millis(20 + random.below(300)))),
        3 => Fault::Trouble(Trouble::Narrow(200_000 + random.below(2_000_000))),
        4 | 5 => Fault::Trouble(Trouble::Breaks(random.below(60_000))),
        6 => Fault::Trouble(Trouble::Forgotten),
        7 => Fault::KillInCut(cut),
        _ => Fault::Kill,
    }
}

fn inflict(rig: &mut Rig, random: &mut Random, fault: Fault, longest: Duration) -> Result<()> {
    let pause = random.duration(Duration::from_millis(50), longest);
    match fault {
        Fault::Trouble(trouble) => {
            rig.line.set(trouble)?;
            std::thread::sleep(pause);
        }
        Fault::Kill => {
            kill(rig)?;
        }
        Fault::KillInCut(trouble) => {
            rig.line.set(trouble)?;
            rig.clients.ask("doom")?;
            std::thread::sleep(pause / 2);
            kill(rig)?;
            std::thread::sleep(pause / 2);
        }
    }
    rig.line.restore()
}

/// Clients know of it: a watch that has hardly begun and ends makes client-go list again.
fn kill(rig: &mut Rig) -> Result<()> {
    rig.clients.ask("kill")?;
    rig.hub.kill()?;
    rig.clients.ask("killed")?;
    rig.hub.start()
}
