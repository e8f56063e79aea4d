//! The endpoint for the plugin: Kubernetes API paths on the tunnel server.
//!
//! Where the API server's own connections cannot be led into the tunnel (a managed control plane),
//! `kubectl yurt logs|exec|port-forward` ask here instead. Any Kubernetes client works; it is only
//! pointed at another server.
//!
//! ```text
//! listen → target (what) → authenticate (who) → authorise (may he: Grant) → pods (which node)
//!        → kubelet (through the tunnel) → body, or upgrade → bytes
//! ```
//!
//! The server acts on a caller's behalf with its own rights, so the order is not negotiable: nothing
//! reaches a kubelet without a `Grant`, and only [`authorise`] makes one.

mod audit;
mod authenticate;
mod authorise;
pub(super) mod client_certificate;
mod connect_admission;
mod diagnose;
pub(crate) mod fuzzing;
mod impersonate;
mod kubelet_client;
mod listen;
mod pods;
mod status;
mod target;
#[cfg(test)]
mod tests;
pub(super) mod tunnel;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls::server::ResolvesServerCert;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use yurt_api::diagnosis::Diagnosis;
use yurt_api::status::{AgentStatusList, RedirectState, RedirectStatus};
use yurt_node::pki::MountedCertificate;

use self::audit::Record;
pub(super) use self::audit::Trail;
use self::authenticate::{Authenticator, User};
use self::authorise::Grant;
use self::client_certificate::ClientCertificate;
pub(super) use self::connect_admission::ConnectAdmission;
use self::diagnose::Way;
use self::kubelet_client::Kubelets;
use self::pods::Place;
use self::status::{ApiError, Body, full, json_response};
use self::target::{GROUP, PodTarget, Target, VERSION};
use self::tunnel::Tunnel;
use self::upgrade::Upgrades;
use super::client_ca::ClientCa;
use super::connections::Connections;
use super::peers::Said;

/// Diagnoses at a time: each moves some hundred KiB over a node's link.
const DIAGNOSES: usize = 8;

/// What the endpoint is made of.
pub(super) struct ApiOptions {
    /// The server's own client: TokenReview, SubjectAccessReview, GET of pods.
    pub(super) client: kube::Client,
    /// The tunnel.
    pub(super) tunnel: Arc<dyn Tunnel>,
    /// Whose client certificates count; somebody else follows it.
    pub(super) client_ca: Arc<ClientCa>,
    /// What kubelets are shown; somebody else has it issued.
    pub(super) certificate: Arc<ClientCertificate>,
    /// What agents and callers are shown.
    pub(super) serving: Arc<MountedCertificate>,
    /// The server's name, for people.
    pub(super) node_name: String,
    /// The cluster's CA in PEM, where one is mounted.
    pub(super) cluster_ca: Option<Vec<u8>>,
    /// How the redirect on this host stands.
    pub(super) redirect: watch::Receiver<RedirectStatus>,
    /// Where it is written down who did what.
    pub(super) trail: Arc<Trail>,
    /// What only the API server could ask about an exec; somebody else follows it.
    pub(super) admission: Arc<ConnectAdmission>,
}

/// The endpoint.
pub(super) struct Api {
    client: kube::Client,
    authenticator: Authenticator,
    tunnel: Arc<dyn Tunnel>,
    serving: Arc<MountedCertificate>,
    node_name: String,
    diagnoses: Semaphore,
    kubelets: Kubelets,
    upgrades: Upgrades,
    redirect: watch::Receiver<RedirectStatus>,
    trail: Arc<Trail>,
    admission: Arc<ConnectAdmission>,
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
    /// When TLS towards kubelets cannot be set up.
    pub(super) fn new(options: ApiOptions) -> Result<Arc<Self>, rustls::Error> {
        let ApiOptions { client, tunnel, client_ca, certificate, cluster_ca, redirect, .. } = options;
        let (trail, admission) = (options.trail, options.admission);
        Ok(Arc::new(Self {
            authenticator: Authenticator::new(client.clone(), client_ca),
            kubelets: Kubelets::new(tunnel.clone(), certificate, cluster_ca.as_deref())?,
            client,
            tunnel,
            serving: options.serving,
            node_name: options.node_name,
            diagnoses: Semaphore::new(DIAGNOSES),
            upgrades: Upgrades::default(),
            redirect,
            trail,
            admission,
        }))
    }

