//! One connection to the cluster, and the choices that go with it. It can ask and cannot print.

use kube::{Client, Config};

use crate::{
    connect::{
        kubeconfig::{self, Resolved, Surroundings},
        proxy::Proxies,
    },
    error::Error,
    options::connection::Connection,
};

/// What every command that talks to the cluster has.
#[derive(Clone)]
pub struct Session {
    /// The API server.
    pub client: Client,
    /// How the client reaches it; the tunnel's client is made from the same credentials.
    pub config: Config,
    /// Which proxy leads to which server.
    pub proxies: Proxies,
    /// Namespace of the workloads.
    pub namespace: String,
    /// Namespace of our own components.
    pub yurt_namespace: String,
}

impl Session {
    /// Reads the kubeconfig, by the flags and the environment, and makes a client. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when the configuration cannot be used.
    pub fn open(options: &Connection) -> Result<Self, Error> {
        let Resolved { config, proxies } = kubeconfig::load(options, Surroundings::read())?;
        let client =
            Client::try_from(config.clone()).map_err(|error| Error::Failed(crate::error::chain(&error)))?;
        Ok(Self {
            client,
            namespace: config.default_namespace.clone(),
            yurt_namespace: options.yurt_namespace.clone(),
            config,
            proxies,
        })
    }

    /// `host:port` of the API server, as error messages name it.
    pub fn server(&self) -> String {
        authority(&self.config)
    }
}

/// `host:port` of the server in `config`.
pub fn authority(config: &Config) -> String {
    let uri = &config.cluster_url;
    let host = uri.host().unwrap_or("localhost");
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
    format!("{host}:{port}")
}
