//! Deleting every object of ours: workloads first, then, when their pods have gone, what they needed. While the
//! controller ran it would make its Secrets again, and the tunnel server takes its redirect rules away as it ends; where it
//! does not run to its end somebody else [does that](sweep).

use std::time::{Duration, Instant};

use kube::ResourceExt as _;

use crate::{
    cluster::{
        objects::{self, Existing},
        sweep,
        view::Observer,
    },
    connect::session::Session,
    error::Error,
    output::words::count_of,
};

/// How long our pods may take to go.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a teardown has come to.
#[derive(Debug, Default)]
pub struct Done {
    /// What was deleted.
    pub deleted: Vec<Existing>,
    /// What is left for a person to do.
    pub by_hand: Vec<String>,
}

/// Deletes everything. `phase` is told what is being done, in words for a person.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] naming the pods that do not go.
pub async fn run(
    session: &Session,
    observer: &mut Observer,
    mut phase: impl FnMut(&str),
) -> Result<Done, Error> {
    sweep::clear(session).await?;
    observer.complete().await;
    let left = sweep::look(observer.view());
    let all = objects::existing(session).await?;
    phase(&format!("deleting {}", count_of(all.len(), "object")));
    let mut deleted = Vec::new();
    let workloads = all.iter().filter(|object| object.is_workload());
    for object in workloads {
        if object.delete(session).await? {
            deleted.push(object.clone());
        }
    }
    wait_for_pods(observer, &mut phase).await?;
    let mut by_hand = Vec::new();
    if !left.is_empty() {
        phase("removing redirect rules of tunnel servers that do not run");
        let not_swept = sweep::run(session, &left).await?;
        by_hand.extend(not_swept.iter().map(|(node, why)| sweep::by_hand(node, why)));
        wait_for_pods(observer, &mut phase).await?;
    }
    // Listed again: the controller may have made something until its last moment.
    for object in objects::existing(session).await?.into_iter().filter(|object| !object.is_workload()) {
        if object.delete(session).await? {
            deleted.push(object);
        }
    }
    Ok(Done { deleted, by_hand })
}

async fn wait_for_pods(observer: &mut Observer, phase: &mut impl FnMut(&str)) -> Result<(), Error> {
    let deadline = tokio::time::sleep_until((Instant::now() + DEADLINE).into());
    tokio::pin!(deadline);
    observer.complete().await;
    loop {
        let names: Vec<String> = observer.view().pods.values().map(|pod| pod.name_any()).collect();
        if names.is_empty() {
            return Ok(());
        }
        phase(&format!("waiting for {} to end", count_of(names.len(), "pod")));
        tokio::select! {
            () = observer.changed() => {}
            () = &mut deadline => {
                return Err(Error::Failed(format!(
                    "timed out waiting for pods to end: {}; run the command again to go on",
                    names.join(", ")
                )));
            }
        }
    }
}
