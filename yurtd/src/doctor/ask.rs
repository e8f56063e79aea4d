//! Asks the running hub, or says why not and what is seen from outside: whether its health port answers, and how large the
//! store is. The store itself is not opened: a process that is about to start would find it in use.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use yurt_api::doctor::{Outside, Report, VERSION};
use yurt_api::names;

/// Longer than a hub takes that has a slow disk and 500 pods.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bound of a report: a view takes some hundred bytes, and there are 2,000 at most.
const MAX_REPORT: u64 = 32 << 20;
/// Bound of what is looked at of an answer on the health port.
const MAX_PROBE: u64 = 64 << 10;

/// What the hub says, or what is seen of it.
pub(crate) fn report(runtime_dir: &Path, state_dir: &Path) -> Report {
    match ask(&runtime_dir.join(names::DOCTOR_SOCKET)) {
        Ok(report) => report,
        Err(error) => {
            let health = SocketAddr::from((Ipv4Addr::LOCALHOST, names::HUB_HEALTH_PORT));
            let store = std::fs::metadata(state_dir.join("store").join("data.mdb"));
            let outside = Outside {
                error: why(&error),
                readyz: probe(health).ok(),
                store_bytes: store.ok().map(|file| file.len()),
            };
            Report { version: VERSION, outside: Some(outside), ..Report::default() }
        }
    }
}

fn ask(socket: &Path) -> io::Result<Report> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.take(MAX_REPORT).read_to_end(&mut text)?;
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
    }
    Ok(serde_json::from_slice(&text)?)
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no socket: yurtd does not run, or this is no edge node".to_owned()
        }
        io::ErrorKind::ConnectionRefused => "yurtd has ended".to_owned(),
        io::ErrorKind::PermissionDenied => "only root may ask".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "yurtd runs and does not answer".to_owned(),
        _ => error.to_string(),
    }
}

/// The status of `/readyz`: `200 OK`.
fn probe(health: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&health, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_PROBE).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.map(str::to_owned).ok_or_else(|| io::Error::other("no HTTP"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Asks a socket at which somebody says this.
    fn told(text: &'static [u8]) -> Report {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(names::DOCTOR_SOCKET)).unwrap();
        let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(text).unwrap());
        let report = report(dir.path(), dir.path());
        server.join().unwrap();
        report
    }

    #[test]
    fn the_report_is_what_the_hub_says() {
        let report = told(br#"{"version":1,"hub":{"node":"edge"}}"#);
        assert_eq!(report.hub.unwrap().node, "edge");
        assert_eq!(report.outside, None);
    }

    #[test]
    fn without_an_answer_it_says_why_and_what_is_seen() {
        for broken in [&b""[..], b"{\"hub\":{\"no", b"HTTP/1.1 400 Bad Request"] {
            let report = told(broken);
            assert!(report.hub.is_none() && !report.outside.unwrap().error.is_empty());
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::write(dir.path().join("store/data.mdb"), [0; 100]).unwrap();
        let outside = report(dir.path(), dir.path()).outside.unwrap();
        assert!(outside.error.contains("does not run"), "{}", outside.error);
        assert_eq!(outside.store_bytes, Some(100));
    }

    #[test]
    fn the_health_port_is_asked_for_its_status() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz "));
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}").unwrap();
        });
        assert_eq!(probe(address).unwrap(), "503 Service Unavailable");
        server.join().unwrap();
        assert!(probe(address).is_err(), "nobody listens any more");
    }
}
