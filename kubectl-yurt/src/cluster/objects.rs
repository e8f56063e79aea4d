//! Applying our objects, and taking them away again.

use std::collections::BTreeSet;

use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::ObjectMeta,
};
use serde_json::Value;
use yurt_api::names;

use crate::{
    cluster::{
        definition,
        manifests::{KINDS, Kind, Object},
    },
    connect::session::Session,
    error::{Error, is_not_found},
};

/// What applying an object does, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does not exist yet.
    Create,
    /// It exists and differs.
    Change,
    /// It is as it should be.
    None,
}

/// The API for objects of `kind`.
fn api(session: &Session, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(session.client.clone(), namespace, &kind.resource()),
        None => Api::all_with(session.client.clone(), &kind.resource()),
    }
}

/// Parameters of our server-side applies: what is in our manifests is ours to say.
fn params() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).force()
}

/// What applying `object` would do, as the server sees it.
///
/// # Errors
///
/// The server's answer.
pub async fn preview(session: &Session, object: &Object) -> Result<Effect, Error> {
    let api = api(session, object.kind, object.namespace());
    let live = match api.get(object.name()).await {
        Ok(live) => live,
        Err(error) if is_not_found(&error) => return Ok(Effect::Create),
        Err(error) => return Err(error.into()),
    };
    let applied = api.patch(object.name(), &params().dry_run(), &Patch::Apply(&object.body)).await?;
    Ok(if is_same(&live, &applied) { Effect::None } else { Effect::Change })
}

