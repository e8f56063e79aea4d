//! Requests to the API servers: an explicit pool of HTTP/2 connections, because hyper's own keeps one and would make
//! the 101st watch wait (an API server allows 100 streams a connection).
//!
//! Connections of the node's certificate and of bearer tokens are separate: a request with a token never travels on a
//! connection that authenticates as the node. So are those of views and of forwarded requests ([`Traffic`]): whatever a
//! local client does or fails to do with its answers, views go on.
//!
//! The first node connection doubles as the link's probe (see `link`). When the link is declared lost, whoever waits
//! for an answer is told so at once, and nothing is sent any more; what streams is left to TCP, and goes on when bytes move
//! again. When the link is back, connections on which nobody answers soon are closed: what streams there would hang.
//!
//! When kubelet rotates its certificate, connections with the old one take no more requests and end with their
//! last watch.

mod again;
mod client_tls;
mod pool;
mod probe;
mod servers;
mod silence;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use yurt_node::link::LinkState;
use yurt_node::supervise::Tasks;

use crate::caller::{Credential, Identity};
use crate::limits::{COUNTED, FORWARDED_OF_ONE};
use crate::link::Link;
use again::{Again, Unprocessed};
use client_tls::CredentialKind;
use pool::{Pool, PoolKey};

pub(crate) use probe::jitter;

/// Body of a request that goes upstream.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Times a request is sent on another connection after it provably has not left on the one before. One that the server
/// has certainly not looked at is sent again once.
const RESENDS: usize = 3;

/// Where the API servers are and who the node is.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamConfig {
    /// Base URLs (`https://host:port`).
    pub(crate) servers: Vec<String>,
    /// PEM file of the CA that signed their certificates.
    pub(crate) ca_file: PathBuf,
    /// PEM file with the node's client certificate.
    pub(crate) client_certificate: PathBuf,
    /// PEM file with its key.
    pub(crate) client_key: PathBuf,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No API server can be reached; nothing was sent.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The link broke under the request: whether it was carried out is unknown.
    #[error("the connection to the API server broke: {0}")]
    Broken(String),
    /// Too much is under way at the same time; nothing was sent.
    #[error("too many requests to the API server: {0}")]
    Busy(String),
    /// The request itself, or the configuration, cannot be used.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

/// What a request is for. Each has connections of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Traffic {
    /// What local clients ask for, and the hub's own small requests. How fast answers are read is up to the clients.
    Requests,
    /// Lists and watches of views, which are always read.
    Views,
}

