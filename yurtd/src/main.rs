//! `yurtd`: one program, one role a process. Logging, crypto provider, runtime, the signals, the exit code; everything
//! else is a role's crate.
//!
//! | role | crate | runs as |
//! |---|---|---|
//! | `edge` | `yurt-hub`, and the agent of `yurt-tunnel` | systemd service on every edge node |
//! | `address` | `yurt-hub` | oneshot before it: the hub's address for pods |
//! | `keeper` | `yurt-keeper` | DaemonSet on edge nodes: installs, repairs and removes `edge` |
//! | `tunnel-server` | `yurt-tunnel` | DaemonSet on control-plane nodes |
//! | `controller` | `yurt-controller` | Deployment in the cloud |

mod cli;
mod edge;
mod telemetry;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio_util::sync::CancellationToken;
use yurt_node::supervise::stop_on_signal;

use self::cli::{Cli, Role};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("a crypto provider was installed before main");
    }
    let mut runtime = match cli.role {
        // The hub shares a small machine with the workload: two workers are enough for TLS on loopback.
        Role::Edge(_) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        // One thing after another, and mostly waiting.
        Role::Keeper(_) | Role::Address(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let outcome = runtime
        .enable_all()
        .build()
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(supervise(cli.role)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the role until it ends or a signal asks it to.
async fn supervise(role: Role) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let signals = tokio::spawn(stop_on_signal(stop.clone()));
    let outcome = match role {
        Role::Edge(args) => edge::run(&args.config, &args.state_dir, stop.clone()).await,
        Role::Keeper(args) => yurt_keeper::run(args.into(), stop.clone()).await,
        Role::TunnelServer(args) => yurt_tunnel::server::run(args.into(), stop.clone()).await,
        Role::Controller(args) => yurt_controller::run(args.into(), stop.clone()).await,
        Role::Address(args) => yurt_hub::address::run(args.action.into()).await,
    };
    // Ends the task that waits for signals, which may be what went wrong.
    stop.cancel();
    signals.await.context("the task that waits for signals")?.context("cannot wait for signals")?;
    outcome
}
