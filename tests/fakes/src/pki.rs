//! Certificate authorities that sign what a test wants.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Short of rcgen's default of the year 4096, so that a test can be after it.
const LAST_YEAR: i32 = 2900;

/// The CAs that a client believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust(pub(crate) Vec<CertificateDer<'static>>);

impl Trust {
    /// Every certificate of a bundle in PEM, as a pod reads its `ca.crt`.
    pub fn of_bundle(pem: &str) -> Self {
        Self(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap())
    }
}

impl From<&TestCa> for Trust {
    fn from(ca: &TestCa) -> Self {
        Self(vec![ca.der.clone()])
    }
}

impl From<&Arc<TestCa>> for Trust {
    fn from(ca: &Arc<TestCa>) -> Self {
        Self::from(&**ca)
    }
}

impl From<&Trust> for Trust {
    fn from(trust: &Trust) -> Self {
        trust.clone()
    }
}

/// A CA for tests.
pub struct TestCa {
    params: CertificateParams,
    key: KeyPair,
    /// Its own certificate.
    pub pem: String,
    /// The same.
    pub der: CertificateDer<'static>,
}

/// A certificate and its key in PEM.
#[derive(Debug, Clone)]
pub struct TestCertificate {
    pub pem: String,
    pub key_pem: String,
    pub der: CertificateDer<'static>,
}

impl TestCertificate {
    /// As rustls takes it.
    pub fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.der.clone()], PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap())
    }

    /// Certificate and key in one file, as kubelet keeps them.
    pub fn file(&self) -> String {
        format!("{}{}", self.pem, self.key_pem)
    }
}

impl TestCa {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { params, key, pem, der }
    }

    pub fn issue(
        &self,
        user: &str,
        groups: &[&str],
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> TestCertificate {
        self.issue_until(user, groups, names, usage, LAST_YEAR)
    }

    /// One that expires at the beginning of `year`.
    pub fn issue_until(
        &self,
        user: &str,
        groups: &[&str],
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        year: i32,
    ) -> TestCertificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        TestCertificate {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub fn client(&self, user: &str, groups: &[&str]) -> TestCertificate {
        self.client_until(user, groups, LAST_YEAR)
    }

    pub fn client_until(&self, user: &str, groups: &[&str], year: i32) -> TestCertificate {
        self.issue_until(user, groups, &[], ExtendedKeyUsagePurpose::ClientAuth, year)
    }

    pub fn node(&self, name: &str) -> TestCertificate {
        self.client(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// For one name or address, which is its common name, too.
    pub fn server(&self, name: &str) -> TestCertificate {
        self.serving(name, &[name])
    }

    /// For these names and addresses.
    pub fn serving(&self, common_name: &str, names: &[&str]) -> TestCertificate {
        self.issue(common_name, &[], names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Signs a certificate signing request (PEM), as the signers of the controller manager do, and returns the
    /// certificate in PEM.
    pub fn sign(&self, request: &str, usage: ExtendedKeyUsagePurpose) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.extended_key_usages = vec![usage];
        request.signed_by(&self.issuer()).unwrap().pem()
    }
}
