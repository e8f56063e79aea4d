//! What can go wrong with an API server, switched on and off while it runs.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;

/// Which requests. Everything that is not said fits.
#[derive(Debug, Clone, Default)]
pub struct When {
    method: Option<String>,
    path: Option<String>,
    prefix: Option<String>,
    watch: Option<bool>,
    token: Option<String>,
}

impl When {
    /// All requests.
    pub fn all() -> Self {
        Self::default()
    }

    /// Requests for exactly this path.
    pub fn path(path: &str) -> Self {
        Self { path: Some(path.to_owned()), ..Self::default() }
    }

    /// Requests for paths that begin with this.
    pub fn under(prefix: &str) -> Self {
        Self { prefix: Some(prefix.to_owned()), ..Self::default() }
    }

    /// All watches.
    pub fn watches() -> Self {
        Self { watch: Some(true), ..Self::default() }
    }

    /// Those of them with this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..self }
    }

    /// Those of them that are watches, or that are none.
    #[must_use]
    pub fn watching(self, watch: bool) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Those of them with this bearer token.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    fn fits(&self, request: &Line) -> bool {
        let is =
            |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.method, &request.method)
            && is(&self.path, &request.path)
            && self.prefix.as_ref().is_none_or(|prefix| request.path.starts_with(prefix))
            && self.watch.is_none_or(|watch| watch == request.watch)
            && is(&self.token, request.token.as_deref().unwrap_or_default())
    }
}

/// What of a request a fault may depend on.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) watch: bool,
    pub(super) token: Option<String>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with a Status of this code.
    Answer(u16),
    /// It is answered with this text, as by something that is no API server, or has no such path.
    Text(u16, &'static str),
    /// It is taken and not answered, until the fault is gone.
    Stall,
    /// Its answer comes in pieces of so many bytes, with a pause before each.
    Slow(usize, Duration),
    /// Its connection ends instead of an answer.
    HangUp,
    /// A watch begins, and ends at once with an ERROR event of this code.
    Error(u16),
    /// A watch hears nothing, until the fault is gone; then all of it.
    Silent,
    /// What it writes is written, and no watch ever hears of it: a cache that lags.
    Unseen,
}

/// How connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Listening {
    #[default]
    Serve,
    /// Closed as soon as they are there.
    Refuse,
    /// Held, and not a byte is read or written: no TLS.
    Hold,
}

#[derive(Debug, Clone)]
struct Armed {
    when: When,
    fault: Fault,
    times: Option<usize>,
}

/// The faults that are switched on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Mutex<Vec<Armed>>,
    changed: watch::Sender<()>,
}

impl Faults {
    pub(super) fn arm(&self, when: When, fault: Fault, times: Option<usize>) {
        self.armed.lock().unwrap().push(Armed { when, fault, times });
        self.changed.send_replace(());
    }

    pub(super) fn clear(&self) {
        self.armed.lock().unwrap().clear();
        self.changed.send_replace(());
    }

    /// The first fault for a request, which counts.
    pub(super) fn take(&self, request: &Line) -> Option<Fault> {
        let mut armed = self.armed.lock().unwrap();
        let lasting = |fault: &Fault| matches!(fault, Fault::Silent | Fault::Unseen);
        let at = armed
            .iter()
            .position(|one| one.times != Some(0) && !lasting(&one.fault) && one.when.fits(request))?;
        if let Some(times) = &mut armed[at].times {
            *times -= 1;
        }
        Some(armed[at].fault.clone())
    }

    pub(super) fn has(&self, request: &Line, fault: &Fault) -> bool {
        let armed = self.armed.lock().unwrap();
        armed.iter().any(|one| one.fault == *fault && one.times != Some(0) && one.when.fits(request))
    }

    /// Waits until a fault is not there.
    pub(super) async fn without(&self, request: &Line, fault: &Fault) {
        let mut changed = self.changed.subscribe();
        while self.has(request, fault) {
            let _ = changed.changed().await;
        }
    }
}
