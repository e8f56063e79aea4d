//! The tunnel's own CA and the tunnel server's certificate: what is good, what has to be issued. Pure but
//! for the random numbers of new keys; `certificates` applies it.
//!
//! A CA of our own and not a signer of Kubernetes: agents verify a *name*
//! ([`names::TUNNEL_SERVER_NAME`]) and the addresses that the plugin finds, and no built-in signer issues
//! such a certificate to a workload. The CA is made once and lives ten years; every agent has its
//! certificate on disk, so replacing it is a person's decision.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use yurt_api::names;
use yurt_api::status::ClusterConfig;

/// Key of a certificate in a Secret of type `kubernetes.io/tls`.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// Key of a private key in a Secret of type `kubernetes.io/tls`.
pub(super) const KEY: &str = "tls.key";

/// Life of the CA: ten years.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of a serving certificate: a year, so that a controller that is down for a season cuts nobody off.
const SERVING_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of edge nodes lag behind; certificates begin that much earlier.
const SLACK: Duration = Duration::from_secs(3600);

/// Why the CA cannot be used or a certificate not be issued.
#[derive(Debug, thiserror::Error)]
pub(super) enum CaError {
    /// A part of the Secret is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// The certificate is none.
    #[error("{CERTIFICATE} is not a certificate in PEM")]
    Certificate,
    /// The certificate may not sign.
    #[error("{CERTIFICATE} is not the certificate of a CA")]
    NotACa,
    /// The key is none.
    #[error("{KEY} is not a private key that can sign: {0}")]
    Key(rcgen::Error),
    /// The two do not belong together.
    #[error("{KEY} is not the key of {CERTIFICATE}")]
    Mismatch,
    /// It is over.
    #[error("{CERTIFICATE} has expired")]
    Expired,
    /// Issuing failed.
    #[error("cannot issue a certificate: {0}")]
    Issue(rcgen::Error),
}

/// A CA that can issue.
pub(super) struct Ca {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub(super) struct Pair {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

/// Never shows the key.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Pair {
    /// Reads a Secret. Only says what is missing.
    ///
    /// # Errors
    ///
    /// [`CaError::Missing`].
    pub(super) fn from_secret(secret: &Secret) -> Result<Self, CaError> {
        let part = |name: &'static str| {
            let data = secret.data.as_ref().and_then(|data| data.get(name)).ok_or(CaError::Missing(name))?;
            String::from_utf8(data.0.clone()).map_err(|_| CaError::Missing(name))
        };
        Ok(Self { certificate: part(CERTIFICATE)?, key: part(KEY)? })
    }

    /// The data of a Secret.
    pub(super) fn into_data(self) -> std::collections::BTreeMap<String, k8s_openapi::ByteString> {
        [(CERTIFICATE, self.certificate), (KEY, self.key)]
            .into_iter()
            .map(|(name, text)| (name.to_owned(), k8s_openapi::ByteString(text.into_bytes())))
            .collect()
    }
}

