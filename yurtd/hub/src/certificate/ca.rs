//! The node's CA: made on the node, believed by this node's kubelet and pods alone, signs the hub's certificate and
//! nothing else.
//!
//! Valid from 1970 on: a board without a battery-backed clock boots in that year, without a link, and its pods and its
//! kubelet have to believe the hub then. Until 2100: nobody but the hub of this node could renew it.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::CertificateError;
use super::names::Name;

/// First second after the CA's life: 2100-01-01.
pub(super) const END: u64 = 4_102_444_800;

/// The CA with its key. Cheap to ask, dear to lose: whoever believed it has to be told of the next one.
pub(crate) struct NodeCa {
    /// Certificate, PEM.
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl NodeCa {
    /// Makes one; the text of its file comes with it.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub(super) fn make() -> Result<(Self, String), CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "kubectl-yurt");
        // One of its own for each: a pod may believe this one and the one before it, and not every verifier looks at
        // the key identifier before it settles for an issuer by name.
        params.distinguished_name.push(DnType::CommonName, format!("node CA {}", tag()?));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lives_until(&mut params, END);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        let text = format!("{}{pem}", key.serialize_pem());
        let ca = Self::parse(&text)?;
        Ok((ca, text))
    }

    /// Reads the text of its file: a key and the certificate.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Unusable`] when it is not a whole CA.
    pub(super) fn parse(text: &str) -> Result<Self, CertificateError> {
        let unusable = |reason: &dyn std::fmt::Display| CertificateError::Unusable(reason.to_string());
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| unusable(&error))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| unusable(&error))?;
        if !parsed.is_ca() {
            return Err(unusable(&"it is no CA"));
        }
        let key = KeyPair::from_pem(text).map_err(|error| unusable(&error))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(&"the key is another one's"));
        }
        let begin = text.find("-----BEGIN CERTIFICATE-----").ok_or_else(|| unusable(&"there is none"))?;
        let pem = text.get(begin..).unwrap_or_default().to_owned();
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| unusable(&error))?;
        Ok(Self { pem, der, issuer })
    }

    /// The certificate in PEM, for whoever is to believe the hub.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate.
    pub(super) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Signs a serving certificate; key and certificate in PEM.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub(super) fn issue<'n>(
        &self,
        names: impl IntoIterator<Item = &'n Name>,
        until: u64,
    ) -> Result<String, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "kubectl-yurt");
        params.distinguished_name.push(DnType::CommonName, "yurt-hub");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Strict verifiers (Python 3.13 by default) want it.
        params.use_authority_key_identifier_extension = true;
        for name in names {
            params.subject_alt_names.push(match name {
                Name::Address(address) => SanType::IpAddress(IpAddr::clone(address)),
                Name::Dns(dns) => SanType::DnsName(dns.as_str().try_into()?),
            });
        }
        lives_until(&mut params, until);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
    }
}

/// Never shows the key.
impl std::fmt::Debug for NodeCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCa").field("pem", &self.pem).finish_non_exhaustive()
    }
}

/// Begins in 1970: rcgen writes years from 1950 to 2049 as UTCTime and later ones as GeneralizedTime (RFC 5280
/// §4.1.2.5), and webpki reads nothing before 1970.
fn lives_until(params: &mut CertificateParams, end: u64) {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = params.not_before + Duration::from_secs(end);
}

fn tag() -> Result<String, CertificateError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CertificateError::Unusable("there is no randomness".into()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_read_back_as_it_was_made() {
        let (made, text) = NodeCa::make().unwrap();
        let read = NodeCa::parse(&text).unwrap();
        assert_eq!((read.pem(), read.der()), (made.pem(), made.der()));
        assert!(!read.pem().contains("PRIVATE KEY") && text.contains("PRIVATE KEY"));
        assert!(!format!("{read:?}").contains("PRIVATE KEY"));
        let (other, _) = NodeCa::make().unwrap();
        assert_ne!(other.pem(), made.pem());
    }

    #[test]
    fn it_is_valid_from_1970_to_2100_and_signs_leaves_alone() {
        let (ca, _) = NodeCa::make().unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(ca.der()).unwrap();
        let validity = parsed.validity();
        assert_eq!((validity.not_before.timestamp(), validity.not_after.timestamp()), (0, 4_102_444_800));
        assert!(validity.not_before.is_utctime() && validity.not_after.is_generalizedtime());
        let constraints = parsed.basic_constraints().unwrap().unwrap();
        assert!(
            constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0)
        );
        let usage = parsed.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
        let subject = parsed.subject().to_string();
        assert!(subject.starts_with("O=kubectl-yurt, CN=node CA "), "{subject}");
    }

    #[test]
    fn half_a_ca_two_that_do_not_belong_together_and_a_leaf_are_none() {
        let (ca, text) = NodeCa::make().unwrap();
        for end in [0, 1, text.len() / 4, text.len() / 2, text.len() - 40] {
            assert!(NodeCa::parse(&text[..end]).is_err(), "{end} bytes");
        }
        let (_, other) = NodeCa::make().unwrap();
        let key = other.split("-----BEGIN CERTIFICATE").next().unwrap();
        let mixed = format!("{key}{}", ca.pem());
        let error = NodeCa::parse(&mixed).unwrap_err();
        assert!(error.to_string().contains("another one's"), "{error}");
        let leaf = ca.issue(&[Name::Dns("kubernetes".into())], END).unwrap();
        let error = NodeCa::parse(&leaf).unwrap_err();
        assert!(error.to_string().contains("no CA"), "{error}");
        assert!(NodeCa::parse(&"\0".repeat(text.len())).is_err());
    }
}
