//! The endpoint for the plugin: Kubernetes API paths on the tunnel server.
//!
//! Where the API server's own connections cannot be led into the tunnel (a managed control plane),
//! `kubectl yurt logs|exec|port-forward` ask here instead. Any Kubernetes client works; it is only
//! pointed at another server.
//!
//! ```text
//! listen → target (what) → authenticate (who) → authorise (may he: Permit) → pods (which node)
//!        → kubelet (through the tunnel) → body, or upgrade → bytes
//! ```
//!
//! The server acts on a caller's behalf with its own rights, so the order is not negotiable: nothing
//! reaches a kubelet without a `Permit`, and only [`authorise`] makes one.

mod authenticate;
mod authorise;
pub(super) mod client_ca;
pub(crate) mod fuzzing;
pub(crate) mod identity;
mod kubelet;
mod listen;
mod pods;
mod status;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use rustls::server::ResolvesServerCert;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use yurt_api::status::{AgentStatus, AgentStatusList};

use self::authenticate::{Authenticator, User};
use self::authorise::Permit;
use self::client_ca::ClientCa;
use self::kubelet::{KubeletBody, Kubelets};
use self::listen::Lifetime;
use self::pods::Place;
use self::status::{ApiError, full, json_response};
use self::target::{GROUP, PodTarget, Target, VERSION};
use self::upgrade::Handshake;
use crate::server::DialError;

/// A response's body: a document, or what kubelet says as it says it.
type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// How long kubelet may take to agree to leave HTTP. A log has no such limit: kubelet does not even send
/// the response's head before there is something to say.
const UPGRADE: Duration = Duration::from_secs(30);
/// Upgraded connections at a time.
const STREAMS: usize = 4096;
/// How much of kubelet's error text is passed on, and how long it may take.
const ERROR_TEXT: usize = 16 * 1024;
/// See [`ERROR_TEXT`].
const ERROR_TIME: Duration = Duration::from_secs(5);

/// A connection to a node's kubelet.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type DialFn = dyn Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync;
type ListFn = dyn Fn() -> Vec<AgentStatus> + Send + Sync;

/// What the endpoint needs of the tunnel.
pub struct Agents {
    dial: Box<DialFn>,
    list: Box<ListFn>,
}

impl Agents {
    /// `dial` opens a stream to the kubelet of the node it is given and gives up by itself; `list` has one
    /// entry a connected agent.
    pub fn new(
        dial: impl Fn(String) -> BoxFuture<'static, Result<Box<dyn Stream>, DialError>> + Send + Sync + 'static,
        list: impl Fn() -> Vec<AgentStatus> + Send + Sync + 'static,
    ) -> Self {
        Self { dial: Box::new(dial), list: Box::new(list) }
    }

    async fn dial(&self, node: &str) -> Result<Box<dyn Stream>, DialError> {
        (self.dial)(node.to_owned()).await
    }
}

/// What the endpoint is made of.
pub struct ApiOptions {
    /// The server's own client: TokenReview, SubjectAccessReview, GET of pods, the client CA, the certificate for
    /// kubelets.
    pub client: kube::Client,
    /// The tunnel.
    pub agents: Agents,
    /// The cluster's CA in PEM, where one is mounted.
    pub cluster_ca: Option<Vec<u8>>,
}

/// Why the endpoint cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// TLS towards callers or kubelets cannot be set up.
    #[error("cannot set up TLS for the tunnel server's API: {0}")]
    Tls(#[from] rustls::Error),
}

/// The endpoint.
pub struct Api {
    client: kube::Client,
    authenticator: Authenticator,
    client_ca: Arc<ClientCa>,
    kubelets: Kubelets,
    /// Upgraded connections, which no longer count as connections of the listener.
    streams: Arc<Semaphore>,
}

/// The other end of a caller's connection.
struct Peer {
    address: SocketAddr,
    certificates: Vec<CertificateDer<'static>>,
}

