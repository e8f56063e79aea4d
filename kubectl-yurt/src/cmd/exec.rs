//! `exec`: a command in a container, through the tunnel. kubectl's flags, messages and exit codes.

use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _, api::AttachParams, core::Request};
use tokio::sync::mpsc;

use crate::{
    cluster::workload,
    connect::{session::Session, tunnel},
    error::Error,
    options::pods::Exec,
    output::Console,
    signals::interrupted,
    stream::{
        remote::{self, Outcome, outcome},
        terminal::{self, RawMode, Size},
    },
};

/// Runs the command.
///
/// # Errors
///
/// [`Error::Remote`] with the remote command's exit code, or why it was not started.
pub async fn run(session: &Session, console: Console, options: &Exec) -> Result<(), Error> {
    let found = workload::find(session, &options.target, options.pod_running_timeout).await?;
    let pod = found.first;
    let phase = workload::phase(&pod);
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Error::Failed(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let container = workload::choose_container(&pod, options.container.as_deref())?;
    if let Some(remark) = container.remark.filter(|_| !options.quiet) {
        console.note(remark);
    }
    let tunnel = tunnel::first(session).await?;
    let tty = wants_tty(console, options);
    let params = AttachParams::default()
        .container(container.name)
        .stdin(options.stdin)
        .stdout(true)
        // A terminal has one output.
        .stderr(!tty)
        .tty(tty);
    let request = Request::new(Pod::url_path(&(), Some(&session.namespace)))
        .exec(&pod.name_any(), options.command.iter().cloned(), &params)
        .map_err(|error| Error::Failed(error.to_string()))?;
    let connection =
        tunnel.client.connect(request).await.map_err(|error| Error::from_server(&tunnel.address, error))?;

    let (sizes, size_changes) = mpsc::channel(1);
    // Held until the remote command has ended; its end restores the terminal, however this function is left.
    let _raw = if tty { Some(RawMode::enter()?) } else { None };
    let watcher = tty.then(|| tokio::spawn(watch_size(sizes)));
    let can_close = connection.supports_stream_close();
    let stdin = options.stdin.then(tokio::io::stdin);
    let remote = remote::run(
        connection.into_stream(),
        can_close,
        stdin,
        tokio::io::stdout(),
        tokio::io::stderr(),
        size_changes,
    );
    let result = tokio::select! {
        result = remote => result,
        () = interrupted() => return Err(Error::Interrupted),
    };
    if let Some(watcher) = watcher {
        watcher.abort();
    }
    match result {
        Ok(status) => match outcome(&status) {
            Outcome::Success => Ok(()),
            Outcome::Exit(code) => Err(Error::Remote(code)),
            Outcome::Failed(why) => Err(Error::Failed(why)),
        },
        Err(remote::RemoteError::Output(error)) => Err(error.into()),
        Err(error) => Err(Error::Failed(error.to_string())),
    }
}

/// A terminal is given where there is one.
fn wants_tty(console: Console, options: &Exec) -> bool {
    if !options.tty {
        return false;
    }
    if terminal::stdin_is_terminal() {
        return true;
    }
    if !options.quiet {
        console.note("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    false
}

/// Sends the terminal's size now and after each change.
async fn watch_size(sizes: mpsc::Sender<Size>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Some(size) = terminal::size()
            && sizes.send(size).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}
