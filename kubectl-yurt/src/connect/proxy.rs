//! Which proxy leads to a server, as kubectl finds it: the kubeconfig's `proxy-url`, or the environment by the rules
//! of Go's `golang.org/x/net/http/httpproxy`. Asked for each server: the API server's proxy need not be the tunnel
//! server's. Pure, but for [`Environment::read`].
//!
//! Why not a library: kube matches `NO_PROXY` against the proxy instead of the server and fails on an empty element;
//! hyper-util's matcher follows curl: no `*` for addresses, no ports, no `*.domain`.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

use crate::error::Error;

/// What the environment says about proxies; empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// For `https` servers.
    pub https: String,
    /// For `http` servers.
    pub http: String,
    /// Servers that are reached without one.
    pub no: String,
}

impl Environment {
    /// Reads the variables, in capitals first, as Go does.
    pub fn read() -> Self {
        let get = |names: [&str; 2]| {
            let mut values = names.into_iter().filter_map(|name| std::env::var(name).ok());
            values.find(|value| !value.is_empty()).unwrap_or_default()
        };
        Self {
            https: get(["HTTPS_PROXY", "https_proxy"]),
            http: get(["HTTP_PROXY", "http_proxy"]),
            no: get(["NO_PROXY", "no_proxy"]),
        }
    }
}

/// Everything that decides about proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The kubeconfig's `proxy-url`: it is for every server of the cluster, whatever the environment says.
    pub configured: Option<String>,
    /// The environment.
    pub environment: Environment,
}

impl Proxies {
    /// The proxy for `server`; `None` to reach it directly.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when the proxy's address cannot be understood.
    pub fn of(&self, server: &Uri) -> Result<Option<Uri>, Error> {
        if let Some(configured) = self.configured.as_deref().filter(|text| !text.is_empty()) {
            return address("proxy-url", configured).map(Some);
        }
        let host = server.host().unwrap_or_default();
        let (name, proxy, default_port) = match server.scheme_str() {
            Some("https") => ("HTTPS_PROXY", &self.environment.https, 443),
            Some("http") => ("HTTP_PROXY", &self.environment.http, 80),
            _ => return Ok(None),
        };
        let port = server.port_u16().unwrap_or(default_port);
        if proxy.is_empty() || !is_proxied(&self.environment.no, host, port) {
            return Ok(None);
        }
        address(name, proxy).map(Some)
    }
}

/// A proxy's address; without a scheme it is an `http` one.
fn address(name: &str, text: &str) -> Result<Uri, Error> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    // kube knows the one name; both leave the resolving to the proxy.
    let full = full.strip_prefix("socks5h://").map(|rest| format!("socks5://{rest}")).unwrap_or(full);
    match full.parse::<Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        // The text may hold a password.
        _ => Err(Error::Failed(format!(
            "{name} is no address of a proxy: want a form such as http://HOST:PORT"
        ))),
    }
}

/// True if `host:port` is reached through the proxy, as Go's `useProxy` says.
fn is_proxied(no_proxy: &str, host: &str, port: u16) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host == "localhost" {
        return false;
    }
    let ip = host.parse::<IpAddr>().ok();
    if ip.is_some_and(|ip| ip.to_canonical().is_loopback()) {
        return false;
    }
    !no_proxy
        .split(',')
        .map(|entry| entry.trim().to_ascii_lowercase())
        .any(|entry| exempts(&entry, &host, ip, port))
}

/// True if an entry of `NO_PROXY` is about this server.
fn exempts(entry: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(net) = entry.parse::<IpNet>() {
        return ip.is_some_and(|ip| net.contains(&ip.to_canonical()));
    }
    let (name, wanted) = split_port(entry);
    if name.is_empty() || wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return ip.is_some_and(|ip| ip.to_canonical() == address.to_canonical());
    }
    // `*.example.com` and `.example.com` are the names below, `example.com` is itself, too.
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|front| front.ends_with('.')),
    }
}

