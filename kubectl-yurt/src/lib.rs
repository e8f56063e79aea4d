//! `kubectl-yurt`: the plugin. A command line goes through [`args`] (what was asked), [`connect`] (which cluster,
//! which tunnel), one file of [`cmd`], and [`output`] (what is printed). [`cluster`] holds what is known
//! about a cluster, [`stream`] the bytes of exec and port-forward, [`error`] how a failure is said.

#![forbid(unsafe_code)]

pub mod args;
pub mod cluster;
pub mod cmd;
pub mod complete;
pub mod connect;
pub mod error;
pub mod output;
pub mod signals;
pub mod stream;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser as _;
use clap_complete::CompleteEnv;
use connect::session::Session;
use error::Error;
use output::Console;

/// The program.
pub fn main() -> ExitCode {
    // Answers and exits if a shell or kubectl asks for completions.
    CompleteEnv::with_factory(complete::command).bin("kubectl-yurt").complete();

    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Help and version are no errors; a wrong line is refused with nothing changed.
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let console = Console::new(cli.display.color);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console.note(format!("error: cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(&cli, console));
    // A read from stdin that nobody will ever answer must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, server)) => {
            if let Some(text) = error.text(&server) {
                console.note(text);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs the command; a failure comes with the server that the session talks to.
async fn run(cli: &Cli, console: Console) -> Result<(), (Error, String)> {
    match &cli.command {
        Command::Completion(args) => {
            return cmd::completion::run(console, args.shell).map_err(|error| (error, String::new()));
        }
        Command::Version(args) => return cmd::version::run(&cli.connection, console, args).await,
        _ => {}
    }
    let session = Session::open(&cli.connection, console).await.map_err(|error| (error, String::new()))?;
    let result = match &cli.command {
        Command::Convert(args) => cmd::convert::run(&session, args).await,
        Command::Revert(args) => cmd::revert::run(&session, args).await,
        Command::Autonomy(command) => cmd::autonomy::run(&session, command).await,
        Command::Status(args) => cmd::status::run(&session, args).await,
        Command::Tunnel(command) => cmd::tunnel::run(&session, command).await,
        Command::Logs(args) => cmd::logs::run(&session, args).await,
        Command::Exec(args) => cmd::exec::run(&session, args).await,
        Command::PortForward(args) => cmd::port_forward::run(&session, args).await,
        Command::Version(_) | Command::Completion(_) => Ok(()),
    };
    result.map_err(|error| (error, session.server()))
}
