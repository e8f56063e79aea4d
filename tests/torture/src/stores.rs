//! Damaged stores: the hub starts, says what it did, and serves what is right or nothing. It never ends over and over, and
//! what it serves of a damaged store is exactly what the API server has or had.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use yurt_tests::run::sh;

use crate::damage::{self, Damage};
use crate::line::Trouble;
use crate::random::Random;
use crate::report::Report;
use crate::rig::Rig;

/// More ends than this are a loop: a start, and three that die while they look at the store.
const MOST_ENDS: usize = 5;

pub(crate) fn run(rig: &mut Rig, random: &mut Random, times: u32, report: &mut Report) -> Result<()> {
    println!("torture: {times} damaged stores");
    let stores = [taken(rig, "clean", false)?, taken(rig, "killed", true)?];
    let own = rig.hub.state();
    for round in 0..times {
        let damage = damage::ALL[round as usize % damage::ALL.len()];
        let cut = random.below(2) == 0;
        let what = format!("store {round}, {damage:?}{}", if cut { ", cut off" } else { "" });
        let store = &stores[random.below(stores.len() as u64) as usize];
        if let Err(error) = one(rig, random, store, damage, cut, &what, report) {
            report.fault(format!("{what}: {error:#}"));
        }
        rig.line.restore()?;
        rig.lives()?;
        report.stores += 1;
    }
    rig.hub.kill()?;
    rig.hub.ends();
    rig.hub.start_with(&own)
}

/// A state that a hub has left which had everything, after a clean end or a kill.
fn taken(rig: &mut Rig, name: &str, killed: bool) -> Result<PathBuf> {
    rig.clients.ask("write")?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    rig.clients.ask("rest")?;
    rig.clients.ask("check")?;
    if killed {
        rig.hub.kill()?;
    } else {
        rig.hub.stop(None)?;
    }
    let copy = rig.folder().join(name);
    copied(&rig.hub.state(), &copy)?;
    rig.hub.start()?;
    rig.clients.ask("list")?;
    Ok(copy)
}

/// With its holes: most of the file is one.
fn copied(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let (from, to) = (from.to_str().context("a path")?, to.to_str().context("a path")?);
    sh("cp", &["-a", "--sparse=always", from, to])?;
    Ok(())
}

fn one(
    rig: &mut Rig,
    random: &mut Random,
    store: &Path,
    damage: Damage,
    cut: bool,
    what: &str,
    report: &mut Report,
) -> Result<()> {
    let state = rig.folder().join("damaged");
    rig.hub.kill()?;
    rig.hub.ends();
    copied(store, &state)?;
    damage::inflict(damage, &state, random)?;
    let said = rig.hub.said();
    if cut {
        rig.line.set(Trouble::Reset)?;
    }
    let started = Instant::now();
    rig.hub.start_with(&state)?;
    if cut {
        report.checked(what, &rig.clients.ask_with("check", json!({"offline": true}))?);
        rig.line.restore()?;
    }
    rig.clients.ask("list")?;
    if !cut {
        report.recoveries_of_damaged.push(started.elapsed());
    }
    report.checked(what, &rig.clients.ask("check")?);
    let ends = rig.hub.ends();
    let log = rig.hub.log()?;
    let words = log.get(said as usize..).unwrap_or_default();
    let set_aside = words.contains("was set aside");
    report.damaged(what, &ends, set_aside);
    if ends.len() > MOST_ENDS {
        report.fault(format!("{what}: the hub ended {} times: {}", ends.len(), ends.join(", ")));
    }
    if !ends.is_empty() && !set_aside {
        report.fault(format!("{what}: the hub ended ({}) and did not set the store aside", ends.join(", ")));
    }
    Ok(())
}
