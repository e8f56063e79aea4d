//! Who of several controllers works: one Lease, as [`yurt_api::lease`] decides.
//!
//! The holder stops working when it could not renew for two thirds of the lease: a third of it is left before anybody
//! else may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use yurt_api::lease::{Candidate, Record, Step, Timing};
use yurt_api::names;

use super::context::label_ours;

/// How long a silent holder keeps the lease.
const LEASE: Duration = Duration::from_secs(15);
/// How long the holder goes on without having renewed.
pub(super) const RENEW: Duration = Duration::from_secs(10);
/// How often anybody tries.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// Whose the lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Ours.
    Holder,
    /// Somebody else's.
    Other(String),
    /// Somebody wrote it while we did; the next look says who has it.
    Raced,
}

/// A candidate, and the object it looks at.
pub(super) struct Election {
    api: Api<Lease>,
    candidate: Candidate<MicroTime>,
}

impl Election {
    /// `me` has to be unique: a pod's name is.
    pub(super) fn new(client: kube::Client, namespace: &str, me: &str) -> Self {
        let candidate = Candidate::new(me, Timing { length: LEASE, renew_within: RENEW }).adopting();
        Self { api: Api::namespaced(client, namespace), candidate }
    }

    /// Tries once to get or to keep the lease.
    ///
    /// # Errors
    ///
    /// When the API server did not answer, or refused.
    pub(super) async fn stand(&mut self) -> Result<Standing, kube::Error> {
        let found = self.api.get_opt(names::CONTROLLER).await?;
        let asked = Instant::now();
        let record = found.as_ref().map(|lease| record(lease.spec.as_ref()));
        let params = PostParams::default();
        let (record, written) = match self.candidate.step(record.as_ref(), asked, MicroTime(Timestamp::now()))
        {
            Step::Wait(other) => return Ok(Standing::Other(other.holder)),
            Step::Create(record) => {
                let mut lease = Lease { spec: Some(spec(record.clone())), ..Lease::default() };
                lease.metadata.name = Some(names::CONTROLLER.into());
                label_ours(&mut lease.metadata);
                (record, self.api.create(&params, &lease).await)
            }
            Step::Renew(record) | Step::Take(record) => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(spec(record.clone()));
                (record, self.api.replace(names::CONTROLLER, &params, &lease).await)
            }
        };
        match written {
            Ok(_) => {
                self.candidate.wrote(record, asked);
                Ok(Standing::Holder)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Standing::Raced),
            Err(error) => Err(error),
        }
    }

    /// For how long the holder may go on working; `None` when it is not the holder.
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.candidate.time_left(Instant::now())
    }

    /// Lets go, so that another one need not wait.
    ///
    /// # Errors
    ///
    /// When the API server did not take it; the lease then runs out.
    pub(super) async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(names::CONTROLLER).await? else { return Ok(()) };
        let found = record(lease.spec.as_ref());
        let Some(free) = self.candidate.release(&found, MicroTime(Timestamp::now())) else { return Ok(()) };
        lease.spec = Some(spec(free));
        self.api.replace(names::CONTROLLER, &PostParams::default(), &lease).await.map(|_| ())
    }
}

fn record(spec: Option<&LeaseSpec>) -> Record<MicroTime> {
    let spec = spec.cloned().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: spec.lease_duration_seconds,
        acquired: spec.acquire_time,
        renewed: spec.renew_time,
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

fn spec(record: Record<MicroTime>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder),
        lease_duration_seconds: record.seconds,
        acquire_time: record.acquired,
        renew_time: record.renewed,
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeCluster;

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/yurt-controller";

    #[test]
    fn a_record_is_the_fields_of_a_lease() {
        let time = |text: &str| Some(MicroTime(text.parse().unwrap()));
        let whole = Record {
            holder: "a".into(),
            seconds: Some(15),
            acquired: time("2026-11-23T07:00:00Z"),
            renewed: time("2026-11-23T08:00:00Z"),
            transitions: 3,
        };
        assert_eq!(record(Some(&spec(whole.clone()))), whole);
        assert_eq!(record(None).holder, "");
    }

    #[tokio::test]
    async fn one_of_two_gets_it_and_the_other_when_it_is_let_go() {
        let cluster = FakeCluster::start().await;
        let election = |me| Election::new(cluster.client(), "kube-system", me);
        let (mut a, mut b) = (election("a"), election("b"));
        assert_eq!(a.stand().await.unwrap(), Standing::Holder);
        assert_eq!(cluster.get(PATH).unwrap()["metadata"]["labels"][names::LABEL_PART_OF], names::PART_OF);
        assert_eq!(b.stand().await.unwrap(), Standing::Other("a".into()));
        assert!(a.time_left().is_some() && b.time_left().is_none());
        // The pod's container was restarted: its name is its own.
        assert_eq!(election("a").stand().await.unwrap(), Standing::Holder);
        a.release().await.unwrap();
        assert_eq!(b.stand().await.unwrap(), Standing::Holder);
        assert_eq!(cluster.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
        // Letting go of what is not ours changes nothing.
        a.release().await.unwrap();
        assert_eq!(cluster.get(PATH).unwrap()["spec"]["holderIdentity"], "b");
    }
}