/// `host`, `host:port`, `[address]:port`, or an IPv6 address as it is.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    if let Some(rest) = entry.strip_prefix('[') {
        let (name, port) = rest.split_once(']').unwrap_or((rest, ""));
        return (name, port.strip_prefix(':'));
    }
    match entry.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, Some(port)),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "http://proxy.corp:3128";

    fn proxies(no: &str) -> Proxies {
        let environment = Environment { https: PROXY.into(), http: "plain.corp:8080".into(), no: no.into() };
        Proxies { configured: None, environment }
    }

    fn of(proxies: &Proxies, server: &str) -> Option<String> {
        proxies.of(&server.parse().unwrap()).unwrap().map(|uri| uri.to_string())
    }

    /// Go's own table (`httpproxy/proxy_test.go`), as far as it is about servers of clusters.
    #[test]
    fn no_proxy_means_what_it_means_to_kubectl() {
        for (no, server, direct) in [
            ("", "https://10.0.0.1:6443", false),
            ("", "https://localhost:6443", true),
            ("", "https://127.0.0.1:6443", true),
            ("", "https://127.3.4.5", true),
            ("", "https://[::1]:6443", true),
            ("", "https://localhost.localdomain", false),
            ("*", "https://10.0.0.1:6443", true),
            ("*", "https://api.example.com", true),
            ("10.0.0.1", "https://10.0.0.1:6443", true),
            ("10.0.0.1", "https://10.0.0.10:6443", false),
            ("10.0.0.1:6443", "https://10.0.0.1:6443", true),
            ("10.0.0.1:6443", "https://10.0.0.1:10263", false),
            ("10.0.0.0/8", "https://10.80.0.2:6443", true),
            ("10.0.0.0/8", "https://11.80.0.2:6443", false),
            ("10.0.0.0/8", "https://ten.example.com", false),
            ("10.0.0.5/8", "https://10.1.2.3", true),
            ("fd00::/8", "https://[fd00::2]:6443", true),
            ("fd00::2", "https://[fd00::2]:6443", true),
            ("[fd00::2]:6443", "https://[fd00::2]:6443", true),
            ("[fd00::2]:6443", "https://[fd00::2]:443", false),
            ("example.com", "https://example.com", true),
            ("example.com", "https://api.example.com:6443", true),
            ("example.com", "https://notexample.com", false),
            ("example.com:443", "https://api.example.com", true),
            ("example.com:443", "https://api.example.com:6443", false),
            (".example.com", "https://api.example.com", true),
            (".example.com", "https://example.com", false),
            ("*.example.com", "https://api.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("Example.COM", "https://api.EXAMPLE.com", true),
            ("a, , example.com ,", "https://example.com", true),
            (",", "https://example.com", false),
            (":6443", "https://example.com:6443", false),
            ("proxy.corp", "https://example.com", false),
        ] {
            let expected = (!direct).then(|| format!("{PROXY}/"));
            assert_eq!(of(&proxies(no), server), expected, "NO_PROXY={no:?} {server}");
        }
    }

    #[test]
    fn the_scheme_of_the_server_chooses_the_proxy() {
        assert_eq!(of(&proxies(""), "http://api:8080"), Some("http://plain.corp:8080/".into()));
        assert_eq!(of(&Proxies::default(), "https://api:6443"), None);
    }

    #[test]
    fn the_kubeconfig_s_proxy_is_for_everything() {
        let mut proxies = proxies("*");
        proxies.configured = Some("socks5h://bastion:1080".into());
        assert_eq!(of(&proxies, "https://127.0.0.1:6443"), Some("socks5://bastion:1080/".into()));
        proxies.configured = Some(String::new());
        assert_eq!(of(&proxies, "https://10.0.0.1:6443"), None);
    }

    #[test]
    fn a_proxy_that_is_no_address_is_named_without_its_password() {
        let mut proxies = proxies("");
        proxies.environment.https = "http://user:secret@ /".into();
        let error = proxies.of(&"https://10.0.0.1".parse().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("HTTPS_PROXY is no address") && !error.contains("secret"), "{error}");
    }
}