    /// Serves `listener` with `certificate` until `connections` are told to stop.
    ///
    /// # Errors
    ///
    /// When TLS towards callers cannot be set up.
    pub(super) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        certificate: Arc<dyn ResolvesServerCert>,
        connections: Connections,
    ) -> Result<(), rustls::Error> {
        let tls = Arc::new(listen::tls_config(certificate)?);
        listen::serve(self, listener, tls, connections).await;
        Ok(())
    }

    /// Answers one request. Never fails: every error is an answer.
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        connections: &Connections,
    ) -> Response<Body> {
        let record = Record::of(self.trail.clone(), &request, peer.address.ip());
        let response = match self.route(request, peer, connections, &record).await {
            Ok(response) => response,
            Err(error) => {
                record.is_refused(&error);
                error.into_response()
            }
        };
        record.follow(response)
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        connections: &Connections,
        record: &Arc<Record>,
    ) -> Result<Response<Body>, ApiError> {
        let target = Target::parse(request.method(), request.uri().path(), request.uri().query())?;
        record.asks_for(&target);
        match target {
            Target::Health => Ok(Response::new(full("ok"))),
            Target::Readiness => self.readiness(),
            Target::Agents(name) => {
                let user = self.user(peer, request.headers(), record).await?;
                self.agents(&user, name, record).await
            }
            Target::Diagnosis(node) => {
                let user = self.user(peer, request.headers(), record).await?;
                self.diagnosis(&user, node, record).await
            }
            Target::Pod(target) => {
                let user = self.user(peer, request.headers(), record).await?;
                self.pod(request, target, user, connections, record).await
            }
        }
    }

    /// Whom the request is run as.
    async fn user(&self, peer: &Peer, headers: &HeaderMap, record: &Record) -> Result<User, ApiError> {
        let caller = self.authenticator.authenticate(&peer.certificates, headers).await?;
        record.comes_from(&caller);
        let Some(user) = impersonate::apply(&self.client, &caller, headers).await? else { return Ok(caller) };
        record.acts_as(&user);
        Ok(user)
    }

    /// Ready is who brings plain kubectl to the nodes.
    fn readiness(&self) -> Result<Response<Body>, ApiError> {
        let redirect = self.redirect.borrow();
        if redirect.state == RedirectState::InPlace {
            return Ok(Response::new(full("ok")));
        }
        Err(ApiError::Unavailable(format!("the redirect is not in place: {}", redirect.message)))
    }

    async fn agents(
        &self,
        user: &User,
        name: Option<String>,
        record: &Record,
    ) -> Result<Response<Body>, ApiError> {
        authorise::agents(&self.client, user, name.as_deref()).await?;
        record.is_allowed();
        let Said { agents, silent } = self.tunnel.everywhere().await;
        let document = if let Some(name) = name {
            let agent = agents.into_iter().find(|agent| agent.node == name).ok_or(ApiError::NotFound {
                group: GROUP,
                resource: "agents.tunnel.openyurt.io",
                name,
            })?;
            serde_json::to_value(agent)
        } else {
            serde_json::to_value(AgentStatusList {
                api_version: format!("{GROUP}/{VERSION}"),
                kind: "AgentStatusList".into(),
                items: agents,
                silent,
                lost: self.tunnel.lost(),
                redirect: Some(self.redirect.borrow().clone()),
            })
        };
        let document = document.map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(json_response(StatusCode::OK, &document))
    }

    async fn diagnosis(
        &self,
        user: &User,
        node: String,
        record: &Record,
    ) -> Result<Response<Body>, ApiError> {
        authorise::diagnosis(&self.client, user, &node).await?;
        record.is_allowed();
        let Ok(_place) = self.diagnoses.try_acquire() else {
            return Err(ApiError::Unavailable("too many diagnoses at a time: try again".into()));
        };
        let serving_until = self.serving.not_after();
        let way = Way { node: &node, tunnel: &*self.tunnel, kubelets: &self.kubelets, serving_until };
        let checks = way.walk().await;
        let diagnosis = Diagnosis {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "Diagnosis".into(),
            server: self.node_name.clone(),
            node,
            checks,
        };
        let document =
            serde_json::to_value(diagnosis).map_err(|error| ApiError::Internal(error.to_string()))?;
        Ok(json_response(StatusCode::OK, &document))
    }

    async fn pod(
        &self,
        request: Request<Incoming>,
        target: PodTarget,
        user: User,
        connections: &Connections,
        record: &Arc<Record>,
    ) -> Result<Response<Body>, ApiError> {
        let grant = authorise::pod(&self.client, &user, request.method(), target).await?;
        self.admission.admits(&grant.target().action).await?;
        record.is_allowed();
        let target = grant.target();
        let Some(place) = pods::find(&self.client, target).await?.place(target)? else {
            // As the API server answers for a pod that no node runs yet.
            let mut empty = Response::new(full(Bytes::new()));
            *empty.status_mut() = StatusCode::NO_CONTENT;
            return Ok(empty);
        };
        record.leads_to(&place);
        if target.action.is_upgrade() {
            self.upgrades.serve(&self.kubelets, request, &grant, &place, connections, record).await
        } else {
            self.log(&grant, &place).await
        }
    }

    async fn log(&self, grant: &Grant, place: &Place) -> Result<Response<Body>, ApiError> {
        let answer =
            self.kubelets.send(grant, Method::GET, &place.node, &place.container, HeaderMap::new()).await?;
        if !answer.status().is_success() {
            return Err(kubelet_client::error_of(answer).await);
        }
        let (head, body) = answer.into_parts();
        let mut response = Response::new(body.boxed_unsync());
        let content_type = head.headers.get(header::CONTENT_TYPE).cloned();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static("text/plain")));
        Ok(response)
    }
}
