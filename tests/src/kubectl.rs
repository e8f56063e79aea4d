//! The real, unmodified kubectl, as a user at the host would run it: an admin's kubeconfig, and our
//! plugin on its `PATH`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::paths;
use crate::run::{self, Finished};

#[derive(Debug, Clone)]
pub struct Kubectl {
    bin: PathBuf,
    kubeconfig: PathBuf,
    plugin: Option<PathBuf>,
}

impl Kubectl {
    /// `bin` is the folder with kubectl in it.
    pub fn new(bin: &Path, kubeconfig: &Path) -> Self {
        Self { bin: bin.to_owned(), kubeconfig: kubeconfig.to_owned(), plugin: None }
    }

    /// The same with `folder` on the `PATH`, where kubectl looks for its plugins.
    pub fn with_plugin(mut self, folder: &Path) -> Self {
        self.plugin = Some(folder.to_owned());
        self
    }

    /// The same as somebody else.
    pub fn with_kubeconfig(&self, kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), ..self.clone() }
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The command, for a caller that wants to hold its streams.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.bin.join("kubectl"));
        self.environment(&mut command);
        command.args(args);
        command
    }

    /// The environment of a person who uses this cluster.
    pub fn environment(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self
            .plugin
            .iter()
            .cloned()
            .chain([self.bin.clone()])
            .chain(std::env::split_paths(&path).collect::<Vec<_>>());
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", paths::state().join("kubectl-cache"));
    }

    /// Runs kubectl to its end, whatever that is.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Finished> {
        run::run(self.command(args))
    }

    /// Runs kubectl for at most `timeout`.
    pub fn run_for<S: AsRef<OsStr>>(
        &self,
        timeout: Duration,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Finished> {
        run::run_with(self.command(args), None, timeout)
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        self.run(args)?.success()
    }

    /// `kubectl ARGS -o json`.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Value> {
        let mut command = self.command(args);
        command.args(["-o", "json"]);
        let text = run::output(command)?;
        serde_json::from_str(&text).context("reading kubectl's JSON")
    }

    /// The items of `kubectl get ARGS`.
    pub fn items<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Vec<Value>> {
        let mut command = self.command(["get"]);
        command.args(args).args(["-o", "json"]);
        let mut list: Value = serde_json::from_str(&run::output(command)?)?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => vec![list],
        })
    }

    /// `kubectl apply -f -` with a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        run::run_with(self.command(["apply", "-f", "-"]), Some(manifest.as_bytes()), run::DEFAULT_TIMEOUT)?
            .success()
    }
}
