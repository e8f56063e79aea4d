//! `/healthz` for the Deployment's probe: whether the election goes round.
//!
//! It says nothing about the API server: a controller that cannot reach it does not get better by being
//! restarted.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How long the election may take for one round, the API server's silence included.
const STUCK: Duration = Duration::from_secs(90);
/// How long a probe may take to ask.
const HEADER: Duration = Duration::from_secs(5);
/// Probes at a time.
const CONNECTIONS: usize = 16;

/// When the election last went round.
#[derive(Clone)]
pub(super) struct Pulse {
    began: Instant,
    last: Arc<AtomicU64>,
}

impl Pulse {
    /// Alive from now on.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    /// Once around.
    pub(super) fn beat(&self) {
        self.last.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
    }

    fn is_alive(&self, at: Duration) -> bool {
        at.as_secs().saturating_sub(self.last.load(Ordering::Relaxed)) <= STUCK.as_secs()
    }
}

/// Serves until `stop`.
pub(super) async fn serve(listener: TcpListener, pulse: Pulse, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let slot = slots.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                listener.accept().await.map(|(socket, _)| (socket, slot))
            } => accepted,
        };
        let (socket, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a probe");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (pulse, stop) = (pulse.clone(), stop.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                let code = match request.uri().path() {
                    "/healthz" if pulse.is_alive(pulse.began.elapsed()) => StatusCode::OK,
                    "/healthz" => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::NOT_FOUND,
                };
                let mut response = Response::new(Full::new(Bytes::from_static(match code {
                    StatusCode::OK => b"ok",
                    StatusCode::NOT_FOUND => b"not found",
                    _ => b"the leader election is stuck",
                })));
                *response.status_mut() = code;
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                _ = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_that_does_not_come_round_is_stuck() {
        let pulse = Pulse::new();
        pulse.beat();
        assert!(pulse.is_alive(Duration::from_secs(80)));
        assert!(!pulse.is_alive(Duration::from_secs(120)));
    }
}
