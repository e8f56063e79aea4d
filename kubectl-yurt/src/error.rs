//! Why a command ended, its exit code, and how it is said: as kubectl would.
//!
//! Everything a command returns becomes text here and nowhere else.

use std::{error::Error as StdError, io};

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A preflight check or the arguments refused; nothing was changed. Exit code 2.
    #[error("{0}")]
    Refused(String),
    /// Something failed, is unhealthy or timed out. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Some nodes are done and some are not. Exit code 3.
    #[error("{0}")]
    Partial(String),
    /// The remote command ended with this code, which becomes ours.
    #[error("command terminated with exit code {0}")]
    Remote(u8),
    /// The verdict is in the output already. Exit code 1.
    #[error("unhealthy")]
    Unhealthy,
    /// A signal asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Whoever read our output has gone.
    #[error("broken pipe")]
    Pipe,
    /// A request to a server failed.
    #[error("{source}")]
    Api {
        /// The server, if it is another than the session's.
        server: Option<String>,
        /// What happened.
        #[source]
        source: Box<kube::Error>,
    },
    /// Reading or writing on this machine failed.
    #[error("{0}")]
    Io(io::Error),
}

impl From<kube::Error> for Error {
    fn from(source: kube::Error) -> Self {
        Self::Api { server: None, source: Box::new(source) }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Pipe } else { Self::Io(error) }
    }
}

impl Error {
    /// A failure of a request to `server` rather than to the session's API server.
    pub fn from_server(server: &str, source: kube::Error) -> Self {
        Self::Api { server: Some(server.to_owned()), source: Box::new(source) }
    }

    /// The process's exit code: 1 failed, 2 refused with nothing changed, 3 some nodes failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 2,
            Self::Partial(_) => 3,
            Self::Remote(code) => *code,
            Self::Failed(_)
            | Self::Unhealthy
            | Self::Interrupted
            | Self::Pipe
            | Self::Api { .. }
            | Self::Io(_) => 1,
        }
    }

    /// What to print on stderr; `None` if there is nothing left to say.
    pub fn text(&self, session_server: &str) -> Option<String> {
        match self {
            Self::Refused(text) | Self::Failed(text) | Self::Partial(text) => Some(format!("error: {text}")),
            Self::Remote(_) => Some(self.to_string()),
            Self::Unhealthy | Self::Interrupted | Self::Pipe => None,
            Self::Api { server, source } => Some(phrase(source, server.as_deref().unwrap_or(session_server))),
            Self::Io(error) => Some(format!("error: {error}")),
        }
    }

    /// The same without kubectl's prefix, for use inside another sentence.
    pub fn plain(&self, session_server: &str) -> String {
        let text = self.text(session_server).unwrap_or_default();
        text.strip_prefix("error: ").map(str::to_owned).unwrap_or(text)
    }
}

/// True if the API server answered that the object does not exist. About a resource that it does not know it says so in plain
/// text, which has no reason.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.code == 404)
}

/// A failed request in kubectl's words.
pub fn phrase(error: &kube::Error, server: &str) -> String {
    match error {
        kube::Error::Api(status) => phrase_status(status),
        kube::Error::Auth(error) => format!("error: getting credentials: {}", chain(error)),
        kube::Error::HyperError(error) => phrase_connection(error, server),
        kube::Error::Service(error) => phrase_connection(&**error, server),
        kube::Error::ReadEvents(error) => phrase_connection(error, server),
        other => format!("error: {}", chain(other)),
    }
}

/// A `Status` that a server answered with, in kubectl's words.
pub fn phrase_status(status: &kube::core::Status) -> String {
    let message = status.message.trim();
    if status.code == 401 || status.reason == "Unauthorized" {
        return format!("error: You must be logged in to the server ({message})");
    }
    match status.reason.as_str() {
        "" | "Unknown" => format!("Error from server: {message}"),
        reason if reason.contains(' ') => format!("Error from server: {message}"),
        reason => format!("Error from server ({reason}): {message}"),
    }
}

fn phrase_connection(error: &(dyn StdError + 'static), server: &str) -> String {
    match io_kind(error) {
        Some(io::ErrorKind::ConnectionRefused) => {
            format!(
                "The connection to the server {server} was refused - did you specify the right host or port?"
            )
        }
        Some(io::ErrorKind::TimedOut) => {
            format!("Unable to connect to the server: dial tcp {server}: i/o timeout")
        }
        _ => format!("Unable to connect to the server: {}", root(error)),
    }
}

/// The first specific I/O error in the chain. `io::Error::source` skips the error that it wraps, so that
/// one is asked for explicitly.
fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    let mut current = Some(error);
    while let Some(error) = current {
        current = error.source();
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if io.kind() != io::ErrorKind::Other {
                return Some(io.kind());
            }
            if let Some(inner) = io.get_ref() {
                current = Some(inner);
            }
        }
    }
    None
}

/// The last error of the chain: what really happened, without the layers above it.
pub fn root(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    loop {
        let next = match last.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => last.source(),
        };
        match next {
            Some(next) => last = next,
            None => return last.to_string(),
        }
    }
}

/// The chain as one line, leaving out what the line says already.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut current = error.source();
    while let Some(error) = current {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        current = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> kube::core::Status {
        kube::core::Status { code, reason: reason.into(), message: message.into(), ..Default::default() }
    }

    #[test]
    fn a_refusal_reads_as_kubectl_prints_it() {
        let text = phrase_status(&status(403, "Forbidden", "pods \"a\" is forbidden"));
        assert_eq!(text, "Error from server (Forbidden): pods \"a\" is forbidden");
    }

    #[test]
    fn an_unknown_reason_leaves_the_parentheses_out() {
        assert_eq!(phrase_status(&status(500, "", "boom\n")), "Error from server: boom");
        assert_eq!(
            phrase_status(&status(502, "Failed to parse error data", "bad gateway")),
            "Error from server: bad gateway"
        );
    }

    #[test]
    fn missing_credentials_read_as_kubectl_prints_them() {
        let text = phrase_status(&status(401, "Unauthorized", "Unauthorized"));
        assert_eq!(text, "error: You must be logged in to the server (Unauthorized)");
    }

    #[test]
    fn a_refused_connection_names_the_server_however_deep_it_is_wrapped() {
        let inner = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(io::Error::other(io::Error::other(inner))));
        assert_eq!(
            phrase(&error, "10.0.0.1:6443"),
            "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
        );
    }

    #[test]
    fn another_connection_failure_says_its_root() {
        let inner = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer");
        let error = kube::Error::Service(Box::new(io::Error::other(inner)));
        assert_eq!(
            phrase(&error, "h"),
            "Unable to connect to the server: invalid peer certificate: UnknownIssuer"
        );
    }

    #[test]
    fn exit_codes_are_those_of_the_design() {
        let codes: Vec<u8> = [
            Error::Refused(String::new()),
            Error::Failed(String::new()),
            Error::Partial(String::new()),
            Error::Remote(42),
            Error::from(kube::Error::Api(status(403, "Forbidden", "x").boxed())),
        ]
        .iter()
        .map(Error::exit_code)
        .collect();
        assert_eq!(codes, [2, 1, 3, 42, 1]);
    }

    #[test]
    fn a_reader_that_has_gone_is_not_reported() {
        let error = Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.text("h"), None);
    }
}
