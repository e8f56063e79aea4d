//! How a session begins, and how it does not.

use super::*;

#[tokio::test]
async fn the_first_frame_must_be_hello() {
    for (bytes, expected) in [
        (message(&[Frame::Ping(1)]), "unexpected first frame"),
        (BytesMut::from(&b"GET / HTTP/1.1\r\n\r\n"[..]), "websocket frame"),
    ] {
        let (left, mut right) = tokio::io::duplex(1024);
        right.write_all(&bytes).await.unwrap();
        let error = session::accept(left, server_id(), Settings::server()).await.unwrap_err();
        assert!(matches!(error, HelloError::Violation(_)));
        assert!(error.to_string().contains(expected), "{error}");
    }
    let (left, right) = tokio::io::duplex(1024);
    drop(right);
    assert!(matches!(
        session::accept(left, server_id(), Settings::server()).await.unwrap_err(),
        HelloError::Closed
    ));
}

#[tokio::test]
async fn the_agent_knows_which_server_it_is_before_there_is_a_session() {
    let (left, right) = tokio::io::duplex(64 * 1024);
    let (accepted, ()) = tokio::join!(session::accept(left, server_id(), Settings::server()), async {
        let greeting = session::greet(right, Settings::agent()).await.unwrap();
        assert_eq!(greeting.server(), &server_id());
        greeting.decline().await;
    });
    assert!(matches!(accepted.unwrap_err(), HelloError::Declined));
}

#[tokio::test]
async fn an_agent_that_begins_with_anything_else_has_no_session() {
    let (left, mut right) = tokio::io::duplex(64 * 1024);
    right.write_all(&message(&[hello(), Frame::Ping(1)])).await.unwrap();
    let error = session::accept(left, server_id(), Settings::server()).await.unwrap_err();
    assert_eq!(error.to_string(), "the other side broke the protocol: unexpected second frame");
}

#[tokio::test]
async fn each_side_says_its_own_role() {
    let (left, mut right) = tokio::io::duplex(64 * 1024);
    let mut server = hello();
    if let Frame::Hello(hello) = &mut server {
        hello.sender = Sender::Server { id: server_id() };
    }
    right.write_all(&message(&[server])).await.unwrap();
    let error = session::accept(left, server_id(), Settings::server()).await.unwrap_err();
    assert!(error.to_string().ends_with("unexpected server's HELLO frame"), "{error}");
}

#[tokio::test]
async fn capabilities_that_this_build_does_not_know_change_nothing() {
    let (left, mut right) = tokio::io::duplex(64 * 1024);
    let mut later = hello();
    if let Frame::Hello(hello) = &mut later {
        hello.capabilities = Capabilities::from_bits(u32::MAX);
    }
    right.write_all(&message(&[later, Frame::Begin])).await.unwrap();
    session::accept(left, server_id(), Settings::server()).await.unwrap();
}

#[tokio::test]
async fn both_sides_say_that_their_versions_do_not_go_together() {
    // HELLO of version 3, of which this build knows no more than that.
    let later = b"\x01\x00\x00\x08\x00\x00\x00\x00YURT\x00\x03??";
    let expected =
        "the other side speaks version 3 of the tunnel protocol and this side 2: upgrade the older one";

    let (left, mut right) = tokio::io::duplex(64 * 1024);
    let mut batch = BytesMut::zeroed(websocket::MAX_HEADER);
    batch.extend_from_slice(later);
    websocket::frame(Side::Client, [1, 2, 3, 4], &mut batch);
    right.write_all(&batch).await.unwrap();
    let error = session::accept(left, server_id(), Settings::server()).await.unwrap_err();
    assert!(matches!(error, HelloError::Version(3)), "{error}");
    assert_eq!(error.to_string(), expected);
    let mut heard = Vec::new();
    right.read_to_end(&mut heard).await.unwrap();
    assert!(heard.windows(6).any(|window| window == b"YURT\x00\x02"), "{heard:?}");

    let (left, mut right) = tokio::io::duplex(64 * 1024);
    let mut batch = BytesMut::zeroed(websocket::MAX_HEADER);
    batch.extend_from_slice(later);
    websocket::frame(Side::Server, [0; 4], &mut batch);
    right.write_all(&batch).await.unwrap();
    let error = session::greet(left, Settings::agent()).await.unwrap_err();
    assert_eq!(error.to_string(), expected);
}
