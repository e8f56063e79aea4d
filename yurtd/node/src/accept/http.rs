//! HTTP on an accepted connection: one deadline until the head of the first request, and a bound on idleness.
//!
//! hyper counts the time of a head only when it knows that the peer speaks HTTP/1.1, and lets a connection of HTTP/2
//! live for ever that asks for nothing. So the version is what ALPN has said, and the time is counted here: from
//! accept to the first request, and from the end of the last response to the next request.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use crate::supervise::Tasks;

/// HTTP/2 pings find connections that died without a word.
const PING: Duration = Duration::from_secs(30);
/// How long a peer that was told to go may take to do so: its last request may be on its way.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a listener grants to a connection.
#[derive(Debug, Clone, Copy)]
pub struct Http {
    /// From accept to the head of the first request, TLS included.
    pub first_head: Duration,
    /// From a response's end to the head of the next request.
    pub idle: Duration,
    /// Size of a request's head, in bytes; at least 8192.
    pub head_bytes: u32,
    /// Requests at a time on a connection of HTTP/2.
    pub streams: u32,
    /// What it may hold of bodies.
    pub buffers: Buffers,
}

/// What a connection of HTTP/2 may hold of bodies, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    /// Of a request's that nobody has read yet.
    pub stream_unread: u32,
    /// Of all requests' together.
    pub unread: u32,
    /// Of a response's that the peer has not taken yet.
    pub stream_unsent: usize,
}

impl Buffers {
    /// hyper's own windows. For peers who are known before they are served.
    pub const USUAL: Self = Self { stream_unread: 1 << 20, unread: 1 << 20, stream_unsent: 128 << 10 };
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1; a request may leave HTTP.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    /// What the two agreed on in the handshake; without ALPN it is HTTP/1.1.
    pub fn of(session: &ServerConnection) -> Self {
        if session.alpn_protocol() == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }
}

/// How a connection ended that did not end well.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There was no first request in time.
    #[error("no request in time")]
    NoRequest,
    /// The peer does not keep to HTTP, or the connection broke.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// What its requests say that a connection is doing. Nobody is woken by that: it changes twice a request.
#[derive(Debug, Clone)]
struct State(Arc<Mutex<Doing>>);

impl State {
    fn now(&self) -> Doing {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, next: impl FnOnce(Doing) -> Doing) {
        let mut doing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *doing = next(*doing);
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy)]
enum Doing {
    /// It was accepted and has not asked for anything.
    Nothing(Instant),
    /// So many requests are being answered.
    Answering(usize),
    /// All that was asked for has been answered since.
    Idle(Instant),
}

impl Http {
    /// Serves the requests of a connection that was accepted at `at`, until it ends. When `tasks` are told to stop,
    /// it takes no new request and ends with the last response.
    ///
    /// # Errors
    ///
    /// [`HttpError`].
    pub async fn serve<I, S, F, B>(
        &self,
        io: I,
        protocol: Protocol,
        at: Instant,
        tasks: &Tasks,
        service: S,
    ) -> Result<(), HttpError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let state = State(Arc::new(Mutex::new(Doing::Nothing(at))));
        let doing = state.clone();
        let service = service_fn(move |request| {
            let busy = Busy::new(&doing);
            let answer = service(request);
            async move { Ok::<_, Infallible>(answer.await.map(|body| Answering { body, _busy: busy })) }
        });
        let io = TokioIo::new(io);
        match protocol {
            Protocol::Http1 => {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(self.idle.max(self.first_head))
                    .max_buf_size(self.head_bytes as usize)
                    .serve_connection(io, service)
                    .with_upgrades();
                let shut = http1::UpgradeableConnection::graceful_shutdown;
                self.drive(connection, shut, state, tasks).await
            }
            Protocol::Http2 => {
                let connection = http2::Builder::new(tasks.clone())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING)
                    .max_concurrent_streams(self.streams)
                    .max_header_list_size(self.head_bytes)
                    .initial_stream_window_size(self.buffers.stream_unread)
                    .initial_connection_window_size(self.buffers.unread)
                    .max_send_buf_size(self.buffers.stream_unsent)
                    .serve_connection(io, service);
                self.drive(connection, http2::Connection::graceful_shutdown, state, tasks).await
            }
        }
    }

    async fn drive<C>(
        &self,
        connection: C,
        shut: fn(Pin<&mut C>),
        state: State,
        tasks: &Tasks,
    ) -> Result<(), HttpError>
    where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let mut connection = pin!(connection);
        let mut idle = self.idle;
        let mut told = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => return Ok(ended?),
                () = over(&state, self.first_head, idle) => match state.now() {
                    Doing::Nothing(_) => return Err(HttpError::NoRequest),
                    _ if told => return Ok(()),
                    // A request that is on its way is still answered.
                    _ => idle += FAREWELL,
                },
                () = tasks.stop().cancelled(), if !told => {}
            }
            told = true;
            shut(connection.as_mut());
        }
    }
}