/// Connections to the API servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Upstream {
    pool: Arc<Pool>,
    link: Link,
    traffic: Traffic,
    shares: Arc<Mutex<HashMap<Identity, Arc<Semaphore>>>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Upstream {
    /// Starts keeping connections, and the link state that follows from them. Ends when the role stops.
    ///
    /// # Errors
    ///
    /// When the CA cannot be read or a server is no URL.
    pub(crate) fn start(config: &UpstreamConfig, tasks: &Tasks) -> Result<(Self, Link), UpstreamError> {
        let pool = Arc::new(Pool::new(config, tasks.stop().clone())?);
        let link = probe::start(Arc::clone(&pool), tasks);
        let shares = Arc::default();
        Ok((Self { pool, link: link.clone(), traffic: Traffic::Requests, shares }, link))
    }

    /// The cluster has named these API servers beside those of the configuration. They are asked when none of those
    /// answers.
    pub(crate) fn found(&self, servers: &[SocketAddr]) {
        self.pool.servers().set_found(servers);
    }

    /// `host:port` of every API server that is known, those of the configuration first.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.pool.servers().names()
    }

    /// A place among the requests of an identity; nothing is counted for kubelet, which comes with the node's
    /// certificate.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Busy`].
    pub(crate) fn share(
        &self,
        identity: &Identity,
        credential: &Credential,
    ) -> Result<Option<OwnedSemaphorePermit>, UpstreamError> {
        if *credential == Credential::Node {
            return Ok(None);
        }
        let share = {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            if shares.len() >= COUNTED {
                shares.retain(|_, share| share.available_permits() < FORWARDED_OF_ONE);
            }
            let share = shares.entry(identity.clone());
            Arc::clone(share.or_insert_with(|| Arc::new(Semaphore::new(FORWARDED_OF_ONE))))
        };
        let busy =
            |_| UpstreamError::Busy(format!("{FORWARDED_OF_ONE} requests of {identity} are under way"));
        share.try_acquire_owned().map(Some).map_err(busy)
    }

    /// Where its connections lead, as far as that is known.
    pub(crate) fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.pool.servers().addresses()
    }

    /// The same servers, on the connections of views.
    pub(crate) fn for_views(&self) -> Self {
        Self { traffic: Traffic::Views, ..self.clone() }
    }

    /// Sends a request and returns as soon as response headers are there, or the link is lost. `request.uri()` needs
    /// path and query alone;
    /// scheme, authority, `host` and `authorization` are set here. Hop-by-hop headers are the caller's to strip.
    /// Fails at once while the link is offline.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`].
    pub(crate) async fn send(
        &self,
        credential: &Credential,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        self.check()?;
        let mut link = self.link.subscribe();
        tokio::select! {
            response = self.exchange(credential, request) => response,
            // Whoever watches over the link knows better than this one request.
            _ = link.wait_for(|state| *state == LinkState::Offline) => {
                Err(UpstreamError::Broken("the link went down under the request".to_owned()))
            }
        }
    }

    async fn exchange(
        &self,
        credential: &Credential,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let (mut parts, body) = request.into_parts();
        let kind = set_credential(&mut parts.headers, credential)?;
        parts.headers.remove(HOST);
        let path = parts.uri.path_and_query().cloned();
        let body = Again::new(body);
        let mut sent_again = false;
        let mut last = "connections break before they are used".to_owned();
        for _ in 0..RESENDS {
            self.check()?;
            let mut slot = self.pool.slot(PoolKey { kind, traffic: self.traffic }).await?;
            let Some(reading) = body.read() else { break };
            let mut request = Request::new(reading);
            *request.method_mut() = parts.method.clone();
            *request.headers_mut() = parts.headers.clone();
            *request.version_mut() = http::Version::HTTP_2;
            *request.uri_mut() = absolute(slot.authority(), path.clone())?;
            let mut error = match slot.sender.try_send_request(request).await {
                Ok(response) => {
                    body.forget();
                    let proven = slot.proven();
                    return Ok(response.map(|inner| ResponseBody {
                        inner,
                        proven,
                        _stream: slot.stream,
                        _share: None,
                    }));
                }
                Err(error) => error,
            };
            if error.take_message().is_some() {
                slot.retire();
                continue;
            }
            match again::unprocessed(error.error(), &parts.method, body.was_read()) {
                Some(how) if !sent_again => {
                    tracing::debug!(?how, method = %parts.method, "a request is sent again");
                    sent_again = true;
                    if how == Unprocessed::GoingAway {
                        slot.retire();
                    }
                    last = chain(error.error());
                }
                _ => return Err(UpstreamError::Broken(chain(error.error()))),
            }
        }
        Err(UpstreamError::Unreachable(last))
    }

    /// Sends an upgrade (SPDY, WebSocket) on an HTTP/1.1 connection of its own; `hyper::upgrade::on` works on the
    /// response.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub(crate) async fn upgrade(
        &self,
        credential: &Credential,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let (mut parts, body) = request.into_parts();
        let kind = set_credential(&mut parts.headers, credential)?;
        self.check()?;
        let (mut sender, authority) = self.pool.connect_http1(kind).await?;
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|error| UpstreamError::Request(error.to_string()))?;
        parts.headers.insert(HOST, host);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
        parts.version = http::Version::HTTP_11;
        let request = Request::from_parts(parts, body);
        sender.send_request(request).await.map_err(|error| UpstreamError::Broken(chain(&error)))
    }

    fn check(&self) -> Result<(), UpstreamError> {
        match self.link.state() {
            LinkState::Offline => Err(UpstreamError::Unreachable("the edge node is offline".to_owned())),
            _ => Ok(()),
        }
    }
}

/// An error with its causes: hyper hides what happened in them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn set_credential(
    headers: &mut http::HeaderMap,
    credential: &Credential,
) -> Result<CredentialKind, UpstreamError> {
    headers.remove(AUTHORIZATION);
    match credential {
        Credential::Node => Ok(CredentialKind::Node),
        Credential::Bearer(token) => {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| UpstreamError::Request("the token is no header value".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
            Ok(CredentialKind::Bearer)
        }
    }
}

fn absolute(authority: &Authority, path: Option<PathAndQuery>) -> Result<Uri, UpstreamError> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|error| UpstreamError::Request(error.to_string()))
}

/// Body of a response; holds its stream's place in the connection until it is dropped.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    inner: Incoming,
    proven: watch::Receiver<()>,
    _stream: OwnedSemaphorePermit,
    _share: Option<OwnedSemaphorePermit>,
}

impl ResponseBody {
    /// Changes when it is known that the body goes on although the link was lost: what was sent meanwhile is there.
    pub(crate) fn proven(&self) -> watch::Receiver<()> {
        self.proven.clone()
    }

    /// Holds a place among an identity's requests, too.
    pub(crate) fn holding(self, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { _share: share, ..self }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
pub(crate) mod tests;
