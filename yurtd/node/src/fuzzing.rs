//! What a fuzzer may call. Each function takes any bytes and panics when what must hold of every input does not.
//! `fuzz/` calls them; nothing else does, and a program that does not call them does not contain them.

use rustls_pki_types::CertificateDer;

pub use crate::api_client::fuzzing::{api_list, api_watch};
pub use crate::nft::fuzzing::{nft_answer, nft_table};

/// Whose node a certificate is: if it is one's, its name can be a Node's.
pub fn certificate(input: &[u8]) {
    let Ok(found) = crate::certificate::node_of(&CertificateDer::from(input)) else { return };
    assert!((1..=253).contains(&found.node.len()));
    assert!(found.node.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':'));
}
