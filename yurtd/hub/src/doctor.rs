//! What the hub says of itself to a person who stands at the node ([`yurt_api::doctor`]): looked at when somebody asks,
//! out of what requests are answered from. It names users and objects, so whoever asks has to be root; how that is made
//! sure is the business of the process's root.

mod pods;

use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use yurt_api::agent::Course;
use yurt_api::doctor::{
    Certificate, Hub, Link, LinkState as Told, Pod, Store, View as ToldView, ViewState, Waiting,
};
use yurt_node::config::WayIn;
use yurt_node::link::LinkState;

use self::pods::{Known, Stored};
use crate::caller::Permit;
use crate::clock;
use crate::offline::journal::ObjectKey;
use crate::replica::needs::{Need, NeedKind};
use crate::serve::health::Health;
use crate::store::StoreError;
use crate::view::{Lookup, Question, State, View, ViewSpec, Why};
use crate::way_in::Since;
use crate::wire::{Encoding, Resource};

/// When kubelet came to the hub, and more, as its keeper wrote it down, or why that cannot be read.
pub type Came = Result<Course, String>;

/// Looks at the hub. Cheap to clone.
#[derive(Clone)]
pub struct Doctor {
    pub(crate) health: Arc<Health>,
    /// This boot of the node; empty where it has no name.
    pub(crate) boot: Arc<str>,
}

impl Doctor {
    /// What there is to say now. It reads the store, so it is no work for an async worker.
    pub fn look(&self, came: &Came) -> Hub {
        let readiness = self.health.readiness();
        let way_in = self.health.way_in.borrow().clone();
        let hub = &self.health.hub;
        let (node, name) = &self.health.node;
        let store = hub.views.store_stats();
        let expires = readiness.serving_certificate_expires;
        let pods = self.pods(came).unwrap_or_else(|error| {
            tracing::warn!(%error, "the node's pods cannot be read");
            None
        });
        let mut views: Vec<ToldView> = hub.views.all().iter().map(|view| tell(view, clock::now())).collect();
        views.sort_by(|a, b| {
            (&a.user, &a.path, &a.field_selector).cmp(&(&b.user, &b.path, &b.field_selector))
        });
        Hub {
            node: name.clone(),
            time: Timestamp::now().to_string(),
            link: Link {
                state: match hub.link.state() {
                    LinkState::Online => Told::Online,
                    LinkState::Offline => Told::Offline,
                    LinkState::Unknown => Told::Unknown,
                },
                for_seconds: hub.link.for_seconds(),
                servers: hub.upstream.servers(),
            },
            missing_addresses: readiness.missing_addresses.iter().map(ToString::to_string).collect(),
            certificate: Certificate {
                present: readiness.serving_certificate,
                ends_in_seconds: expires.as_deref().and_then(seconds_until),
                ends: expires,
                error: readiness.serving_certificate_error,
            },
            store: Store {
                file_bytes: store.file_bytes,
                used_bytes: store.used_bytes,
                limit_bytes: store.map_bytes,
                full: store.full,
            },
            waiting: Waiting {
                status_patches: hub.offline.journal().objects().iter().map(ObjectKey::path).collect(),
                events: readiness.pending_events,
                dropped_events: readiness.dropped_events,
            },
            not_stored: self.not_stored(node, readiness.node_known, pods.is_some()),
            pods,
            way_in: way_in.chosen.way.name().to_owned(),
            way_in_why: way_in.chosen.why,
            way_in_missing: readiness.way_in_missing,
            way_in_services: readiness.way_in_services,
            host_held_up_by: way_in.on_host.into_iter().collect(),
            host_would_loop: way_in.would_loop,
            ways_unknown: match came {
                Ok(Course { came: Some(_), .. }) if self.since(came.as_ref().ok()).came.is_some() => None,
                Ok(Course { came: Some(_), .. }) => {
                    Some("kubelet was not told yet of the CA that the hub has now".to_owned())
                }
                Ok(_) => Some("the keeper has not written down when kubelet came to the hub".to_owned()),
                Err(error) => Some(format!("the keeper's journal cannot be read: {error}")),
            },
            views,
        }
    }

    /// What kubelet waits for before it starts any pod.
    fn not_stored(&self, node: &Permit, node_known: bool, pods_known: bool) -> Vec<String> {
        let services = Resource::new("", "v1", "services");
        let views = self.health.hub.views.all();
        let services_known = views.iter().any(|view| {
            let spec = view.spec();
            view.identity == *node.identity()
                && *spec.resource() == services
                && spec.namespace().is_none()
                && spec.label_selector().is_empty()
                && view.may_answer(Question::AsLastKnown)
        });
        let needed =
            [(node_known, "its Node"), (pods_known, "its pods"), (services_known, "the list of Services")];
        needed.iter().filter(|(known, _)| !known).map(|(_, what)| (*what).to_owned()).collect()
    }

