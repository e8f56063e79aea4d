//! Where `yurtd edge` answers `yurtd doctor`: a Unix socket in its runtime directory, which root alone may enter. Whoever
//! connects is sent one report, in JSON, and nothing is read.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use yurt_api::doctor::{Report, VERSION};
use yurt_api::names;
use yurt_hub::Doctor;
use yurt_tunnel::agent::Connections;

/// How long somebody may take to read a report. One is answered at a time.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// What an accept that failed, for want of file descriptors, waits before the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Whoever is asked.
pub(crate) struct Desk {
    pub(crate) hub: Doctor,
    pub(crate) tunnel: Connections,
}

/// Makes the socket, in place of one that an earlier process left.
///
/// # Errors
///
/// When the directory is not there or cannot be written.
pub(crate) fn open(runtime_dir: &Path) -> io::Result<UnixListener> {
    let path = runtime_dir.join(names::DOCTOR_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until `stop`.
pub(crate) async fn serve(listener: UnixListener, desk: Desk, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let answered = tokio::select! {
                    () = stop.cancelled() => return,
                    answered = answer(&desk, stream) => answered,
                };
                if let Err(error) = answered {
                    tracing::debug!(%error, "`yurtd doctor` was not answered");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "`yurtd doctor` cannot be answered");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(desk: &Desk, mut stream: UnixStream) -> anyhow::Result<()> {
    let (hub, sessions) = (desk.hub.clone(), desk.tunnel.sessions());
    let text = tokio::task::spawn_blocking(move || {
        let hub = hub.look(&crate::edge::came());
        let report = Report { version: VERSION, hub: Some(hub), tunnel: sessions, ..Report::default() };
        serde_json::to_vec(&report)
    })
    .await??;
    let sent = async {
        stream.write_all(&text).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(READ_WITHIN, sent).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_replaces_one_that_was_left() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        let path = dir.path().join(names::DOCTOR_SOCKET);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err(), "it was left");
        let _listener = open(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(open(&dir.path().join("missing")).is_err());
    }
}