impl Ca {
    /// Makes a new CA.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub(super) fn create(now: Timestamp) -> Result<Pair, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names::TUNNEL_CA_SECRET);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        lives(&mut params, now, CA_LIFE);
        let key = KeyPair::generate().map_err(CaError::Issue)?;
        let certificate = params.self_signed(&key).map_err(CaError::Issue)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Reads and checks a CA.
    ///
    /// # Errors
    ///
    /// [`CaError`] says what is wrong with it.
    pub(super) fn read(pair: &Pair, now: Timestamp) -> Result<Self, CaError> {
        let der =
            CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(|_| CaError::Certificate)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| CaError::Certificate)?;
        if !parsed.is_ca() {
            return Err(CaError::NotACa);
        }
        let key = KeyPair::from_pem(&pair.key).map_err(CaError::Key)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Mismatch);
        }
        if parsed.validity().not_after.timestamp() <= now.as_second() {
            return Err(CaError::Expired);
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(CaError::Issue)?;
        // Only the first certificate counts: what follows it was never ours.
        let pem = pem_of(&pair.certificate);
        Ok(Self { pem, der, issuer })
    }

    /// The CA's certificate in PEM, for the agents.
    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues the tunnel server's certificate.
    ///
    /// # Errors
    ///
    /// [`CaError::Issue`].
    pub(super) fn issue(&self, wanted: &BTreeSet<Name>, now: Timestamp) -> Result<Pair, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names::TUNNEL_SERVER);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        for name in wanted {
            params.subject_alt_names.push(match name {
                Name::Address(address) => SanType::IpAddress(*address),
                Name::Dns(dns) => SanType::DnsName(dns.as_str().try_into().map_err(CaError::Issue)?),
            });
        }
        lives(&mut params, now, SERVING_LIFE);
        let key = KeyPair::generate().map_err(CaError::Issue)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Issue)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Why the present serving certificate has to be replaced; `None` when it is good.
    pub(super) fn objection(
        &self,
        present: Option<&Pair>,
        wanted: &BTreeSet<Name>,
        now: Timestamp,
    ) -> Option<&'static str> {
        let Some(present) = present else { return Some("there is none") };
        let Ok(der) = CertificateDer::from_pem_slice(present.certificate.as_bytes()) else {
            return Some("it is not a certificate");
        };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else {
            return Some("it is not a certificate");
        };
        let Ok(key) = KeyPair::from_pem(&present.key) else { return Some("its key cannot be read") };
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Some("its key is another one's");
        }
        let (begin, end) =
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        // Two thirds of its life: the rest is for whatever keeps the controller from working.
        if now.as_second() >= begin.saturating_add(end.saturating_sub(begin) / 3 * 2) {
            return Some("two thirds of its life are over");
        }
        if names_of(&parsed).as_ref() != Some(wanted) {
            return Some("the tunnel servers' addresses have changed");
        }
        if !self.has_issued(&der, now) {
            return Some("it is not of this CA");
        }
        None
    }

    fn has_issued(&self, der: &CertificateDer<'_>, now: Timestamp) -> bool {
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let (Ok(anchor), Ok(certificate), Ok(name)) = (
            anchor_from_trusted_cert(&self.der),
            EndEntityCert::try_from(der),
            ServerName::try_from(names::TUNNEL_SERVER_NAME),
        ) else {
            return false;
        };
        let chains = certificate
            .verify_for_usage(algorithms.all, &[anchor], &[], time, KeyUsage::server_auth(), None, None)
            .is_ok();
        chains && certificate.verify_is_valid_for_subject_name(&name).is_ok()
    }
}

/// The first certificate of a bundle, as it stands there.
fn pem_of(bundle: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    match bundle.find(END) {
        Some(end) => format!("{}\n", bundle.get(..end + END.len()).unwrap_or(bundle).trim_start()),
        None => bundle.to_owned(),
    }
}

fn lives(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    params.not_before = epoch + now.saturating_sub(SLACK);
    params.not_after = epoch + now + life;
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// An IP address.
    Address(IpAddr),
    /// A DNS name, in lower case.
    Dns(String),
}

impl Name {
    /// An address, or what can be a DNS name; nothing for the rest.
    fn parse(host: &str) -> Option<Self> {
        let host = host.trim().trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse() {
            return Some(Self::Address(address));
        }
        let lower = host.to_ascii_lowercase();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (lower.len() <= 253 && lower.split('.').all(label)).then_some(Self::Dns(lower))
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Option<BTreeSet<Name>> {
    let list = certificate.subject_alternative_name().ok()??;
    list.value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(dns) => Some(Name::Dns((*dns).to_owned())),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(bytes) => Some(Name::Address(bytes.into())),
                Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| Name::Address(bytes.into())),
            },
            _ => None,
        })
        .collect()
}

