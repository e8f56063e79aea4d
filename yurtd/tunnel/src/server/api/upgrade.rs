//! exec, attach and port-forward: the connection leaves HTTP.
//!
//! The caller's handshake (WebSocket, or SPDY of an older kubectl) goes to kubelet as it is, kubelet's
//! `101` comes back as it is, and from then on bytes are moved. Nothing is decoded: what the two ends
//! agreed on is theirs.
//!
//! One thing is repaired. kubectl and kube offer `v5.channel.k8s.io` first; kubelets before 1.36 pass the
//! handshake on to the container runtime, whose streaming server knows v4 at most and refuses the whole
//! offer. If the caller offers v4 too, the handshake is sent again with v4 alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::Semaphore;
use tokio_util::io::InspectReader;

use super::audit::Record;
use super::authorise::Grant;
use super::kubelet_client::{self, KubeletBody, Kubelets};
use super::pods::Place;
use super::status::{ApiError, Body, full};
use crate::server::connections::Connections;

/// SPDY's counterpart of the WebSocket subprotocol; one header a version.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What every container runtime's streaming server speaks.
const V4: &str = "v4.channel.k8s.io";
/// A bearer token that browsers hide among the subprotocols; the API server takes it out as well.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Read at once in each direction.
const BUFFER: usize = 16 * 1024;

/// How long kubelet may take to agree to leave HTTP. A log has no such limit: kubelet does not even send the response's
/// head before there is something to say.
const AGREEMENT: Duration = Duration::from_secs(30);
/// Upgraded connections at a time, which no longer count as connections of the listener.
const STREAMS: usize = 4096;

/// The upgraded connections.
pub(super) struct Upgrades {
    places: Arc<Semaphore>,
}

impl Default for Upgrades {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(STREAMS)) }
    }
}

impl Upgrades {
    /// Leads caller and kubelet out of HTTP; the stream between them is one of `connections`.
    ///
    /// # Errors
    ///
    /// [`ApiError`], kubelet's own among them.
    pub(super) async fn serve(
        &self,
        kubelets: &Kubelets,
        mut request: Request<Incoming>,
        grant: &Grant,
        place: &Place,
        connections: &Connections,
        record: &Arc<Record>,
    ) -> Result<Response<Body>, ApiError> {
        if request.version() != Version::HTTP_11 {
            return Err(ApiError::BadRequest(
                "exec, attach and port-forward need HTTP/1.1: a connection of HTTP/2 cannot leave HTTP"
                    .into(),
            ));
        }
        let handshake = Handshake::read(request.headers())?;
        let slot = self.places.clone().try_acquire_owned().map_err(|_| {
            ApiError::Unavailable(format!(
                "{STREAMS} streams are open at this tunnel server; try again later"
            ))
        })?;
        let line = record.reserve().await;
        let mut answer = shake_hands(kubelets, request.method(), grant, place, &handshake).await?;
        if let Some(second) = handshake.fallback(answer.status()) {
            tracing::debug!(node = place.node, status = %answer.status(), "kubelet refused, offering v4 alone");
            answer = shake_hands(kubelets, request.method(), grant, place, &second).await?;
        }
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(kubelet_client::error_of(answer).await);
        }
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer_headers(answer.headers());

        let kubelet = hyper::upgrade::on(&mut answer);
        let caller = hyper::upgrade::on(&mut request);
        record.starts(line);
        let record = record.clone();
        let node = place.node.clone();
        let body = answer.into_body();
        connections.start(async move {
            let _slot = slot;
            let began = Instant::now();
            let ended = relay(caller, kubelet, body, &record).await;
            let took = began.elapsed();
            match ended {
                Ok(moved) => {
                    tracing::info!(node, sent = moved.sent, received = moved.received, ?took, "stream ended");
                }
                Err(error) => {
                    record.broke(&error);
                    tracing::info!(node, ?took, %error, "stream broke");
                }
            }
        });
        Ok(response)
    }
}

async fn shake_hands(
    kubelets: &Kubelets,
    method: &Method,
    grant: &Grant,
    place: &Place,
    handshake: &Handshake,
) -> Result<Response<KubeletBody>, ApiError> {
    let headers = handshake.headers()?;
    let answer = kubelets.send(grant, method.clone(), &place.node, &place.container, headers);
    match tokio::time::timeout(AGREEMENT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ApiError::Unavailable(format!(
            "kubelet of node {:?} did not answer within {AGREEMENT:?}",
            place.node
        ))),
    }
}

/// The caller's handshake, in the headers that belong to it.
#[derive(Debug, Clone)]
struct Handshake {
    headers: HeaderMap,
    /// Offered subprotocols of a WebSocket, in order.
    protocols: Vec<String>,
}