/// Sends `object` to the server, which stores nothing.
///
/// # Errors
///
/// The server's answer.
pub async fn apply_dry(session: &Session, object: &Object) -> Result<(), Error> {
    let api = api(session, object.kind, object.namespace());
    match api.patch(object.name(), &params().dry_run(), &Patch::Apply(&object.body)).await {
        // Its definition was sent before it, and not stored either.
        Err(error) if object.kind.group == names::AUTONOMY_GROUP && is_not_found(&error) => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

/// Applies `object`. After a definition its resource can be used.
///
/// # Errors
///
/// The server's answer.
pub async fn apply(session: &Session, object: &Object) -> Result<(), Error> {
    if object.kind.is_definition() {
        definition::not_going(session, object.name()).await?;
    }
    let api = api(session, object.kind, object.namespace());
    api.patch(object.name(), &params(), &Patch::Apply(&object.body)).await?;
    if object.kind.is_definition() {
        definition::established(session, object.name()).await?;
    }
    Ok(())
}

/// Deletes an object; that it is not there is fine. Pods of a workload go with it. A definition has gone after it.
///
/// # Errors
///
/// The server's answer.
pub async fn delete(
    session: &Session,
    kind: &Kind,
    namespace: Option<&str>,
    name: &str,
) -> Result<bool, Error> {
    match api(session, kind, namespace).delete(name, &DeleteParams::background()).await {
        Ok(_) => {
            if kind.is_definition() {
                definition::gone(session, name).await?;
            }
            Ok(true)
        }
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// An object of ours that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Existing {
    /// Position in [`KINDS`]: the order of deletion.
    order: usize,
    namespace: Option<String>,
    name: String,
}

impl Existing {
    /// The kind.
    pub fn kind(&self) -> &'static Kind {
        // `order` comes from an enumeration of the same table.
        &KINDS[self.order.min(KINDS.len() - 1)]
    }

    /// True if it is of this kind and name.
    pub fn is(&self, kind: &Kind, name: &str) -> bool {
        self.kind() == kind && self.name == name
    }

    /// `kind/name`, as kubectl's mutation lines say it.
    pub fn text(&self) -> String {
        format!("{}/{}", self.kind().label(), self.name)
    }

    /// True for what runs pods.
    pub fn is_workload(&self) -> bool {
        self.kind().group == "apps"
    }

    /// Deletes it.
    ///
    /// # Errors
    ///
    /// The server's answer.
    pub async fn delete(&self, session: &Session) -> Result<bool, Error> {
        delete(session, self.kind(), self.namespace.as_deref(), &self.name).await
    }
}

/// Names of the objects that components make while they run. They carry our label as the others do; the names
/// are a second net.
const MADE_BY_COMPONENTS: &[(&str, &str)] = &[
    ("Secret", names::TUNNEL_CA_SECRET),
    ("Secret", names::TUNNEL_SERVER_SECRET),
    ("ConfigMap", names::TUNNEL_CA_CONFIG_MAP),
    ("ConfigMap", names::KUBELET_PORTS_CONFIG_MAP),
    (names::AUTONOMOUS_NODES_KIND, names::AUTONOMOUS_NODES),
    ("ConfigMap", names::CONFIG_MAP),
    ("Lease", names::CONTROLLER),
];

/// Everything of ours that exists in the cluster, in the order in which it is deleted. Kinds that the server does
/// not have are left out.
///
/// # Errors
///
/// The server's answer.
pub async fn existing(session: &Session) -> Result<Vec<Existing>, Error> {
    let ours = ListParams::default().labels(&format!("{}={}", names::LABEL_PART_OF, names::PART_OF));
    let lists = KINDS.iter().enumerate().map(|(order, kind)| {
        let ours = &ours;
        async move {
            // A binding of ours lives in kube-system whatever --yurt-namespace says.
            let namespaces: BTreeSet<Option<&str>> = if kind.namespaced {
                [Some(session.yurt_namespace.as_str()), Some(names::DEFAULT_NAMESPACE)].into()
            } else {
                [None].into()
            };
            let mut found = Vec::new();
            for namespace in namespaces {
                let listed = match api(session, kind, namespace).list_metadata(ours).await {
                    Ok(list) => list.items.into_iter().map(|object| object.metadata).collect(),
                    Err(error) if is_not_found(&error) => Vec::new(),
                    Err(error) => return Err(Error::from(error)),
                };
                found.extend(listed.into_iter().filter_map(|metadata| keep(order, metadata)));
            }
            for (name_of_kind, name) in MADE_BY_COMPONENTS {
                if *name_of_kind == kind.kind {
                    let namespace = kind.namespaced.then_some(session.yurt_namespace.as_str());
                    match api(session, kind, namespace).get_metadata(name).await {
                        Ok(_) => found.push(Existing {
                            order,
                            namespace: namespace.map(str::to_owned),
                            name: (*name).to_owned(),
                        }),
                        Err(error) if is_not_found(&error) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(found)
        }
    });
    let mut all: Vec<Existing> = futures::future::try_join_all(lists).await?.into_iter().flatten().collect();
    all.sort();
    all.dedup();
    Ok(all)
}

/// The lock is ours too, but it is not a part of a converted cluster.
fn keep(order: usize, metadata: ObjectMeta) -> Option<Existing> {
    let name = metadata.name.filter(|name| name != names::CONVERT_LEASE)?;
    Some(Existing { order, namespace: metadata.namespace, name })
}

/// Compares two versions of an object without what the server changes by itself.
fn is_same(live: &DynamicObject, applied: &DynamicObject) -> bool {
    essence(live) == essence(applied)
}

fn essence(object: &DynamicObject) -> Value {
    let mut object = object.clone();
    object.managed_fields_mut().clear();
    object.metadata.resource_version = None;
    object.metadata.generation = None;
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_the_server_changes_by_itself_is_no_difference() {
        let live = object(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "1" }, "status": { "x": 1 },
            "metadata": { "name": "a", "resourceVersion": "1", "managedFields": [{ "manager": "m" }] }
        }));
        let applied = object(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "1" },
            "metadata": { "name": "a", "resourceVersion": "2" }
        }));
        assert!(is_same(&live, &applied));
        let other = object(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": { "a": "2" }, "metadata": { "name": "a" }
        }));
        assert!(!is_same(&live, &other));
    }

    #[test]
    fn workloads_are_deleted_before_what_they_need() {
        let order = |kind: &str| KINDS.iter().position(|entry| entry.kind == kind).unwrap();
        assert!(order("DaemonSet") < order("ServiceAccount"));
        assert!(order("Deployment") < order("Secret"), "the controller would make it again");
        assert!(order("ValidatingAdmissionPolicy") < order(names::AUTONOMOUS_NODES_KIND));
        assert!(order("MutatingAdmissionPolicy") < order(names::AUTONOMOUS_NODES_KIND));
        assert!(
            order("Deployment") < order(names::AUTONOMOUS_NODES_KIND),
            "the controller would make it again"
        );
        assert!(order(names::AUTONOMOUS_NODES_KIND) < order("CustomResourceDefinition"));
        assert_eq!(order("Namespace"), KINDS.len() - 1);
    }
}
