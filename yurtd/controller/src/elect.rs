//! Stands for election, and works while elected.

use tokio_util::sync::CancellationToken;
use yurt_node::supervise::Ended;

use super::context::within;
use super::election::{self, Election, Standing};
use super::health::Pulse;
use super::term::{Settings, Term};

/// Stands for election until `stop`; then the work ends, and the Lease is let go.
///
/// # Errors
///
/// [`Ended`] when a reconciler ended by itself. A leader that holds the Lease and does not work is worse than none: so
/// that another one can begin, the Lease is let go then, too.
pub(super) async fn elect(
    client: kube::Client,
    settings: Settings,
    pulse: Pulse,
    stop: CancellationToken,
) -> Result<(), Ended> {
    let mut election = Election::new(client.clone(), &settings.namespace, &settings.identity);
    let mut term: Option<Term> = None;
    let outcome = loop {
        pulse.beat();
        // The holder has to know in time that it is not the holder any more.
        let patience = election.time_left().unwrap_or(election::RENEW).min(election::RENEW / 2);
        let standing = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            standing = tokio::time::timeout(patience, election.stand()) => standing,
        };
        match standing {
            Ok(Ok(Standing::Holder)) => {
                if term.is_none() {
                    tracing::info!(identity = settings.identity, "elected");
                    term = Some(Term::begin(client.clone(), settings.clone()));
                }
            }
            Ok(Ok(Standing::Other(holder))) => {
                // The record says so: there is no grace to use up.
                if let Some(term) = term.take() {
                    tracing::warn!(holder, "another controller holds the lease");
                    term.end().await;
                }
            }
            Ok(Ok(Standing::Raced)) => {
                tracing::debug!("somebody else wrote the lease at the same time");
                // Who holds it now is known only after another look, and whoever works must know.
                if term.is_some() && election.time_left().is_some() {
                    continue;
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot get or renew the lease"),
            Err(_) => tracing::warn!("the API server does not answer about the lease"),
        }
        if election.time_left().is_none()
            && let Some(term) = term.take()
        {
            tracing::warn!("the lease could not be renewed in time: not working until it is");
            term.end().await;
        }
        let ended = async {
            match &term {
                Some(term) => term.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            ended = ended => break Err(ended),
            () = tokio::time::sleep(election::RETRY) => {}
        }
    };
    if let Some(term) = term.take() {
        term.end().await;
        // After the work has ended, never before.
        if let Err(error) = within(election.release()).await {
            tracing::warn!(%error, "cannot let go of the lease; it runs out by itself");
        }
    }
    outcome
}
