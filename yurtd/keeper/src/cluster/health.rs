//! The hub's health endpoint: plain HTTP on the node itself.

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tokio::net::TcpStream;
use yurt_api::doctor::TunnelSession;
use yurt_api::names;
use yurt_node::api_client::DEADLINE;

use super::{ClusterError, HubWayIn};

/// Bound of what it says.
const MAX_ANSWER: usize = 64 * 1024;

/// Whether the hub, which errors call `what`, says that it is ready.
pub(super) async fn is_ready(what: &'static str) -> Result<(), ClusterError> {
    match answer(what, "/readyz").await? {
        (200..=299, _) => Ok(()),
        (code, body) => Err(refused(what, code, &body)),
    }
}

/// By which way pods come to it.
pub(super) async fn way_in(what: &'static str) -> Result<HubWayIn, ClusterError> {
    // Whether it is ready or not.
    let (_, body) = answer(what, "/readyz").await?;
    read_way_in(what, &body)
}

/// How the sessions of its tunnel agent fare.
pub(super) async fn tunnel(what: &'static str) -> Result<Vec<TunnelSession>, ClusterError> {
    let (_, body) = answer(what, "/readyz").await?;
    read_tunnel(what, &body)
}

fn read_tunnel(what: &'static str, body: &[u8]) -> Result<Vec<TunnelSession>, ClusterError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        tunnel: Vec<TunnelSession>,
    }
    let said: Result<Said, _> = serde_json::from_slice(body);
    said.map(|said| said.tunnel)
        .map_err(|error| ClusterError::Unreadable { what, message: error.to_string() })
}

fn read_way_in(what: &'static str, body: &[u8]) -> Result<HubWayIn, ClusterError> {
    serde_json::from_slice(body)
        .map_err(|error| ClusterError::Unreadable { what, message: error.to_string() })
}

/// The certificate of the CA with which it vouches for itself; nothing from a hub of before, which does not know the
/// question.
pub(super) async fn node_ca(what: &'static str) -> Result<Option<String>, ClusterError> {
    let (code, body) = answer(what, "/ca.crt").await?;
    read_ca(what, code, body)
}

fn read_ca(what: &'static str, code: u16, body: Vec<u8>) -> Result<Option<String>, ClusterError> {
    match code {
        404 => Ok(None),
        200 => {
            let unreadable = |message: String| ClusterError::Unreadable { what, message };
            let text = String::from_utf8(body).map_err(|error| unreadable(error.to_string()))?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            match read {
                Ok(certificates) if certificates.len() == 1 => Ok(Some(text)),
                _ => Err(unreadable("its CA is not one certificate in PEM".into())),
            }
        }
        code => Err(refused(what, code, &body)),
    }
}

fn refused(what: &'static str, code: u16, body: &[u8]) -> ClusterError {
    let message = format!("{code} {}", String::from_utf8_lossy(body).trim());
    ClusterError::Refused { what, code, message }
}

async fn answer(what: &'static str, path: &'static str) -> Result<(u16, Vec<u8>), ClusterError> {
    let outcome = tokio::time::timeout(DEADLINE, ask(path)).await;
    let unreachable = |message: String| ClusterError::Unreachable { what, message };
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no answer".into())),
    }
}

async fn ask(path: &'static str) -> Result<(u16, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", names::HUB_HEALTH_PORT)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(HOST, "127.0.0.1").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok((status.as_u16(), body.to_vec()))
    };
    // The connection lives as long as the exchange and not longer: no task is left behind.
    tokio::select! {
        outcome = exchange => outcome,
        ended = connection => match ended {
            Ok(()) => Err("it closed the connection".into()),
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use yurt_api::way_in::WayIn;

    use super::*;

    #[test]
    fn the_way_in_is_told_ready_or_not_and_a_hub_of_before_knows_the_environment_alone() {
        let read = |body: &str| read_way_in("the hub", body.as_bytes());
        let said = r#"{"ready":false,"wayIn":"service","wayInOpen":true,"wayInTurn":7}"#;
        let service = HubWayIn { way: WayIn::Service, why: None, open: true, turn: Some(7) };
        assert_eq!(read(said).unwrap(), service);
        assert_eq!(read(r#"{"ready":true}"#).unwrap(), HubWayIn::default());
        let unable = read(r#"{"ready":true,"wayIn":"environment","wayInWhy":"no nf_tables"}"#).unwrap();
        assert_eq!((unable.way, unable.why.as_deref()), (WayIn::Environment, Some("no nf_tables")));
        assert!(matches!(read("<html>"), Err(ClusterError::Unreadable { .. })));
    }

    #[test]
    fn the_tunnels_sessions_are_told_and_a_hub_of_before_has_none() {
        let said = br#"{"ready":true,"tunnel":[{"server":"cloud:10262","connected":false,"forSeconds":7,"error":"refused"}]}"#;
        let sessions = read_tunnel("the hub", said).unwrap();
        assert_eq!((&*sessions[0].server, sessions[0].error.as_deref()), ("cloud:10262", Some("refused")));
        assert_eq!(read_tunnel("the hub", br#"{"ready":true}"#).unwrap(), []);
        assert!(read_tunnel("the hub", b"<html>").is_err());
    }

    #[test]
    fn a_hubs_ca_is_one_certificate_and_a_hub_of_before_has_none() {
        let read = |code, body: &str| read_ca("the hub", code, body.into());
        let pem = yurt_fakes::pki::TestCa::new("node").pem;
        assert_eq!(read(200, &pem).unwrap().as_deref(), Some(&*pem));
        assert_eq!(read(404, "there are /healthz and /readyz\n").unwrap(), None);
        for body in ["", "hello", &pem.repeat(2), &pem[..pem.len() / 2]] {
            assert!(matches!(read(200, body), Err(ClusterError::Unreadable { .. })), "{body}");
        }
        assert!(read(503, "").unwrap_err().is_transient());
    }
}
