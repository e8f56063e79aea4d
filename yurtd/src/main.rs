//! Logging, crypto provider, runtime, exit code. Everything else is a role's root.

use std::process::ExitCode;

use clap::Parser;
use yurtd::cli::{Cli, Role};
use yurtd::{controller, edge, keeper, telemetry, tunnel_server};

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
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.role {
            Role::Edge(args) => edge::run(args).await,
            Role::Keeper(args) => keeper::run(args).await,
            Role::TunnelServer(args) => tunnel_server::run(args).await,
            Role::Controller(args) => controller::run(args).await,
            Role::Address(args) => edge::address::run(args).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
