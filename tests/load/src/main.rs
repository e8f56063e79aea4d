//! Asks a server the same GET over and over on a number of HTTP/2 connections, one request at a time on each, and prints
//! what came of it as one line of JSON. Several servers are compared by asking them in short turns, in one run: what else
//! the machine does meets all of them.

mod connect;
mod counts;
mod measure;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;

use self::connect::Target;

/// Load on a Kubernetes API server, or on something that stands for one.
#[derive(Debug, Parser)]
#[command(name = "yurt-load", version)]
struct Arguments {
    /// Where a server listens; the others are compared with the first
    #[arg(long, required = true)]
    server: Vec<SocketAddr>,
    /// The process behind each server, in the same order, whose CPU time and context switches are counted
    #[arg(long)]
    process: Vec<u32>,
    /// The name that their certificates are verified for
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
    /// How long each server is asked, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// In how many turns
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    turns: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(lines) => {
            println!("{}", lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<Vec<String>> {
    let token = std::fs::read_to_string(&arguments.token)
        .with_context(|| format!("cannot read {}", arguments.token.display()))?;
    let servers = arguments.server.len();
    ensure!(
        arguments.process.is_empty() || arguments.process.len() == servers,
        "give --process as often as --server, or not at all"
    );
    let targets = arguments
        .server
        .iter()
        .map(|server| Target::new(*server, &arguments.name, &arguments.ca))
        .collect::<anyhow::Result<Vec<_>>>()?;
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
    let schedule = measure::Schedule {
        connections: arguments.connections,
        turns: arguments.turns,
        turn: Duration::from_secs(arguments.seconds) / arguments.turns,
    };
    let reports = runtime.block_on(measure::measure(&targets, &arguments.process, &request, schedule))?;
    reports.iter().map(|report| Ok(serde_json::to_string(report)?)).collect()
}
