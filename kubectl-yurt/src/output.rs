//! Where results and remarks go: results on stdout, progress and diagnostics on stderr, colours only where
//! somebody sees them. A result that is a list has one shape for all its forms ([`Listing`]); sentences are put together
//! with [`words`], and what takes a while is shown by [`progress`].

mod listing;
pub mod progress;
mod table;
pub mod words;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::error::Error;
pub use listing::{Form, Listing};
pub use table::{Table, plain};

/// The API version of the documents that `-o json` and `-o yaml` print.
pub const API_VERSION: &str = "cli.openyurt.io/v1alpha1";

/// A colour of the few that the plugin uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Not as it should be.
    Bad,
    /// Secondary.
    Faint,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coloring {
    /// On a terminal, unless `NO_COLOR` or `TERM=dumb` say otherwise.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The process's standard streams and what they are connected to.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    stdout_color: bool,
    stderr_color: bool,
    /// Somebody can answer a question.
    pub interactive: bool,
    /// Progress may redraw itself.
    pub progress: bool,
}

/// What decides about colours, read once.
#[derive(Debug, Clone, Copy)]
struct Colours {
    choice: Coloring,
    no_color: bool,
    dumb: bool,
}

impl Colours {
    fn color(self, terminal: bool) -> bool {
        match self.choice {
            Coloring::Always => true,
            Coloring::Never => false,
            Coloring::Auto => terminal && !self.no_color && !self.dumb,
        }
    }
}

impl Console {
    /// Looks at the standard streams and the environment (`NO_COLOR`, `TERM`).
    pub fn new(choice: Coloring) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colours = Colours { choice, no_color: set("NO_COLOR"), dumb };
        let stderr = io::stderr().is_terminal();
        Self {
            stdout_color: colours.color(io::stdout().is_terminal()),
            stderr_color: colours.color(stderr),
            interactive: io::stdin().is_terminal() && stderr,
            progress: stderr && !dumb,
        }
    }

    /// Prints a line of the result.
    ///
    /// # Errors
    ///
    /// [`Error::Pipe`] when the reader has gone, [`Error::Io`] when the disk is full.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Error> {
        self.raw(format_args!("{}\n", text.as_ref()))
    }

    /// Prints a part of the result as it is.
    ///
    /// # Errors
    ///
    /// As [`Console::line`].
    pub fn raw(&self, text: impl std::fmt::Display) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        write!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    /// Prints a remark on stderr. That nobody reads remarks is no error.
    pub fn note(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// Prints a warning on stderr, as kubectl does.
    pub fn warn(&self, text: impl AsRef<str>) {
        self.note(format!("{} {}", self.paint_stderr(Tone::Warn, "Warning:"), text.as_ref()));
    }

    /// Colours text for stdout.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.stdout_color, tone, text)
    }

    /// Colours text for stderr.
    pub fn paint_stderr(&self, tone: Tone, text: &str) -> String {
        paint(self.stderr_color, tone, text)
    }

    /// Prints a document as JSON or YAML.
    ///
    /// # Errors
    ///
    /// As [`Console::line`].
    pub fn document(&self, format: Document, value: &impl Serialize) -> Result<(), Error> {
        let text = match format {
            Document::Json => {
                serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| error.to_string())
            }
            Document::Yaml => serde_saphyr::to_string(value).map_err(|error| error.to_string()),
        };
        self.raw(text.map_err(|error| Error::Failed(format!("cannot write the result: {error}")))?)
    }

    /// Asks for a yes. Without a terminal to ask on, refuses.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the answer is not yes or nobody can answer.
    pub fn confirm(&self, question: &str, assume_yes: bool) -> Result<(), Error> {
        if assume_yes {
            return Ok(());
        }
        if !self.interactive {
            return Err(Error::Refused(format!(
                "{question} There is no terminal to ask on: pass --yes to go on"
            )));
        }
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        drop(stderr);
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(Error::Refused("not confirmed, nothing was changed".into()))
        }
    }
}

/// A structured output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// `-o json`
    Json,
    /// `-o yaml`
    Yaml,
}

fn paint(on: bool, tone: Tone, text: &str) -> String {
    if !on {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Faint => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colours(choice: Coloring, no_color: bool, dumb: bool) -> Colours {
        Colours { choice, no_color, dumb }
    }

    #[test]
    fn colours_need_a_terminal_that_wants_them() {
        assert!(colours(Coloring::Auto, false, false).color(true));
        assert!(!colours(Coloring::Auto, false, false).color(false));
        assert!(!colours(Coloring::Auto, true, false).color(true));
        assert!(!colours(Coloring::Auto, false, true).color(true));
        assert!(colours(Coloring::Always, true, true).color(false));
        assert!(!colours(Coloring::Never, false, false).color(true));
    }

    #[test]
    fn a_question_without_a_terminal_is_a_refusal() {
        let console =
            Console { stdout_color: false, stderr_color: false, interactive: false, progress: false };
        assert!(console.confirm("Sure?", true).is_ok());
        assert!(matches!(console.confirm("Sure?", false), Err(Error::Refused(_))));
    }
}
