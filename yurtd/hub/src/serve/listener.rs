//! Connections: accept, handshake, serve, drain. One task a connection; the handshake is in it, so that a client that
//! does not speak holds up nobody.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use yurt_node::supervise::Tasks;

use super::{Hub, pipeline};

/// Connections at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 4096;
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that does not send a request's head in this time is gone (HTTP/1.1).
const HEAD: Duration = Duration::from_secs(60);
/// Streams a connection (HTTP/2): one a watch, and Go's clients open another connection beyond it.
const MAX_STREAMS: u32 = 1024;
/// Pause after an accept that failed: file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 pings find connections that died without a word.
const PING: Duration = Duration::from_secs(30);
/// What one stream may hold unsent.
const SEND_BUFFER: usize = 128 << 10;

/// Accepts TLS connections until the hub stops. Connections are tasks of the hub's tracker and drain by themselves.
pub async fn serve(hub: Arc<Hub>, listener: TcpListener, tls: Arc<ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, permit) = tokio::select! {
            () = hub.stop.cancelled() => return,
            accepted = accept(&listener, &limit) => accepted,
        };
        let task = connection(hub.clone(), acceptor.clone(), stream, permit);
        hub.tasks.passing(task);
    }
}

/// The next connection, with its place.
pub async fn accept(listener: &TcpListener, limit: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else {
            // Nobody closes the semaphore.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(hub: Arc<Hub>, acceptor: TlsAcceptor, stream: TcpStream, _place: OwnedSemaphorePermit) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection broke before its handshake");
        return;
    }
    let handshake = tokio::select! {
        () = hub.stop.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)) => handshake,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            return;
        }
    };
    let (_, session) = stream.get_ref();
    let peer = Arc::new(hub.authenticator.peer(session.peer_certificates()));
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let service = {
        let hub = hub.clone();
        service_fn(move |request: Request<Incoming>| {
            let (hub, peer) = (hub.clone(), peer.clone());
            async move { Ok::<_, Infallible>(pipeline::handle(hub, peer, request).await) }
        })
    };
    let io = TokioIo::new(stream);
    let outcome = if is_h2 {
        let connection = http2::Builder::new(Tracked(hub.tasks.clone()))
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = hub.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(io, service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = hub.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// hyper's streams are tasks of the hub's tracker.
#[derive(Clone)]
struct Tracked(Tasks);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.passing(task);
    }
}
