//! Who becomes a session, and who does not.

use tokio_rustls::client::TlsStream;

use super::*;

/// Connects as an agent would; gives the connection after the WebSocket handshake.
pub(super) async fn knock(
    world: &World,
    server: SocketAddr,
    certificate: &TestCertificate,
    change: impl FnOnce(&mut http::Request<()>),
) -> Result<TlsStream<TcpStream>, String> {
    let pem = world.write("knock.pem", certificate);
    let tls = yurt_node::pki::client_config(&world.folder.path().join("ca.crt"), &pem, &pem).unwrap();
    let tcp = TcpStream::connect(server).await.unwrap();
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).unwrap();
    let stream =
        TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
    let url = format!("wss://{}{}", names::TUNNEL_SERVER_NAME, yurt_api::tunnel::PATH);
    let mut request = url.into_client_request().unwrap();
    let protocol = http::HeaderValue::from_static(yurt_api::tunnel::SUBPROTOCOL);
    request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
    change(&mut request);
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((stream, _)) => Ok(stream.into_inner()),
        Err(tungstenite::Error::Http(response)) => Err(response.status().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn only_certificates_of_nodes_get_in() {
    let world = World::new();
    let server = world.server().await;
    let knock = |certificate: TestCertificate| {
        let (world, address) = (&world, server.address);
        async move { soon("an answer", knock(world, address, &certificate, |_| {})).await.map(drop) }
    };
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    assert_eq!(knock(world.cluster_ca.node("edge-1")).await, Ok(()));
    // Neither an administrator, nor somebody who only calls himself a node, nor a foreign node.
    assert!(knock(world.cluster_ca.issue("admin", &["system:masters"], &[], client.clone())).await.is_err());
    assert!(knock(world.cluster_ca.issue("system:node:edge-1", &[], &[], client)).await.is_err());
    assert!(knock(TestCa::new("other").node("edge-1")).await.is_err());
    // A serving certificate is no client certificate.
    let serving = ExtendedKeyUsagePurpose::ServerAuth;
    let serving = world.cluster_ca.issue("system:node:edge-1", &["system:nodes"], &[], serving);
    assert!(knock(serving).await.is_err());
    assert_eq!(server.registry.statuses(), []);
}

#[tokio::test]
async fn requests_that_are_not_an_agents_are_refused() {
    let world = World::new();
    let server = world.server().await;
    let node = world.cluster_ca.node("edge-1");
    let origin = |request: &mut http::Request<()>| {
        request
            .headers_mut()
            .insert(http::header::ORIGIN, http::HeaderValue::from_static("https://example.org"));
    };
    assert_eq!(knock(&world, server.address, &node, origin).await.unwrap_err(), "403 Forbidden");
    let path = |request: &mut http::Request<()>| *request.uri_mut() = "wss://x/other".parse().unwrap();
    assert_eq!(knock(&world, server.address, &node, path).await.unwrap_err(), "404 Not Found");
    let protocol = |request: &mut http::Request<()>| {
        let other = http::HeaderValue::from_static("v4.channel.k8s.io");
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, other);
    };
    assert_eq!(knock(&world, server.address, &node, protocol).await.unwrap_err(), "400 Bad Request");
}

#[tokio::test]
async fn the_agent_waits_for_the_ca_that_appears_later() {
    let world = World::new();
    let (address, _kubelet) = kubelet(echo).await;
    let server = world.server().await;
    let late = world.folder.path().join("late-ca.crt");
    let config = AgentConfig { ca_file: late.clone(), ..world.agent("edge-1", server.address, address) };
    let _agent = start(config);
    tokio::task::yield_now().await;
    assert_eq!(server.registry.statuses(), []);
    std::fs::write(late, &world.tunnel_ca.pem).unwrap();
    server.connected("edge-1").await;
}

#[tokio::test]
async fn the_agent_does_not_talk_to_a_server_of_another_ca() {
    let world = World::new();
    let server = world.server().await;
    let foreign = world.folder.path().join("foreign.crt");
    std::fs::write(&foreign, TestCa::new("tunnel").pem).unwrap();
    let pem = world.write("node.pem", &world.cluster_ca.node("edge-1"));
    let tls = yurt_node::pki::client_config(&foreign, &pem, &pem).unwrap();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(names::TUNNEL_SERVER_NAME).unwrap();
    let error = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
