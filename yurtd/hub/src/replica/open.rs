//! Finding or starting a view for somebody who waits for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use yurt_node::link::LinkState;

use super::{Start, Views};
use crate::caller::Permit;
use crate::view::{Failed, Question, Request, State, View, ViewError, ViewSpec};

/// For the first complete list, or for catching up.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// A view that has something and cannot catch up within this time is served as it is.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long the state of the link may stay unknown after a start.
const LINK_WITHIN: Duration = Duration::from_secs(2);

impl Views {
    pub(super) async fn open_with(
        &self,
        permit: &Permit,
        spec: &ViewSpec,
        start: Start,
        wants: Request,
    ) -> Result<Arc<View>, ViewError> {
        self.inner.link.settled(LINK_WITHIN).await;
        let mut link = self.inner.link.subscribe();
        let offline = *link.borrow_and_update() != LinkState::Online;
        if offline {
            return match self.find(permit, spec, Question::AsLastKnown) {
                Some(view) => {
                    // It resumes by itself when the link is back.
                    self.inner.followers.start(permit, &view, Start::Resume);
                    view.touch();
                    Ok(view)
                }
                None if self.is_refused(permit, spec) => Err(ViewError::Refused),
                None => Err(ViewError::NeverCached),
            };
        }
        let view = self.enter(permit, spec).ok_or(ViewError::NotAView)?;
        view.touch();
        let mut sync = view.sync.subscribe();
        let before = sync.borrow_and_update().clone();
        if before.no_view_until.is_some_and(|until| Instant::now() < until) {
            return Err(match before.failure {
                // Another encoding may do.
                Some(Failed { error: ViewError::Upstream(response), .. })
                    if matches!(response.code.as_u16(), 406 | 415) =>
                {
                    ViewError::Upstream(response)
                }
                _ => ViewError::NotAView,
            });
        }
        self.inner.followers.start(permit, &view, start);
        if view.is_gone() {
            return Err(ViewError::NotAView);
        }
        if !before.state.is_following() {
            // It may be in a pause after an error.
            view.poke.notify_one();
        }
        let deadline = Instant::now() + OPEN_WITHIN;
        let catch_up = Instant::now() + CATCH_UP_WITHIN;
        loop {
            let now = sync.borrow_and_update().clone();
            if now.state.is_following() {
                return Ok(view);
            }
            let told = view.may_answer(Question::AsLastKnown);
            if let Some(failed) = now.failure {
                match verdict(failed, wants, told) {
                    Some(ViewError::NotAView) => return Err(ViewError::NotAView),
                    Some(error @ ViewError::Store(_)) if self.inner.store.is_full() => return Err(error),
                    // An old refusal may be outdated: ask again.
                    _ if now.attempts == before.attempts => view.poke.notify_one(),
                    Some(error) => return Err(error),
                    None => {}
                }
            }
            if *link.borrow_and_update() == LinkState::Offline {
                return match now.state {
                    State::Refused { .. } => Err(ViewError::Refused),
                    // Rights that nobody has confirmed for too long are not believed because the link has just gone.
                    _ if view.may_answer(Question::AsLastKnown) => Ok(view),
                    _ => Err(ViewError::NeverCached),
                };
            }
            tokio::select! {
                changed = sync.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                changed = link.changed() => if changed.is_err() { return Err(ViewError::NeverCached) },
                () = sleep_until(catch_up), if told => return Ok(view),
                () = sleep_until(deadline) => return Err(ViewError::Late),
            }
        }
    }
}

/// What a failure of the reflector means to somebody who wants a list or a watch; nothing: wait on. `told`: there is
/// something older to be told.
fn verdict(failed: Failed, wants: Request, told: bool) -> Option<ViewError> {
    match failed.error {
        ViewError::Upstream(response) => match response.code.as_u16() {
            // Who may only list or only watch is refused what he has not asked for: the API server answers him.
            403 | 405 if failed.request != wants => Some(ViewError::NotAView),
            // No older state is the answer to these.
            401 | 403 | 404 | 405 => Some(ViewError::Upstream(response)),
            _ => (!told).then_some(ViewError::Upstream(response)),
        },
        // A cache that fails must not break what needs no cache, nor show an old state as the present one.
        error @ (ViewError::NotAView | ViewError::Store(_)) => Some(error),
        ViewError::NeverCached | ViewError::Refused | ViewError::Late => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;
    use crate::view::UpstreamResponse;

    #[test]
    fn a_refusal_of_what_was_not_asked_for_is_the_api_servers_to_give() {
        let failed = |request, code: u16| {
            let code = http::StatusCode::from_u16(code).unwrap();
            let (headers, body) = (http::HeaderMap::new(), bytes::Bytes::new());
            Failed { request, error: ViewError::Upstream(Arc::new(UpstreamResponse { code, headers, body })) }
        };
        let is = |verdict: Option<ViewError>| match verdict {
            None => "wait",
            Some(ViewError::NotAView) => "forward",
            Some(ViewError::Upstream(_)) => "verbatim",
            Some(ViewError::Store(_)) => "store",
            Some(_) => "other",
        };
        use Request::{List, Watch};
        let table = [
            (List, 403, List, true, "verbatim"),
            (Watch, 403, List, true, "forward"),
            (List, 403, Watch, false, "forward"),
            (Watch, 405, List, true, "forward"),
            (List, 405, List, false, "verbatim"),
            (Watch, 401, List, true, "verbatim"),
            (List, 404, List, true, "verbatim"),
            (List, 500, List, true, "wait"),
            (List, 500, List, false, "verbatim"),
        ];
        for (request, code, wants, told, expected) in table {
            assert_eq!(
                is(verdict(failed(request, code), wants, told)),
                expected,
                "{request:?} {code} {wants:?}"
            );
        }
        let full = || Failed { request: Watch, error: ViewError::Store(StoreError::Full("x".into())) };
        assert_eq!(is(verdict(full(), List, true)), "store");
    }
}
