//! One request, answered.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::encode::{self, Encoding, Failure};
use super::faults::{Fault, Line};
use super::reviews::bearer;
use super::rights::User;
use super::{Seen, Shared, discovery, read, write};
use crate::issuer::ISSUER;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A request, read.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) content_type: String,
    pub(super) body: Value,
    pub(super) user: User,
    pub(super) line: Line,
    pub(super) accept: String,
    /// A watch ends with this.
    pub(super) error: Option<u16>,
}

impl Call {
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn dry_run(&self) -> bool {
        self.parameter("dryRun") == "All"
    }

    pub(super) fn wants_watch(&self) -> bool {
        self.line.watch
    }
}

/// What a handler found.
pub(super) enum Reply {
    Object(u16, Value),
    Body(Encoding, Bytes),
    Stream(Encoding, futures::stream::BoxStream<'static, Bytes>),
    Text(&'static str),
}

/// `Err` when the connection is to end.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    certificate: Option<&User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.headers.contains_key("upgrade").then(|| {
        parts.extensions.remove::<hyper::upgrade::OnUpgrade>().expect("a connection that can be upgraded")
    });
    let body = match upgrade {
        Some(_) => Bytes::new(),
        None => body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default(),
    };
    let accept = header(&parts, "accept");
    let encoding = if accept.contains("protobuf") { Encoding::Protobuf } else { Encoding::Json };
    let query: BTreeMap<String, String> =
        form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let watch = query.get("watch").is_some_and(|watch| matches!(watch.as_str(), "1" | "true"));
    let token = bearer(&parts.headers);
    let line = Line {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        watch,
        token: token.clone(),
    };
    let user = {
        let mut state = shared.state.lock().unwrap();
        let user = state.people.user(&parts.headers, certificate);
        state.requests.push(Seen {
            method: line.method.clone(),
            path: line.path.clone(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            user: user.as_ref().map(|user| user.name.clone()),
            certificate: certificate.is_some(),
            token,
            headers: parts.headers.clone(),
            body: body.clone(),
        });
        user
    };
    let Some(user) = user else { return Ok(refusal(&Failure::new(401, "Unauthorized"), encoding)) };
    let (mut slow, mut error) = (None, None);
    match shared.faults.take(&line) {
        Some(Fault::Answer(code)) => return Ok(refusal(&Failure::new(code, "no"), encoding)),
        Some(Fault::Text(code, message)) => return Ok(text(code, message)),
        Some(Fault::Stall) => shared.faults.without(&line, &Fault::Stall).await,
        Some(Fault::Slow(bytes, pause)) => slow = Some((bytes, pause)),
        Some(Fault::Error(code)) => error = Some(code),
        Some(Fault::HangUp) => return Err(std::io::Error::other("hung up")),
        Some(Fault::Silent | Fault::Unseen) | None => {}
    }
    if let Some(upgrade) = upgrade {
        return Ok(echo(upgrade, &header(&parts, "upgrade")));
    }
    let discovered = discovery::answer(&shared.state.lock().unwrap().store.kinds, &line.path, &parts.headers);
    if let Some(response) = discovered {
        return Ok(response);
    }
    let accept_encoding = header(&parts, "accept-encoding");
    let call = Call {
        method: parts.method.clone(),
        path: line.path.clone(),
        query,
        content_type: header(&parts, "content-type"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        user,
        line,
        accept,
        error,
    };
    let json_only = shared.state.lock().unwrap().target(&call.path).is_ok_and(|(_, kind)| kind.json_only);
    let response = match handle(shared, call) {
        Ok(Reply::Object(code, object)) => {
            let encoding = if json_only || object["kind"] == "Status" { Encoding::Json } else { encoding };
            full(code, encoding, encode::object(encoding, &object))
        }
        Ok(Reply::Body(encoding, body)) => packed(full(200, encoding, body.clone()), body, &accept_encoding),
        Ok(Reply::Text(message)) => text(200, message),
        Ok(Reply::Stream(encoding, events)) => {
            let frames = events.map(|frame| Ok(Frame::data(frame)));
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            let content_type = encoding.watch_content_type().parse().unwrap();
            response.headers_mut().insert("content-type", content_type);
            response
        }
        Err(failure) => refusal(&failure, if failure.code == 406 { Encoding::Json } else { encoding }),
    };
    Ok(match slow {
        Some((bytes, pause)) => response.map(|body| slowly(body, bytes, pause)),
        None => response,
    })
}

fn handle(shared: &Arc<Shared>, call: Call) -> Result<Reply, Failure> {
    match call.path.as_str() {
        "/healthz" | "/livez" | "/readyz" => return Ok(Reply::Text("ok")),
        "/version" => {
            return Ok(Reply::Object(
                200,
                json!({"major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "", "gitTreeState": "",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            ));
        }
        "/.well-known/openid-configuration" | "/openid/v1/jwks" => return openid(shared, &call),
        _ => {}
    }
    if call.method == Method::GET {
        return read::answer(shared, call);
    }
    let reply = write::answer(shared, &call);
    shared.react();
    reply
}

/// The keys have a type of their own, and are given to nobody who does not take it (`pkg/routes/openidmetadata.go`).
fn openid(shared: &Arc<Shared>, call: &Call) -> Result<Reply, Failure> {
    let keys = shared.state.lock().unwrap().people.keys.clone();
    let keys = keys.ok_or_else(|| Failure::new(404, "the server could not find the requested resource"))?;
    let accept = if call.path == "/openid/v1/jwks" { "application/jwk-set+json" } else { "application/json" };
    if !call.accept.contains(accept) && !call.accept.contains("*/*") {
        return Err(Failure::new(406, "Not Acceptable"));
    }
    let configuration = json!({"issuer": ISSUER, "jwks_uri": "https://elsewhere/openid/v1/jwks"});
    Ok(Reply::Object(200, if call.path == "/openid/v1/jwks" { keys } else { configuration }))
}

fn header(parts: &Parts, name: &str) -> String {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

fn full(code: u16, encoding: Encoding, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", encoding.content_type().parse().unwrap());
    response.headers_mut().insert("audit-id", "a-1".parse().unwrap());
    response
}

/// Long bodies are compressed for those who take that, as by an API server.
fn packed(mut response: Response<Body>, body: Bytes, accept_encoding: &str) -> Response<Body> {
    if body.len() < 128 << 10 || !accept_encoding.contains("gzip") {
        return response;
    }
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(&body).unwrap();
    *response.body_mut() = Full::new(Bytes::from(packer.finish().unwrap())).boxed_unsync();
    response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    response
}

fn refusal(failure: &Failure, encoding: Encoding) -> Response<Body> {
    full(failure.code, encoding, failure.body(encoding))
}

fn text(code: u16, message: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(message.as_bytes())).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    response
}

/// `exec` and its like: every byte comes back.
fn echo(upgrade: hyper::upgrade::OnUpgrade, protocol: &str) -> Response<Body> {
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = text(101, "");
    response.headers_mut().remove("content-type");
    response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    response.headers_mut().insert("upgrade", protocol.parse().unwrap());
    response
}

/// The same body in small pieces.
fn slowly(body: Body, bytes: usize, pause: Duration) -> Body {
    let pieces = body.into_data_stream().flat_map(move |data| {
        let Ok(data) = data;
        let pieces: Vec<Bytes> = data.chunks(bytes).map(Bytes::copy_from_slice).collect();
        futures::stream::iter(pieces)
    });
    let frames = pieces.then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>(Frame::data(piece))
    });
    StreamBody::new(Box::pin(frames)).boxed_unsync()
}
