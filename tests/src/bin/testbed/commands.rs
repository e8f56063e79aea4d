//! What each subcommand does.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use yurt_tests::build;
use yurt_tests::cluster::{self, Cluster, Network, Options};
use yurt_tests::collect;
use yurt_tests::deps;
use yurt_tests::kubectl::Kubectl;
use yurt_tests::leftovers;
use yurt_tests::lock::Lock;
use yurt_tests::machine::{self, Machine};
use yurt_tests::net::{self, Fault, Site};
use yurt_tests::paths;
use yurt_tests::sections;
use yurt_tests::story::{self, FLANNEL, MEASURED, PUBLISHED, STORY, Step, Story, product::Product};

use crate::Command;

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Deps => deps::install()?,
        Command::Build => {
            deps::install()?;
            let made = build::all()?;
            println!(
                "programs {}\nroot     {}\nimages   {}",
                made.bin.display(),
                made.root.display(),
                made.images.display()
            );
        }
        Command::Up { proxy, flannel } => up(Options { proxy, network: network(flannel) })?,
        Command::Down => {
            let _lock = Lock::take()?;
            leftovers::remove()?;
        }
        Command::Status => {
            let found = leftovers::describe();
            println!("{}", if found.is_empty() { "no testbed here".to_owned() } else { found.join("\n") });
        }
        Command::Cut { site, reset } => {
            Site::find(&site)?.cut(if reset { Fault::Reset } else { Fault::BlackHole })?;
        }
        Command::Restore { site } => Site::find(&site)?.restore()?,
        Command::Bytes { site } => {
            let (out, into) = Site::find(&site)?.uplink_bytes()?;
            println!("out {out} in {into}");
        }
        Command::Powercut { machine, off } => {
            let machine = Machine::find(&machine)?;
            machine.power_cut()?;
            if !off {
                machine.start()?;
            }
        }
        Command::Start { machine } => Machine::find(&machine)?.start()?,
        Command::Reboot { machine } => Machine::find(&machine)?.reboot()?,
        Command::Sh { machine, command } => {
            let words = if command.is_empty() { vec!["bash".to_owned(), "-l".to_owned()] } else { command };
            return replaced_by(Machine::find(&machine)?.command(words)?);
        }
        Command::Kubectl { args } => return replaced_by(kubectl()?.command(args)),
        Command::Import { archive } => {
            for (_, root) in machine::nspawns() {
                let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                cluster::import(&Machine::find(name)?, &archive)?;
            }
        }
        Command::Demo { only, attach, keep } => demo(&only, attach, keep)?,
        Command::Sections { map, rows } => print_sections(&map, rows)?,
        Command::Collect => println!("{}", collect::collect("by-hand", &kubectl()?)?.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn print_sections(map: &Path, rows: usize) -> Result<()> {
    // Symbols of C may be in any encoding.
    let text = std::fs::read(map).with_context(|| format!("reading {}", map.display()))?;
    let crates = sections::by_crate(&String::from_utf8_lossy(&text));
    println!("{:>10} {:>10} {:>10}  crate", "bytes", "code", "data");
    let line = |name: &str, bytes: sections::Bytes| {
        println!("{:>10} {:>10} {:>10}  {name}", bytes.all(), bytes.text, bytes.data);
    };
    let sum = |crates: &[(String, sections::Bytes)]| {
        crates.iter().fold(sections::Bytes::default(), |sum, (_, bytes)| sections::Bytes {
            text: sum.text + bytes.text,
            data: sum.data + bytes.data,
        })
    };
    let (shown, rest) = crates.split_at(rows.min(crates.len()));
    for (name, bytes) in shown {
        line(name, *bytes);
    }
    if !rest.is_empty() {
        line(&format!("({} more)", rest.len()), sum(rest));
    }
    line("all", sum(&crates));
    Ok(())
}

fn network(flannel: bool) -> Network {
    if flannel { Network::Flannel } else { Network::Bridge }
}

fn up(options: Options) -> Result<()> {
    let started = Instant::now();
    let mut cluster = Cluster::start(&options)?;
    cluster.keep();
    let kubectl = cluster.artifacts().bin.join("kubectl");
    println!(
        "\nA cluster is up after {:.0?}: {} ({}), {} (behind NAT).\n\n  \
         export KUBECONFIG={}\n  \
         export PATH={}:$PATH\n  \
         {} get nodes\n\n  \
         make clean-cluster              removes it\n  \
         testbed cut | restore           takes the edge off the network and puts it back\n  \
         testbed powercut [edge-node]    takes its power away and gives it back\n  \
         testbed sh edge-node            a shell on it",
        started.elapsed(),
        cluster::MASTER,
        net::MASTER,
        cluster::EDGE,
        paths::kubeconfig().display(),
        cluster.artifacts().bin.display(),
        kubectl.display(),
    );
    Ok(())
}

fn demo(only: &[String], attach: bool, keep: bool) -> Result<()> {
    let steps: Vec<Step> = if only.is_empty() {
        STORY.to_vec()
    } else {
        every_step().filter(|step| only.iter().any(|id| id == step.id)).collect()
    };
    if steps.len() < only.len() {
        let known: Vec<&str> = every_step().map(|step| step.id).collect();
        bail!("the steps are {}", known.join(" "));
    }
    let is_of_flannel = |step: &Step| FLANNEL.iter().any(|other| other.id == step.id);
    let flannel = steps.iter().any(is_of_flannel);
    if flannel && !steps.iter().all(is_of_flannel) {
        bail!("a step on flannel is played on a cluster of its own: ask for it alone");
    }
    let product = Product::find()?;
    let cluster = if attach {
        Cluster::attach()?
    } else {
        let mut cluster = Cluster::start(&Options { network: network(flannel), ..Options::default() })?;
        if keep {
            cluster.keep();
        }
        cluster
    };
    let mut story = Story::begin(cluster, product)?;
    story.play(&steps)
}

fn every_step() -> impl Iterator<Item = Step> {
    let [vanilla, hub] = MEASURED;
    let alone = PUBLISHED.iter().chain(FLANNEL).copied();
    std::iter::once(vanilla).chain(story::everything()).chain([hub]).chain(alone)
}

/// kubectl for the cluster that is up.
fn kubectl() -> Result<Kubectl> {
    if !paths::kubeconfig().exists() {
        bail!("no cluster is up; start one with `testbed up`");
    }
    let kubectl = Kubectl::new(&build::all()?.bin, &paths::kubeconfig());
    Ok(match plugin() {
        Some(folder) => kubectl.with_plugin(&folder),
        None => kubectl,
    })
}

/// The folder that `make plugin` fills, if it was.
fn plugin() -> Option<PathBuf> {
    let folder = paths::target().join("plugin");
    folder.join("kubectl-yurt").exists().then_some(folder)
}

/// Becomes another program: its terminal, signals and exit code are then the caller's own.
fn replaced_by(mut command: std::process::Command) -> Result<ExitCode> {
    Err(command.exec()).context("starting it")
}
