//! What the programs have in common: logging, the crypto provider, the signals, the exit code. Everything else is a
//! role's crate.
//!
//! | program | role | crate | runs as |
//! |---|---|---|---|
//! | `yurtd` | `edge` | `yurt-hub`, and the agent of `yurt-tunnel` | systemd service on every edge node |
//! | | `doctor` | | asks the service over a socket in `/run/yurt`, for a person |
//! | | `address` | `yurt-hub` | service before it: holds the hub's address for pods |
//! | | `end-container` | `yurt-keeper` | transient unit, when the keeper restarts an agent of the node |
//! | `yurtd-keeper` | | `yurt-keeper` | DaemonSet on edge nodes: installs, repairs and removes `yurtd` |
//! | `yurtd-cloud` | `tunnel-server` | `yurt-tunnel` | DaemonSet on control-plane nodes |
//! | | `controller` | `yurt-controller` | Deployment in the cloud |
//!
//! They are three because a process has most of its program in memory: the kernel maps whole pieces of the file around
//! whatever is touched. What the cloud needs (the Kubernetes client and its types) would be half of what every edge node
//! holds, and the keeper, which waits nearly all of its life, would hold a hub.

mod telemetry;

use std::process::ExitCode;

use anyhow::Context;
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use yurt_node::supervise::StopSignals;

/// Runs a role until it ends or a signal asks it to.
pub fn run<F>(mut runtime: Builder, role: impl FnOnce(CancellationToken) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    telemetry::init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("a crypto provider was installed before main");
    }
    let runtime = runtime.enable_all().build().context("cannot start the async runtime");
    let outcome = runtime.and_then(|runtime| runtime.block_on(supervise(role)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn supervise<F>(role: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let stop = CancellationToken::new();
    let signals = StopSignals::catch().context("cannot wait for signals")?;
    // Ends with the process.
    tokio::spawn(signals.cancel(stop.clone()));
    role(stop).await
}
