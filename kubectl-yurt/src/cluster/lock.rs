//! The Lease that keeps two converters apart. Held while `convert` or `revert` works, renewed all the time, gone
//! afterwards. A holder that died is recognised as client-go does it: nobody has renewed the Lease for as long as
//! it lasts by *our* clock, so clocks need not agree.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
};
use yurt_api::names;

use crate::{
    error::{Error, is_not_found},
    resolve::session::Session,
};

/// The Lease is always here, so that two converters with different `--yurt-namespace` meet.
const NAMESPACE: &str = "kube-system";
/// How long a Lease lasts without being renewed.
const DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(3);

/// Does `work` while holding the Lease; a signal ends it early.
///
/// # Errors
///
/// [`Error::Refused`] when another converter is at work, [`Error::Failed`] after a signal, or what `work` says.
pub async fn hold<T>(session: &Session, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let api: Api<Lease> = Api::namespaced(session.client.clone(), NAMESPACE);
    let holder = identity();
    let uid = acquire(session, &api, &holder).await?;
    let result = tokio::select! {
        result = work => result,
        lost = renew(&api, &holder) => Err(lost),
        () = interrupted() => {
            Err(Error::Failed("interrupted; run the same command again to go on where it stopped".into()))
        }
    };
    release(&api, uid).await;
    result
}

/// Who holds the Lease: user, machine and process.
fn identity() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".into());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}/{}", std::process::id())
}

async fn acquire(session: &Session, api: &Api<Lease>, holder: &str) -> Result<Option<String>, Error> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(names::CONVERT_LEASE.into()),
            labels: Some([(names::LABEL_PART_OF.to_owned(), names::PART_OF.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(spec(holder)),
    };
    let mut announced = false;
    loop {
        match api.create(&PostParams::default(), &lease).await {
            Ok(created) => return Ok(created.metadata.uid),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        let other = match api.get(names::CONVERT_LEASE).await {
            Ok(other) => other,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let owner = holder_of(&other);
        if !announced {
            session.console.note(format!(
                "waiting up to {} s: another convert or revert ({owner}) may be at work",
                DURATION.as_secs()
            ));
            announced = true;
        }
        tokio::time::sleep(DURATION).await;
        let later = match api.get(names::CONVERT_LEASE).await {
            Ok(later) => later,
            Err(error) if is_not_found(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        if later.metadata.resource_version != other.metadata.resource_version {
            return Err(Error::Refused(format!(
                "another convert or revert is at work: {}; nothing was changed",
                holder_of(&later)
            )));
        }
        // Take it over, unless somebody else does so first.
        let taken = Lease { spec: Some(spec(holder)), ..later };
        match api.replace(names::CONVERT_LEASE, &PostParams::default(), &taken).await {
            Ok(taken) => return Ok(taken.metadata.uid),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn spec(holder: &str) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.into()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(jiff::Timestamp::now())),
        ..LeaseSpec::default()
    }
}

fn holder_of(lease: &Lease) -> String {
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
    holder.unwrap_or_else(|| "unknown".into())
}

/// Renews until the Lease is somebody else's. A server that cannot be reached for a while is no reason to stop:
/// nobody else can take the Lease there either.
async fn renew(api: &Api<Lease>, holder: &str) -> Error {
    let mut tick = tokio::time::interval(RENEW);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Ok(mut lease) = api.get(names::CONVERT_LEASE).await else { continue };
        if holder_of(&lease) != holder {
            return Error::Failed(format!(
                "{} has taken over; this run has stopped, run it again to see where things are",
                holder_of(&lease)
            ));
        }
        lease.spec = Some(spec(holder));
        let _ = api.replace(names::CONVERT_LEASE, &PostParams::default(), &lease).await;
    }
}

async fn release(api: &Api<Lease>, uid: Option<String>) {
    let ours = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
    // If it cannot be deleted now, it expires, and the next holder deletes it.
    let _ = api.delete(names::CONVERT_LEASE, &ours).await;
}

/// Ends when a signal asks to stop: the terminal's, or another process's.
pub async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let of = |kind: SignalKind| async move {
            match signal(kind) {
                Ok(mut signal) => {
                    signal.recv().await;
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = of(SignalKind::interrupt()) => {}
            () = of(SignalKind::terminate()) => {}
            () = of(SignalKind::hangup()) => {}
            () = of(SignalKind::quit()) => {}
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
    }
}
