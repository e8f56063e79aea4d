//! A client as kubelet or a pod is: TLS verified by the CAs that it believes, HTTP/2 or HTTP/1.1.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::pki::{TestCertificate, Trust};
use crate::wait::PATIENCE;

/// How a client shows who it is.
#[derive(Clone)]
pub enum As {
    Nobody,
    Certificate(TestCertificate),
    Token(String),
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Itself, when its status is this.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// A connection to a server whose certificate is for `127.0.0.1`.
///
/// # Errors
///
/// When it cannot be made, or TLS fails.
pub async fn tls(
    address: SocketAddr,
    trust: impl Into<Trust>,
    who: &As,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_by_name(address, "127.0.0.1", trust, who, alpn).await
}

/// The same to one whose certificate is for this name or address.
///
/// # Errors
///
/// When it cannot be made, or TLS fails.
pub async fn tls_by_name(
    address: SocketAddr,
    name: &str,
    trust: impl Into<Trust>,
    who: &As,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let certificate = match who {
        As::Certificate(certificate) => Some(certificate),
        _ => None,
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TcpStream::connect(address).await?;
    crate::tls::connector(&trust.into(), certificate, alpn).connect(name, stream).await
}

/// One HTTP/2 connection.
pub struct Client {
    sender: http2::SendRequest<Full<Bytes>>,
    token: Option<String>,
}

impl Client {
    pub async fn connect(address: SocketAddr, trust: impl Into<Trust>, who: &As) -> Self {
        Self::over(tls(address, trust, who, "h2").await.unwrap(), who).await
    }

    /// On a connection that is there.
    pub async fn over(stream: TlsStream<TcpStream>, who: &As) -> Self {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let token = match who {
            As::Token(token) => Some(token.clone()),
            _ => None,
        };
        Self { sender, token }
    }

    /// Sends, however long the answer takes.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub async fn try_open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> hyper::Result<http::Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("https://127.0.0.1{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.sender.clone().send_request(request.body(Full::new(body)).unwrap()).await
    }

    pub async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let sent = self.try_open(method, path, headers, body);
        tokio::time::timeout(PATIENCE, sent).await.expect("the server hangs").unwrap()
    }

    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body =
            tokio::time::timeout(PATIENCE, body.collect()).await.expect("a body hangs").unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[("accept", "application/json")], Bytes::new()).await
    }

    /// Body in JSON.
    pub async fn write(&self, method: Method, path: &str, content_type: &str, body: &Value) -> Answer {
        let headers = [("accept", "application/json"), ("content-type", content_type)];
        self.send(method, path, &headers, Bytes::from(body.to_string())).await
    }

    pub async fn watch(&self, path: &str) -> Watch {
        let response = self.open(Method::GET, path, &[("accept", "application/json")], Bytes::new()).await;
        assert_eq!(response.status(), 200);
        Watch::of(response)
    }
}

/// A JSON watch.
pub struct Watch {
    body: Incoming,
    rest: BytesMut,
}

impl Watch {
    pub fn of(response: http::Response<Incoming>) -> Self {
        Self { body: response.into_body(), rest: BytesMut::new() }
    }

    /// The next event; `None` at a clean end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("a watch hangs")?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }

    /// The next event that is no bookmark.
    pub async fn change(&mut self) -> (String, Value) {
        loop {
            let event = self.next().await.expect("the watch ended");
            if event["type"] != "BOOKMARK" {
                return (event["type"].as_str().unwrap().to_owned(), event["object"].clone());
            }
        }
    }
}

/// One request on an HTTP/1.1 connection of its own.
pub async fn http1(
    address: SocketAddr,
    trust: impl Into<Trust>,
    who: &As,
    request: Request<Full<Bytes>>,
) -> http::Response<Incoming> {
    let stream = tls(address, trust, who, "http/1.1").await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("the server hangs").unwrap()
}
