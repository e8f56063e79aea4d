//! `make torture`: the hub as a real process between a real API server and clients written with client-go, killed, cut
//! off and given damaged stores, again and again. What clients hear is compared with the API server's own word.
//!
//! From the bottom up:
//!
//! - [`world`]: namespaces of its own, so that nothing clashes with anything and nothing is left behind.
//! - [`process`], [`hub`], [`clients`], [`line`], [`rig`]: etcd, `kube-apiserver`, the hub, its clients and its link.
//! - [`random`], [`damage`]: what is done, from a seed.
//! - [`kills`], [`stores`], [`differential`]: the three tortures.
//! - [`report`]: what came of them.
//! - [`figures`]: the same rig, left alone: how fast the hub is (`make bench-rig`).

mod clients;
mod damage;
mod differential;
mod figures;
mod hub;
mod kills;
mod line;
mod process;
mod random;
mod report;
mod rig;
mod stores;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::random::Random;
use crate::report::Report;
use crate::rig::{Compaction, Rig};

/// Kills the hub, damages its store and cuts its link; says what clients lost by it.
#[derive(Debug, Parser)]
#[command(name = "torture", version)]
struct Arguments {
    /// Times that the hub is killed
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// Damaged stores that it is started with
    #[arg(long, default_value_t = 500)]
    stores: u32,
    /// How long what clients hear is compared, in seconds
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// From which everything random follows; another one each time if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Writes a second
    #[arg(long, default_value_t = 60)]
    rate: u32,
    /// Objects of the large collection
    #[arg(long, default_value_t = 4000)]
    bulk: u32,
    /// Intermediate events that a connected watcher did not get are counted, and no fault
    #[arg(long)]
    lenient: bool,
    /// The program under torture
    #[arg(long)]
    yurtd: Option<PathBuf>,
    /// No torture: how fast it is, for so many seconds each of the figures
    #[arg(long)]
    figures: Option<u64>,
    /// Of the figures those of forwarded requests alone
    #[arg(long)]
    no_lists: bool,
    /// How often all figures
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Another build that figures are compared with
    #[arg(long)]
    beside: Vec<PathBuf>,
    /// Folder of `yurt-load` and `yurt-relay`, for figures
    #[arg(long)]
    load: Option<PathBuf>,
    /// Where logs go if something is wrong
    #[arg(long)]
    keep: Option<PathBuf>,
    /// In the namespaces already: the folders of the cluster's programs and of the clients
    #[arg(long, hide = true, num_args = 2)]
    inside: Option<Vec<PathBuf>>,
}

/// A differential that takes longer gets a cluster whose etcd forgets, as everybody's does.
const LONG: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.inside {
        None => outside(&arguments),
        Some(_) => inside(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds what is needed and goes into the namespaces.
fn outside(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(reason) = world::impossible() {
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must run it, and {reason}");
        println!("skipped: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let built = yurt_tests::build::torture()?;
    let yurtd = match &arguments.yurtd {
        Some(given) => given.clone(),
        None => yurt_tests::paths::target().join("release/yurtd"),
    };
    ensure!(yurtd.is_file(), "{} is not there; `make torture` builds it", yurtd.display());
    let seed = arguments.seed.unwrap_or_else(random::new_seed);
    let keep = match &arguments.keep {
        Some(given) => given.clone(),
        None => yurt_tests::paths::target().join("torture"),
    };
    let load = arguments.load.clone().unwrap_or_else(|| yurt_tests::paths::target().join("release"));
    if arguments.figures.is_some() {
        ensure!(
            load.join("yurt-relay").is_file(),
            "{} has no yurt-relay; `make bench-rig` builds it",
            load.display()
        );
    }
    world::enter(arguments, &built, &yurtd, &load, &keep, seed)
}

fn inside(arguments: &Arguments) -> Result<ExitCode> {
    let [bin, program] = arguments.inside.as_deref().unwrap_or_default() else {
        anyhow::bail!("two folders are needed");
    };
    let folder = world::prepare()?;
    let seed = arguments.seed.context("the seed is given from outside")?;
    println!("torture: seed {seed}");
    let start = |compaction, relayed| {
        Rig::start(rig::Options {
            folder: &folder,
            bin,
            clients: program,
            yurtd: arguments.yurtd.as_deref().unwrap_or(program),
            seed,
            rate: arguments.rate,
            bulk: arguments.bulk,
            compaction,
            relayed,
        })
    };
    if let Some(seconds) = arguments.figures {
        let hubs: Vec<_> = arguments.yurtd.iter().chain(&arguments.beside).cloned().collect();
        let programs = arguments.load.as_deref().context("figures need --load")?;
        let rig = start(Compaction::AsUsual, false)?;
        let (rounds, lists) = (arguments.rounds, !arguments.no_lists);
        figures::run(&rig, figures::Options { bin, programs, hubs: &hubs, seconds, rounds, lists })?;
        return rig.end().map(|()| ExitCode::SUCCESS);
    }
    let mut report = Report::new(seed, arguments.lenient);
    let outcome = (|| {
        let mut rig = start(Compaction::Never, true)?;
        let mut random = Random::new(seed);
        if arguments.kills > 0 {
            kills::run(&mut rig, &mut random, arguments.kills, &mut report)?;
        }
        if arguments.stores > 0 {
            stores::run(&mut rig, &mut random, arguments.stores, &mut report)?;
        }
        let time = Duration::from_secs(arguments.seconds);
        if time > LONG {
            rig.end()?;
            rig = start(Compaction::AsUsual, true)?;
        }
        if !time.is_zero() {
            differential::run(&mut rig, &mut random, time, &mut report)?;
        }
        report.logs(&rig.hub.log()?);
        rig.end()
    })();
    if let Err(error) = outcome {
        report.fault(format!("the torture itself ended: {error:#}"));
    }
    println!("{report}");
    if report.passed() {
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(keep) = &arguments.keep {
        rig::keep(&folder, keep, &report)?;
        println!("torture: logs are in {}; this run again: --seed {seed}", keep.display());
    }
    Ok(ExitCode::FAILURE)
}
