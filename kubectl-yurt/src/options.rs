//! From what was typed to what is meant. [`args`] takes the words apart; here each verb's words become the
//! options that everything below takes: defaults are filled in, texts are parsed, what excludes each other is one enum.
//! Pure, and the last place that sees raw arguments. What is wrong is collected, so that a person who made two mistakes
//! reads of both.

pub mod connection;
pub mod nodes;
pub mod pods;
pub mod ports;
pub mod target;

use crate::{
    args::{
        self, Cli, ColorChoice, CompletionShell, Format, StructuredFormat, TunnelCommand,
        nodes::AutonomyCommand,
    },
    error::Error,
    output::{Coloring, Document, Form},
};
use connection::Connection;
use nodes::{AutonomyChange, AutonomyStatus, Convert, Revert};
use pods::{Exec, Logs, PortForward};

/// A command line that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How to reach the cluster.
    pub connection: Connection,
    /// What to do.
    pub verb: Verb,
}

/// What to do, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// `convert`
    Convert(Convert),
    /// `revert`
    Revert(Revert),
    /// `autonomy enable`
    AutonomyEnable(AutonomyChange),
    /// `autonomy disable`
    AutonomyDisable(AutonomyChange),
    /// `autonomy status`
    AutonomyStatus(AutonomyStatus),
    /// `status`
    Status(Form),
    /// `tunnel status`
    TunnelStatus(TunnelStatus),
    /// `tunnel diagnose`.
    TunnelDiagnose(Diagnose),
    /// `logs`
    Logs(Logs),
    /// `exec`
    Exec(Exec),
    /// `port-forward`
    PortForward(PortForward),
    /// `version`
    Version(Version),
    /// `completion`
    Completion(CompletionShell),
}

/// `tunnel status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelStatus {
    /// How it is printed.
    pub form: Form,
    /// Whether to go on, and print what changes.
    pub watch: bool,
}

/// `tunnel diagnose`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnose {
    /// The node at the end of the way.
    pub node: String,
    /// As a document instead of lines.
    pub document: Option<Document>,
}

/// `version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Of this program alone.
    pub client: bool,
    /// As a document instead of lines.
    pub document: Option<Document>,
}

impl Options {
    /// Makes sense of a command line.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in kubectl's words where they are kubectl's flags.
    pub fn resolve(cli: Cli) -> Result<Self, Error> {
        let mut faults = Faults::default();
        let verb = verb(cli.command, &mut faults);
        let connection = Connection::from(cli.connection);
        match (verb, faults.into_error()) {
            (Some(verb), None) => Ok(Self { connection, verb }),
            (_, Some(error)) => Err(error),
            (None, None) => Err(Error::Failed("this command line cannot be understood".into())),
        }
    }
}

fn verb(command: args::Command, faults: &mut Faults) -> Option<Verb> {
    Some(match command {
        args::Command::Convert(args) => Verb::Convert(Convert::resolve(args, faults)?),
        args::Command::Revert(args) => Verb::Revert(args.into()),
        args::Command::Autonomy(AutonomyCommand::Enable(args)) => Verb::AutonomyEnable(args.into()),
        args::Command::Autonomy(AutonomyCommand::Disable(args)) => Verb::AutonomyDisable(args.into()),
        args::Command::Autonomy(AutonomyCommand::Status(args)) => Verb::AutonomyStatus(args.into()),
        args::Command::Status(args) => Verb::Status(form(args.output)),
        args::Command::Tunnel(TunnelCommand::Status(args)) => {
            Verb::TunnelStatus(TunnelStatus { form: form(args.output), watch: args.watch.unwrap_or(false) })
        }
        args::Command::Tunnel(TunnelCommand::Diagnose(args)) => {
            Verb::TunnelDiagnose(Diagnose { node: args.node, document: args.output.map(document) })
        }
        args::Command::Logs(args) => Verb::Logs(Logs::resolve(args, faults)?),
        args::Command::Exec(args) => Verb::Exec(Exec::resolve(args, faults)?),
        args::Command::PortForward(args) => Verb::PortForward(PortForward::resolve(args, faults)?),
        args::Command::Version(args) => {
            Verb::Version(Version { client: args.client, document: args.output.map(document) })
        }
        args::Command::Completion(args) => Verb::Completion(args.shell),
    })
}

