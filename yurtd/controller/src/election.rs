//! Who of several controllers works: one Lease, by the rules of client-go.
//!
//! A holder counts as gone when *we* have not seen its record change for the length of the lease; its
//! clock is never compared with ours. Every write carries the resourceVersion that was read, so of two
//! that try at the same time one gets a conflict. The holder stops working when it could not renew for
//! two thirds of the lease: a third of it is left before anybody else may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use yurt_api::names;

/// How long a silent holder keeps the lease.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// How long the holder goes on without having renewed.
pub(super) const RENEW: Duration = Duration::from_secs(10);
/// How often anybody tries.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What a candidate has seen of the record, and when it last changed.
#[derive(Debug, Clone)]
struct Sighting {
    record: LeaseSpec,
    since: Instant,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// There is no lease: create this.
    Create(Box<LeaseSpec>),
    /// Ours, or for the taking: write this.
    Write(Box<LeaseSpec>),
    /// Somebody else has it.
    Wait,
}

/// Pure: from what is there to what to write.
fn decide(me: &str, lease: Option<&LeaseSpec>, unchanged_for: Duration, now: Timestamp) -> Step {
    let fresh = |transitions: i32, acquired: Option<MicroTime>| {
        Box::new(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: Some(i32::try_from(LEASE.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        })
    };
    let Some(lease) = lease else { return Step::Create(fresh(0, None)) };
    let transitions = lease.lease_transitions.unwrap_or_default();
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder == me {
        return Step::Write(fresh(transitions, lease.acquire_time.clone()));
    }
    let length = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let length = length.map_or(LEASE, Duration::from_secs);
    if holder.is_empty() || unchanged_for >= length {
        return Step::Write(fresh(transitions.saturating_add(1), None));
    }
    Step::Wait
}

/// A candidate.
pub(super) struct Election {
    api: Api<Lease>,
    me: String,
    seen: Option<Sighting>,
}

impl Election {
    /// `me` has to be unique: a pod's name is.
    pub(super) fn new(client: kube::Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, seen: None }
    }

    /// Tries once to get or to keep the lease.
    ///
    /// # Errors
    ///
    /// When the API server did not do it; a lost race is `Ok(false)`.
    pub(super) async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(names::CONTROLLER).await?;
        let record = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let unchanged_for = record.as_ref().map_or(Duration::ZERO, |record| self.observe(record));
        let lease = match decide(&self.me, record.as_ref(), unchanged_for, Timestamp::now()) {
            Step::Wait => return Ok(false),
            Step::Create(spec) => {
                let mut lease = Lease { spec: Some(*spec), ..Lease::default() };
                lease.metadata.name = Some(names::CONTROLLER.into());
                lease.metadata.labels =
                    Some([(names::LABEL_PART_OF.to_owned(), names::PART_OF.to_owned())].into());
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Write(spec) => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(*spec);
                self.api.replace(names::CONTROLLER, &PostParams::default(), &lease).await
            }
        };
        match lease {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets go, so that another one need not wait.
    ///
    /// # Errors
    ///
    /// When the API server did not take it; the lease then runs out.
    pub(super) async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(names::CONTROLLER).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.me) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api.replace(names::CONTROLLER, &PostParams::default(), &lease).await.map(|_| ())
    }

    /// For how long the record has not changed, by our own clock.
    fn observe(&mut self, record: &LeaseSpec) -> Duration {
        match &self.seen {
            Some(seen) if seen.record == *record => seen.since.elapsed(),
            _ => {
                self.seen = Some(Sighting { record: record.clone(), since: Instant::now() });
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T08:00:00Z".parse().unwrap()
    }

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime("2026-11-23T07:00:00Z".parse().unwrap())),
            // Far in the future: its clock is not ours and does not count.
            renew_time: Some(MicroTime("2030-01-01T00:00:00Z".parse().unwrap())),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_missing_lease_is_created() {
        let Step::Create(spec) = decide("a", None, Duration::ZERO, now()) else { panic!() };
        assert_eq!(spec.holder_identity.as_deref(), Some("a"));
        assert_eq!(spec.lease_transitions, Some(0));
    }

    #[test]
    fn ours_is_renewed_and_keeps_its_beginning() {
        let Step::Write(spec) = decide("a", Some(&held_by("a")), Duration::ZERO, now()) else { panic!() };
        assert_eq!(spec.lease_transitions, Some(3));
        assert_eq!(spec.acquire_time, held_by("a").acquire_time);
        assert_eq!(spec.renew_time, Some(MicroTime(now())));
    }

    #[test]
    fn another_ones_is_left_until_it_has_been_silent_for_its_length() {
        let lease = held_by("b");
        assert_eq!(decide("a", Some(&lease), Duration::from_secs(14), now()), Step::Wait);
        let Step::Write(spec) = decide("a", Some(&lease), Duration::from_secs(15), now()) else { panic!() };
        assert_eq!(spec.holder_identity.as_deref(), Some("a"));
        assert_eq!(spec.lease_transitions, Some(4));
        assert_eq!(spec.acquire_time, Some(MicroTime(now())));
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        assert!(matches!(decide("a", Some(&held_by("")), Duration::ZERO, now()), Step::Write(_)));
    }
}
