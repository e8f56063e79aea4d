//! Connections.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::faults::Listening;
use super::rights::User;
use super::{Shared, answer};
use crate::pki::TestCa;

/// Takes connections until `stop`.
pub(super) async fn start(
    shared: &Arc<Shared>,
    ca: &TestCa,
    tls: bool,
    stop: CancellationToken,
) -> SocketAddr {
    let tls = tls.then(|| {
        crate::tls::acceptor(
            &ca.serving("127.0.0.1", &["127.0.0.1", "kubernetes.default.svc"]),
            ca,
            true,
            &["h2", "http/1.1"],
        )
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, tls, Arc::clone(shared), stop));
    address
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    loop {
        let tcp = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let _ = tcp.set_nodelay(true);
        let listening = shared.state.lock().unwrap().listening;
        if listening == Listening::Refuse {
            continue;
        }
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        let cut = shared.cut.lock().unwrap().clone();
        tokio::spawn(async move {
            shared.state.lock().unwrap().connections += 1;
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection(tcp, tls, listening, &shared) => {}
            }
            shared.state.lock().unwrap().connections -= 1;
        });
    }
}

async fn connection(tcp: TcpStream, tls: Option<TlsAcceptor>, listening: Listening, shared: &Arc<Shared>) {
    if listening == Listening::Hold {
        let mut changed = shared.changed.subscribe();
        while shared.state.lock().unwrap().listening == Listening::Hold {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
    let Some(tls) = tls else { return serve(tcp, None, shared).await };
    let Ok(stream) = tls.accept(tcp).await else { return };
    let user = stream.get_ref().1.peer_certificates().map(|chain| user(&chain[0]));
    serve(stream, user, shared).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    user: Option<User>,
    shared: &Arc<Shared>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, user) = (Arc::clone(shared), user.clone());
        async move { answer::answer(&shared, user.as_ref(), request).await }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    // As net/http.
    server.http2().max_header_list_size(1 << 20);
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// Whom a certificate names: common name, and organizations as groups.
fn user(certificate: &CertificateDer<'_>) -> User {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().unwrap().to_owned();
    let name = parsed.subject().iter_common_name().next().map(text).unwrap_or_default();
    User { name, groups: parsed.subject().iter_organization().map(text).collect() }
}
