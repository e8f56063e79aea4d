//! Deleting every object of ours: workloads first, then, when their pods have gone, what they needed. While the
//! controller ran it would make its Secrets again, and the tunnel server takes its redirect rules away as it ends.

use std::time::{Duration, Instant};

use kube::ResourceExt as _;

use crate::{
    cluster::{
        objects::{self, Existing},
        view::Observer,
    },
    connect::session::Session,
    error::Error,
    output::words::count_of,
};

/// How long our pods may take to go.
const DEADLINE: Duration = Duration::from_secs(90);

/// Deletes everything; returns what was deleted. `phase` is told what is being done, in words for a person.
///
/// # Errors
///
/// The server's answer, or [`Error::Failed`] naming the pods that do not go.
pub async fn run(
    session: &Session,
    observer: &mut Observer,
    mut phase: impl FnMut(&str),
) -> Result<Vec<Existing>, Error> {
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
    // Listed again: the controller may have made something until its last moment.
    for object in objects::existing(session).await?.into_iter().filter(|object| !object.is_workload()) {
        if object.delete(session).await? {
            deleted.push(object);
        }
    }
    Ok(deleted)
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
