//! The floor under a forwarded request: an HTTP/2 relay with TLS on both sides and nothing in it. What it adds, two more
//! hops cost on this machine in any case.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self as client, SendRequest};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A relay with nothing in it.
#[derive(Debug, Parser)]
#[command(name = "yurt-relay", version)]
struct Arguments {
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
    /// Where it forwards to, on one connection
    #[arg(long)]
    server: SocketAddr,
    /// The name that the server's certificate is verified for
    #[arg(long)]
    name: String,
    /// CA certificates in PEM
    #[arg(long)]
    ca: PathBuf,
    /// Its own certificate and key in PEM
    #[arg(long)]
    certificate: PathBuf,
    /// Threads of its runtime, as the hub has two; with none everything is in one
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut runtime = match arguments.workers {
        0 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    runtime.worker_threads(arguments.workers.max(1)).enable_all().build()?.block_on(relay(arguments))
}

async fn relay(arguments: Arguments) -> Result<()> {
    let sender = connect(&arguments).await.context("connecting to the server")?;
    let acceptor = TlsAcceptor::from(Arc::new(serving(&arguments.certificate)?));
    let listener = TcpListener::bind(arguments.listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| forward(sender.clone(), request));
            // Whoever is at the other end sees it end.
            let _ = server::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn forward(
    mut sender: SendRequest<Incoming>,
    request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>, Infallible> {
    match sender.send_request(request).await {
        Ok(response) => Ok(response.map(Either::Left)),
        Err(error) => {
            eprintln!("{error}");
            let mut response = Response::new(Either::Right(Empty::new()));
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
            Ok(response)
        }
    }
}

async fn connect(arguments: &Arguments) -> Result<SendRequest<Incoming>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&arguments.ca)? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(arguments.server).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(arguments.name.clone())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (sender, connection) =
        client::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn serving(certificate: &Path) -> Result<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certificate)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
