//! Sends the Events that were queued while the link was down, oldest first.
//!
//! One that the API server has already (the link broke before its answer came, or it was posted before the cut and
//! happened again since) is put in its place: the queued one has the higher count. One that it refuses for good, because
//! its namespace is gone for example, is dropped.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio_util::sync::CancellationToken;

use super::Entry;
use crate::link::Link;
use crate::node_client::{CallError, NodeClient};
use crate::offline::Offline;
use crate::store::StoreError;
use yurt_node::link::LinkState;

/// Pause after a failure, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An API server that has just started refuses what its authoriser does not know yet: this many refusals are not
/// believed.
const REFUSALS: u32 = 5;

#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether the API server may say something else when it is asked again.
fn may_change(error: &CallError, refusals: u32) -> bool {
    match error {
        CallError::Refused { code: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. } => {
            refusals < REFUSALS
        }
        _ => error.is_transient(),
    }
}

/// Sends whatever is queued while the link is up. Ends with `stop`.
pub(crate) async fn run(offline: Arc<Offline>, client: NodeClient, link: Link, stop: CancellationToken) {
    let mut state = link.subscribe();
    let mut pending = offline.events().subscribe();
    let mut failures = 0;
    loop {
        let due = *state.borrow_and_update() == LinkState::Online && *pending.borrow_and_update() > 0;
        let mut pause = None;
        if due {
            let sent = tokio::select! {
                () = stop.cancelled() => return,
                sent = send_all(&offline, &client, failures) => sent,
            };
            match sent {
                Ok(events) => {
                    failures = 0;
                    if events > 0 {
                        tracing::info!(events, "the Events from the time without a link have been sent");
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "an Event from the time without a link could not be sent; trying again");
                    pause = Some(FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(5)).min(LONGEST_PAUSE));
                }
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
            // After a failure the pause counts, not what comes meanwhile.
            changed = pending.changed(), if pause.is_none() => if changed.is_err() { return },
        }
    }
}

async fn send_all(offline: &Offline, client: &NodeClient, refusals: u32) -> Result<usize, ReplayError> {
    let queue = offline.events();
    let mut sent = 0;
    while let Some((sequence, entry)) = queue.oldest().await? {
        match send(client, &entry).await {
            Ok(()) => sent += 1,
            Err(error) if may_change(&error, refusals) => return Err(error.into()),
            Err(error) => {
                tracing::info!(place = entry.place(), %error, "an Event from the time without a link is not wanted");
            }
        }
        queue.forget(sequence).await?;
    }
    Ok(sent)
}

async fn send(client: &NodeClient, entry: &Entry) -> Result<(), CallError> {
    let Entry { head, body } = entry;
    let posted = client.call(Method::POST, &head.path, &head.content_type, body.clone()).await;
    match posted {
        Err(CallError::Refused { code: StatusCode::CONFLICT, .. }) => {
            client.call(Method::PUT, &entry.place(), &head.content_type, body.clone()).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_that_starts_is_not_believed_at_once() {
        let refused = |code| CallError::Refused { code, message: String::new() };
        assert!(may_change(&refused(StatusCode::FORBIDDEN), 0));
        assert!(!may_change(&refused(StatusCode::FORBIDDEN), REFUSALS));
        assert!(!may_change(&refused(StatusCode::NOT_FOUND), 0));
        assert!(may_change(&refused(StatusCode::SERVICE_UNAVAILABLE), REFUSALS));
    }
}
