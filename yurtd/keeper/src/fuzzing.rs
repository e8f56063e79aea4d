//! What a fuzzer may call. Each function takes any bytes and panics when what must hold of every input does not.
//! `fuzz/` calls them; nothing else does, and a program that does not call them does not contain them.

use crate::kubeconfig;

const HUB: &str = "https://127.0.0.1:10261";

/// kubelet's kubeconfig: the copy that leads to the hub says the same but for the server and the
/// bundle of CAs, line by line.
pub fn kubeconfig(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(before) = kubeconfig::parse(text) else { return };
    assert!(before.server.starts_with("https://"));
    assert!(before.client_certificate.starts_with('/') && before.client_key.starts_with('/'));
    for bundle in [None, Some(&b"bundle"[..])] {
        let Ok(copy) = kubeconfig::for_hub(text, HUB, bundle) else { continue };
        let Ok(after) = kubeconfig::parse(&copy) else { panic!("the copy cannot be read: {copy:?}") };
        let ca = bundle.map_or(before.ca.clone(), |bundle| kubeconfig::CaSource::Inline(bundle.to_vec()));
        assert_eq!(after, kubeconfig::Kubeconfig { server: HUB.into(), ca, ..before.clone() });
        let differing = text.lines().zip(copy.lines()).filter(|(old, new)| old != new).count();
        assert!(differing <= 1 + usize::from(bundle.is_some()));
        assert_eq!(text.lines().count(), copy.lines().count());
    }
}
