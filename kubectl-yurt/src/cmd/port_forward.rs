//! `port-forward`: local ports to a pod, through the tunnel. One WebSocket a connection.

pub mod ports;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _, core::Request};
use ports::Forward;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    cluster::workload,
    connect::{
        session::Session,
        tunnel::{self, Tunnel},
    },
    error::{Error, is_not_found, phrase},
    options::pods::{LocalAddress, PortForward},
    output::Console,
    signals::interrupted,
    stream::forward,
};

/// Connections open at once; more wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 1024;

/// Where the connections lead.
struct Destination {
    tunnel: Tunnel,
    namespace: String,
    pod: String,
}

impl Destination {
    /// Opens the way to one port of the pod.
    async fn connect(&self, port: u16) -> Result<kube::client::Connection, kube::Error> {
        let request = Request::new(Pod::url_path(&(), Some(&self.namespace)))
            .portforward(&self.pod, &[port])
            .map_err(kube::Error::BuildRequest)?;
        self.tunnel.client.connect(request).await
    }
}

/// Runs the command until it is interrupted.
///
/// # Errors
///
/// Why nothing can be forwarded, in kubectl's words.
pub async fn run(session: &Session, console: Console, options: &PortForward) -> Result<(), Error> {
    let found = workload::find(session, &options.target, options.pod_running_timeout).await?;
    let pod = found.first;
    let phase = workload::phase(&pod);
    if phase != "Running" {
        return Err(Error::Failed(format!(
            "unable to forward port because pod is not running. Current status={phase}"
        )));
    }
    let forwards = options
        .ports
        .iter()
        .map(|wanted| ports::resolve(wanted, &pod, found.service.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let tunnel = tunnel::first(session).await?;
    let destination =
        Arc::new(Destination { tunnel, namespace: session.namespace.clone(), pod: pod.name_any() });
    // A refusal is said now and not at the first connection.
    if let Some(first) = forwards.first() {
        let refused = |error| Error::from_server(&destination.tunnel.address, error);
        drop(destination.connect(first.remote).await.map_err(refused)?);
    }
    let mut listeners = Vec::new();
    for forward in &forwards {
        for (listener, remote) in listen(console, forward, &options.addresses).await? {
            listeners.push((listener, remote));
        }
    }
    tokio::select! {
        error = serve(console, listeners, destination) => Err(error),
        // kubectl ends without an error here.
        () = interrupted() => Ok(()),
    }
}

/// Listens on each address. `localhost` is both loopback addresses, of which one must work.
async fn listen(
    console: Console,
    forward: &Forward,
    addresses: &[LocalAddress],
) -> Result<Vec<(TcpListener, u16)>, Error> {
    let mut listeners = Vec::new();
    let mut local = forward.local;
    for address in addresses {
        let (candidates, all_needed): (Vec<IpAddr>, bool) = match address {
            LocalAddress::Localhost => (vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], false),
            LocalAddress::Ip(ip) => (vec![*ip], true),
        };
        let mut faults: Vec<io::Error> = Vec::new();
        let mut bound = 0;
        for ip in candidates {
            match TcpListener::bind(SocketAddr::new(ip, local)).await {
                Ok(listener) => {
                    let at = listener.local_addr()?;
                    // A free port that was found for one address is used for the others too.
                    local = at.port();
                    console.line(format!("Forwarding from {at} -> {}", forward.remote))?;
                    listeners.push((listener, forward.remote));
                    bound += 1;
                }
                Err(error) => faults.push(error),
            }
        }
        if bound == 0 || (all_needed && !faults.is_empty()) {
            let why = faults.first().map(ToString::to_string).unwrap_or_default();
            return Err(Error::Failed(format!(
                "unable to listen on port {local}: cannot listen on {address}: {why}"
            )));
        }
    }
    Ok(listeners)
}

/// Accepts connections for ever; returns when the pod is gone.
async fn serve(console: Console, listeners: Vec<(TcpListener, u16)>, destination: Arc<Destination>) -> Error {
    let permits = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    // Dropping the set ends every connection.
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    for (listener, remote) in listeners {
        let (destination, permits) = (destination.clone(), permits.clone());
        tasks.spawn(async move {
            let mut connections: JoinSet<Result<(), Error>> = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = accept(&listener, &permits) => {
                        let (stream, permit) = accepted?;
                        let destination = destination.clone();
                        let local = listener.local_addr()?.port();
                        console.line(format!("Handling connection for {local}"))?;
                        connections.spawn(async move {
                            let _permit = permit;
                            handle(console, stream, local, remote, &destination).await
                        });
                    }
                    Some(ended) = connections.join_next() => {
                        if let Ok(Err(fatal)) = ended {
                            return Err(fatal);
                        }
                    }
                }
            }
        });
    }
    match tasks.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => Error::Failed("lost connection to pod".into()),
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<tokio::sync::Semaphore>,
) -> Result<(TcpStream, tokio::sync::OwnedSemaphorePermit), Error> {
    let permit = permits.clone().acquire_owned().await.map_err(|_| Error::Interrupted)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Forwards one connection. What goes wrong is said and concerns this connection alone, unless the pod is gone.
async fn handle(
    console: Console,
    stream: TcpStream,
    local: u16,
    remote: u16,
    destination: &Destination,
) -> Result<(), Error> {
    let connection = match destination.connect(remote).await {
        Ok(connection) => connection,
        Err(error) if is_not_found(&error) => return Err(Error::Failed("lost connection to pod".into())),
        Err(error) => {
            let why = phrase(&error, &destination.tunnel.address);
            console.note(format!("error: an error occurred forwarding {local} -> {remote}: {why}"));
            return Ok(());
        }
    };
    if let Err(error) = forward::run(connection.into_stream(), stream).await {
        console.note(format!("error: an error occurred forwarding {local} -> {remote}: {error}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Coloring;

    #[tokio::test]
    async fn a_free_port_is_the_same_on_both_loopback_addresses() {
        let console = Console::new(Coloring::Never);
        let forward = Forward { local: 0, remote: 80 };
        let listeners = listen(console, &forward, &[LocalAddress::Localhost]).await.unwrap();
        let ports: std::collections::BTreeSet<u16> =
            listeners.iter().map(|(listener, _)| listener.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 1);
        assert!(!ports.contains(&0));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let forward = Forward { local: taken.local_addr().unwrap().port(), remote: 80 };
        let console = Console::new(Coloring::Never);
        let error =
            listen(console, &forward, &[LocalAddress::Ip(Ipv4Addr::LOCALHOST.into())]).await.unwrap_err();
        assert!(error.to_string().starts_with("unable to listen on port"), "{error}");
    }
}