impl Api {
    /// Puts the endpoint together; nothing runs yet.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn new(options: ApiOptions) -> Result<Self, StartError> {
        let ApiOptions { client, agents, cluster_ca } = options;
        let client_ca = Arc::<ClientCa>::default();
        Ok(Self {
            authenticator: Authenticator::new(client.clone(), client_ca.clone()),
            kubelets: Kubelets::new(agents, Arc::default(), cluster_ca.as_deref())?,
            client,
            client_ca,
            streams: Arc::new(Semaphore::new(STREAMS)),
        })
    }

    /// The cluster's client CA, which [`Self::serve`] follows; the port for agents verifies with the same.
    pub(crate) fn client_ca(&self) -> Arc<ClientCa> {
        self.client_ca.clone()
    }

    /// Serves `listener` with `certificate` until `stop`, then lets what runs end for ten seconds.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn serve(
        self,
        listener: TcpListener,
        certificate: Arc<dyn ResolvesServerCert>,
        stop: CancellationToken,
    ) -> Result<(), StartError> {
        let tls = listen::tls_config(certificate)?;
        let api = Arc::new(self);
        let lifetime =
            Lifetime { stop: stop.clone(), kill: CancellationToken::new(), tasks: TaskTracker::new() };
        let follow = api.client_ca.follow(api.client.clone(), stop.clone());
        let identity = api.kubelets.identity().follow(api.client.clone(), stop);
        futures::future::join3(follow, identity, listen::serve(api.clone(), listener, tls, lifetime)).await;
        Ok(())
    }

    /// Answers one request. Never fails: every error is an answer.
    async fn answer(&self, request: Request<Incoming>, peer: &Peer, lifetime: &Lifetime) -> Response<Body> {
        let began = Instant::now();
        let line = format!("{} {}", request.method(), request.uri().path());
        match self.route(request, peer, lifetime).await {
            Ok(response) => response,
            Err(error) => {
                let took = began.elapsed();
                tracing::info!(peer = %peer.address, request = line, ?took, %error, "refused");
                error.into_response()
            }
        }
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        lifetime: &Lifetime,
    ) -> Result<Response<Body>, ApiError> {
        let target = Target::parse(request.method(), request.uri().path(), request.uri().query())?;
        if target == Target::Health {
            return Ok(Response::new(full("ok")));
        }
        let user = self.authenticator.authenticate(&peer.certificates, request.headers()).await?;
        match target {
            Target::Health => Ok(Response::new(full("ok"))),
            Target::Agents(name) => self.agents(&user, name).await,
            Target::Pod(target) => self.pod(request, target, user, lifetime).await,
        }
    }

    async fn agents(&self, user: &User, name: Option<String>) -> Result<Response<Body>, ApiError> {
        authorise::agents(&self.client, user, name.as_deref()).await?;
        let mut items = (self.kubelets.agents().list)();
        let document = if let Some(name) = name {
            items.retain(|agent| agent.node == name);
            let agent = items.pop().ok_or(ApiError::NotFound {
                group: GROUP,
                resource: "agents.tunnel.openyurt.io",
                name,
            })?;
            serde_json::to_value(agent)
        } else {
            serde_json::to_value(AgentStatusList {
                api_version: format!("{GROUP}/{VERSION}"),
                kind: "AgentStatusList".into(),
                items,
            })
        };
        let document = document.map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(json_response(StatusCode::OK, &document))
    }

    async fn pod(
        &self,
        request: Request<Incoming>,
        target: PodTarget,
        user: User,
        lifetime: &Lifetime,
    ) -> Result<Response<Body>, ApiError> {
        let permit = authorise::pod(&self.client, &user, request.method(), target).await?;
        let target = permit.target();
        let Some(place) = pods::find(&self.client, target).await?.place(target)? else {
            // As the API server answers for a pod that no node runs yet.
            let mut empty = Response::new(full(Bytes::new()));
            *empty.status_mut() = StatusCode::NO_CONTENT;
            return Ok(empty);
        };
        tracing::info!(
            user = user.name,
            node = place.node,
            namespace = target.namespace,
            pod = target.pod,
            container = place.container,
            what = target.action.subresource(),
            "serving"
        );
        if target.action.is_upgrade() {
            self.upgrade(request, &permit, &place, lifetime).await
        } else {
            self.log(&permit, &place).await
        }
    }

    async fn log(&self, permit: &Permit, place: &Place) -> Result<Response<Body>, ApiError> {
        let answer =
            self.kubelets.send(permit, Method::GET, &place.node, &place.container, HeaderMap::new()).await?;
        if !answer.status().is_success() {
            return Err(kubelet_error(answer).await);
        }
        let (head, body) = answer.into_parts();
        let mut response = Response::new(body.boxed_unsync());
        let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static("text/plain")));
        Ok(response)
    }

    async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        permit: &Permit,
        place: &Place,
        lifetime: &Lifetime,
    ) -> Result<Response<Body>, ApiError> {
        if request.version() != Version::HTTP_11 {
            return Err(ApiError::BadRequest(
                "exec, attach and port-forward need HTTP/1.1: a connection of HTTP/2 cannot leave HTTP"
                    .into(),
            ));
        }
        let handshake = Handshake::read(request.headers())?;
        let slot = self.streams.clone().try_acquire_owned().map_err(|_| {
            ApiError::Unavailable(format!(
                "{STREAMS} streams are open at this tunnel server; try again later"
            ))
        })?;
        let mut answer = self.shake_hands(request.method(), permit, place, &handshake).await?;
        if let Some(second) = handshake.fallback(answer.status()) {
            tracing::debug!(node = place.node, status = %answer.status(), "kubelet refused, offering v4 alone");
            answer = self.shake_hands(request.method(), permit, place, &second).await?;
        }
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(kubelet_error(answer).await);
        }
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = upgrade::answer_headers(answer.headers());

        let kubelet = hyper::upgrade::on(&mut answer);
        let caller = hyper::upgrade::on(&mut request);
        let relay = upgrade::relay(caller, kubelet, answer.into_body());
        let kill = lifetime.kill.clone();
        let node = place.node.clone();
        lifetime.tasks.spawn(async move {
            let _slot = slot;
            let began = Instant::now();
            let ended = tokio::select! {
                ended = relay => ended,
                () = kill.cancelled() => return,
            };
            let took = began.elapsed();
            match ended {
                Ok(moved) => {
                    tracing::info!(node, sent = moved.sent, received = moved.received, ?took, "stream ended");
                }
                Err(error) => tracing::info!(node, ?took, %error, "stream broke"),
            }
        });
        Ok(response)
    }

    async fn shake_hands(
        &self,
        method: &Method,
        permit: &Permit,
        place: &Place,
        handshake: &Handshake,
    ) -> Result<Response<KubeletBody>, ApiError> {
        let headers = handshake.headers()?;
        let answer = self.kubelets.send(permit, method.clone(), &place.node, &place.container, headers);
        match tokio::time::timeout(UPGRADE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::Unavailable(format!(
                "kubelet of node {:?} did not answer within {UPGRADE:?}",
                place.node
            ))),
        }
    }
}

