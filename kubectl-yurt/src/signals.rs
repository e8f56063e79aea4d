//! When this process is asked to stop.

/// Ends when a signal asks to stop: the terminal's, or another process's.
pub async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let of = |kind: SignalKind| async move {
            match signal(kind) {
                Ok(mut signal) => {
                    signal.recv().await;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = of(SignalKind::interrupt()) => {}
            () = of(SignalKind::terminate()) => {}
            () = of(SignalKind::hangup()) => {}
            () = of(SignalKind::quit()) => {}
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
    }
}