/// What `-o` means for what is no table.
fn document(format: StructuredFormat) -> Document {
    match format {
        StructuredFormat::Json => Document::Json,
        StructuredFormat::Yaml => Document::Yaml,
    }
}

/// What `-o` means for a list of things.
fn form(format: Option<Format>) -> Form {
    match format {
        None => Form::Table { wide: false },
        Some(Format::Wide) => Form::Table { wide: true },
        Some(Format::Name) => Form::Names,
        Some(Format::Json) => Form::Document(Document::Json),
        Some(Format::Yaml) => Form::Document(Document::Yaml),
    }
}

impl From<ColorChoice> for Coloring {
    fn from(choice: ColorChoice) -> Self {
        match choice {
            ColorChoice::Auto => Self::Auto,
            ColorChoice::Always => Self::Always,
            ColorChoice::Never => Self::Never,
        }
    }
}

/// What is wrong with a command line, as far as it is known.
#[derive(Debug, Default)]
pub struct Faults(Vec<Error>);

impl Faults {
    /// The value, or a note of what is wrong with it.
    fn take<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// All values, or a note of everything that is wrong with them.
    fn take_all<T>(&mut self, results: impl Iterator<Item = Result<T, Error>>) -> Option<Vec<T>> {
        let taken: Vec<Option<T>> = results.map(|result| self.take(result)).collect();
        taken.into_iter().collect()
    }

    fn add(&mut self, error: Error) {
        self.0.push(error);
    }

    /// One error of all; of several, refused if one of them is. Each stands on a line of its own.
    fn into_error(mut self) -> Option<Error> {
        if self.0.len() < 2 {
            return self.0.pop();
        }
        let text = self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: ");
        let refused = self.0.iter().any(|error| matches!(error, Error::Refused(_)));
        Some(if refused { Error::Refused(text) } else { Error::Failed(text) })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn resolve(line: &str) -> Result<Verb, Error> {
        let cli = Cli::try_parse_from(["kubectl-yurt"].into_iter().chain(line.split_whitespace())).unwrap();
        Options::resolve(cli).map(|options| options.verb)
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let error = resolve("port-forward pod/a/b 99999:80 80:0 --address nowhere").unwrap_err();
        assert_eq!(error.exit_code(), 1, "as kubectl");
        let text = error.text("").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines.iter().all(|line| line.starts_with("error: ")), "{text}");
        let error =
            resolve("convert --edge-nodes a --tunnel-address b --tunnel-api-address c:x").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.to_string(), "\"b\" is not HOST:PORT\nerror: \"c:x\" is not HOST:PORT");
    }

    #[test]
    fn a_single_fault_reads_as_it_always_did() {
        assert_eq!(
            resolve("exec a").unwrap_err().text("").unwrap(),
            "error: you must specify at least one command for the container"
        );
    }

    #[test]
    fn the_form_comes_from_its_flag() {
        assert_eq!(resolve("status").unwrap(), Verb::Status(Form::Table { wide: false }));
        let wide = |watch| Verb::TunnelStatus(TunnelStatus { form: Form::Table { wide: true }, watch });
        assert_eq!(resolve("tunnel status -o wide").unwrap(), wide(false));
        assert_eq!(resolve("tunnel status -w -o wide").unwrap(), wide(true));
        assert_eq!(resolve("tunnel status -o wide --watch=false").unwrap(), wide(false));
        let diagnose = Diagnose { node: "edge-1".into(), document: Some(Document::Json) };
        assert_eq!(resolve("tunnel diagnose edge-1 -o json").unwrap(), Verb::TunnelDiagnose(diagnose));
        assert_eq!(resolve("status -o name").unwrap(), Verb::Status(Form::Names));
        let version = Version { client: true, document: Some(Document::Yaml) };
        assert_eq!(resolve("version --client -o yaml").unwrap(), Verb::Version(version));
    }
}
