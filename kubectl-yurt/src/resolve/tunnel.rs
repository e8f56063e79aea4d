//! The tunnel server's API endpoint: the same Kubernetes paths as the API server's, another address and another
//! authority, the caller's own credentials.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config};
use yurt_api::{names, status::ClusterConfig};

use crate::{
    error::{Error, is_not_found, phrase},
    resolve::session::Session,
};

/// A client for one tunnel server.
#[derive(Clone)]
pub struct Tunnel {
    /// The client.
    pub client: Client,
    /// `host:port` of the server.
    pub address: String,
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

/// The first tunnel server that is there.
///
/// # Errors
///
/// As [`open`].
pub async fn first(session: &Session) -> Result<Tunnel, Error> {
    let mut tunnels = open(session).await?;
    let mut refused = None;
    for tunnel in tunnels.drain(..) {
        match tokio::net::TcpStream::connect(&tunnel.address).await {
            Ok(_) => return Ok(tunnel),
            // Behind a proxy the address need not be reachable from here.
            Err(_) if session.config.proxy_url.is_some() => return Ok(tunnel),
            Err(error) => refused = Some((tunnel.address, error)),
        }
    }
    let (address, error) = refused.ok_or_else(|| not_ready(names::CONFIG_MAP))?;
    Err(Error::Failed(format!(
        "cannot reach the tunnel server at {address}: {error}; `kubectl yurt status` shows whether it runs, \
         `kubectl yurt convert --tunnel-api-address HOST:PORT …` changes the address"
    )))
}

fn connect(session: &Session, address: &str, authority_pem: &str) -> Result<Tunnel, Error> {
    let config = config_for(&session.config, address, authority_pem)?;
    let client = Client::try_from(config).map_err(|error| Error::Failed(crate::error::chain(&error)))?;
    Ok(Tunnel { client, address: address.to_owned() })
}

/// The session's configuration pointed at the tunnel server.
fn config_for(config: &Config, address: &str, authority_pem: &str) -> Result<Config, Error> {
    // A kubeconfig's namespace, credentials and proxy stay; everything that verifies the server changes.
    let mut config = config.clone();
    config.cluster_url = format!("https://{address}").parse().map_err(|_| {
        Error::Failed(format!("{address:?} in ConfigMap {} is not host:port", names::CONFIG_MAP))
    })?;
    config.root_cert_file = None;
    config.root_cert = Some(certificates(authority_pem)?);
    config.accept_invalid_certs = false;
    config.tls_server_name = Some(names::TUNNEL_SERVER_NAME.to_owned());
    Ok(config)
}

/// DER of the certificates in a PEM text.
fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, Error> {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| der.map(|der| der.to_vec())).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::Failed(format!(
            "ConfigMap {} holds no certificate: has somebody edited it?",
            names::TUNNEL_CA_CONFIG_MAP
        ))),
    }
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
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_tunnel_client_verifies_the_tunnel_and_nothing_else() {
        let mut config = Config::new("https://api:6443".parse().unwrap());
        config.accept_invalid_certs = true;
        let pem = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        let tunnel = config_for(&config, "10.80.0.2:10263", pem).unwrap();
        assert_eq!(tunnel.cluster_url.to_string(), "https://10.80.0.2:10263/");
        assert!(!tunnel.accept_invalid_certs);
        assert_eq!(tunnel.tls_server_name.as_deref(), Some(names::TUNNEL_SERVER_NAME));
        assert_eq!(tunnel.root_cert, Some(vec![b"abc".to_vec()]));
    }

    #[test]
    fn an_authority_without_certificate_is_refused() {
        assert!(certificates("").is_err());
        assert!(certificates("not pem").is_err());
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
