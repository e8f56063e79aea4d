//! Taking our marks off a node that is vanilla again, in the one order that is safe: the label first, which ends the
//! keeper; the annotations only when the keeper's pod has gone, because a keeper that finds no target takes it for
//! *edge* and would convert the node again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use yurt_api::names;

use crate::{
    cluster::{
        node::{self, patch_node},
        view::View,
    },
    connect::session::Session,
    error::{Error, is_not_found},
};

/// How long a keeper's pod may take to go.
const DEADLINE: Duration = Duration::from_secs(60);

/// The nodes whose keepers are on their way out.
#[derive(Debug, Default)]
pub struct Unmarking {
    leaving: BTreeMap<String, Instant>,
    /// Nodes whose keeper did not go.
    stuck: Vec<String>,
}

impl Unmarking {
    /// Takes the label off a node.
    ///
    /// # Errors
    ///
    /// The server's answer.
    pub async fn begin(&mut self, session: &Session, name: &str) -> Result<(), Error> {
        patch_node(session, name, json!({ "labels": { names::LABEL_EDGE_WORKER: null } })).await?;
        self.leaving.insert(name.to_owned(), Instant::now());
        Ok(())
    }

    /// Takes the rest off those nodes whose keeper has gone, and returns them.
    ///
    /// # Errors
    ///
    /// The server's answer.
    pub async fn advance(&mut self, session: &Session, view: &View) -> Result<Vec<String>, Error> {
        let mut free = Vec::new();
        for name in self.gone(view, Instant::now()) {
            clean(session, &name, view.nodes.get(&name)).await?;
            free.push(name);
        }
        Ok(free)
    }

    /// The nodes whose keeper has gone. Those whose keeper does not go in time are stuck.
    fn gone(&mut self, view: &View, now: Instant) -> Vec<String> {
        let (mut gone, mut late) = (Vec::new(), Vec::new());
        for (name, since) in &self.leaving {
            // A node that the view still shows with its label has not been seen since the patch.
            let seen = view.nodes.get(name).is_none_or(|node| node::edge_label(node).is_none());
            if seen && view.keeper(name).is_none() {
                gone.push(name.clone());
            } else if now.duration_since(*since) >= DEADLINE {
                late.push(name.clone());
            }
        }
        for name in gone.iter().chain(&late) {
            self.leaving.remove(name);
        }
        self.stuck.extend(late);
        gone
    }

    /// True when no keeper is on its way out any more.
    pub fn is_empty(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Nodes whose keeper did not go in time.
    pub fn stuck(&self) -> &[String] {
        &self.stuck
    }
}

/// Takes every label and annotation of ours and the condition off a node.
///
/// # Errors
///
/// The server's answer.
pub async fn clean(session: &Session, name: &str, known: Option<&Node>) -> Result<(), Error> {
    let annotations = node::without(node::CONVERSION_ANNOTATIONS.iter().chain(&node::AUTONOMY_ANNOTATIONS));
    let labels = node::without(&[names::LABEL_EDGE_WORKER, names::LABEL_KUBELET_PORT]);
    let metadata = json!({ "labels": labels, "annotations": annotations });
    patch_node(session, name, metadata).await?;
    if known.is_none_or(node::has_condition) {
        remove_condition(session, name).await?;
    }
    Ok(())
}

async fn remove_condition(session: &Session, name: &str) -> Result<(), Error> {
    let api: Api<Node> = Api::all(session.client.clone());
    let node = match api.get_status(name).await {
        Ok(node) => node,
        Err(error) if is_not_found(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !node::has_condition(&node) {
        return Ok(());
    }
    // Conditions are merged by type: this directive removes one and leaves kubelet's alone.
    let patch =
        json!({ "status": { "conditions": [ { "type": node::CONDITION_AUTONOMY, "$patch": "delete" } ] } });
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn node(label: Option<&str>) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "edge", "labels": { names::LABEL_EDGE_WORKER: label } }
        }))
        .unwrap_or_else(|_| serde_json::from_value(json!({ "metadata": { "name": "edge" } })).unwrap())
    }

    fn keeper() -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "yurtd-x", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "DaemonSet", "name": names::KEEPER, "uid": "" } ] },
            "spec": { "nodeName": "edge", "containers": [] }
        }))
        .unwrap()
    }

    fn view(label: Option<&str>, pods: Vec<Pod>) -> View {
        View {
            nodes: [node(label)].into_iter().collect(),
            pods: pods.into_iter().collect(),
            ..View::default()
        }
    }

    #[test]
    fn annotations_stay_until_the_keeper_has_gone() {
        let now = Instant::now();
        let mut unmarking = Unmarking { leaving: [("edge".to_owned(), now)].into(), stuck: Vec::new() };
        assert!(
            unmarking.gone(&view(Some("true"), vec![]), now).is_empty(),
            "the view is older than the patch"
        );
        assert!(unmarking.gone(&view(None, vec![keeper()]), now).is_empty());
        assert_eq!(unmarking.gone(&view(None, vec![]), now), ["edge"]);
        assert!(unmarking.is_empty() && unmarking.stuck().is_empty());
    }

    #[test]
    fn a_keeper_that_does_not_go_is_reported() {
        let now = Instant::now();
        let mut unmarking = Unmarking { leaving: [("edge".to_owned(), now)].into(), stuck: Vec::new() };
        assert!(unmarking.gone(&view(None, vec![keeper()]), now + DEADLINE).is_empty());
        assert_eq!(unmarking.stuck(), ["edge"]);
        assert!(unmarking.is_empty());
    }
}
