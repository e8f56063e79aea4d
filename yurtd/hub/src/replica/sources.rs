//! Which view another one is fed from, so that a collection crosses the uplink once a node and not once a component.
//!
//! A source has a list and a watch of its own, is of the same resource and encoding, and requires less: everything that
//! is in the other view is in it. Of several the widest. So nothing waits for what waits for it: of two views of the
//! same objects the older one is the source.

use std::cmp::Reverse;
use std::sync::Arc;

use http::StatusCode;

use super::{Start, Views};
use crate::caller::Permit;
use crate::view::selector::Selector;
use crate::view::{View, ViewError, ViewSpec};
use crate::wire::Encoding;
use crate::wire::endpoint_slice::is_slice;

/// What several components of a node read, each of them nearly all of it. Of any other resource each reads something of
/// its own, or it is for few to read.
pub(super) fn is_shared(spec: &ViewSpec) -> bool {
    is_services(spec) || is_slice(spec.resource())
}

fn is_services(spec: &ViewSpec) -> bool {
    spec.resource().group.is_empty() && spec.resource().plural == "services"
}

/// Whether a view that has to be listed is better fed from the whole collection, with the same credential: others will
/// ask for the rest of it. kubelet's part of the Services is all but the headless ones, and kube-proxy's a part of
/// that. Nobody else reads JSON.
fn is_nearly_all(spec: &ViewSpec) -> bool {
    is_services(spec)
        && spec.encoding() == Encoding::Protobuf
        && Selector::of(spec).is_some_and(|selector| selector.only_leaves_out())
}

/// Whether something may come of it: its reflector has not failed. One whose resourceVersion is too old lists again.
pub(super) fn may_become_followed(view: &View) -> bool {
    let sync = view.sync.borrow();
    let failed = sync.failure.as_ref().is_some_and(|failed| match &failed.error {
        ViewError::Upstream(response) => response.code != StatusCode::GONE,
        _ => true,
    });
    !view.is_gone() && !sync.state.ends_watches() && !failed && sync.no_view_until.is_none()
}

impl Views {
    /// The view that this one is to be fed from, followed already or about to be. `widen`, with a permit of its own
    /// identity: the collection may be listed for it.
    pub(super) fn source_of(&self, view: &Arc<View>, widen: Option<&Permit>) -> Option<Arc<View>> {
        let requirements = |spec: &ViewSpec| {
            (spec.namespace().is_some(), spec.label_selector().len() + spec.field_selector().len())
        };
        let mut all = self.inner.catalogue.all();
        all.retain(|other| {
            other.id != view.id
                && view.spec.is_within(&other.spec)
                && (other.id < view.id || !other.spec.is_within(&view.spec))
                && other.source().is_none()
                && may_become_followed(other)
                && (self.inner.followers.is_running(other.id) || self.resumes_for(view, other))
        });
        let source = all
            .into_iter()
            .min_by_key(|other| (Reverse(other.is_followed()), requirements(&other.spec), other.id));
        let Some(source) = source else { return self.widened(view, widen?) };
        if !self.inner.followers.is_running(source.id)
            && let Some(permit) = self.permit_of(&source)
        {
            source.touch();
            self.inner.followers.start(&permit, &source, Start::Resume);
        }
        Some(source)
    }

    /// Whether a view that is stored and that nobody follows right now is followed again for this one: kubelet's, or
    /// one of the same identity. After a restart of the hub the source may not be asked for by anybody.
    fn resumes_for(&self, view: &View, source: &View) -> bool {
        let own = source.identity == view.identity || source.identity == *self.inner.node.identity();
        own && source.is_stored() && self.permit_of(source).is_some()
    }

    fn permit_of(&self, source: &View) -> Option<Permit> {
        if source.identity == *self.inner.node.identity() {
            return Some(self.inner.node.clone());
        }
        self.inner.followers.permit_of(&source.identity)
    }

    /// The whole collection, followed for the same identity from now on.
    fn widened(&self, view: &View, permit: &Permit) -> Option<Arc<View>> {
        let all = view.spec.of_all();
        if !is_nearly_all(&view.spec) || view.spec == all {
            return None;
        }
        let source = self.enter(permit, &all)?;
        if !may_become_followed(&source) {
            return None;
        }
        source.touch();
        self.inner.followers.start(permit, &source, Start::Resume);
        Some(source)
    }
}
