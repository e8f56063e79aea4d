//! Connections: accept, handshake, serve, drain. One task a connection; the handshake is in it, so that a client that
//! does not speak holds up nobody.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use yurt_node::accept::http::{Http, Protocol};
use yurt_node::accept::tls::{Deadlines, handshake};
use yurt_node::accept::{Accepted, Limits, Over, Places, accept};

use super::{Hub, pipeline};

/// Connections at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// Of one pod. Those of the node's own processes all come from one address.
const MAX_OF_A_PEER: usize = MAX_CONNECTIONS / 4;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What is granted to a connection. Clients written in Go end idle ones after 90 s themselves, and open another
/// connection when they have as many streams, one a watch.
const HTTP: Http = Http {
    first_head: Duration::from_secs(60),
    idle: Duration::from_secs(300),
    head_bytes: 64 << 10,
    streams: 1024,
};

/// Accepts TLS connections until the hub stops. Connections are tasks of the hub's tracker and drain by themselves.
pub(crate) async fn serve(hub: Arc<Hub>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let of_the_node = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let places = Places::new(Limits {
        total: MAX_CONNECTIONS,
        per_peer: (!of_the_node).then_some(MAX_OF_A_PEER),
        over: Over::Wait,
    });
    let stop = hub.stop.clone();
    accept(listener, places, stop, move |accepted| {
        hub.tasks.passing(connection(hub.clone(), tls.clone(), accepted));
    })
    .await;
}

async fn connection(hub: Arc<Hub>, tls: Arc<ServerConfig>, accepted: Accepted) {
    let Accepted { stream, at, place: _place, .. } = accepted;
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
    let peer = Arc::new(hub.authenticator.peer(session.peer_certificates()));
    let protocol = Protocol::of(session);
    let tasks = hub.tasks.clone();
    let answer = move |request| pipeline::handle(hub.clone(), peer.clone(), request);
    if let Err(error) = HTTP.serve(stream, protocol, at, &tasks, answer).await {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
