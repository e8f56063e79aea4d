//! The TLS handshake of an accepted connection, in two steps with a deadline each.
//!
//! A client has its ClientHello ready when it connects; who does not send it is not one. What comes after takes
//! round trips, which are long on a link that loses packets.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// When a handshake is given up.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// When the ClientHello has to be whole.
    pub hello: Instant,
    /// When all of it has to be over.
    pub handshake: Instant,
}

/// Why there is no TLS session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nothing came, or only the beginning of something.
    #[error("no TLS ClientHello in time")]
    NoHello,
    /// It began and did not end.
    #[error("the TLS handshake took too long")]
    Slow,
    /// One of the two did not agree, or the connection broke.
    #[error("TLS: {0}")]
    Failed(#[from] io::Error),
}

/// Makes an accepted connection a TLS session with the settings in `config`.
///
/// # Errors
///
/// [`HandshakeError`].
pub async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    by: Deadlines,
) -> Result<TlsStream<TcpStream>, HandshakeError> {
    let hello = timeout_at(by.hello, LazyConfigAcceptor::new(Acceptor::default(), stream)).await;
    let begun = hello.map_err(|_| HandshakeError::NoHello)??;
    let session = timeout_at(by.handshake, begun.into_stream(config)).await;
    Ok(session.map_err(|_| HandshakeError::Slow)??)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls_pki_types::PrivateKeyDer;
    use rustls_pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use yurt_fakes::pki::TestCa;

    use super::*;
    use crate::pki;

    fn config() -> Arc<ServerConfig> {
        let certificate = TestCa::new("test").server("server");
        let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der], key);
        Arc::new(config.unwrap())
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    fn in_ms(hello: u64, handshake: u64) -> Deadlines {
        let after = |ms| Instant::now() + Duration::from_millis(ms);
        Deadlines { hello: after(hello), handshake: after(handshake) }
    }

    #[tokio::test]
    async fn who_sends_no_client_hello_does_not_get_the_time_of_a_handshake() {
        let (mut client, server) = connected().await;
        // The head of a record, and of a ClientHello in it, that promises more.
        client.write_all(&[22, 3, 1, 1, 0, 1, 0, 0]).await.unwrap();
        let outcome = handshake(server, config(), in_ms(50, 60_000)).await;
        assert!(matches!(outcome, Err(HandshakeError::NoHello)), "{outcome:?}");
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn who_does_not_go_on_after_it_is_given_up_too() {
        let (mut client, server) = connected().await;
        let config_of_client = rustls::ClientConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls_pki_types::ServerName::try_from("server").unwrap();
        let mut session = rustls::ClientConnection::new(Arc::new(config_of_client), name).unwrap();
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        client.write_all(&hello).await.unwrap();
        let outcome = handshake(server, config(), in_ms(60_000, 50)).await;
        assert!(matches!(outcome, Err(HandshakeError::Slow)), "{outcome:?}");
    }
}
