//! Whether an identity may list and watch a collection, asked of the API server with its own credential
//! (SelfSubjectAccessReview): a view that is fed from another one is not asked for itself.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;

use super::fetch::{self, AGENT, FetchError};
use crate::caller::Credential;
use crate::upstream::{RequestBody, Upstream};
use crate::view::ViewSpec;
use crate::wire::WireError;

const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
/// While it is waited for, events may wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const LARGEST: usize = 64 << 10;

/// Whether the credential's owner may list and watch exactly what the view shows. An API server that does not know
/// selectors in reviews (before 1.31) says whether it may read all of it.
pub(super) async fn may_read(
    upstream: &Upstream,
    credential: &Credential,
    spec: &ViewSpec,
) -> Result<bool, FetchError> {
    for verb in ["list", "watch"] {
        if !may(upstream, credential, spec, verb).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn may(
    upstream: &Upstream,
    credential: &Credential,
    spec: &ViewSpec,
    verb: &str,
) -> Result<bool, FetchError> {
    #[derive(Deserialize)]
    struct Review {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        allowed: bool,
    }
    let body = RequestBody::new(http_body_util::BodyExt::map_err(
        Full::new(Bytes::from(review(spec, verb).to_string())),
        |never| match never {},
    ));
    let request = Request::post(PATH)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .body(body)
        .map_err(|error| FetchError::Unreachable(error.to_string()))?;
    let exchange = async { fetch::collect(fetch::send(upstream, credential, request).await?, LARGEST).await };
    let (_, body) = fetch::within(ANSWER_WITHIN, exchange).await.unwrap_or_else(|| Err(fetch::late()))?;
    let review: Review = serde_json::from_slice(&body)
        .map_err(|error| FetchError::Unreadable(WireError::malformed("access review", error)))?;
    Ok(review.status.allowed)
}

fn review(spec: &ViewSpec, verb: &str) -> serde_json::Value {
    let resource = spec.resource();
    let mut attributes = json!({
        "verb": verb, "group": resource.group, "version": resource.version, "resource": resource.plural
    });
    if let Some(namespace) = spec.namespace() {
        attributes["namespace"] = namespace.into();
    }
    for (name, selector) in
        [("labelSelector", spec.label_selector()), ("fieldSelector", spec.field_selector())]
    {
        if !selector.is_empty() {
            attributes[name] = json!({"rawSelector": selector});
        }
    }
    json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": attributes}
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Encoding, Resource};

    #[test]
    fn exactly_what_the_view_shows_is_asked_for() {
        let slices = Resource::new("discovery.k8s.io", "v1", "endpointslices");
        let spec = ViewSpec::new(slices, Some("shop"), "!a", "metadata.name=x", Encoding::Json);
        assert_eq!(
            review(&spec, "watch")["spec"]["resourceAttributes"],
            json!({"verb": "watch", "group": "discovery.k8s.io", "version": "v1", "resource": "endpointslices",
                "namespace": "shop", "labelSelector": {"rawSelector": "!a"},
                "fieldSelector": {"rawSelector": "metadata.name=x"}})
        );
        let spec = ViewSpec::new(Resource::new("", "v1", "services"), None, "", "", Encoding::Json);
        assert_eq!(
            review(&spec, "list")["spec"]["resourceAttributes"],
            json!({"verb": "list", "group": "", "version": "v1", "resource": "services"})
        );
    }
}
