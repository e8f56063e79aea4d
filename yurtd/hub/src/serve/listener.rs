//! Connections: accept, handshake, serve, drain. One task a connection; the handshake is in it, so that a client that
//! does not speak holds up nobody. After the handshake it is known whether this is kubelet, whose places are its own.

use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use yurt_node::accept::http::Protocol;
use yurt_node::accept::tls::{Deadlines, handshake};
use yurt_node::accept::{Accepted, Places, accept};

use super::connection::Connection;
use super::{Hub, pipeline};
use crate::limits::{self, HANDSHAKE};
use crate::request::Peer;

/// The places of connections, of one listener or of several.
#[derive(Clone)]
pub(crate) struct Admission {
    /// Before the handshake.
    arriving: Places,
    kubelet: Places,
    others: Places,
}

impl Admission {
    /// Of processes of the node, or of pods.
    pub(crate) fn new(of_the_node: bool) -> Self {
        Self {
            arriving: Places::of_addresses(limits::arriving(of_the_node)),
            kubelet: Places::new(limits::connections_of_kubelet()),
            others: Places::of_addresses(limits::connections(of_the_node)),
        }
    }
}

/// Accepts TLS connections until the hub stops. Connections are tasks of the hub's tracker and drain by themselves.
pub(crate) async fn serve(
    hub: Arc<Hub>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    admission: Admission,
) {
    let stop = hub.stop.clone();
    accept(listener, admission.arriving.clone(), stop, move |accepted| {
        hub.tasks.passing(connection(hub.clone(), tls.clone(), admission.clone(), accepted));
    })
    .await;
}

async fn connection(hub: Arc<Hub>, tls: Arc<ServerConfig>, admission: Admission, accepted: Accepted) {
    let Accepted { stream, peer: from, at, place } = accepted;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection broke before its handshake");
        return;
    }
    let by = Deadlines { hello: at + HANDSHAKE, handshake: at + HANDSHAKE };
    let stream = tokio::select! {
        () = hub.stop.cancelled() => return,
        outcome = handshake(stream, tls, by) => match outcome {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake failed");
                return;
            }
        },
    };
    let (_, session) = stream.get_ref();
    let peer = hub.authenticator.peer(session.peer_certificates());
    let kubelet = matches!(peer, Peer::Node { .. });
    let places = if kubelet { &admission.kubelet } else { &admission.others };
    let Some(_place) = places.enter(from.ip()) else {
        tracing::debug!(%from, kubelet, "a connection is closed: there are too many");
        return;
    };
    // Its place before the handshake is the next one's.
    drop(place);
    let protocol = Protocol::of(session);
    let tasks = hub.tasks.clone();
    let connection = Arc::new(Connection::new(peer, from.ip()));
    let answering = connection.clone();
    // Boxed: a watch lasts long after its request was answered, and what that took would be kept with it.
    let answer = move |request| Box::pin(pipeline::handle(hub.clone(), answering.clone(), request));
    let http = limits::http(kubelet);
    tokio::select! {
        outcome = http.serve(stream, protocol, at, &tasks, answer) => {
            if let Err(error) = outcome {
                tracing::debug!(%error, "a connection ended with an error");
            }
        }
        why = connection.overdue(at) => tracing::debug!(%from, ?why, "a connection is closed"),
    }
}