    /// Since when what begins goes through the hub.
    fn since<'a>(&'a self, course: Option<&'a Course>) -> Since<'a> {
        let boot = Some(&*self.boot).filter(|boot| !boot.is_empty());
        let environment = course.is_some_and(|course| course.environment);
        let service = self.health.way_in.borrow().chosen.way == WayIn::Service;
        if service && !environment {
            return Since::of(course, &self.health.node_ca, boot);
        }
        // What its environment led to the hub needs no table, and was shown the certificate of then.
        Since { came: course.and_then(|course| course.came.as_ref()), believed: None, boot }
    }

    /// The node's pods, if they are known.
    fn pods(&self, came: &Came) -> Result<Option<Vec<Pod>>, StoreError> {
        let hub = &self.health.hub;
        let Some(view) = hub.views.pods_view().filter(|view| view.may_answer(Question::AsLastKnown)) else {
            return Ok(None);
        };
        let way_in = self.health.way_in.borrow().clone();
        let known = Known {
            since: self.since(came.as_ref().ok()),
            host_kept: !way_in.on_host.is_empty() || way_in.would_loop,
            stored: &|need| self.stored(need),
            token: &|request| hub.offline.replies().lasts(request, SystemTime::now()),
            ended_here: &|namespace, name| {
                hub.offline.journal().has(&ObjectKey {
                    plural: "pods".to_owned(),
                    namespace: Some(namespace.to_owned()),
                    name: name.to_owned(),
                })
            },
        };
        let mut pods = Vec::new();
        view.for_each(|pod| {
            match pods::tell(pod, &known) {
                Ok(pod) => pods.push(pod),
                Err(error) => tracing::warn!(%error, "a stored pod cannot be understood"),
            }
            Ok(())
        })?;
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(Some(pods))
    }

    /// Whether kubelet would be given the object without the API server: from the view that it has of this object alone,
    /// or, where it does not watch them, from what passed by.
    fn stored(&self, need: &Need) -> Stored {
        let hub = &self.health.hub;
        let (node, _) = &self.health.node;
        let plural = match need.kind {
            NeedKind::ConfigMap => "configmaps",
            NeedKind::Secret => "secrets",
        };
        let resource = Resource::new("", "v1", plural);
        let fields = format!("metadata.name={}", need.name);
        let mut absent = false;
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let spec = ViewSpec::new(resource.clone(), Some(&need.namespace), "", &fields, encoding);
            let Some(view) = hub.views.find(node, &spec, Question::AsLastKnown) else { continue };
            match view.get(Some(&need.namespace), &need.name) {
                Ok(Some(_)) => return Stored::Yes,
                Ok(None) => absent = true,
                Err(error) => tracing::warn!(%error, view = %view.name(), "an object cannot be read"),
            }
        }
        if hub.offline.has_answer(node, &resource, &need.namespace, &need.name) {
            return Stored::Yes;
        }
        let accept = [Encoding::Json, Encoding::Protobuf];
        let looked = hub.views.lookup(node, &resource, Some(&need.namespace), &need.name, &accept);
        if absent || matches!(looked, Lookup::ProvenAbsent { .. }) { Stored::Absent } else { Stored::No }
    }
}

fn seconds_until(time: &str) -> Option<i64> {
    let time: Timestamp = time.parse().ok()?;
    Some(time.as_second() - Timestamp::now().as_second())
}

/// One view, at this second since 1970.
fn tell(view: &View, now: u64) -> ToldView {
    let spec = view.spec();
    let (state, why, since) = match view.state() {
        State::Empty => (ViewState::Empty, None, None),
        State::Following { .. } => (ViewState::Following, None, Some(now)),
        State::Behind { since, why, .. } => (ViewState::Behind, Some(why), Some(since)),
        State::Refused { since } => (ViewState::Refused, None, Some(since)),
    };
    let encoding = if spec.encoding().is_protobuf() { "protobuf" } else { "json" };
    let encoding =
        if spec.encoding().is_partial() { format!("{encoding}, metadata") } else { encoding.to_owned() };
    ToldView {
        user: view.identity.to_string(),
        path: spec.resource().path(spec.namespace()),
        label_selector: spec.label_selector().to_owned(),
        field_selector: spec.field_selector().to_owned(),
        encoding,
        state,
        why: why.map(|why| reason(why).to_owned()),
        troubled: matches!(why, Some(Why::Credential | Why::Forbidden | Why::Failed | Why::Store)),
        age_seconds: since.map(|since| now.saturating_sub(since)),
        kept: view.is_kept(),
        of: view.source().map(|source| of(&source)),
    }
}

/// A view of the same resource in the same encoding.
fn of(source: &View) -> String {
    let mut name = source.identity.to_string();
    for selector in [source.spec().label_selector(), source.spec().field_selector()] {
        if !selector.is_empty() {
            name.push_str(" ?");
            name.push_str(selector);
        }
    }
    name
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Disconnected => "the link was lost",
        Why::Restarted => "the hub was restarted",
        Why::Unfollowed => "nobody asks for it",
        Why::Credential => "the credential is not accepted any more",
        Why::Forbidden => "the API server says 403",
        Why::Failed => "the API server answers with errors",
        Why::Store => "it cannot be stored",
        Why::CannotBeWatched => "it cannot be watched",
    }
}
