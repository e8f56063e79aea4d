//! The stream around a watcher's position: when to read, when to send a bookmark, when to end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, BoxStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::feed::{self, Position};
use super::{Client, Progress, Since, Sync, View, WatchError, WatchOptions};
use crate::store::StoreError;
use crate::wire::Status;
use crate::wire::frame::{encode_bookmark, encode_error};

/// Between bookmarks, as the API server does.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes that long before the end.
const BEFORE_END: Duration = Duration::from_secs(2);

/// Frames of one watch. Ends at the deadline, or after an ERROR frame.
pub(crate) struct WatchStream {
    inner: BoxStream<'static, Bytes>,
    went_back: Arc<Notify>,
}

impl WatchStream {
    /// For those who put events with old resourceVersions among the frames: a bookmark comes behind them, if the client
    /// wants bookmarks.
    pub(crate) fn went_back(&self) -> Arc<Notify> {
        Arc::clone(&self.went_back)
    }
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WatchStream(..)")
    }
}

impl Stream for WatchStream {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.inner.as_mut().poll_next(cx)
    }
}

/// Starts a watch.
pub(super) fn start(view: &Arc<View>, options: WatchOptions) -> Result<WatchStream, WatchError> {
    let mut progress = view.progress.subscribe();
    let known = progress.borrow_and_update().resource_version;
    let record = view.read(|reader| feed::load(reader, view.id))?;
    let position = match options.since {
        Since::Exactly(since) if !options.send_initial_events => {
            Position::after(&record, known, since).ok_or(WatchError::Expired)?
        }
        Since::Exactly(_) | Since::Any => Position::from_state(&record, known, options.send_initial_events),
    };
    let last_bookmark = options.ends_at.checked_sub(BEFORE_END).unwrap_or(options.ends_at);
    let went_back = Arc::new(Notify::new());
    let watcher = Watcher {
        client: Client::new(view),
        progress,
        sync: view.sync.subscribe(),
        position,
        queue: VecDeque::new(),
        drained: false,
        went_back: Arc::clone(&went_back),
        ended: false,
        version: 0,
        bookmark_at: options.bookmarks.then(|| (Instant::now() + BOOKMARK_EVERY).min(last_bookmark)),
        last_bookmark,
        ends_at: options.ends_at,
    };
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next().await?;
        Some((frame, watcher))
    });
    Ok(WatchStream { inner: Box::pin(frames), went_back })
}

struct Watcher {
    client: Client,
    progress: watch::Receiver<Progress>,
    sync: watch::Receiver<Sync>,
    position: Position,
    queue: VecDeque<Bytes>,
    drained: bool,
    /// An event had a resourceVersion from long ago. client-go takes that of the last one for the collection's, and would
    /// come back with it: too old, perhaps. A bookmark says how it is.
    went_back: Arc<Notify>,
    ended: bool,
    /// The collection's resourceVersion up to which everything was sent.
    version: u64,
    bookmark_at: Option<Instant>,
    last_bookmark: Instant,
    ends_at: Instant,
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.queue.pop_front() {
                return Some(frame);
            }
            if self.ended {
                return None;
            }
            if !self.drained {
                self.read();
                continue;
            }
            let bookmark_at = self.bookmark_at.unwrap_or(self.ends_at);
            let sync = &mut self.sync;
            let refused = async { drop(sync.wait_for(|sync| sync.state.ends_watches()).await) };
            tokio::select! {
                biased;
                () = sleep_until(self.ends_at) => self.ended = true,
                // The client comes again and is told why.
                () = refused => self.ended = true,
                changed = self.progress.changed() => match changed {
                    Ok(()) => self.drained = false,
                    Err(_) => self.ended = true,
                },
                () = self.went_back.notified(), if self.bookmark_at.is_some() => self.bookmark(),
                () = sleep_until(bookmark_at), if self.bookmark_at.is_some() => self.bookmark(),
            }
        }
    }

    fn read(&mut self) {
        let known = self.progress.borrow_and_update().resource_version;
        let view = &self.client.view;
        let outcome = view.read(|reader| self.position.read(reader, view.id, known));
        let status = match outcome {
            Ok(batch) if !batch.expired => {
                self.queue.extend(batch.frames);
                self.drained = batch.drained;
                if batch.local {
                    self.went_back.notify_one();
                }
                if batch.drained {
                    self.version = batch.version;
                }
                return;
            }
            Ok(_) => Status::expired(),
            Err(StoreError::Failed(error)) => Status::new(500, "InternalError", error),
            Err(error) => {
                tracing::error!(%error, view = %view.name(), "a watch cannot go on");
                Status::new(500, "InternalError", error.to_string())
            }
        };
        self.queue.push_back(encode_error(view.spec.encoding(), &status));
        self.ended = true;
    }

    /// A bookmark, unless the watcher came with a newer resourceVersion than the view has reached yet.
    fn bookmark(&mut self) {
        let now = Instant::now();
        self.bookmark_at = (now < self.last_bookmark).then(|| (now + BOOKMARK_EVERY).min(self.last_bookmark));
        if self.version < self.position.since().max(1) {
            return;
        }
        let view = &self.client.view;
        if let Ok(Some(kind)) = view.read(|reader| Ok(feed::load(reader, view.id)?.kind)) {
            self.queue.push_back(encode_bookmark(view.spec.encoding(), &kind, self.version, false));
        }
    }
}
