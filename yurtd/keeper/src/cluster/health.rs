//! The hub's health endpoint: plain HTTP on the node itself.

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use yurt_api::names;
use yurt_node::api_client::DEADLINE;

use super::ClusterError;

/// Bound of what it says.
const MAX_ANSWER: usize = 64 * 1024;

/// Whether the hub, which errors call `what`, says that it is ready.
pub(super) async fn is_ready(what: &'static str) -> Result<(), ClusterError> {
    let outcome = tokio::time::timeout(DEADLINE, ask()).await;
    let unreachable = |message: String| ClusterError::Unreachable { what, message };
    match outcome {
        Ok(Ok((200..=299, _))) => Ok(()),
        Ok(Ok((code, message))) => Err(ClusterError::Refused { what, code, message }),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no answer".into())),
    }
}

async fn ask() -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", names::HUB_HEALTH_PORT)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz").header(HOST, "127.0.0.1").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok((status.as_u16(), format!("{status} {}", String::from_utf8_lossy(&body).trim())))
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
