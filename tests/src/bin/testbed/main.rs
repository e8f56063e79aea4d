//! `testbed`: the cluster by hand.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A real kubeadm cluster on this machine: `master-node`, and `edge-node` behind NAT.
#[derive(Parser)]
#[command(name = "testbed", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs the Debian packages that the testbed needs.
    Deps,
    /// Builds programs, images and the machines' root, and prints where they are.
    Build,
    /// Starts a two-node cluster, leaves it running, and says how to reach it.
    Up {
        /// kube-proxy's mode.
        #[arg(long, default_value = "iptables", value_parser = ["nftables", "iptables"])]
        proxy: String,
        /// flannel as the network, in the place of a bridge a node.
        #[arg(long)]
        flannel: bool,
    },
    /// Removes the cluster, or what a killed run left of one.
    Down,
    /// Says what there is.
    Status,
    /// Takes a site off the network.
    Cut {
        #[arg(default_value = "shop")]
        site: String,
        /// Refuse and reset connections instead of dropping packets.
        #[arg(long)]
        reset: bool,
    },
    /// Puts a site back on the network.
    Restore {
        #[arg(default_value = "shop")]
        site: String,
    },
    /// Bytes out of and into a site over its uplink so far.
    Bytes {
        #[arg(default_value = "shop")]
        site: String,
    },
    /// Takes the power of a machine away and gives it back.
    Powercut {
        #[arg(default_value = "edge-node")]
        machine: String,
        /// Leave it off.
        #[arg(long)]
        off: bool,
    },
    /// Starts a machine that is off.
    Start {
        #[arg(default_value = "edge-node")]
        machine: String,
    },
    /// Restarts a machine the polite way.
    Reboot {
        #[arg(default_value = "edge-node")]
        machine: String,
    },
    /// A shell, or a command, on a machine.
    Sh {
        machine: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// kubectl as the cluster's admin, with our plugin on its PATH.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Imports an image archive on every machine.
    Import { archive: std::path::PathBuf },
    /// Plays the story on a new cluster, step by step; ends non-zero at the first that is not true.
    Demo {
        /// Play these steps alone, in the order of the story (S1 … S8, refusals, crash, …).
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Play them on the cluster that is up.
        #[arg(long)]
        attach: bool,
        /// Leave the cluster up.
        #[arg(long)]
        keep: bool,
    },
    /// Prints the bytes of a program's sections by crate, from its linker's map.
    Sections {
        map: std::path::PathBuf,
        /// The largest ones.
        #[arg(long, default_value_t = 25)]
        rows: usize,
    },
    /// Gathers journals, logs, rules and objects into target/e2e/by-hand.
    Collect,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
