//! Finding or starting a view for somebody who waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use yurt_node::link::LinkState;

use super::{Start, Views};
use crate::caller::Permit;
use crate::view::{View, ViewError, ViewSpec};

/// For the first complete list, or for catching up.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// A complete view that cannot catch up within this time is served as it is.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long the state of the link may stay unknown after a start.
const LINK_WITHIN: Duration = Duration::from_secs(2);

impl Views {
    pub(super) async fn open_with(
        &self,
        permit: &Permit,
        spec: &ViewSpec,
        start: Start,
    ) -> Result<Arc<View>, ViewError> {
        self.inner.link.settled(LINK_WITHIN).await;
        let mut link = self.inner.link.subscribe();
        let offline = *link.borrow_and_update() != LinkState::Online;
        if offline && let found @ Some(_) = self.find(permit, spec) {
            let view = found.ok_or(ViewError::NeverCached)?;
            // It resumes by itself when the link is back.
            self.inner.followers.start(permit, &view, Start::Resume);
            view.touch();
            return Ok(view);
        }
        if offline {
            let refused = self.is_refused(permit, spec);
            return Err(if refused { ViewError::Refused } else { ViewError::NeverCached });
        }
        let view = self.enter(permit, spec).ok_or(ViewError::NotAView)?;
        view.touch();
        let mut sync = view.sync.subscribe();
        let before = sync.borrow_and_update().clone();
        if before.no_view_until.is_some_and(|until| Instant::now() < until) {
            return Err(before.failure.unwrap_or(ViewError::NotAView));
        }
        let attempts = before.attempts;
        self.inner.followers.start(permit, &view, start);
        if !before.live {
            // It may be in a pause after an error.
            view.poke.notify_one();
        }
        let deadline = Instant::now() + OPEN_WITHIN;
        let catch_up = Instant::now() + CATCH_UP_WITHIN;
        loop {
            let now = sync.borrow_and_update().clone();
            if now.live {
                return Ok(view);
            }
            match now.failure {
                // An old refusal may be outdated: ask again.
                Some(_) if now.attempts == attempts => view.poke.notify_one(),
                Some(ViewError::NotAView) => return Err(ViewError::NotAView),
                Some(ViewError::Upstream(response))
                    if !now.complete || matches!(response.code.as_u16(), 401 | 403) =>
                {
                    return Err(ViewError::Upstream(response));
                }
                Some(error @ ViewError::Store(_)) if !now.complete => return Err(error),
                _ => {}
            }
            if *link.borrow_and_update() == LinkState::Offline {
                return match (now.complete, now.refused) {
                    (true, _) => Ok(view),
                    (false, true) => Err(ViewError::Refused),
                    (false, false) => Err(ViewError::NeverCached),
                };
            }
            tokio::select! {
                changed = sync.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                changed = link.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                () = sleep_until(catch_up), if now.complete => return Ok(view),
                () = sleep_until(deadline) => return Err(ViewError::NeverCached),
            }
        }
    }
}
