//! What a request to the API port asks for, for a fuzzer.

use http::{Method, Uri};

use super::target::Target;

/// A pod's subresource, `METHOD PATH?QUERY`: what kubelet is asked is a path of its own about this pod, whatever the
/// caller wrote.
pub fn pod_request(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some((method, path)) = text.split_once(' ') else { return };
    let Ok(method) = method.parse::<Method>() else { return };
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let Ok(Target::Pod(target)) = Target::parse(&method, path, query) else { return };
    let container = target.container.as_deref().unwrap_or("main");
    let uri = target.kubelet_uri(container);
    let Ok(uri) = uri.parse::<Uri>() else { panic!("kubelet cannot be asked {uri:?}") };
    let mut segments = uri.path().split('/').skip(2);
    assert_eq!(segments.next(), Some(target.namespace.as_str()));
    assert_eq!(segments.next(), Some(target.pod.as_str()));
    assert_eq!(segments.next(), target.action.needs_container().then_some(container));
    assert_eq!(segments.next(), None);
}
