//! The tunnel server's API endpoint: the same Kubernetes paths as the API server's, another address and another
//! authority, the caller's own credentials.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config};
use yurt_api::{names, status::ClusterConfig};

use crate::{
    connect::{pem::certificates, proxy::Proxies, session::Session},
    error::{Error, is_not_found, phrase},
};

/// How long a tunnel server may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one is tried alone before the next is tried as well (RFC 8305 calls it the connection attempt delay).
const HEAD_START: Duration = Duration::from_millis(250);

/// A client for one tunnel server.
#[derive(Clone)]
pub struct Tunnel {
    /// The client.
    pub client: Client,
    /// `host:port` of the server.
    pub address: String,
    /// A proxy leads there.
    proxied: bool,
}

/// Makes a client for each tunnel server of the cluster, in the order in which they are configured.
///
/// # Errors
///
/// [`Error::Failed`] when the cluster has no tunnel, saying what to do.
pub async fn open(session: &Session) -> Result<Vec<Tunnel>, Error> {
    let api: Api<ConfigMap> = Api::namespaced(session.client.clone(), &session.yurt_namespace);
    let (config, authority) = tokio::join!(api.get(names::CONFIG_MAP), api.get(names::TUNNEL_CA_CONFIG_MAP));
    let config = config.map_err(|error| missing(session, names::CONFIG_MAP, error))?;
    let config = parse_config(&config)?;
    if config.tunnel_api_addresses.is_empty() {
        return Err(Error::Failed(
            "this cluster was converted with --skip-tunnel: run `kubectl yurt convert` without it to get a tunnel, \
             or use plain kubectl where the API server reaches the nodes"
                .into(),
        ));
    }
    let authority = authority.map_err(|error| missing(session, names::TUNNEL_CA_CONFIG_MAP, error))?;
    let pem = authority
        .data
        .as_ref()
        .and_then(|data| data.get("ca.crt"))
        .filter(|pem| !pem.trim().is_empty())
        .ok_or_else(|| not_ready(names::TUNNEL_CA_CONFIG_MAP))?;
    config.tunnel_api_addresses.iter().map(|address| connect(session, address, pem)).collect()
}

/// The first tunnel server that answers.
///
/// # Errors
///
/// As [`open`], or [`Error::Failed`] naming each server and why it cannot be reached.
pub async fn first(session: &Session) -> Result<Tunnel, Error> {
    let mut tunnels = open(session).await?;
    match race(tunnels.iter().map(reach)).await {
        Ok(index) => Ok(tunnels.swap_remove(index)),
        Err(reasons) => {
            let tried: Vec<String> = tunnels
                .iter()
                .zip(reasons)
                .map(|(tunnel, why)| format!("{} ({why})", tunnel.address))
                .collect();
            Err(Error::Failed(format!(
                "cannot reach a tunnel server: {}; `kubectl yurt status` shows whether they run, \
                 `kubectl yurt convert --tunnel-api-address HOST:PORT …` changes the addresses",
                tried.join(", ")
            )))
        }
    }
}

/// Tries to reach a server.
async fn reach(tunnel: &Tunnel) -> Result<(), String> {
    if !tunnel.proxied {
        let connected = tokio::net::TcpStream::connect(&tunnel.address).await;
        return connected.map(drop).map_err(|error| match error.raw_os_error() {
            Some(_) => error.kind().to_string(),
            None => error.to_string(),
        });
    }
    // Behind a proxy the address need not be reachable from here: only an answer shows that it is there.
    let request = Request::get("/healthz").body(Vec::new()).map_err(|error| error.to_string())?;
    match tunnel.client.request_text(request).await {
        Ok(_) | Err(kube::Error::Api(_)) => Ok(()),
        Err(error) => Err(phrase(&error, &tunnel.address)),
    }
}