/// kubelet's errors are plain text; the caller wants a Status.
async fn kubelet_error(answer: Response<KubeletBody>) -> ApiError {
    let code = answer.status();
    let text = tokio::time::timeout(ERROR_TIME, Limited::new(answer.into_body(), ERROR_TEXT).collect()).await;
    let text = match text {
        Ok(Ok(text)) => String::from_utf8_lossy(&text.to_bytes()).trim().to_owned(),
        _ => String::new(),
    };
    let message = if text.is_empty() { format!("kubelet answered {code}") } else { text };
    if code.is_client_error() || code.is_server_error() {
        // kubelet knows the tunnel server, not the caller: its 401 and 403 are about our own rights.
        if matches!(code, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return ApiError::Internal(format!("kubelet answered {code} to the tunnel server: {message}"));
        }
        return ApiError::Kubelet { code, message };
    }
    ApiError::Internal(format!("unexpected answer of kubelet ({code}): {message}"))
}

/// The API server refused the tunnel server, or could not be asked.
fn api_server_error(what: &str, error: &kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => ApiError::Internal(format!("cannot {what}: {}", status.message)),
        other => {
            tracing::warn!(error = %other, "the API server did not {what}");
            ApiError::Unavailable(format!("the tunnel server cannot reach the API server to {what}"))
        }
    }
}

/// The API server did not answer in time.
fn api_server_silent(what: &str) -> ApiError {
    ApiError::Unavailable(format!("the API server did not answer in time when asked to {what}"))
}
