//! kubelet's own port with a self-signed certificate, as kubeadm has it: logs line by line, and streams that echo.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::AbortOnDropHandle;

use crate::pki::TestCa;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// The server. Stops when it is dropped.
pub struct FakeKubelet {
    pub address: SocketAddr,
    pub state: Arc<KubeletState>,
    _task: AbortOnDropHandle<()>,
}

/// What it was asked, and what it answers.
#[derive(Default)]
pub struct KubeletState {
    /// `METHOD path?query` of every request, and the user of the client's certificate.
    pub requests: Mutex<Vec<(String, String)>>,
    /// WebSocket subprotocols that the container runtime knows.
    pub subprotocols: Mutex<Vec<&'static str>>,
    /// Lines of the log; the log ends when the sender is dropped, and breaks off at an empty one.
    pub log: Mutex<Option<mpsc::Receiver<&'static str>>>,
    /// Told when the body of a log was given up.
    pub log_ended: Arc<Notify>,
    /// `Date` of its answers, instead of what the clock says.
    pub date: Mutex<Option<&'static str>>,
    /// The next answer, instead of all this.
    pub refusal: Mutex<Option<(u16, &'static str)>>,
}

impl FakeKubelet {
    /// Lets in whom `clients` has issued a certificate, and nobody else.
    pub async fn start(clients: &TestCa) -> Self {
        let own = TestCa::new("edge-1-ca@1700000000");
        let acceptor =
            crate::tls::acceptor(&own.serving("edge-1@1700000000", &["edge-1"]), clients, false, &[]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<KubeletState>::default();
        let served = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(socket, acceptor.clone(), served.clone()));
            }
        });
        Self { address, state, _task: AbortOnDropHandle::new(task) }
    }
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, state: Arc<KubeletState>) {
    let Ok(stream) = acceptor.accept(socket).await else { return };
    let user = subject(&stream.get_ref().1.peer_certificates().unwrap()[0]);
    let service = service_fn(move |request| {
        let (state, user) = (state.clone(), user.clone());
        async move { Ok::<_, Infallible>(state.answer(request, user)) }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    let _ = connection.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

fn subject(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    parsed.subject().to_string()
}

/// Notifies when it is dropped.
struct Ended(Arc<Notify>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn text(code: u16, text: &'static str) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

impl KubeletState {
    fn answer(&self, request: Request<Incoming>, user: String) -> Response<Body> {
        // What a compromised node could take away and use.
        assert!(request.headers().get(header::AUTHORIZATION).is_none());
        self.requests.lock().unwrap().push((format!("{} {}", request.method(), request.uri()), user));
        if let Some((code, message)) = self.refusal.lock().unwrap().take() {
            return text(code, message);
        }
        if request.uri().path().starts_with("/containerLogs/") {
            assert_eq!(request.method(), Method::GET);
            return self.log();
        }
        match request.uri().path() {
            "/healthz" => self.dated(text(200, "ok")),
            "/metrics" => self.dated(Response::new(full(vec![b'#'; 100 << 10]))),
            _ => self.stream(request),
        }
    }

    /// hyper writes the clock's where there is none.
    fn dated(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(date) = *self.date.lock().unwrap() {
            response.headers_mut().insert(header::DATE, date.parse().unwrap());
        }
        response
    }

    fn log(&self) -> Response<Body> {
        let lines = self.log.lock().unwrap().take().unwrap();
        let ended = Ended(self.log_ended.clone());
        let lines = futures::stream::unfold(lines, |mut lines| async move {
            let line = lines.recv().await?;
            Some((line, lines))
        });
        let frames = lines.map(move |line| {
            let _held = &ended;
            if line.is_empty() {
                return Err(std::io::Error::other("the log breaks off"));
            }
            Ok(Frame::data(Bytes::from_static(line.as_bytes())))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        response
    }

    fn stream(&self, mut request: Request<Incoming>) -> Response<Body> {
        let headers = request.headers();
        let known = self.subprotocols.lock().unwrap().clone();
        let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL).map(|value| value.to_str().unwrap());
        let offered = offered.unwrap_or_default().to_owned();
        // As containerd's: an offer with anything unknown in it is refused as a whole.
        if !offered.split(", ").all(|offer| known.contains(&offer)) {
            return text(403, "unknown subprotocol");
        }
        let accept = derive_accept_key(headers[header::SEC_WEBSOCKET_KEY].as_bytes());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            // Echoes bytes: whoever passes them on decodes no WebSocket frame either.
            let stream = TokioIo::new(upgrade.await.unwrap());
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        Response::builder()
            .status(101)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .header(header::SEC_WEBSOCKET_PROTOCOL, offered)
            .body(full(Bytes::new()))
            .unwrap()
    }
}