/// Returns when the time is over that a connection may do nothing.
async fn over(state: &State, first_head: Duration, idle: Duration) {
    loop {
        let now = Instant::now();
        // What begins to be idle from now on may be so for all of `idle`: until then nothing has to be looked at.
        let look = match state.now() {
            Doing::Nothing(since) if since + first_head <= now => return,
            Doing::Idle(since) if since + idle <= now => return,
            Doing::Nothing(since) => (since + first_head).min(now + idle),
            Doing::Idle(since) => since + idle,
            Doing::Answering(_) => now + idle,
        };
        sleep_until(look).await;
    }
}

/// A request that is being answered: from its head to the end of the response's body.
struct Busy(State);

impl Busy {
    fn new(state: &State) -> Self {
        state.turn(|doing| match doing {
            Doing::Answering(requests) => Doing::Answering(requests + 1),
            Doing::Nothing(_) | Doing::Idle(_) => Doing::Answering(1),
        });
        Self(state.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.turn(|doing| match doing {
            Doing::Answering(requests) if requests > 1 => Doing::Answering(requests - 1),
            _ => Doing::Idle(Instant::now()),
        });
    }
}

/// A response's body, for as long as which the connection is not idle.
struct Answering<B> {
    body: B,
    _busy: Busy,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// hyper's streams of HTTP/2 are tasks of the role.
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.passing(task);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::client::conn::{http1 as client1, http2 as client2};
    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::super::{Limits, Over, Places, accept};
    use super::*;

    /// Long enough for a busy machine, short enough to fail.
    const SOON: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);
    /// What an HTTP/2 client says first, and an empty SETTINGS.
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// A listener with two places that answers "ok", after `delay`.
    async fn listen(protocol: Protocol, http: Http, delay: Duration) -> (SocketAddr, Tasks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let places = Places::new(Limits { total: 2, per_peer: None, over: Over::Wait });
        let connections = tasks.clone();
        tokio::spawn(accept(listener, places, tasks.stop().clone(), move |accepted| {
            let tasks = connections.clone();
            connections.passing(async move {
                let _place = accepted.place;
                let answer = move |_| async move {
                    tokio::time::sleep(delay).await;
                    Response::new(Full::new(Bytes::from_static(b"ok")))
                };
                let _ = http.serve(accepted.stream, protocol, accepted.at, &tasks, answer).await;
            });
        }));
        (address, tasks)
    }

    fn http(first_head: Duration, idle: Duration) -> Http {
        Http { first_head, idle, head_bytes: 8192, streams: 8, buffers: Buffers::USUAL }
    }

    fn request() -> Request<Empty<Bytes>> {
        Request::get("http://test/").body(Empty::new()).unwrap()
    }

