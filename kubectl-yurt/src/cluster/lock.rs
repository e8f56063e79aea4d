//! The Lease that keeps two converters apart. Held while `convert` or `revert` works, renewed all the time, gone
//! afterwards. Who holds it and when a holder counts as gone is decided in [`yurt_api::lease`]; the reading and writing
//! is here.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
};
use yurt_api::{
    lease::{Candidate, Record, Step, Timing},
    names,
};

use crate::{
    connect::session::Session,
    error::{Error, is_not_found},
    signals,
};

/// The Lease is always here, so that two converters with different `--yurt-namespace` meet.
const NAMESPACE: &str = "kube-system";
/// A Lease lasts for ten seconds without being renewed. A server that cannot be reached for a while is no reason to stop:
/// nobody else can take the Lease there either, so the second figure is not asked for here.
const TIMING: Timing = Timing { length: Duration::from_secs(10), renew_within: Duration::from_secs(10) };
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(3);

/// Does `work` while holding the Lease; a signal ends it early. `waiting` is told once, with a sentence for a person, if
/// somebody else's has to be waited for first.
///
/// # Errors
///
/// [`Error::Refused`] when another converter is at work, [`Error::Failed`] after a signal, or what `work` says.
pub async fn hold<T>(
    session: &Session,
    waiting: impl FnOnce(String),
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut lock = Lock::new(session);
    lock.acquire(waiting).await?;
    let result = tokio::select! {
        result = work => result,
        lost = lock.renew() => Err(lost),
        () = signals::interrupted() => {
            Err(Error::Failed("interrupted; run the same command again to go on where it stopped".into()))
        }
    };
    lock.release().await;
    result
}

struct Lock {
    api: Api<Lease>,
    candidate: Candidate<MicroTime>,
    /// The Lease that we wrote, while it is ours: another one of the same name is not ours to delete.
    ours: Option<Preconditions>,
}

/// What came of one attempt.
enum Attempt {
    /// It is ours.
    Held,
    /// Somebody else was faster with a write: look again.
    Raced,
    /// Somebody else has it.
    Other { holder: String, left: Duration, alive: bool },
}

impl Lock {
    fn new(session: &Session) -> Self {
        Self {
            api: Api::namespaced(session.client.clone(), NAMESPACE),
            candidate: Candidate::new(identity(), TIMING),
            ours: None,
        }
    }

    async fn acquire(&mut self, waiting: impl FnOnce(String)) -> Result<(), Error> {
        let mut waiting = Some(waiting);
        loop {
            match self.attempt().await? {
                Attempt::Held => return Ok(()),
                Attempt::Raced => {}
                Attempt::Other { holder, alive: true, .. } => {
                    return Err(Error::Refused(format!(
                        "another convert or revert is at work: {holder}; nothing was changed"
                    )));
                }
                Attempt::Other { holder, left, alive: false } => {
                    if let Some(waiting) = waiting.take() {
                        waiting(format!(
                            "waiting up to {} s: another convert or revert ({holder}) may be at work",
                            TIMING.length.as_secs()
                        ));
                    }
                    tokio::time::sleep(left).await;
                }
            }
        }
    }

    /// Looks at the Lease and writes what is to be written.
    async fn attempt(&mut self) -> Result<Attempt, kube::Error> {
        let found = self.api.get_opt(names::CONVERT_LEASE).await?;
        let asked = Instant::now();
        let record = found.as_ref().map(record);
        let params = PostParams::default();
        let (written, record) = match self.candidate.step(record.as_ref(), asked, now()) {
            Step::Wait(other) => {
                self.ours = None;
                let holder = Some(other.holder).filter(|holder| !holder.is_empty());
                let holder = holder.unwrap_or_else(|| "unknown".into());
                return Ok(Attempt::Other { holder, left: other.left, alive: other.alive });
            }
            Step::Create(record) => {
                let lease = Lease { metadata: metadata(), spec: Some(spec(&record)) };
                (self.api.create(&params, &lease).await, record)
            }
            Step::Renew(record) | Step::Take(record) => {
                let lease = Lease { spec: Some(spec(&record)), ..found.unwrap_or_default() };
                (self.api.replace(names::CONVERT_LEASE, &params, &lease).await, record)
            }
        };
        match written {
            Ok(lease) => {
                self.candidate.wrote(record, asked);
                self.ours = Some(Preconditions { uid: lease.metadata.uid, resource_version: None });
                Ok(Attempt::Held)
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {
                Ok(Attempt::Raced)
            }
            Err(error) if is_not_found(&error) => Ok(Attempt::Raced),
            Err(error) => Err(error),
        }
    }

    /// Renews until the Lease is somebody else's.
    async fn renew(&mut self) -> Error {
        let mut tick = tokio::time::interval(RENEW);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Ok(Attempt::Other { holder, .. }) = self.attempt().await {
                return Error::Failed(format!(
                    "{holder} has taken over; this run has stopped, run it again to see where things are"
                ));
            }
        }
    }

    /// Nobody need wait, and nothing of ours stays in the cluster.
    async fn release(self) {
        let Some(ours) = self.ours else { return };
        // If it cannot be deleted now, it expires, and the next holder deletes it.
        let _ = self.api.delete(names::CONVERT_LEASE, &DeleteParams::default().preconditions(ours)).await;
    }
}

/// Who holds the Lease: user, machine and process.
fn identity() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".into());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}/{}", std::process::id())
}

fn now() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}

fn metadata() -> ObjectMeta {
    ObjectMeta {
        name: Some(names::CONVERT_LEASE.into()),
        labels: Some([(names::LABEL_PART_OF.to_owned(), names::PART_OF.to_owned())].into()),
        ..ObjectMeta::default()
    }
}

fn record(lease: &Lease) -> Record<MicroTime> {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: spec.lease_duration_seconds,
        acquired: spec.acquire_time,
        renewed: spec.renew_time,
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

fn spec(record: &Record<MicroTime>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: record.seconds,
        acquire_time: record.acquired.clone(),
        renew_time: record.renewed.clone(),
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    }
}
