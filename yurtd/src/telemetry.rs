//! Logging to stderr, which is the journal under systemd and the container log in a pod.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged unless `YURT_LOG` says otherwise.
const DEFAULT: &str = "info";

/// Installs the subscriber. `YURT_LOG` takes a level, or levels by crate (`info,yurt_hub=debug`), as
/// [`tracing_subscriber::filter::Targets`] reads them: without the regular expressions over fields that its
/// `EnvFilter` has, which cost every process a megabyte.
pub(crate) fn init() {
    let asked = std::env::var("YURT_LOG").ok();
    let (filter, fault) = filter(asked.as_deref());
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    if under_systemd {
        // The journal stamps every line itself.
        registry.with(lines.without_time()).init();
    } else {
        registry.with(lines).init();
    }
    if let Some(fault) = fault {
        tracing::warn!("YURT_LOG is not understood and {DEFAULT} is used: {fault}");
    }
}

/// The filter, and why it is not the one that was asked for.
fn filter(asked: Option<&str>) -> (Targets, Option<String>) {
    let default = || Targets::new().with_default(tracing::Level::INFO);
    match asked.filter(|text| !text.trim().is_empty()).map(str::parse::<Targets>) {
        None => (default(), None),
        Some(Ok(targets)) => (targets, None),
        Some(Err(error)) => (default(), Some(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_those_that_were_asked_for() {
        let (targets, fault) = filter(Some("warn,yurt_hub=debug"));
        assert_eq!(fault, None);
        assert!(targets.would_enable("yurt_hub::link", &Level::DEBUG));
        assert!(!targets.would_enable("yurt_tunnel::agent", &Level::INFO));
    }

    #[test]
    fn what_is_not_understood_is_said_and_is_the_default() {
        for nothing in [None, Some(""), Some(" ")] {
            let (targets, fault) = filter(nothing);
            assert!(fault.is_none() && targets.would_enable("yurt_hub", &Level::INFO));
        }
        let (targets, fault) = filter(Some("yurt_hub=loud"));
        assert!(fault.is_some());
        assert!(targets.would_enable("yurt_hub", &Level::INFO));
        assert!(!targets.would_enable("yurt_hub", &Level::DEBUG));
    }
}
