//! When something was last read from the API server, over the ends of processes: one that is started again in the same
//! boot goes on where the one before was. What was read has to be in the store before that it was.

use std::time::Duration;

use crate::clock::Boot;
use crate::store::{Bucket, Store};

/// The last reading of one thing.
#[derive(Debug)]
pub(crate) struct LastRead {
    store: Store,
    boot: Boot,
    /// In [`Bucket::Misc`].
    key: &'static [u8],
}

impl LastRead {
    /// As it is in the store.
    pub(crate) fn of(store: Store, boot: Boot, key: &'static [u8]) -> Self {
        Self { store, boot, key }
    }

    /// How long ago that was; nothing if it was in another boot, or never.
    pub(crate) fn age(&self) -> Option<Duration> {
        let read = self.store.get(Bucket::Misc, self.key).ok().flatten()?;
        self.boot.since(&serde_json::from_slice(&read).ok()?)
    }

    /// How long it need not be read again, if that is due after this time.
    pub(crate) fn not_before(&self, period: Duration) -> Duration {
        self.age().map_or(Duration::ZERO, |age| period.saturating_sub(age))
    }

    /// It was read, and what was read is in the store.
    pub(crate) async fn is_now(&self) {
        let now = serde_json::to_vec(&self.boot.moment()).unwrap_or_default();
        if let Err(error) = self.store.put(Bucket::Misc, self.key, &now).await {
            let what = String::from_utf8_lossy(self.key);
            tracing::debug!(%error, %what, "a restart reads it again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_is_started_again_goes_on_where_the_one_before_was_in_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open_with(dir.path(), 1 << 20).unwrap();
        let last_read = |boot: &str| LastRead::of(store.clone(), Boot::new(boot), b"something");
        let period = Duration::from_secs(3600);
        assert_eq!((last_read("one").age(), last_read("one").not_before(period)), (None, Duration::ZERO));
        last_read("one").is_now().await;
        for (boot, is_due) in [("one", false), ("two", true), ("", true)] {
            assert_eq!(last_read(boot).not_before(period) == Duration::ZERO, is_due, "{boot}");
        }
    }
}
