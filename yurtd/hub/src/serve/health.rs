//! The health port: plain HTTP on loopback. No tokens, no objects, nothing that is not for everyone on the node.
//! `/metrics`: [`metrics`].
//!
//! - `/healthz`: the process lives and its runtime turns.
//! - `/readyz`: 200 when kubelet can be sent here: the serving certificate is there and either the API server has
//!   answered or the node's own Node is known, the node has the addresses that are listened on, and pods are led here if
//!   they are to be. The body says what is missing.
//! - `/ca.crt`: the certificate of the node's CA, with which the hub is verified. The keeper reads it here, for kubelet.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::net::TcpListener;
use yurt_api::doctor::TunnelSession;
use yurt_node::accept::http::{Buffers, Http, Protocol};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};

use super::ipv6::Listening;
use super::metrics::{self, Sample};
use super::{Body, Hub, respond};
use crate::TellSessions;
use crate::caller::Permit;
use crate::certificate::{CertificateState, InstalledCertificate};
use crate::offline::Answer;
use crate::view::Lookup;
use crate::way_in::State;
use crate::wire::{Encoding, Resource};
use yurt_node::link::LinkState;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A probe sends its request at once.
const HTTP: Http = Http {
    first_head: Duration::from_secs(5),
    idle: Duration::from_secs(5),
    head_bytes: 8192,
    streams: 1,
    buffers: Buffers::USUAL,
};

/// What `/readyz` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// Whether kubelet can be sent to the hub.
    pub ready: bool,
    /// `online`, `offline`, `unknown`.
    pub link: &'static str,
    /// Whether there is a serving certificate.
    pub serving_certificate: bool,
    /// When it ends, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_certificate_expires: Option<String>,
    /// Why it is not on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving_certificate_error: Option<String>,
    /// Addresses that are listened on and that the node does not have: nobody comes in there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing_addresses: Vec<IpAddr>,
    /// By which way pods come to the hub: `service`, `environment`.
    pub way_in: &'static str,
    /// Why it is not the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in_why: Option<String>,
    /// Why pods are not led here as they should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in_missing: Option<String>,
    /// The Service's addresses at which pods are led here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub way_in_services: Vec<String>,
    /// Whether pods are led here at the Service's address.
    pub way_in_open: bool,
    /// The agents that the keeper is about to restart are led here as if they had begun anew: which turn of theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way_in_turn: Option<i64>,
    /// Whether the node's own Node is known without the API server.
    pub node_known: bool,
    /// Collections that are kept.
    pub views: usize,
    /// Views with a complete list behind them.
    pub complete_views: usize,
    /// Whether the store is full: requests are forwarded, and what is known for the time without a link is old.
    pub store_full: bool,
    /// How much of the store's bound is in use.
    pub store_used_percent: u64,
    /// Objects whose status waits to be replayed.
    pub pending_status_patches: usize,
    /// Events that wait to be sent.
    pub pending_events: usize,
    /// Events that were dropped because too many waited, since the hub's start.
    pub dropped_events: u64,
    /// The tunnel agent's sessions: the keeper reports why there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tunnel: Vec<TunnelSession>,
}

/// Answers probes.
pub(crate) struct Health {
    /// The hub.
    pub(crate) hub: Arc<Hub>,
    /// The certificate of the node's CA, PEM.
    pub(crate) node_ca: Arc<str>,
    /// Its certificate.
    pub(crate) certificate: Arc<InstalledCertificate>,
    /// What the certificate's manager says.
    pub(crate) certificate_state: tokio::sync::watch::Receiver<CertificateState>,
    /// The node's permit and name.
    pub(crate) node: (Permit, String),
    /// What the hub listens on.
    pub(crate) addresses: Vec<IpAddr>,
    /// And over IPv6.
    pub(crate) listening: tokio::sync::watch::Receiver<Listening>,
    /// How the sessions of the tunnel agent fare.
    pub(crate) tunnel: TellSessions,
    /// How the way in is.
    pub(crate) way_in: tokio::sync::watch::Receiver<State>,
}

/// Whether an address is one of this machine's. Asked of the kernel, which lets a socket be bound to no other (but for
/// listeners of ours, for which systemd asks it to).
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

