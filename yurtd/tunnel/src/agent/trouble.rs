//! Why there is no session, in words that stay: `kubectl yurt tunnel diagnose` names the hop by them.

use std::io;

use rustls::{AlertDescription, CertificateError};
use tokio_tungstenite::tungstenite;
use yurt_node::dial::NetError;

use super::connect::ConnectError;

/// The word.
pub(super) fn code_of(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Files(_) => "NoCertificate",
        ConnectError::Address(_) => "WrongAddress",
        ConnectError::Net(NetError::Resolve { .. }) => "NoAddress",
        ConnectError::Net(NetError::Connect { source, .. }) => of_connect(source),
        ConnectError::Tls(error) => of_io(error),
        ConnectError::WebSocket(error) => match &**error {
            // With TLS 1.3 a server says with the first bytes what it thinks of a client's certificate.
            tungstenite::Error::Io(error) => of_io(error),
            _ => "NotATunnelServer",
        },
        ConnectError::Hello(_) => "NotATunnelServer",
        ConnectError::Timeout => "Silent",
    }
}

fn of_connect(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => "Refused",
        io::ErrorKind::TimedOut => "Silent",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "Unreachable",
        _ => "Broken",
    }
}

fn of_io(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(error)) => of_certificate(error),
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateExpired => "OwnCertificateExpired",
            _ => "OwnCertificateRefused",
        },
        Some(_) => "NotATunnelServer",
        None => "Broken",
    }
}

/// The server's, as this node's clock and its CA bundle see it.
fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "CertificateExpired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "ClockBehind",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "NotATunnelServer"
        }
        _ => "WrongCa",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(error: rustls::Error) -> ConnectError {
        ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn each_trouble_has_its_word() {
        let address = "192.0.2.1:10262".parse().unwrap();
        let net = |kind: io::ErrorKind| {
            code_of(&ConnectError::Net(NetError::Connect { address, source: kind.into() }))
        };
        assert_eq!(net(io::ErrorKind::ConnectionRefused), "Refused");
        assert_eq!(net(io::ErrorKind::TimedOut), "Silent");
        assert_eq!(net(io::ErrorKind::HostUnreachable), "Unreachable");
        let certificate = |error: CertificateError| code_of(&tls(error.into()));
        assert_eq!(certificate(CertificateError::UnknownIssuer), "WrongCa");
        assert_eq!(certificate(CertificateError::BadSignature), "WrongCa");
        assert_eq!(certificate(CertificateError::Expired), "CertificateExpired");
        assert_eq!(certificate(CertificateError::NotValidYet), "ClockBehind");
        assert_eq!(certificate(CertificateError::NotValidForName), "NotATunnelServer");
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        let late = tungstenite::Error::Io(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert_eq!(code_of(&ConnectError::WebSocket(Box::new(late))), "OwnCertificateExpired");
        assert_eq!(code_of(&ConnectError::Timeout), "Silent");
    }
}
