//! After the link is back: the status patches that were answered without it go upstream, and the local versions of
//! their objects are dropped, so that kubelet sees the API server's and puts right what is still different.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Offline;
use super::journal::{ObjectKey, Replay};
use crate::link::{Link, LinkState};
use crate::node_client::{CallError, NodeClient};
use crate::request::authorise::Permit;
use crate::store::StoreError;
use crate::wire::Resource;

/// Pause after a replay that failed although the link is up.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum RebaseError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Replays the journal whenever the link is up and there is something in it. Ends with `stop`.
pub async fn run(
    offline: Arc<Offline>,
    client: NodeClient,
    link: Link,
    node: Permit,
    stop: CancellationToken,
) {
    let mut state = link.subscribe();
    let mut pending = offline.journal().subscribe();
    loop {
        let due = *state.borrow_and_update() == LinkState::Online && *pending.borrow_and_update() > 0;
        let mut pause = None;
        if due {
            let rebased = tokio::select! {
                () = stop.cancelled() => return,
                rebased = rebase(&offline, &client, &node) => rebased,
            };
            if let Err(error) = rebased {
                tracing::warn!(%error, "status patches could not be replayed; trying again");
                pause = Some(RETRY);
            }
        }
        let again = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = again => {}
            changed = state.changed() => if changed.is_err() { return },
            // After a failure more patches are no reason to hurry.
            changed = pending.changed(), if pause.is_none() => if changed.is_err() { return },
        }
    }
}

async fn rebase(offline: &Offline, client: &NodeClient, node: &Permit) -> Result<(), RebaseError> {
    let objects = offline.journal().objects();
    let count = objects.len();
    for object in objects {
        let replay = offline.journal().replay(&object)?;
        self::replay(client, &object, &replay).await?;
        let resource = Resource::new("", "v1", &object.plural);
        offline.views().drop_local(node, &resource, object.namespace.as_deref(), &object.name).await?;
        offline.journal().forget(&object, &replay).await?;
    }
    if count > 0 {
        tracing::info!(objects = count, "what changed while the link was down has been replayed");
    }
    Ok(())
}

/// Each patch once, in order. kubelet puts the UID of a pod into its patches, so a pod that was made anew meanwhile
/// is not touched: the API server answers 409.
async fn replay(client: &NodeClient, object: &ObjectKey, replay: &Replay) -> Result<(), RebaseError> {
    let path = object.status_path();
    for entry in &replay.entries {
        match client.patch(&path, &entry.content_type, entry.body.clone().into()).await {
            Ok(_) => {}
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => {
                // Deleted, made anew, or changed so that the patch no longer fits: the API server's version counts.
                tracing::info!(path, %error, "a status patch from the time without a link is no longer wanted");
                return Ok(());
            }
        }
    }
    Ok(())
}