/// The names that the tunnel server is reached by: its own, every address of a control-plane node, and
/// the hosts that the configuration gives to agents and plugins.
pub(super) fn wanted<'a>(nodes: impl Iterator<Item = &'a Node>, config: &ClusterConfig) -> BTreeSet<Name> {
    let mut wanted = BTreeSet::from([
        Name::Dns(names::TUNNEL_SERVER_NAME.to_owned()),
        Name::Dns("localhost".to_owned()),
        Name::Address(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
    ]);
    let is_control_plane = |node: &&Node| {
        node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::LABEL_CONTROL_PLANE))
    };
    for node in nodes.filter(is_control_plane) {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        wanted.extend(addresses.filter_map(|address| Name::parse(&address.address)));
    }
    for address in config.tunnel_addresses.iter().chain(&config.tunnel_api_addresses) {
        let host = address.parse::<http::uri::Authority>().ok();
        match host.as_ref().and_then(|authority| Name::parse(authority.host())) {
            Some(name) => {
                wanted.insert(name);
            }
            None => tracing::warn!(address, "an address in the configuration is not host:port"),
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-11-23T08:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> Timestamp {
        Timestamp::from_second(now().as_second() + days * 24 * 3600).unwrap()
    }

    fn ca() -> Ca {
        Ca::read(&Ca::create(now()).unwrap(), now()).unwrap()
    }

    fn names() -> BTreeSet<Name> {
        wanted([].iter(), &ClusterConfig::default())
    }

    #[test]
    fn a_new_certificate_is_good_until_two_thirds_of_its_life() {
        let ca = ca();
        let pair = ca.issue(&names(), now()).unwrap();
        assert_eq!(ca.objection(Some(&pair), &names(), now()), None);
        assert_eq!(ca.objection(Some(&pair), &names(), later(243)), None);
        assert!(ca.objection(Some(&pair), &names(), later(244)).is_some());
    }

    #[test]
    fn other_names_another_ca_another_key_and_rubbish_are_objected_to() {
        let (ca, another) = (ca(), ca());
        let pair = ca.issue(&names(), now()).unwrap();
        assert_eq!(ca.objection(None, &names(), now()), Some("there is none"));
        let mut more = names();
        more.insert(Name::Address("10.80.0.2".parse().unwrap()));
        assert_eq!(
            ca.objection(Some(&pair), &more, now()),
            Some("the tunnel servers' addresses have changed")
        );
        assert_eq!(another.objection(Some(&pair), &names(), now()), Some("it is not of this CA"));
        let other_key = Pair { key: KeyPair::generate().unwrap().serialize_pem(), ..pair.clone() };
        assert_eq!(ca.objection(Some(&other_key), &names(), now()), Some("its key is another one's"));
        let rubbish = Pair { certificate: "rubbish".into(), key: String::new() };
        assert!(ca.objection(Some(&rubbish), &names(), now()).is_some());
    }

    #[test]
    fn a_broken_ca_is_told_by_what_is_broken() {
        let good = Ca::create(now()).unwrap();
        let read = |pair: &Pair, at| Ca::read(pair, at).map(|_| ()).map_err(|error| error.to_string());
        read(&good, now()).unwrap();
        let other = Ca::create(now()).unwrap();
        let swapped = Pair { key: other.key, ..good.clone() };
        assert_eq!(read(&swapped, now()).unwrap_err(), "tls.key is not the key of tls.crt");
        assert_eq!(read(&good, later(3651)).unwrap_err(), "tls.crt has expired");
        let truncated = Pair { certificate: good.certificate[..200].into(), ..good.clone() };
        assert_eq!(read(&truncated, now()).unwrap_err(), "tls.crt is not a certificate in PEM");
        let no_key = Pair { key: "-----BEGIN".into(), ..good.clone() };
        assert!(read(&no_key, now()).unwrap_err().starts_with("tls.key is not a private key"));
        let leaf = ca().issue(&names(), now()).unwrap();
        assert_eq!(read(&leaf, now()).unwrap_err(), "tls.crt is not the certificate of a CA");
        let mut secret = Secret { data: Some(good.into_data()), ..Secret::default() };
        assert!(Pair::from_secret(&secret).is_ok());
        secret.data.as_mut().unwrap().remove(KEY);
        assert_eq!(Pair::from_secret(&secret).unwrap_err().to_string(), "it has no tls.key");
    }

    #[test]
    fn the_names_are_the_control_planes_and_the_configurations() {
        let node = |labels: serde_json::Value, addresses: &[&str]| -> Node {
            let addresses: Vec<_> =
                addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
            serde_json::from_value(json!({
                "metadata": {"name": "n", "labels": labels}, "status": {"addresses": addresses}
            }))
            .unwrap()
        };
        let nodes = [
            node(json!({"node-role.kubernetes.io/control-plane": ""}), &["10.80.0.2", "fd00::2", "Master-1"]),
            node(json!({"node-role.kubernetes.io/control-plane": ""}), &["not a name", ""]),
            node(json!({}), &["192.168.0.100"]),
        ];
        let config = ClusterConfig {
            tunnel_addresses: vec!["tunnel.example.com:10262".into(), "[2001:db8::1]:443".into()],
            tunnel_api_addresses: vec!["203.0.113.9:10263".into(), "::::".into()],
        };
        let expected: BTreeSet<Name> = [
            "yurt-tunnel-server.kube-system.svc",
            "localhost",
            "127.0.0.1",
            "10.80.0.2",
            "fd00::2",
            "master-1",
            "tunnel.example.com",
            "2001:db8::1",
            "203.0.113.9",
        ]
        .into_iter()
        .filter_map(Name::parse)
        .collect();
        assert_eq!(expected.len(), 9);
        assert_eq!(wanted(nodes.iter(), &config), expected);
    }

    #[test]
    fn a_key_is_never_printed() {
        let pair = Ca::create(now()).unwrap();
        assert!(!format!("{pair:?}").contains("PRIVATE"));
    }
}
