//! Logging to stderr, which is the journal under systemd and the container log in a pod.

use tracing_subscriber::EnvFilter;

/// Installs the subscriber. `YURT_LOG` takes the directives of `tracing_subscriber::EnvFilter`;
/// the default is `info`.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("YURT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if under_systemd {
        // The journal stamps every line itself.
        builder.without_time().init();
    } else {
        builder.init();
    }
}
