//! The story that must be true on a real cluster, step by step.
//!
//! Every step does something as a user would, measures it, and fails if what must hold does not. The
//! demo plays [`STORY`]; the test `story` plays it and then [`BESIDES`], on the same cluster. A step
//! needs those before it to have been played on the cluster, in this process or an earlier one.
//!
//! - [`teller`]: what the person at the terminal reads. [`product`]: the plugin and image that are tried.
//! - [`workload`]: the pods that stand for business.
//! - [`vanilla`] S1–S3, [`convert`] S4 with [`way_in`], [`access`] S5, [`autonomy`] S6, [`reboot`] S7, [`revert`] S8.
//! - [`refusals`], [`crash`], [`diagnose`], [`again`]: what is asked besides. [`size`]: what it weighs. [`bench`]: how fast it is.
//!   [`flannel`]: another network.

mod access;
mod again;
mod autonomy;
mod bench;
mod convert;
mod crash;
mod diagnose;
mod flannel;
pub mod product;
mod reboot;
mod refusals;
mod revert;
mod size;
pub mod teller;
mod vanilla;
mod way_in;
mod workload;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::{Cluster, EDGE};
use crate::collect;
use crate::observe::containers::{self, Containers};
use crate::run::{self, Finished};

use product::Product;
use teller::Teller;

/// Long enough for every command of the story; `convert` has two minutes by the specification.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(180);

/// A step of the story.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// What `--only` calls it.
    pub id: &'static str,
    pub title: &'static str,
    play: fn(&mut Story) -> Result<()>,
}

/// The story: three controls on a vanilla cluster, then what the product makes of it.
pub const STORY: &[Step] = &[
    Step { id: "S1", title: "vanilla: nothing reaches a pod behind NAT", play: vanilla::unreachable },
    Step { id: "S2", title: "vanilla: a minute without the link evicts the pod", play: vanilla::evicted },
    Step {
        id: "S3",
        title: "vanilla: a reboot without the link brings nothing back",
        play: vanilla::stays_dark,
    },
    Step { id: "S4", title: "kubectl yurt convert", play: convert::convert },
    Step { id: "S5", title: "kubectl reaches the pod behind NAT", play: access::access },
    Step {
        id: "S6",
        title: "autonomy: a minute without the link changes nothing",
        play: autonomy::survives_a_cut,
    },
    Step {
        id: "S7",
        title: "autonomy: a reboot without the link brings everything back",
        play: reboot::comes_back,
    },
    Step { id: "S8", title: "kubectl yurt revert", play: revert::revert },
];

/// What must hold besides.
pub const BESIDES: &[Step] = &[
    Step {
        id: "refusals",
        title: "a request that cannot be met is refused and changes nothing",
        play: refusals::refusals,
    },
    Step { id: "diagnose", title: "what is broken on the way to a node is named", play: diagnose::diagnose },
    Step { id: "crash", title: "kill -9 of the hub, in the middle of anything", play: crash::crash },
    Step {
        id: "no-image",
        title: "convert without the image on the node, then with it",
        play: again::without_the_image,
    },
    Step { id: "twice", title: "convert on a converted cluster", play: again::convert_twice },
    Step {
        id: "second",
        title: "a second edge node joins and becomes an edge node by itself",
        play: again::second_edge,
    },
    Step {
        id: "node-down",
        title: "revert while a node is down, then finish",
        play: again::revert_with_a_node_down,
    },
];

/// What holds of the published build alone, and is asked for by `make size`.
pub const PUBLISHED: &[Step] =
    &[Step { id: "size", title: "what the product weighs on the node", play: size::size }];

/// What is measured on a vanilla cluster, and what beside it on a converted one, for `make bench-hub`.
pub const MEASURED: [Step; 2] = [
    Step { id: "bench-vanilla", title: "a vanilla node's uplink", play: bench::vanilla },
    Step { id: "bench-hub", title: "the hub beside the API server", play: bench::hub },
];

/// What is played on a cluster of its own, whose network is flannel.
pub const FLANNEL: &[Step] = &[Step {
    id: "flannel",
    title: "convert, cut, power cut: a network that asks the API server for its start",
    play: flannel::flannel,
}];

