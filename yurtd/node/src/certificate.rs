//! Which node a client certificate is, by the rules of Kubernetes' node authoriser.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

/// What a verified client certificate says about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// Name of the node.
    pub node: String,
    /// When the certificate begins to be valid.
    pub not_before: SystemTime,
    /// When the certificate ceases to be valid.
    pub not_after: SystemTime,
}

/// Why a certificate is not a node's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotANode {
    /// No X.509.
    #[error("not an X.509 certificate")]
    Malformed,
    /// Not exactly one common name.
    #[error("the certificate has not exactly one common name")]
    CommonName,
    /// The common name is not `system:node:NAME`.
    #[error("the common name {0:?} is not system:node:NAME")]
    User(String),
    /// The organisation `system:nodes` is missing.
    #[error("the certificate of {0:?} is not in the group system:nodes")]
    Group(String),
}

const NODE_PREFIX: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";

/// Reads the node's name from a certificate that was verified or will be, by the rules of Kubernetes' node authoriser:
/// user (common name) `system:node:NAME`, group (organisation) `system:nodes`.
///
/// # Errors
///
/// [`NotANode`].
pub fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeCertificate, NotANode> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| NotANode::Malformed)?;
    if !rest.is_empty() {
        return Err(NotANode::Malformed);
    }
    let subject = parsed.subject();
    let mut names = subject.iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return Err(NotANode::CommonName) };
    let user = name.as_str().map_err(|_| NotANode::CommonName)?;
    let node = user
        .strip_prefix(NODE_PREFIX)
        .filter(|node| is_node_name(node))
        .ok_or_else(|| NotANode::User(user.to_owned()))?;
    if !subject.iter_organization().any(|group| group.as_str() == Ok(NODE_GROUP)) {
        return Err(NotANode::Group(user.to_owned()));
    }
    let Validity { not_before, not_after } = validity(certificate).ok_or(NotANode::Malformed)?;
    Ok(NodeCertificate { node: node.to_owned(), not_before, not_after })
}

/// Between which times a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// When it begins to be.
    pub not_before: SystemTime,
    /// When it ceases to be.
    pub not_after: SystemTime,
}

/// Reads that of a certificate of anybody's; nothing if it is no X.509, or from before 1970.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let time = |seconds: i64| {
        u64::try_from(seconds).ok().map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = parsed.validity();
    Some(Validity {
        not_before: time(validity.not_before.timestamp())?,
        not_after: time(validity.not_after.timestamp())?,
    })
}

/// A DNS subdomain, as every Node's name is.
fn is_node_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use rcgen::ExtendedKeyUsagePurpose;
    use yurt_fakes::pki::TestCa;

    use super::*;

    fn client(user: &str, groups: &[&str]) -> CertificateDer<'static> {
        TestCa::new("cluster").issue(user, groups, &[], ExtendedKeyUsagePurpose::ClientAuth).der
    }

    #[test]
    fn a_node_is_known_by_user_and_group() {
        let node = node_of(&client("system:node:edge-1.shop", &["system:nodes"])).unwrap();
        assert_eq!(node.node, "edge-1.shop");
        assert!(node.not_after > SystemTime::now());
    }

    #[test]
    fn nobody_else_is_a_node() {
        let cases = [
            (client("edge-1", &["system:nodes"]), NotANode::User("edge-1".into())),
            (client("system:node:", &["system:nodes"]), NotANode::User("system:node:".into())),
            (client("system:node:../x", &["system:nodes"]), NotANode::User("system:node:../x".into())),
            (client("system:node:edge-1", &[]), NotANode::Group("system:node:edge-1".into())),
            (client("system:node:edge-1", &["system:masters"]), NotANode::Group("system:node:edge-1".into())),
            (CertificateDer::from(vec![1, 2, 3]), NotANode::Malformed),
        ];
        for (certificate, expected) in cases {
            assert_eq!(node_of(&certificate), Err(expected));
        }
    }
}
