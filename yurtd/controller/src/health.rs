//! `/healthz` for the Deployment's probe: whether the election goes round.
//!
//! It says nothing about the API server: a controller that cannot reach it does not get better by being
//! restarted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use yurt_node::accept::http::{Buffers, Http, Protocol};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};
use yurt_node::supervise::Tasks;

/// How long the election may take for one round, the API server's silence included.
const STUCK: Duration = Duration::from_secs(90);
/// Probes are kubelet's, and few.
const LIMITS: Limits = Limits { total: 16, per_peer: Some(8), over: Over::Wait };
/// A probe sends its request at once.
const HTTP: Http = Http {
    first_head: Duration::from_secs(5),
    idle: Duration::from_secs(5),
    head_bytes: 8192,
    streams: 1,
    buffers: Buffers::USUAL,
};

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

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let (code, text) = match path {
            "/healthz" if self.is_alive(self.began.elapsed()) => (StatusCode::OK, "ok"),
            "/healthz" => (StatusCode::SERVICE_UNAVAILABLE, "the leader election is stuck"),
            _ => (StatusCode::NOT_FOUND, "not found"),
        };
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = code;
        response
    }

    fn is_alive(&self, at: Duration) -> bool {
        at.as_secs().saturating_sub(self.last.load(Ordering::Relaxed)) <= STUCK.as_secs()
    }
}

/// Serves probes until `tasks` are told to stop.
pub(super) async fn serve(listener: TcpListener, pulse: Pulse, tasks: Tasks) {
    let stop = tasks.stop().clone();
    accept(listener, Places::new(LIMITS), stop, |accepted| {
        let (pulse, probes) = (pulse.clone(), tasks.clone());
        tasks.passing(async move {
            let Accepted { stream, at, place: _place, .. } = accepted;
            let answer = move |request: Request<Incoming>| {
                let response = pulse.answer(request.uri().path());
                async move { response }
            };
            if let Err(error) = HTTP.serve(stream, Protocol::Http1, at, &probes, answer).await {
                tracing::debug!(%error, "a probe's connection ended with an error");
            }
        });
    })
    .await;
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
