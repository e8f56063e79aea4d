use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

async fn sockets(buffer: usize) -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
    let (client, server) = duplex(buffer);
    tokio::join!(
        WebSocketStream::from_raw_socket(client, Role::Client, None),
        WebSocketStream::from_raw_socket(server, Role::Server, None)
    )
}

fn no_sizes() -> mpsc::Receiver<Size> {
    mpsc::channel(1).1
}

fn status(value: serde_json::Value) -> Status {
    serde_json::from_value(value).unwrap()
}

const SUCCESS: &[u8] = br#"{"status":"Success"}"#;

#[tokio::test]
async fn output_input_and_outcome_go_through() {
    let (client, mut server) = sockets(1 << 16).await;
    let (mut stdin, remote_stdin) = duplex(64);
    let peer = tokio::spawn(async move {
        for channel in [STDOUT, STDERR, STATUS] {
            server.send(framed(channel, b"")).await.unwrap();
        }
        assert_eq!(server.next().await.unwrap().unwrap(), framed(STDIN, b"hello"));
        assert_eq!(server.next().await.unwrap().unwrap(), Message::binary(vec![CLOSE, STDIN]));
        server.send(framed(STDOUT, b"out")).await.unwrap();
        server.send(framed(STDERR, b"err")).await.unwrap();
        server.send(framed(STATUS, SUCCESS)).await.unwrap();
    });
    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = run(client, true, Some(remote_stdin), &mut stdout, &mut stderr, no_sizes()).await.unwrap();
    peer.await.unwrap();
    assert_eq!(outcome(&status), Outcome::Success);
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (b"out".as_slice(), b"err".as_slice()));
}

/// `cat` on the other side: it does not read while nobody reads its output. More than the buffers between must
/// go through, or the two would wait for each other for ever.
#[tokio::test]
async fn a_remote_that_writes_before_it_reads_does_not_block_us() {
    const SIZE: usize = 1 << 20;
    let (client, server) = sockets(4096).await;
    let peer = tokio::spawn(async move {
        let (mut sink, mut source) = server.split();
        let mut echoed = 0;
        while echoed < SIZE {
            let Some(Ok(Message::Binary(bytes))) = source.next().await else { panic!("no input") };
            echoed += bytes.len() - 1;
            sink.send(framed(STDOUT, &bytes[1..])).await.unwrap();
        }
        sink.send(framed(STATUS, SUCCESS)).await.unwrap();
    });
    let input = vec![7; SIZE];
    let mut output = Vec::new();
    let stdin = tokio::io::AsyncReadExt::chain(input.as_slice(), tokio::io::empty());
    let done = run(client, true, Some(stdin), &mut output, tokio::io::sink(), no_sizes());
    let status = tokio::time::timeout(Duration::from_secs(20), done).await.unwrap().unwrap();
    peer.await.unwrap();
    assert_eq!(outcome(&status), Outcome::Success);
    assert_eq!(output, input);
}

#[tokio::test]
async fn a_connection_that_ends_early_is_no_success() {
    let (client, mut server) = sockets(1024).await;
    server.send(framed(STDOUT, b"half")).await.unwrap();
    server.close(None).await.unwrap();
    let stdin = None::<tokio::io::Empty>;
    let result = run(client, true, stdin, tokio::io::sink(), tokio::io::sink(), no_sizes()).await;
    assert!(matches!(result, Err(RemoteError::Closed)), "{result:?}");
}

#[tokio::test]
async fn the_end_of_input_is_an_error_where_it_cannot_be_said() {
    let (client, _server) = sockets(1024).await;
    let stdin = Some(tokio::io::empty());
    let result = run(client, false, stdin, tokio::io::sink(), tokio::io::sink(), no_sizes()).await;
    assert!(matches!(result, Err(RemoteError::NoEnd)));
}

#[tokio::test]
async fn sizes_are_sent_as_kubernetes_writes_them() {
    let (client, mut server) = sockets(1024).await;
    let (sizes, receiver) = mpsc::channel(1);
    sizes.send(Size { width: 80, height: 24 }).await.unwrap();
    let peer = tokio::spawn(async move {
        let message = server.next().await.unwrap().unwrap();
        assert_eq!(message, framed(RESIZE, br#"{"Width":80,"Height":24}"#));
        server.send(framed(STATUS, SUCCESS)).await.unwrap();
    });
    let stdin = None::<tokio::io::Empty>;
    run(client, true, stdin, tokio::io::sink(), tokio::io::sink(), receiver).await.unwrap();
    peer.await.unwrap();
}

#[test]
fn the_exit_code_is_found_among_the_causes() {
    let failed = status(json!({
        "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with non-zero exit code",
        "details": { "causes": [{ "reason": "ExitCode", "message": "42" }] }
    }));
    assert_eq!(outcome(&failed), Outcome::Exit(42));
    let internal =
        status(json!({ "status": "Failure", "reason": "InternalError", "message": "no such file" }));
    assert_eq!(outcome(&internal), Outcome::Failed("no such file".into()));
}
