//! Certificates out of PEM texts. Pure.

use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// DER of the certificates in a PEM text; `None` if there is none, or one of them is damaged.
pub fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).map(|der| der.map(|der| der.to_vec())).collect();
    found.ok().filter(|found| !found.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_certificate_is_none() {
        assert!(certificates(b"").is_none());
        assert!(certificates(b"not pem").is_none());
    }

    #[test]
    fn each_certificate_is_found() {
        let pem = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
        assert_eq!(certificates(pem.repeat(2).as_bytes()), Some(vec![b"abc".to_vec(), b"abc".to_vec()]));
    }
}
