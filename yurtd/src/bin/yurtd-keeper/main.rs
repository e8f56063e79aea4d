//! `yurtd-keeper`: what installs `yurtd` on an edge node, keeps it there, and takes it away.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;

use self::cli::Cli;

fn main() -> ExitCode {
    let options = Cli::parse().into();
    // One thing after another, and mostly waiting.
    yurtd::run(Builder::new_current_thread(), |stop| yurt_keeper::run(options, stop))
}
