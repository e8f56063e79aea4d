//! The WebSocket handshake, both sides of it.
//!
//! Only the handshake is tungstenite's. Neither side says anything behind it before the other one has its answer, so
//! nothing can be left in tungstenite's buffer when the bare stream is taken back.

use http::StatusCode;
use http::header::{ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use yurt_api::names;
use yurt_api::tunnel::SUBPROTOCOL;

/// The side that connects.
pub(crate) async fn client<S>(stream: S, path: &str) -> Result<S, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = format!("wss://{}{path}", names::TUNNEL_SERVER_NAME).into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(SUBPROTOCOL));
    let (stream, _response) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(buffers())).await?;
    Ok(stream.into_inner())
}

/// The side that accepts, at one path.
pub(crate) async fn server<S>(stream: S, path: &'static str) -> Result<S, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream =
        tokio_tungstenite::accept_hdr_async_with_config(stream, Check { path }, Some(buffers())).await?;
    Ok(stream.into_inner())
}

fn buffers() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0)
}

/// Looks at the HTTP request.
struct Check {
    path: &'static str,
}

impl Callback for Check {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let refuse = |status: StatusCode, text: &str| {
            let mut refusal = ErrorResponse::new(Some(text.to_owned()));
            *refusal.status_mut() = status;
            refusal
        };
        if request.uri().path() != self.path {
            return Err(refuse(StatusCode::NOT_FOUND, "no such path"));
        }
        if request.headers().contains_key(ORIGIN) {
            return Err(refuse(StatusCode::FORBIDDEN, "browsers have no business here"));
        }
        let ours = |value: &http::HeaderValue| value.as_bytes() == SUBPROTOCOL.as_bytes();
        if !request.headers().get(SEC_WEBSOCKET_PROTOCOL).is_some_and(ours) {
            return Err(refuse(StatusCode::BAD_REQUEST, "this server speaks tunnel.openyurt.io"));
        }
        let protocol = http::HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        Ok(response)
    }
}
