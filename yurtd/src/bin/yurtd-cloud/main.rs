//! `yurtd-cloud`: what runs in the cloud, one role a process.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;

use self::cli::{Cli, Role};

fn main() -> ExitCode {
    let runtime = Builder::new_multi_thread();
    match Cli::parse().role {
        Role::TunnelServer(args) => yurtd::run(runtime, |stop| yurt_tunnel::server::run(args.into(), stop)),
        Role::RemoveRedirect => yurtd::run(runtime, |_| yurt_tunnel::server::remove_redirect()),
        Role::Controller(args) => yurtd::run(runtime, |stop| yurt_controller::run(args.into(), stop)),
    }
}
