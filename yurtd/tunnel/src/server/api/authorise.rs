//! May the caller do that: SubjectAccessReview on the verb and subresource that kubectl needs.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;

use super::authenticate::User;
use super::status::{self, ApiError};
use super::target::{Action, GROUP, PodTarget, VERSION};

/// How long the API server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Evidence that the caller may do what `target` says; only this module makes one.
#[derive(Debug)]
pub(super) struct Grant {
    target: PodTarget,
}

impl Grant {
    /// What is permitted.
    pub(super) fn target(&self) -> &PodTarget {
        &self.target
    }
}

/// What an authorizer is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    /// As the authorizer knows it.
    pub(super) verb: &'static str,
    /// API group of the resource.
    pub(super) group: &'static str,
    /// Version of the resource.
    pub(super) version: &'static str,
    /// Plural of the resource.
    pub(super) resource: &'static str,
    /// Empty for the object itself.
    pub(super) subresource: String,
    /// Empty at the cluster scope.
    pub(super) namespace: String,
    /// Empty for all of them.
    pub(super) name: String,
}

/// Asks for a pod's subresource.
///
/// # Errors
///
/// [`ApiError::Forbidden`] in the API server's words, [`ApiError::Unavailable`] without an answer.
pub(super) async fn pod(
    client: &kube::Client,
    user: &User,
    method: &Method,
    target: PodTarget,
) -> Result<Grant, ApiError> {
    for verb in verbs(method, &target.action) {
        let attributes = Attributes {
            verb,
            group: "",
            version: "v1",
            resource: "pods",
            subresource: target.action.subresource().to_owned(),
            namespace: target.namespace.clone(),
            name: target.pod.clone(),
        };
        ask(client, user, &attributes).await?;
    }
    Ok(Grant { target })
}

/// Asks for the connected agents, or for one.
///
/// # Errors
///
/// As [`pod`].
pub(super) async fn agents(client: &kube::Client, user: &User, name: Option<&str>) -> Result<(), ApiError> {
    let attributes = Attributes {
        verb: if name.is_some() { "get" } else { "list" },
        group: GROUP,
        version: VERSION,
        resource: "agents",
        subresource: String::new(),
        namespace: String::new(),
        name: name.unwrap_or_default().to_owned(),
    };
    ask(client, user, &attributes).await
}

/// Asks for a walk along the way to a node. It costs the node's link some hundred KiB, so that seeing the agent is not
/// enough.
///
/// # Errors
///
/// As [`pod`].
pub(super) async fn diagnosis(client: &kube::Client, user: &User, node: &str) -> Result<(), ApiError> {
    let attributes = Attributes {
        verb: "get",
        group: GROUP,
        version: VERSION,
        resource: "agents",
        subresource: "diagnosis".to_owned(),
        namespace: String::new(),
        name: node.to_owned(),
    };
    ask(client, user, &attributes).await
}

/// The API server maps the method to the verb, and since 1.35 demands `create` on top where a GET
/// becomes a connection (KEP-4006): a rule that lets somebody only `get` must not let him in.
fn verbs(method: &Method, action: &Action) -> &'static [&'static str] {
    match (action.is_upgrade(), method) {
        (false, _) => &["get"],
        (true, &Method::GET) => &["create", "get"],
        (true, _) => &["create"],
    }
}

/// Asks whether `user` may do it.
///
/// # Errors
///
/// As [`pod`].
pub(super) async fn ask(client: &kube::Client, user: &User, attributes: &Attributes) -> Result<(), ApiError> {
    let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(attributes.verb.into()),
                group: Some(attributes.group.into()),
                version: Some(attributes.version.into()),
                resource: Some(attributes.resource.into()),
                subresource: present(&attributes.subresource),
                namespace: present(&attributes.namespace),
                name: present(&attributes.name),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let status = match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &review)).await {
        Ok(Ok(review)) => review.status.unwrap_or_default(),
        Ok(Err(error)) => return Err(status::api_server_error("review the caller's access", &error)),
        Err(_) => return Err(status::api_server_silent("review the caller's access")),
    };
    if status.allowed && status.denied != Some(true) {
        return Ok(());
    }
    Err(forbidden(user, attributes, status.reason.as_deref().unwrap_or_default()))
}

fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> ApiError {
    let Attributes { verb, group, resource, subresource, namespace, name, .. } = attributes;
    let what =
        if subresource.is_empty() { (*resource).to_owned() } else { format!("{resource}/{subresource}") };
    let scope = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let kind = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
    let object = if name.is_empty() { kind } else { format!("{kind} {name:?}") };
    let mut message = format!(
        "{object} is forbidden: User {:?} cannot {verb} resource {what:?} in API group {group:?} {scope}",
        user.name
    );
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    ApiError::Forbidden {
        message,
        name: name.clone(),
        group: (*group).to_owned(),
        resource: (*resource).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes {
        Attributes {
            verb: "create",
            group: "",
            version: "v1",
            resource: "pods",
            subresource: "exec".into(),
            namespace: "shop".into(),
            name: "till-0".into(),
        }
    }

    #[test]
    fn a_refusal_reads_as_the_api_server_says_it() {
        let user = User { name: "jane".into(), ..User::default() };
        let error = forbidden(&user, &attributes(), "");
        assert_eq!(
            error.to_string(),
            r#"pods "till-0" is forbidden: User "jane" cannot create resource "pods/exec" in API group "" in the namespace "shop""#
        );
        let status = error.to_status();
        assert_eq!(status["reason"], "Forbidden");
        assert_eq!(status["details"], serde_json::json!({"name": "till-0", "kind": "pods"}));
        let with_reason = forbidden(&user, &attributes(), "RBAC: role not found").to_string();
        assert!(with_reason.ends_with(r#"in the namespace "shop": RBAC: role not found"#));
    }

    #[test]
    fn a_refusal_at_the_cluster_scope_names_the_group() {
        let user = User { name: "jane".into(), ..User::default() };
        let attributes = Attributes {
            verb: "list",
            group: GROUP,
            version: VERSION,
            resource: "agents",
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
        };
        assert_eq!(
            forbidden(&user, &attributes, "").to_string(),
            r#"agents.tunnel.openyurt.io is forbidden: User "jane" cannot list resource "agents" in API group "tunnel.openyurt.io" at the cluster scope"#
        );
    }

    #[test]
    fn a_websocket_needs_create_and_get_a_post_create_a_log_get() {
        assert_eq!(verbs(&Method::GET, &Action::Log(Vec::new())), ["get"]);
        assert_eq!(verbs(&Method::GET, &Action::Exec(Vec::new())), ["create", "get"]);
        assert_eq!(verbs(&Method::POST, &Action::PortForward(Vec::new())), ["create"]);
    }
}
