//! Which port of the pod is meant: numbers, names, and a Service's port mapped to the pod's. Pure.

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;

use crate::{
    error::Error,
    options::ports::{Port, Wanted},
};

/// A local port and the pod's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// To listen on; 0 for a free one.
    pub local: u16,
    /// The pod's port.
    pub remote: u16,
}

/// Finds the pod's port.
///
/// # Errors
///
/// [`Error::Failed`] in kubectl's words when there is no such port or it is no TCP port.
pub fn resolve(wanted: &Wanted, pod: &Pod, service: Option<&Service>) -> Result<Forward, Error> {
    let Some(service) = service else {
        let remote = pod_port(&wanted.remote, pod)?;
        return Ok(Forward { local: wanted.local.unwrap_or(remote), remote });
    };
    let port = service_port(&wanted.remote, service)?;
    let number = u16::try_from(port.port).map_err(|_| Error::Failed("not a port".into()))?;
    let headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    let remote = match &port.target_port {
        _ if headless && matches!(wanted.remote, Port::Number(_)) => number,
        Some(IntOrString::Int(target)) => u16::try_from(*target).unwrap_or(number),
        Some(IntOrString::String(name)) => pod_port(&Port::Name(name.clone()), pod)?,
        None => number,
    };
    Ok(Forward { local: wanted.local.unwrap_or(number), remote })
}

fn service_port<'a>(wanted: &Port, service: &'a Service) -> Result<&'a ServicePort, Error> {
    let name = service.name_any();
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let matching: Vec<&ServicePort> = ports
        .filter(|port| match wanted {
            Port::Number(number) => port.port == i32::from(*number),
            Port::Name(name) => port.name.as_ref() == Some(name),
        })
        .collect();
    match matching.iter().find(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP") {
        Some(port) => Ok(port),
        None if !matching.is_empty() => Err(unsupported(matching[0].protocol.as_deref(), wanted)),
        None => Err(Error::Failed(match wanted {
            Port::Number(number) => format!("Service {name} does not have a service port {number}"),
            Port::Name(port) => format!("Service '{name}' does not have a named port '{port}'"),
        })),
    }
}

fn pod_port(wanted: &Port, pod: &Pod) -> Result<u16, Error> {
    let mut ports = pod
        .spec
        .iter()
        .flat_map(|spec| {
            let sidecars = spec.init_containers.iter().flatten();
            sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten())
        })
        .collect::<Vec<_>>();
    ports.sort_by_key(|port| port.protocol.as_deref().unwrap_or("TCP") != "TCP");
    match wanted {
        Port::Number(number) => {
            // Ports need not be declared; one that is declared for UDP alone cannot be forwarded.
            match ports.iter().find(|port| port.container_port == i32::from(*number)) {
                Some(port) if port.protocol.as_deref().unwrap_or("TCP") != "TCP" => {
                    Err(unsupported(port.protocol.as_deref(), wanted))
                }
                _ => Ok(*number),
            }
        }
        Port::Name(name) => match ports.iter().find(|port| port.name.as_ref() == Some(name)) {
            Some(port) if port.protocol.as_deref().unwrap_or("TCP") != "TCP" => {
                Err(unsupported(port.protocol.as_deref(), wanted))
            }
            Some(port) => u16::try_from(port.container_port).map_err(|_| Error::Failed("not a port".into())),
            None => {
                Err(Error::Failed(format!("Pod '{}' does not have a named port '{name}'", pod.name_any())))
            }
        },
    }
}

fn unsupported(protocol: Option<&str>, port: &Port) -> Error {
    let port = match port {
        Port::Number(number) => number.to_string(),
        Port::Name(name) => name.clone(),
    };
    Error::Failed(format!("{} protocol is not supported for {port}", protocol.unwrap_or("UDP")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::options::ports::parse;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web" },
            "spec": { "containers": [{ "name": "a", "ports": [
                { "containerPort": 8080, "name": "http" },
                { "containerPort": 53, "name": "dns", "protocol": "UDP" } ] }] }
        }))
        .unwrap()
    }

    fn service(cluster_ip: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "svc" },
            "spec": { "clusterIP": cluster_ip, "ports": [
                { "port": 80, "name": "web", "targetPort": "http" },
                { "port": 81, "targetPort": 9000 },
                { "port": 53, "protocol": "UDP" } ] }
        }))
        .unwrap()
    }

    fn of_pod(text: &str) -> Result<(u16, u16), String> {
        let wanted = parse(text).map_err(|error| error.to_string())?;
        resolve(&wanted, &pod(), None)
            .map(|forward| (forward.local, forward.remote))
            .map_err(|error| error.to_string())
    }

    fn of_service(text: &str, cluster_ip: &str) -> Result<(u16, u16), String> {
        let wanted = parse(text).map_err(|error| error.to_string())?;
        resolve(&wanted, &pod(), Some(&service(cluster_ip)))
            .map(|forward| (forward.local, forward.remote))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_names_and_free_ports_of_a_pod() {
        assert_eq!(of_pod("8888:80"), Ok((8888, 80)));
        assert_eq!(of_pod("80"), Ok((80, 80)));
        assert_eq!(of_pod(":80"), Ok((0, 80)));
        assert_eq!(of_pod("9:http"), Ok((9, 8080)));
        assert_eq!(of_pod("http"), Ok((8080, 8080)));
        assert_eq!(of_pod("1:nope"), Err("Pod 'web' does not have a named port 'nope'".into()));
        assert_eq!(of_pod("1:dns"), Err("UDP protocol is not supported for dns".into()));
        assert_eq!(of_pod("1:53"), Err("UDP protocol is not supported for 53".into()));
    }

    #[test]
    fn a_service_s_port_leads_to_the_pod_s() {
        assert_eq!(of_service("8888:80", "10.0.0.1"), Ok((8888, 8080)));
        assert_eq!(of_service("80", "10.0.0.1"), Ok((80, 8080)));
        assert_eq!(of_service("web", "10.0.0.1"), Ok((80, 8080)));
        assert_eq!(of_service("1:81", "10.0.0.1"), Ok((1, 9000)));
        assert_eq!(of_service("1:81", "None"), Ok((1, 81)));
        assert_eq!(of_service("82", "10.0.0.1"), Err("Service svc does not have a service port 82".into()));
        assert_eq!(of_service("53", "10.0.0.1"), Err("UDP protocol is not supported for 53".into()));
    }
}