impl Handshake {
    /// Takes the handshake out of the caller's headers.
    ///
    /// # Errors
    ///
    /// [`ApiError::BadRequest`] when it is none, [`ApiError::Refused`] when a browser sends it: pages of
    /// other sites can open WebSockets with the user's client certificate.
    fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let upgrades = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
        let Some(protocol) = headers.get(UPGRADE).filter(|_| upgrades) else {
            return Err(ApiError::BadRequest("Upgrade request required".into()));
        };
        if headers.contains_key(ORIGIN) {
            return Err(ApiError::Refused("the tunnel server does not serve browsers".into()));
        }
        let mut ours = HeaderMap::new();
        ours.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        ours.insert(UPGRADE, protocol.clone());
        for name in
            [SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, SEC_WEBSOCKET_EXTENSIONS, STREAM_PROTOCOL, USER_AGENT]
        {
            for value in headers.get_all(&name) {
                ours.append(name.clone(), value.clone());
            }
        }
        let protocols = headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|offer| offer.trim().to_owned())
            .filter(|offer| !offer.is_empty() && !offer.starts_with(BEARER_PROTOCOL))
            .collect();
        Ok(Self { headers: ours, protocols })
    }

    /// The headers for kubelet.
    ///
    /// # Errors
    ///
    /// [`ApiError::BadRequest`] when the offer cannot be a header.
    fn headers(&self) -> Result<HeaderMap, ApiError> {
        let mut headers = self.headers.clone();
        if !self.protocols.is_empty() {
            let offer = HeaderValue::try_from(self.protocols.join(", "))
                .map_err(|_| ApiError::BadRequest("the offered subprotocols cannot be read".into()))?;
            headers.insert(SEC_WEBSOCKET_PROTOCOL, offer);
        }
        Ok(headers)
    }

    /// The handshake to send after `answer` refused this one, if there is any sense in another.
    fn fallback(&self, answer: StatusCode) -> Option<Self> {
        let refused = matches!(answer, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN);
        let more_than_v4 = self.protocols.len() > 1 && self.protocols.iter().any(|offer| offer == V4);
        (refused && more_than_v4)
            .then(|| Self { headers: self.headers.clone(), protocols: vec![V4.to_owned()] })
    }
}

/// The headers of kubelet's `101` that are the caller's.
fn answer_headers(kubelets: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [
        CONNECTION,
        UPGRADE,
        SEC_WEBSOCKET_ACCEPT,
        SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_EXTENSIONS,
        STREAM_PROTOCOL,
    ] {
        for value in kubelets.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// Bytes moved in both directions, and how it ended.
#[derive(Debug, Default)]
struct Moved {
    /// From the caller to kubelet.
    sent: u64,
    /// From kubelet to the caller.
    received: u64,
}

/// Moves bytes until both directions have ended, each for itself: `kubectl cp` ends its own direction and
/// goes on reading.
///
/// # Errors
///
/// When one of the two never left HTTP, or a connection broke.
async fn relay(
    caller: OnUpgrade,
    kubelet: OnUpgrade,
    held: KubeletBody,
    record: &Record,
) -> std::io::Result<Moved> {
    let (caller, kubelet) =
        futures::future::try_join(caller, kubelet).await.map_err(std::io::Error::other)?;
    // The connection's task handed its socket over and has ended.
    drop(held);
    // Counted on the way, so that the bytes of a stream that breaks are known, too.
    let mut caller = InspectReader::new(TokioIo::new(caller), |bytes| record.count_from_caller(bytes.len()));
    let mut kubelet = InspectReader::new(TokioIo::new(kubelet), |bytes| record.count_to_caller(bytes.len()));
    let (sent, received) = copy_bidirectional_with_sizes(&mut caller, &mut kubelet, BUFFER, BUFFER).await?;
    Ok(Moved { sent, received })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn websocket(protocols: &str) -> Handshake {
        Handshake::read(&headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", protocols),
            ("authorization", "Bearer callers"),
            ("cookie", "a=b"),
        ]))
        .unwrap()
    }

    #[test]
    fn the_callers_credential_stays_here() {
        let sent =
            websocket("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0").headers().unwrap();
        assert!(sent.get("authorization").is_none() && sent.get("cookie").is_none());
        assert_eq!(sent["sec-websocket-protocol"], "v4.channel.k8s.io");
        assert_eq!(sent["connection"], "Upgrade");
        assert_eq!(sent["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn v4_alone_is_offered_after_a_refusal_once() {
        let offered = websocket("v5.channel.k8s.io,v4.channel.k8s.io");
        assert_eq!(
            offered.headers().unwrap()["sec-websocket-protocol"],
            "v5.channel.k8s.io, v4.channel.k8s.io"
        );
        let second = offered.fallback(StatusCode::FORBIDDEN).unwrap();
        assert_eq!(second.headers().unwrap()["sec-websocket-protocol"], "v4.channel.k8s.io");
        assert!(second.fallback(StatusCode::FORBIDDEN).is_none());
        assert!(offered.fallback(StatusCode::NOT_FOUND).is_none());
        assert!(websocket("v5.channel.k8s.io").fallback(StatusCode::FORBIDDEN).is_none());
    }

    #[test]
    fn spdy_keeps_its_versions() {
        let handshake = Handshake::read(&headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]))
        .unwrap();
        let sent = handshake.headers().unwrap();
        let versions: Vec<_> = sent.get_all(STREAM_PROTOCOL).iter().collect();
        assert_eq!(versions, ["v4.channel.k8s.io", "v3.channel.k8s.io"]);
        assert!(handshake.fallback(StatusCode::FORBIDDEN).is_none());
    }

    #[test]
    fn what_is_no_upgrade_or_comes_from_a_browser_is_refused() {
        let error = Handshake::read(&headers(&[("upgrade", "websocket")])).unwrap_err();
        assert_eq!(error.to_string(), "Upgrade request required");
        let browser = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("origin", "https://evil.example"),
        ]);
        assert!(matches!(Handshake::read(&browser), Err(ApiError::Refused(_))));
    }
}