/// The index of the attempt that succeeds first, or each one's failure. An attempt that hangs holds the next one up
/// for [`HEAD_START`] and no longer.
async fn race<F>(attempts: impl IntoIterator<Item = F>) -> Result<usize, Vec<String>>
where
    F: Future<Output = Result<(), String>>,
{
    let mut delay = Duration::ZERO;
    let mut running = FuturesUnordered::new();
    for (index, attempt) in attempts.into_iter().enumerate() {
        running.push(async move {
            tokio::time::sleep(delay).await;
            let answer = tokio::time::timeout(PATIENCE, attempt).await;
            (index, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
        });
        delay += HEAD_START;
    }
    let mut failures = BTreeMap::new();
    while let Some((index, answer)) = running.next().await {
        match answer {
            Ok(()) => return Ok(index),
            Err(why) => {
                failures.insert(index, why);
            }
        }
    }
    Err(failures.into_values().collect())
}

fn connect(session: &Session, address: &str, authority_pem: &str) -> Result<Tunnel, Error> {
    let config = config_for(&session.config, &session.proxies, address, authority_pem)?;
    let proxied = config.proxy_url.is_some();
    let client = Client::try_from(config).map_err(|error| Error::Failed(crate::error::chain(&error)))?;
    Ok(Tunnel { client, address: address.to_owned(), proxied })
}

/// The session's configuration pointed at the tunnel server.
fn config_for(
    config: &Config,
    proxies: &Proxies,
    address: &str,
    authority_pem: &str,
) -> Result<Config, Error> {
    // A kubeconfig's namespace and credentials stay; the way there and everything that verifies the server change.
    let mut config = config.clone();
    config.cluster_url = format!("https://{address}").parse().map_err(|_| {
        Error::Failed(format!("{address:?} in ConfigMap {} is not host:port", names::CONFIG_MAP))
    })?;
    config.root_cert_file = None;
    config.root_cert = Some(certificates(authority_pem.as_bytes()).ok_or_else(|| {
        Error::Failed(format!(
            "ConfigMap {} holds no certificate: has somebody edited it?",
            names::TUNNEL_CA_CONFIG_MAP
        ))
    })?);
    config.accept_invalid_certs = false;
    config.tls_server_name = Some(names::TUNNEL_SERVER_NAME.to_owned());
    config.proxy_url = proxies.of(&config.cluster_url)?;
    Ok(config)
}

/// Reads the cluster-wide configuration out of its ConfigMap.
///
/// # Errors
///
/// [`Error::Failed`] when it cannot be understood.
pub fn parse_config(map: &ConfigMap) -> Result<ClusterConfig, Error> {
    let text = map
        .data
        .as_ref()
        .and_then(|data| data.get(names::CONFIG_KEY))
        .ok_or_else(|| not_ready(names::CONFIG_MAP))?;
    serde_json::from_str(text).map_err(|error| {
        Error::Failed(format!(
            "ConfigMap {} cannot be understood ({error}): run `kubectl yurt convert` again to write it anew",
            names::CONFIG_MAP
        ))
    })
}

fn missing(session: &Session, map: &str, error: kube::Error) -> Error {
    if is_not_found(&error) && map == names::CONFIG_MAP {
        return Error::Failed(format!(
            "this cluster has no tunnel: run `kubectl yurt convert` first (no ConfigMap {map} in namespace {}; if the \
             components are elsewhere, pass --yurt-namespace)",
            session.yurt_namespace
        ));
    }
    if is_not_found(&error) {
        return not_ready(map);
    }
    Error::Failed(format!(
        "cannot find out where the tunnel server is: {}",
        phrase(&error, &session.server())
    ))
}

fn not_ready(map: &str) -> Error {
    Error::Failed(format!(
        "the tunnel is not ready yet (ConfigMap {map} is not complete): `kubectl yurt status` shows its components"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::proxy::Environment;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";

    #[test]
    fn each_tunnel_server_has_its_own_way_through_proxies() {
        let mut config = Config::new("https://api.example.com:6443".parse().unwrap());
        config.proxy_url = Some("http://proxy:3128".parse().unwrap());
        let environment =
            Environment { https: "proxy:3128".into(), no: "10.80.0.0/24".into(), ..Environment::default() };
        let proxies = Proxies { configured: None, environment };
        let way = |address: &str| config_for(&config, &proxies, address, PEM).unwrap().proxy_url;
        assert_eq!(way("10.80.0.2:10263"), None);
        assert_eq!(way("203.0.113.2:10263").map(|uri| uri.to_string()), Some("http://proxy:3128/".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_tunnel_server_holds_nobody_up() {
        let attempts = |second: Result<(), String>| {
            let dead: futures::future::BoxFuture<'_, _> = Box::pin(std::future::pending());
            [dead, Box::pin(std::future::ready(second))]
        };
        let start = tokio::time::Instant::now();
        assert_eq!(race(attempts(Ok(()))).await, Ok(1));
        assert_eq!(start.elapsed(), HEAD_START);
        let reasons = race(attempts(Err("connection refused".into()))).await.unwrap_err();
        assert_eq!(reasons, ["no answer within 3 s", "connection refused"]);
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_said_to() {
        // A port that was free a moment ago, so that nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let tunnel = Tunnel { client: Client::try_from(config).unwrap(), address, proxied: false };
        assert_eq!(reach(&tunnel).await, Err("connection refused".into()));
    }

    #[test]
    fn the_tunnel_client_verifies_the_tunnel_and_nothing_else() {
        let mut config = Config::new("https://api:6443".parse().unwrap());
        config.accept_invalid_certs = true;
        let tunnel = config_for(&config, &Proxies::default(), "10.80.0.2:10263", PEM).unwrap();
        assert_eq!(tunnel.cluster_url.to_string(), "https://10.80.0.2:10263/");
        assert!(!tunnel.accept_invalid_certs);
        assert_eq!(tunnel.tls_server_name.as_deref(), Some(names::TUNNEL_SERVER_NAME));
        assert_eq!(tunnel.root_cert, Some(vec![b"abc".to_vec()]));
    }

    #[test]
    fn the_configuration_is_read_from_its_key() {
        let text = r#"{"tunnelAddresses":["a:1"],"tunnelApiAddresses":["a:2"]}"#;
        let map = ConfigMap {
            data: Some(BTreeMap::from([(names::CONFIG_KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        assert_eq!(parse_config(&map).unwrap().tunnel_api_addresses, ["a:2"]);
        assert!(parse_config(&ConfigMap::default()).is_err());
    }
}
