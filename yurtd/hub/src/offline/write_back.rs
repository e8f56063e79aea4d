//! When what is remembered is written: now and then, when the link is lost, and when the hub stops.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yurt_node::link::LinkState;

use crate::link::Link;

/// Between attempts to write.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// Writes whenever `due` returns, until stopped, and then once more. `write` says whether it could.
pub(super) async fn keep_written<D, W>(
    link: &Link,
    stop: &CancellationToken,
    due: impl Fn() -> D,
    write: impl Fn() -> W,
) where
    D: Future<Output = ()>,
    W: Future<Output = bool>,
{
    let mut state = link.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = due() => {}
            changed = state.changed() => match changed {
                Ok(()) if *state.borrow_and_update() != LinkState::Offline => continue,
                Ok(()) => {}
                Err(_) => break,
            },
        }
        if !write().await {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(WRITE_AGAIN) => {}
            }
        }
    }
    write().await;
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Notify, watch};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_for_another_attempt_at_a_disk_that_takes_nothing() {
        let (_online, state) = watch::channel(LinkState::Online);
        let (link, stop) = (Link::new(state, Arc::new(Notify::new())), CancellationToken::new());
        let (attempts, began) = (AtomicUsize::new(0), Instant::now());
        let write = || {
            attempts.fetch_add(1, Ordering::Relaxed);
            ready(false)
        };
        let stopping = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(attempts.load(Ordering::Relaxed), 1, "in the pause after the first");
            stop.cancel();
        };
        tokio::join!(keep_written(&link, &stop, || ready(()), write), stopping);
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        assert_eq!(attempts.load(Ordering::Relaxed), 2, "and the last one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_written_and_so_is_everything_when_the_link_goes() {
        let (online, state) = watch::channel(LinkState::Online);
        let (link, stop) = (Link::new(state, Arc::new(Notify::new())), CancellationToken::new());
        let attempts = AtomicUsize::new(0);
        let write = || {
            attempts.fetch_add(1, Ordering::Relaxed);
            ready(true)
        };
        let due = || tokio::time::sleep(Duration::from_secs(60));
        let driving = async {
            tokio::time::sleep(Duration::from_secs(90)).await;
            assert_eq!(attempts.load(Ordering::Relaxed), 1);
            online.send_replace(LinkState::Offline);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(attempts.load(Ordering::Relaxed), 2);
            stop.cancel();
        };
        tokio::join!(keep_written(&link, &stop, due, write), driving);
        assert_eq!(attempts.load(Ordering::Relaxed), 3);
    }
}
