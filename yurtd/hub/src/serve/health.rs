//! The health port: plain HTTP on loopback. No tokens, no objects, nothing that is not for everyone on the node.
//!
//! - `/healthz`: the process lives and its runtime turns.
//! - `/readyz`: 200 when kubelet can be sent here: the serving certificate is there and either the API server has
//!   answered or the node's own Node is known. The body says what is missing.
//! - `/ca.crt`: the certificate of the node's CA, with which the hub is verified. The keeper reads it here, for kubelet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::net::TcpListener;
use yurt_node::accept::http::{Http, Protocol};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};

use super::{Body, Hub, respond};
use crate::caller::Permit;
use crate::certificate::{CertificateState, InstalledCertificate};
use crate::offline::Answer;
use crate::view::Lookup;
use crate::wire::{Encoding, Resource};
use yurt_node::link::LinkState;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A probe sends its request at once.
const HTTP: Http =
    Http { first_head: Duration::from_secs(5), idle: Duration::from_secs(5), head_bytes: 8192, streams: 1 };

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
    /// Whether the node's own Node is known without the API server.
    pub node_known: bool,
    /// Collections that are kept.
    pub views: usize,
    /// Views with a complete list behind them.
    pub complete_views: usize,
    /// Objects whose status waits to be replayed.
    pub pending_status_patches: usize,
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
        Readiness {
            ready: serving_certificate && (link == LinkState::Online || node_known),
            link: match link {
                LinkState::Online => "online",
                LinkState::Offline => "offline",
                LinkState::Unknown => "unknown",
            },
            serving_certificate,
            serving_certificate_expires: state.expires,
            serving_certificate_error: state.error,
            node_known,
            views,
            complete_views,
            pending_status_patches: self.hub.offline.journal().objects().len(),
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
            "/ca.crt" => {
                let pem = Bytes::copy_from_slice(self.node_ca.as_bytes());
                respond::answer(Answer::new(StatusCode::OK, "application/pem-certificate-chain", pem))
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /ca.crt\n"),
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
