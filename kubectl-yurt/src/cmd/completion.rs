//! `completion`: the scripts of `completions/`, made from the command line's definition.

use clap::CommandFactory as _;
use clap_complete::{
    generate,
    shells::{Bash, Fish, PowerShell, Zsh},
};

use crate::{
    args::{Cli, CompletionShell},
    error::Error,
    output::Console,
};

/// The program's own name: a script for `kubectl yurt` would take over the completion of `kubectl` itself.
const PROGRAM: &str = "kubectl-yurt";

/// What kubectl (1.26 and later) runs to complete `kubectl yurt …`: the words so far and the current one as
/// arguments, a candidate a line as answer, and a last line that says *no file names* (4).
const SHIM: &str = "#!/bin/sh
# Completion of `kubectl yurt` inside kubectl: put this file on the PATH, executable.
COMPLETE=fish kubectl-yurt -- kubectl-yurt \"$@\" 2>/dev/null
echo :4
";

/// The text of a completion script.
pub fn script(shell: CompletionShell) -> Vec<u8> {
    let mut command = Cli::command();
    let mut text = Vec::new();
    match shell {
        CompletionShell::Bash => generate(Bash, &mut command, PROGRAM, &mut text),
        CompletionShell::Zsh => generate(Zsh, &mut command, PROGRAM, &mut text),
        CompletionShell::Fish => generate(Fish, &mut command, PROGRAM, &mut text),
        CompletionShell::Powershell => generate(PowerShell, &mut command, PROGRAM, &mut text),
        CompletionShell::Kubectl => text.extend_from_slice(SHIM.as_bytes()),
    }
    text
}

/// Runs the command.
///
/// # Errors
///
/// [`Error::Pipe`] when the reader has gone.
pub fn run(console: Console, shell: CompletionShell) -> Result<(), Error> {
    console.raw(String::from_utf8_lossy(&script(shell)))
}
