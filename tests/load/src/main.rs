//! Asks one server the same GET over and over on a number of HTTP/2 connections, one request at a time on each, and
//! prints what came of it as one line of JSON. Two servers are compared by asking them in turns, in one run.

mod connect;
mod measure;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use self::connect::Target;

/// Load on a Kubernetes API server, or on something that stands for one.
#[derive(Debug, Parser)]
#[command(name = "yurt-load", version)]
struct Arguments {
    /// Where the server listens
    #[arg(long)]
    server: SocketAddr,
    /// The name that its certificate is verified for
    #[arg(long)]
    name: String,
    /// CA certificates in PEM
    #[arg(long)]
    ca: PathBuf,
    /// File with a bearer token
    #[arg(long)]
    token: PathBuf,
    /// Path and query
    #[arg(long)]
    path: String,
    /// What is asked for
    #[arg(long, default_value = "application/json")]
    accept: String,
    /// Connections at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// How long, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<String> {
    let token = std::fs::read_to_string(&arguments.token)
        .with_context(|| format!("cannot read {}", arguments.token.display()))?;
    let target = Target::new(arguments.server, &arguments.name, &arguments.ca)?;
    let request = measure::Request {
        path: arguments.path.clone(),
        accept: arguments.accept.clone(),
        token: token.trim().to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let report = runtime.block_on(measure::measure(
        &target,
        &request,
        arguments.connections,
        Duration::from_secs(arguments.seconds),
    ))?;
    Ok(serde_json::to_string(&report)?)
}
