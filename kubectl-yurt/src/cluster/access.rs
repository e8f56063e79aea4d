//! May the caller do what is about to be done? Asked before anything is changed, so that a lack of rights leaves
//! nothing half done (SelfSubjectAccessReview).

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use yurt_api::names;

use crate::{
    cluster::manifests::{KINDS, Object},
    error::Error,
};

/// How many questions are asked at once.
const PARALLEL: usize = 8;

/// One thing that will be done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    verb: &'static str,
    group: String,
    resource: String,
    subresource: &'static str,
    namespace: Option<String>,
}

impl Need {
    /// `verb` on `resource` of `group` (empty: core), everywhere.
    pub fn new(verb: &'static str, group: &str, resource: &str) -> Self {
        Self { verb, group: group.into(), resource: resource.into(), subresource: "", namespace: None }
    }

    /// In one namespace.
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// On a subresource.
    pub fn on(mut self, subresource: &'static str) -> Self {
        self.subresource = subresource;
        self
    }

    /// As a person reads it.
    fn text(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let sub = if self.subresource.is_empty() { String::new() } else { format!("/{}", self.subresource) };
        let place = self.namespace.as_ref().map(|name| format!(" in namespace {name}")).unwrap_or_default();
        format!("{} {}{group}{sub}{place}", self.verb, self.resource)
    }
}

/// What following the nodes and our pods takes.
fn watching(namespace: &str) -> Vec<Need> {
    // The pods of the nodes in question are counted, wherever they are.
    let mut needs = vec![Need::new("list", "", "pods")];
    for verb in ["list", "watch"] {
        needs.push(Need::new(verb, "", "nodes"));
        needs.push(Need::new(verb, "", "pods").within(namespace));
        needs.push(Need::new(verb, "", "events").within(namespace));
        needs.push(Need::new(verb, "apps", "deployments").within(namespace));
        needs.push(Need::new(verb, "apps", "daemonsets").within(namespace));
    }
    needs
}

/// What the lock takes.
fn locking() -> Vec<Need> {
    ["get", "create", "update", "delete"]
        .into_iter()
        .map(|verb| Need::new(verb, "coordination.k8s.io", "leases").within("kube-system"))
        .collect()
}

/// What making the definition, and the policies that refer to it, takes besides writing them: the definition is
/// followed, and the author of a policy must be allowed to read its parameter.
fn defining() -> [Need; 3] {
    [
        Need::new("list", "apiextensions.k8s.io", "customresourcedefinitions"),
        Need::new("watch", "apiextensions.k8s.io", "customresourcedefinitions"),
        Need::new("get", names::AUTONOMY_GROUP, names::AUTONOMOUS_NODES_PLURAL),
    ]
}

/// What `convert` will do with these objects.
pub fn convert_needs(objects: &[Object], namespace: &str) -> BTreeSet<Need> {
    let mut needs: BTreeSet<Need> =
        watching(namespace).into_iter().chain(locking()).chain(defining()).collect();
    needs.insert(Need::new("patch", "", "nodes"));
    needs.insert(Need::new("delete", "", "pods").within(namespace));
    for object in objects {
        // Server-side apply of an object that does not exist is authorised as `patch` and as `create`; what is
        // undone is deleted.
        for verb in ["create", "patch", "delete"] {
            let need = Need::new(verb, object.kind.group, object.kind.plural);
            needs.insert(match object.namespace() {
                Some(namespace) => need.within(namespace),
                None => need,
            });
        }
    }
    needs
}

/// What `revert` will do.
pub fn revert_needs(namespace: &str) -> BTreeSet<Need> {
    let mut needs: BTreeSet<Need> =
        watching(namespace).into_iter().chain(locking()).chain(defining()).collect();
    needs.insert(Need::new("patch", "", "nodes"));
    needs.insert(Need::new("patch", "", "nodes").on("status"));
    for kind in KINDS.iter().filter(|kind| kind.kind != "Namespace") {
        for verb in ["list", "delete"] {
            let need = Need::new(verb, kind.group, kind.plural);
            needs.insert(if kind.namespaced { need.within(namespace) } else { need });
        }
    }
    needs
}

/// Asks for each of `needs`.
///
/// # Errors
///
/// [`Error::Refused`] naming everything that is not allowed, or the server's answer.
pub async fn check(client: &Client, needs: BTreeSet<Need>) -> Result<(), Error> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let denied: Vec<Option<String>> = futures::stream::iter(needs)
        .map(|need| {
            let api = api.clone();
            async move {
                let review = SelfSubjectAccessReview {
                    spec: SelfSubjectAccessReviewSpec {
                        resource_attributes: Some(ResourceAttributes {
                            verb: Some(need.verb.to_owned()),
                            group: Some(need.group.clone()),
                            resource: Some(need.resource.clone()),
                            subresource: Some(need.subresource.to_owned()).filter(|name| !name.is_empty()),
                            namespace: need.namespace.clone(),
                            ..ResourceAttributes::default()
                        }),
                        ..SelfSubjectAccessReviewSpec::default()
                    },
                    ..SelfSubjectAccessReview::default()
                };
                let answer = api.create(&PostParams::default(), &review).await?;
                let allowed = answer.status.is_some_and(|status| status.allowed);
                Ok::<_, kube::Error>((!allowed).then(|| need.text()))
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let denied: Vec<String> = denied.into_iter().flatten().collect();
    if denied.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "you are not allowed to:\n  {}\nnothing was changed; ask for a role that allows it (cluster-admin does)",
        denied.join("\n  ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::DynamicObject;

    #[test]
    fn each_kind_is_asked_for_once_and_in_its_namespace() {
        let config_map = KINDS.iter().find(|kind| kind.kind == "ConfigMap").unwrap();
        let object = |name| Object {
            kind: config_map,
            body: DynamicObject::new(name, &config_map.resource()).within("ns"),
        };
        let objects = [object("a"), object("b")];
        let needs = convert_needs(&objects, "ns");
        let asked: Vec<String> =
            needs.iter().map(Need::text).filter(|text| text.contains("configmaps")).collect();
        assert_eq!(
            asked,
            [
                "create configmaps in namespace ns",
                "delete configmaps in namespace ns",
                "patch configmaps in namespace ns"
            ]
        );
    }

    #[test]
    fn what_is_followed_is_asked_for() {
        for needs in [convert_needs(&[], "ns"), revert_needs("ns")] {
            assert!(needs.contains(&Need::new("list", "", "pods")), "counted in every namespace");
            for verb in ["list", "watch"] {
                assert!(needs.contains(&Need::new(verb, "", "events").within("ns")));
            }
        }
    }

    #[test]
    fn revert_asks_for_everything_that_it_deletes() {
        let needs = revert_needs("kube-system");
        assert!(needs.contains(&Need::new("delete", "", "secrets").within("kube-system")));
        assert!(needs.contains(&Need::new("patch", "", "nodes").on("status")));
        assert!(needs.contains(&Need::new("delete", "autonomy.openyurt.io", "autonomousnodes")));
        for verb in ["delete", "watch"] {
            assert!(needs.contains(&Need::new(verb, "apiextensions.k8s.io", "customresourcedefinitions")));
        }
        assert!(needs.contains(&Need::new("delete", "rbac.authorization.k8s.io", "clusterroles")));
    }
}
