//! The hub's own certificate, of the node's CA: when it is good, and when another is due.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use yurt_node::pki;

use super::CertificateError;
use super::ca::{END, NodeCa};
use super::names::{Name, names_of};
use crate::clock::unix_seconds;

const YEAR: u64 = 365 * 24 * 3600;
/// Life of a certificate. Long enough that a clock which is years behind when it is made, and then jumps, does not end
/// it: it is made again within seconds of such a jump, and handshakes do not wait.
const LIFE: u64 = 10 * YEAR;
/// Another one is made when less than this is left.
const RENEWED_BEFORE: u64 = 2 * YEAR;
/// This code was not there before: a clock that is behind it is wrong. 2026-01-01.
const LATER_THAN: u64 = 1_767_225_600;

/// Key and certificate, checked to belong together and to this node's CA.
pub(super) struct Serving {
    /// Text of its file.
    pub(super) pem: String,
    pub(super) certified: CertifiedKey,
    pub(super) names: BTreeSet<Name>,
    not_after: u64,
}

impl Serving {
    /// Lets the CA sign one for these names.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub(super) fn issue(
        ca: &NodeCa,
        names: &BTreeSet<Name>,
        now: SystemTime,
    ) -> Result<Self, CertificateError> {
        Self::parse(ca.issue(names, end_of_one_made(now))?, ca)
    }

    /// Reads the text of its file: one key, one certificate.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Unusable`]: whoever believes the CA would not take it.
    pub(super) fn parse(pem: String, ca: &NodeCa) -> Result<Self, CertificateError> {
        let unusable = |reason: &dyn std::fmt::Display| CertificateError::Unusable(reason.to_string());
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(&error))?;
        let (names, not_after) = {
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| unusable(&error))?;
            (names_of(&parsed), u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0))
        };
        // Whether its time is over is another question (`is_due`).
        EndEntityCert::try_from(&der)
            .and_then(|certificate| {
                let anchor = anchor_from_trusted_cert(ca.der())?;
                let moment = UnixTime::since_unix_epoch(Duration::ZERO);
                let usage = KeyUsage::server_auth();
                let algorithms = webpki::ALL_VERIFICATION_ALGS;
                certificate.verify_for_usage(algorithms, &[anchor], &[], moment, usage, None, None).map(drop)
            })
            .map_err(|error| unusable(&format!("this node's CA did not sign it ({error})")))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(&error))?;
        let certified =
            CertifiedKey::from_der(vec![der], key, &pki::provider()).map_err(|error| unusable(&error))?;
        Ok(Self { pem, certified, names, not_after })
    }

    /// Why another one has to be made now; nothing while this one is good.
    pub(super) fn objection(&self, wanted: &BTreeSet<Name>, now: SystemTime) -> Option<&'static str> {
        if self.names != *wanted {
            return Some("the names of the API server on this node have changed");
        }
        let over = unix_seconds(now).saturating_add(RENEWED_BEFORE) > self.not_after;
        // At the end of the CA's own life nothing is won by it.
        (over && end_of_one_made(now) > self.not_after).then_some("its time is nearly over")
    }

    /// Its end, RFC 3339.
    pub(super) fn expires(&self) -> Option<String> {
        jiff::Timestamp::from_second(i64::try_from(self.not_after).ok()?).ok().map(|time| time.to_string())
    }
}

fn end_of_one_made(now: SystemTime) -> u64 {
    unix_seconds(now).max(LATER_THAN).saturating_add(LIFE).min(END)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rustls_pki_types::ServerName;

    use super::*;
    use crate::certificate::names::Names;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn names() -> BTreeSet<Name> {
        let service = ["10.96.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        Names::new("edge", None).with(&service.into())
    }

    #[test]
    fn a_client_that_believes_the_ca_takes_it_by_every_name_whatever_its_clock_says() {
        let (ca, _) = NodeCa::make().unwrap();
        let serving = Serving::issue(&ca, &names(), at(LATER_THAN)).unwrap();
        let leaf = EndEntityCert::try_from(&serving.certified.cert[0]).unwrap();
        let anchor = anchor_from_trusted_cert(ca.der()).unwrap();
        for now in [0, 1, 60, LATER_THAN, LATER_THAN + 9 * YEAR] {
            let moment = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let (usage, algorithms) = (KeyUsage::server_auth(), webpki::ALL_VERIFICATION_ALGS);
            let anchors = std::slice::from_ref(&anchor);
            leaf.verify_for_usage(algorithms, anchors, &[], moment, usage, None, None).unwrap();
        }
        for name in names() {
            let text = match name {
                Name::Address(address) => address.to_string(),
                Name::Dns(dns) => dns,
            };
            let name = ServerName::try_from(text.as_str()).unwrap();
            leaf.verify_is_valid_for_subject_name(&name).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        for other in ["10.96.0.2", "other", "kubernetes.default.svc.example.com", "a.kubernetes"] {
            let name = ServerName::try_from(other).unwrap();
            assert!(leaf.verify_is_valid_for_subject_name(&name).is_err(), "{other}");
        }
    }

    #[test]
    fn it_is_renewed_well_before_its_end_and_when_the_clock_jumps_there() {
        let (ca, _) = NodeCa::make().unwrap();
        let made = |now| Serving::issue(&ca, &names(), at(now)).unwrap();
        // A board whose clock says 1970 makes one that outlives the jump to the present.
        let first = made(5);
        for good in [0, LATER_THAN, LATER_THAN + 8 * YEAR] {
            assert_eq!(first.objection(&names(), at(good)), None, "{good}");
        }
        assert_eq!(first.expires().as_deref(), Some("2035-12-30T00:00:00Z"));
        for due in [LATER_THAN + 8 * YEAR + 1, LATER_THAN + 30 * YEAR] {
            assert!(first.objection(&names(), at(due)).is_some(), "{due}");
            let next = made(due);
            // The clock may jump back.
            for good in [0, LATER_THAN, due] {
                assert_eq!(next.objection(&names(), at(good)), None, "{due} {good}");
            }
        }
        // Where the CA ends, nothing is made again and again.
        for late in [END - YEAR, END, END + YEAR] {
            assert_eq!(made(late).objection(&names(), at(late)), None);
        }
    }

    #[test]
    fn another_name_makes_another_one() {
        let (ca, _) = NodeCa::make().unwrap();
        let serving = Serving::issue(&ca, &names(), at(LATER_THAN)).unwrap();
        assert_eq!(serving.names, names());
        for other in [
            Names::new("edge", None).with(&BTreeSet::new()),
            Names::new("edge-2", None).with(&BTreeSet::new()),
        ] {
            assert!(serving.objection(&other, at(LATER_THAN)).is_some());
        }
    }

    #[test]
    fn one_of_another_ca_or_with_another_key_or_half_of_one_is_not_used() {
        let (ca, _) = NodeCa::make().unwrap();
        let (other, _) = NodeCa::make().unwrap();
        let text = Serving::issue(&ca, &names(), at(LATER_THAN)).unwrap().pem;
        let parse = |text: &str, ca: &NodeCa| Serving::parse(text.to_owned(), ca).map(drop);
        parse(&text, &ca).unwrap();
        assert!(parse(&text, &other).is_err());
        assert!(parse(&text[..text.len() / 2], &ca).is_err());
        let second = Serving::issue(&ca, &names(), at(LATER_THAN)).unwrap().pem;
        let certificate = &text[text.find("-----BEGIN CERTIFICATE").unwrap()..];
        let key = second.split("-----BEGIN CERTIFICATE").next().unwrap();
        assert!(parse(&format!("{key}{certificate}"), &ca).is_err());
    }
}
