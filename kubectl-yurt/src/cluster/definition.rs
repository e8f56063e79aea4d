//! The definition of our custom resource: usable a moment after it was made, gone a moment after it was deleted.
//! Both moments are waited for: what follows would meet an API server that knows half of it.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Resource as _,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
    runtime::wait::{Condition, await_condition, conditions},
};
use yurt_api::names;

use crate::{
    connect::session::Session,
    error::{Error, is_not_found},
};

/// How long the API server may take for either.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is asked whether it serves the resource: there is nothing to watch yet.
const AGAIN: Duration = Duration::from_millis(100);

/// The custom resource, for kube's dynamic API.
fn resource() -> ApiResource {
    let kind =
        GroupVersionKind::gvk(names::AUTONOMY_GROUP, names::AUTONOMY_VERSION, names::AUTONOMOUS_NODES_KIND);
    ApiResource::from_gvk_with_plural(&kind, names::AUTONOMOUS_NODES_PLURAL)
}

/// The parameter of the policies; none as well when the cluster does not know its kind.
///
/// # Errors
///
/// The server's answer.
pub async fn parameter(session: &Session) -> Result<Option<DynamicObject>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(session.client.clone(), &resource());
    match api.get(names::AUTONOMOUS_NODES).await {
        Ok(parameter) => Ok(Some(parameter)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if the parameter names `node`.
pub fn names_node(parameter: &DynamicObject, node: &str) -> bool {
    parameter.data.pointer("/spec/nodes").is_some_and(|nodes| nodes.get(node).is_some())
}

/// Waits until a definition that is being deleted has gone: what is applied to it would go with it.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] when it does not go.
pub async fn not_going(session: &Session, name: &str) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(session.client.clone());
    let live = api.get_metadata_opt(name).await?;
    if live.is_some_and(|live| live.meta().deletion_timestamp.is_some()) {
        return gone(session, name).await;
    }
    Ok(())
}

/// Waits until a deleted definition has gone.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] when it does not go.
pub async fn gone(session: &Session, name: &str) -> Result<(), Error> {
    wait(session, name, "to go", |live: Option<&CustomResourceDefinition>| live.is_none()).await
}

/// Waits until the resource is served.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] when it is not served in time.
pub async fn established(session: &Session, name: &str) -> Result<(), Error> {
    wait(session, name, "to be established", conditions::is_crd_established()).await?;
    // The part of the API server that serves it hears of it by a watch of its own.
    let api: Api<DynamicObject> = Api::all_with(session.client.clone(), &resource());
    let served = tokio::time::timeout(DEADLINE, async {
        loop {
            match api.list_metadata(&ListParams::default()).await {
                Err(error) if is_not_found(&error) => tokio::time::sleep(AGAIN).await,
                answer => return answer.map(drop),
            }
        }
    });
    Ok(served.await.map_err(|_| late(name, "to be served"))??)
}

async fn wait(
    session: &Session,
    name: &str,
    what: &str,
    condition: impl Condition<CustomResourceDefinition>,
) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(session.client.clone());
    match tokio::time::timeout(DEADLINE, await_condition(api, name, condition)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::Failed(format!("customresourcedefinition {name}: {error}"))),
        Err(_) => Err(late(name, what)),
    }
}

fn late(name: &str, what: &str) -> Error {
    Error::Failed(format!(
        "timed out waiting for customresourcedefinition {name} {what}; run the command again to go on"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_are_the_nodes() {
        let object = |spec| {
            let mut object = DynamicObject::new(names::AUTONOMOUS_NODES, &resource());
            object.data = json!({ "spec": spec });
            object
        };
        assert!(names_node(&object(json!({ "nodes": { "edge": "" } })), "edge"));
        assert!(!names_node(&object(json!({ "nodes": { "edge": "" } })), "edg"));
        assert!(!names_node(&object(json!({})), "edge"));
    }
}
