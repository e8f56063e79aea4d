//! `yurtd`: what runs on edge nodes, one role a process.

mod cli;
mod doctor;
mod edge;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sd_notify::NotifyState;
use tokio::runtime::Builder;

use self::cli::{Cli, Role};

fn main() -> ExitCode {
    match Cli::parse().role {
        Role::Edge(args) => {
            // The hub shares a small machine with the workload: two workers are enough for TLS on loopback.
            let mut runtime = Builder::new_multi_thread();
            runtime.worker_threads(2);
            yurtd::run(runtime, |stop| async move { edge::run(&args, stop).await })
        }
        Role::Doctor(args) => doctor::run(&args),
        Role::Address => yurtd::run(Builder::new_current_thread(), |stop| {
            yurt_hub::address::hold(stop, || edge::notify(&[NotifyState::Ready]))
        }),
        Role::EndContainer(args) => {
            let grace = Duration::from_secs(args.grace_seconds.into());
            yurtd::run(Builder::new_current_thread(), |_| async move {
                yurt_keeper::end_container::run(&args.id, grace)
            })
        }
    }
}