    #[tokio::test]
    async fn who_is_silent_loses_the_place_to_the_next_one() {
        for (protocol, said) in [
            (Protocol::Http1, &b""[..]),
            (Protocol::Http1, b"GET / HTTP/1.1\r\nHost: test\r\n"),
            (Protocol::Http2, b""),
            (Protocol::Http2, PREFACE),
        ] {
            let (address, _tasks) = listen(protocol, http(SHORT, SOON * 9), Duration::ZERO).await;
            let mut silent = Vec::new();
            for _ in 0..2 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(said).await.unwrap();
                silent.push(stream);
            }
            let third = TcpStream::connect(address).await.unwrap();
            let answered = tokio::time::timeout(SOON, async {
                match protocol {
                    Protocol::Http1 => {
                        let (mut sender, connection) = client1::handshake(TokioIo::new(third)).await.unwrap();
                        tokio::spawn(connection);
                        sender.send_request(request()).await.unwrap()
                    }
                    Protocol::Http2 => {
                        let (mut sender, connection) =
                            client2::handshake(TokioExecutor::new(), TokioIo::new(third)).await.unwrap();
                        tokio::spawn(connection);
                        sender.send_request(request()).await.unwrap()
                    }
                }
            });
            let answer = answered.await.unwrap_or_else(|_| panic!("{protocol:?} {said:?}: still silent"));
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
            // And the silent ones have been closed.
            let mut said = Vec::new();
            tokio::time::timeout(SOON, silent[0].read_to_end(&mut said)).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_told_to_go_and_a_busy_one_is_not() {
        let (address, _tasks) = listen(Protocol::Http2, http(SOON, SHORT), SHORT * 4).await;
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            client2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        // Each takes longer than a connection may be idle.
        for _ in 0..2 {
            let answer = sender.send_request(request()).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
        tokio::time::timeout(SOON, connection).await.expect("it may stay").unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_over_to_the_moment_although_requests_wake_nobody() {
        let (first_head, idle) = (Duration::from_secs(30), Duration::from_secs(300));
        let begun = Instant::now();
        let state = State(Arc::new(Mutex::new(Doing::Nothing(begun))));
        over(&state, first_head, idle).await;
        assert_eq!(begun.elapsed(), first_head);
        let asking = state.clone();
        let requests = tokio::spawn(async move {
            // One is longer than a connection may be idle, two overlap, and the last ends in between.
            let one = Busy::new(&asking);
            tokio::time::sleep(Duration::from_secs(700)).await;
            let two = Busy::new(&asking);
            drop(one);
            tokio::time::sleep(Duration::from_secs(123)).await;
            drop(two);
        });
        tokio::task::yield_now().await;
        let begun = Instant::now();
        over(&state, first_head, idle).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(700 + 123) + idle);
        assert!(requests.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_head_may_take_longer_than_a_connection_may_be_idle() {
        let (first_head, idle) = (Duration::from_secs(30), Duration::from_secs(2));
        let begun = Instant::now();
        let state = State(Arc::new(Mutex::new(Doing::Nothing(begun))));
        over(&state, first_head, idle).await;
        assert_eq!(begun.elapsed(), first_head);
    }

    #[tokio::test]
    async fn a_stop_ends_a_connection_with_its_last_response() {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let (address, tasks) = listen(protocol, http(SOON, SOON), SHORT).await;
            let stream = TcpStream::connect(address).await.unwrap();
            let answer = match protocol {
                Protocol::Http1 => {
                    let (mut sender, connection) = client1::handshake(TokioIo::new(stream)).await.unwrap();
                    tokio::spawn(connection);
                    tokio::spawn(async move { sender.send_request(request()).await })
                }
                Protocol::Http2 => {
                    let (mut sender, connection) =
                        client2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
                    tokio::spawn(connection);
                    tokio::spawn(async move { sender.send_request(request()).await })
                }
            };
            tokio::time::sleep(SHORT / 2).await;
            assert_eq!(tasks.finish(SOON).await, 0);
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        }
    }
}