/// The order in which the test plays everything: what needs a vanilla cluster before S4, what needs a
/// converted one before S8, and a second conversion after it.
pub fn everything() -> Vec<Step> {
    let find = |id: &str| STORY.iter().chain(BESIDES).find(|step| step.id == id).copied();
    [
        "S1",
        "S2",
        "S3",
        "refusals",
        "S4",
        "S5",
        "S6",
        "S7",
        "crash",
        "diagnose",
        "S8",
        "no-image",
        "twice",
        "second",
        "node-down",
    ]
    .iter()
    .filter_map(|id| find(id))
    .collect()
}

/// A cluster, what is tried on it, and who tells of it.
pub struct Story {
    pub cluster: Cluster,
    pub product: Product,
    pub teller: Teller,
}

impl Story {
    /// Given: a vanilla cluster with the nginx pod of the story, and our image where a registry would be.
    /// On a cluster that an earlier process left up the pod may be there already.
    pub fn begin(mut cluster: Cluster, product: Product) -> Result<Self> {
        cluster.kubectl = cluster.kubectl.clone().with_plugin(&product.plugin);
        cluster.import_image(&product.archive)?;
        let story = Self { cluster, product, teller: Teller::default() };
        if !story.cluster.kubectl.run(["get", "pod", "nginx"])?.ok() {
            workload::apply_nginx(&story)?;
            workload::apply_dns(&story)?;
        }
        Ok(story)
    }

    /// Plays steps in order; stops at the first that is not true, and keeps what is needed to find out why.
    pub fn play(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            let started = Instant::now();
            self.teller.chapter(step.id, step.title);
            if let Err(error) = (step.play)(self) {
                self.teller.fails(&format!("{error:#}"));
                self.cluster.shop.restore().ok();
                match collect::collect(step.id, &self.cluster.kubectl) {
                    Ok(folder) => {
                        self.teller.note(&format!("journals, logs, rules and objects: {}", folder.display()))
                    }
                    Err(error) => self.teller.note(&format!("collecting what is needed: {error:#}")),
                }
                self.teller.summary();
                return Err(error.context(format!("{}: {}", step.id, step.title)));
            }
            self.teller.chapter_took(step.id, started.elapsed());
        }
        self.teller.summary();
        Ok(())
    }

    /// Runs kubectl as a user types it; the command and what it printed are shown.
    fn kubectl(&mut self, words: &[&str]) -> Result<Finished> {
        self.teller.command("kubectl", words);
        let finished = self.cluster.kubectl.run_for(COMMAND_TIMEOUT, words)?;
        self.teller.output(&finished.stderr());
        self.teller.output(&finished.stdout());
        Ok(finished)
    }

    /// The same for a command that must succeed; returns what it printed.
    fn kubectl_ok(&mut self, words: &[&str]) -> Result<Finished> {
        let finished = self.kubectl(words)?;
        if !finished.ok() {
            anyhow::bail!("{finished}");
        }
        Ok(finished)
    }

    /// Business containers on the edge node.
    fn containers(&self) -> Result<Containers> {
        containers::on_node(&self.cluster.kubectl, EDGE)
    }

    /// The address of the story's nginx pod, for clients on its node.
    fn nginx_address(&self) -> Result<String> {
        let pod = self.cluster.kubectl.json(["get", "pod", "nginx"])?;
        pod["status"]["podIP"].as_str().map(str::to_owned).context("nginx has no address")
    }

    /// Asks for a page on the edge node itself, as a client there does.
    fn ask_on_edge(&self, url: &str) -> Result<()> {
        ask(&self.cluster.edge, url)
    }
}

fn ask(machine: &crate::machine::Machine, url: &str) -> Result<()> {
    machine.exec(["curl", "-sS", "-f", "-m", "2", "-o", "/dev/null", url])?.success()?;
    Ok(())
}

/// A duration, for a person.
fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{} ms", duration.as_millis());
    }
    format!("{:.1} s", duration.as_secs_f64())
}

/// What every message of ours to a person must be: short of Rust.
fn reads_well(finished: &Finished) -> Result<()> {
    let text = finished.stderr() + &finished.stdout();
    for ugly in ["panicked", "RUST_BACKTRACE", "Error {", "Err(", "Some(", "Os {", "kind:"] {
        anyhow::ensure!(!text.contains(ugly), "{ugly:?} is no word for a person: {}", run::tail(&text, 20));
    }
    Ok(())
}