impl Health {
    /// What `/readyz` shows now.
    pub(crate) fn readiness(&self) -> Readiness {
        let link = *self.hub.link.subscribe().borrow();
        let (permit, name) = &self.node;
        let node = Resource::new("", "v1", "nodes");
        let node_known = matches!(
            self.hub.views.lookup(permit, &node, None, name, &[Encoding::Json]),
            Lookup::Found { .. }
        );
        let serving_certificate = self.certificate.is_present();
        let state = self.certificate_state.borrow().clone();
        let (views, complete_views) = self.hub.views.count();
        let (ipv6, not_listening) = match self.listening.borrow().clone() {
            Listening::Unneeded => (None, None),
            Listening::At(at) => (Some(at.ip()), None),
            Listening::Not(why) => (None, Some(why)),
        };
        let addresses = self.addresses.iter().copied().chain(ipv6);
        let missing_addresses: Vec<_> = addresses.filter(|ip| !is_local(*ip)).collect();
        let store = self.hub.views.store_stats();
        let way_in = self.way_in.borrow().clone();
        let way_in_missing = not_listening.or(way_in.missing);
        Readiness {
            ready: serving_certificate
                && (link == LinkState::Online || node_known)
                && missing_addresses.is_empty()
                && way_in_missing.is_none(),
            link: match link {
                LinkState::Online => "online",
                LinkState::Offline => "offline",
                LinkState::Unknown => "unknown",
            },
            serving_certificate,
            serving_certificate_expires: state.expires,
            serving_certificate_error: state.error,
            missing_addresses,
            way_in: way_in.chosen.way.name(),
            way_in_why: way_in.chosen.why,
            way_in_missing,
            way_in_services: way_in.services.iter().map(ToString::to_string).collect(),
            way_in_open: way_in.open,
            way_in_turn: way_in.turn,
            node_known,
            views,
            complete_views,
            store_full: store.full,
            store_used_percent: store.used_bytes * 100 / store.map_bytes.max(1),
            pending_status_patches: self.hub.offline.journal().objects().len(),
            pending_events: self.hub.offline.events().len(),
            dropped_events: self.hub.offline.events().dropped(),
            tunnel: (self.tunnel)(),
        }
    }

    fn sample(&self) -> Sample {
        let readiness = self.readiness();
        let store = self.hub.views.store_stats();
        let expires = readiness.serving_certificate_expires.as_deref();
        let tokens = self.hub.authenticator.tokens();
        let (token_keys, forged_tokens) = tokens.issuer().figures();
        Sample {
            online: self.hub.link.is_online(),
            ready: readiness.ready,
            views: self.hub.views.states(),
            fed_views: self.hub.views.fed(),
            pending_patches: readiness.pending_status_patches,
            pending_events: readiness.pending_events,
            dropped_events: readiness.dropped_events,
            token_reviews: tokens.reviews(),
            forged_tokens,
            token_keys,
            store_bytes: store.file_bytes,
            store_limit: store.map_bytes,
            store_commits: store.commits,
            store_full: store.full,
            certificate_expires: expires
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map(jiff::Timestamp::as_second),
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let json = "application/json";
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => {
                let readiness = self.readiness();
                let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                match serde_json::to_vec_pretty(&readiness) {
                    Ok(body) => respond::answer(Answer::new(code, json, body.into())),
                    Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
                }
            }
            "/metrics" => match self.hub.metrics.encode(&self.sample()) {
                Ok(text) => respond::answer(Answer::new(StatusCode::OK, metrics::CONTENT_TYPE, text.into())),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            "/ca.crt" => {
                let pem = Bytes::copy_from_slice(self.node_ca.as_bytes());
                respond::answer(Answer::new(StatusCode::OK, "application/pem-certificate-chain", pem))
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz, /metrics and /ca.crt\n"),
        }
    }
}

fn text(code: StatusCode, text: &str) -> Response<Body> {
    respond::answer(Answer::new(code, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes())))
}

/// Serves probes until the hub stops.
pub(crate) async fn serve(health: Arc<Health>, listener: TcpListener) {
    let places = Places::new(Limits { total: MAX_CONNECTIONS, per_peer: None, over: Over::Wait });
    let (stop, tasks) = (health.hub.stop.clone(), health.hub.tasks.clone());
    accept(listener, places, stop, move |accepted| {
        let (health, connections) = (health.clone(), tasks.clone());
        tasks.passing(async move {
            let Accepted { stream, at, place: _place, .. } = accepted;
            let answer = move |request| {
                let health = health.clone();
                async move { health.answer(&request) }
            };
            if let Err(error) = HTTP.serve(stream, Protocol::Http1, at, &connections, answer).await {
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
    fn an_address_that_the_machine_does_not_have_is_not_local() {
        assert!(is_local(IpAddr::from([127, 0, 0, 1])));
        // For documentation (RFC 5737): nobody's.
        assert!(!is_local(IpAddr::from([192, 0, 2, 1])));
    }
}
