//! `kubectl-yurt`: the plugin. A command line goes one way:
//!
//! ```text
//! args ──► options ──► connect ──► cluster ──► cmd/VERB ──► output
//! words    meaning     servers     what is     one file     what is
//!                                  there       a verb       printed
//! ```
//!
//! [`args`] takes the words apart and [`options`] makes sense of them, once; [`connect`] reaches the servers; [`cluster`]
//! knows one cluster and prints nothing; [`cmd`] has a file a verb; [`output`] prints. Beside them: [`stream`], the bytes
//! of exec and port-forward, [`complete`], what Tab offers, [`error`], how a failure is said, [`signals`].

#![forbid(unsafe_code)]

pub mod args;
pub mod cluster;
pub mod cmd;
pub mod complete;
pub mod connect;
pub mod error;
pub mod options;
pub mod output;
pub mod signals;
pub mod stream;

use std::process::ExitCode;

use args::Cli;
use clap::Parser as _;
use clap_complete::CompleteEnv;
use connect::session::Session;
use error::Error;
use options::{Options, Verb};
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
    let console = Console::new(cli.display.color.into());
    let options = match Options::resolve(cli) {
        Ok(options) => options,
        Err(error) => return report(console, &error, ""),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            console.note(format!("error: cannot start: {error}"));
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(&options, console));
    // A read from stdin that nobody will ever answer must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, server)) => report(console, &error, &server),
    }
}

/// Says why the program ends, if that has not been said.
fn report(console: Console, error: &Error, server: &str) -> ExitCode {
    if let Some(text) = error.text(server) {
        console.note(text);
    }
    ExitCode::from(error.exit_code())
}

/// Runs the verb; a failure comes with the server that the session talks to.
async fn run(options: &Options, console: Console) -> Result<(), (Error, String)> {
    let nowhere = |error| (error, String::new());
    match &options.verb {
        Verb::Completion(shell) => return cmd::completion::run(console, *shell).map_err(nowhere),
        // Its own version is known without a cluster.
        Verb::Version(version) => return cmd::version::run(&options.connection, console, *version).await,
        _ => {}
    }
    let session = Session::open(&options.connection).map_err(nowhere)?;
    let result = match &options.verb {
        Verb::Convert(options) => cmd::convert::run(&session, console, options).await,
        Verb::Revert(options) => cmd::revert::run(&session, console, *options).await,
        Verb::AutonomyEnable(options) => cmd::autonomy::enable(&session, console, options).await,
        Verb::AutonomyDisable(options) => cmd::autonomy::disable(&session, console, options).await,
        Verb::AutonomyStatus(options) => cmd::autonomy::status(&session, console, options).await,
        Verb::Status(form) => cmd::status::run(&session, console, *form).await,
        Verb::TunnelStatus(options) => cmd::tunnel::status::run(&session, console, *options).await,
        Verb::TunnelDiagnose(options) => cmd::tunnel::diagnose::run(&session, console, options).await,
        Verb::Logs(options) => cmd::logs::run(&session, console, options).await,
        Verb::Exec(options) => cmd::exec::run(&session, console, options).await,
        Verb::PortForward(options) => cmd::port_forward::run(&session, console, options).await,
        Verb::Version(_) | Verb::Completion(_) => Ok(()),
    };
    result.map_err(|error| (error, session.server()))
}
