//! `/metrics` on the health port, for Prometheus: [OpenMetrics text](https://prometheus.io/docs/specs/om/open_metrics_spec/).
//!
//! No label ever has a name of a user, a namespace or an object: the port is open to everybody on the node. What is
//! counted is counted here; what is the state of something is looked at when somebody asks.

use http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::view::StateCounts;

/// What `/metrics` answers with.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Every metric's name begins with it.
const PREFIX: &str = "yurt_hub";

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A view.
    View,
    /// The API server, through the hub.
    Upstream,
    /// What is known without the API server.
    Offline,
    /// Nowhere: the request was refused or failed.
    None,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Upstream => "upstream",
            Self::Offline => "offline",
            Self::None => "none",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    source: &'static str,
    code: u16,
}

/// What is counted while the hub runs.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
}

/// What is the state of something, when it is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) online: bool,
    pub(crate) ready: bool,
    pub(crate) views: StateCounts,
    pub(crate) fed_views: usize,
    pub(crate) pending_patches: usize,
    pub(crate) pending_events: usize,
    pub(crate) dropped_events: u64,
    pub(crate) token_reviews: u64,
    pub(crate) forged_tokens: u64,
    pub(crate) token_keys: usize,
    pub(crate) store_bytes: u64,
    pub(crate) store_limit: u64,
    pub(crate) store_commits: u64,
    pub(crate) store_full: bool,
    /// Seconds since 1970.
    pub(crate) certificate_expires: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Metrics {
    /// A request was answered.
    pub(crate) fn answered(&self, source: Source, code: StatusCode) {
        self.requests.get_or_create(&RequestLabels { source: source.name(), code: code.as_u16() }).inc();
    }

    /// All of it as text.
    pub(crate) fn encode(&self, sample: &Sample) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry(sample))?;
        Ok(text)
    }

    fn registry(&self, sample: &Sample) -> Registry {
        let mut all = Registry::with_prefix(PREFIX);
        let flag = |value: bool| ConstGauge::new(i64::from(value));
        let count = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let bytes = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let counter = |value: u64| ConstCounter::new(value);
        all.register(
            "requests",
            "Requests answered, by where the answer came from and its HTTP status. A watch counts when it begins",
            self.requests.clone(),
        );
        all.register("link_up", "1 while an API server can be reached", flag(sample.online));
        all.register("ready", "1 while kubelet can be sent to the hub, as /readyz says", flag(sample.ready));
        let views = Family::<StateLabel, Gauge>::default();
        for (state, number) in sample.views.by_name() {
            views.get_or_create(&StateLabel { state }).set(i64::try_from(number).unwrap_or(i64::MAX));
        }
        all.register(
            "views",
            "Collections that are kept: followed now, behind the API server, refused by it, or not listed yet",
            views,
        );
        all.register(
            "fed_views",
            "Collections that cost no uplink: they are fed from a wider one that another component reads",
            count(sample.fed_views),
        );
        all.register_with_unit(
            "view_age",
            "How long ago the API server's word was last heard about the view that has waited longest for it",
            Unit::Seconds,
            bytes(sample.views.oldest),
        );
        all.register(
            "pending_status_patches",
            "Objects whose status changed without a link and has not been replayed",
            count(sample.pending_patches),
        );
        all.register(
            "pending_events",
            "Events from the time without a link that have not been sent",
            count(sample.pending_events),
        );
        all.register(
            "dropped_events",
            "Events that were dropped because too many waited",
            counter(sample.dropped_events),
        );
        all.register(
            "token_reviews",
            "TokenReviews that the API server was asked for",
            counter(sample.token_reviews),
        );
        all.register(
            "forged_tokens",
            "Requests whose bearer token was refused by the cluster's own keys, without a TokenReview",
            counter(sample.forged_tokens),
        );
        all.register(
            "token_keys",
            "Keys of the cluster's tokens that are known; with none, no new token is good without a link",
            count(sample.token_keys),
        );
        all.register_with_unit(
            "store",
            "Size of the store on the disk",
            Unit::Bytes,
            bytes(sample.store_bytes),
        );
        all.register_with_unit(
            "store_limit",
            "What the store may have at most",
            Unit::Bytes,
            bytes(sample.store_limit),
        );
        all.register("store_commits", "Transactions written to the store", counter(sample.store_commits));
        all.register(
            "store_full",
            "1 while the store takes no more: what is stored stays, and requests are forwarded",
            flag(sample.store_full),
        );
        if let Some(expires) = sample.certificate_expires {
            all.register_with_unit(
                "serving_certificate_expiry_timestamp",
                "When the serving certificate ends",
                Unit::Seconds,
                ConstGauge::new(expires),
            );
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use super::*;

    fn everything() -> String {
        let metrics = Metrics::default();
        metrics.answered(Source::View, StatusCode::OK);
        metrics.encode(&Sample { certificate_expires: Some(1), ..Sample::default() }).unwrap()
    }

    #[test]
    fn answers_are_counted_by_where_they_came_from() {
        let metrics = Metrics::default();
        metrics.answered(Source::View, StatusCode::OK);
        metrics.answered(Source::View, StatusCode::OK);
        metrics.answered(Source::None, StatusCode::UNAUTHORIZED);
        let text = metrics.encode(&Sample { online: true, store_commits: 7, ..Sample::default() }).unwrap();
        for line in [
            "yurt_hub_requests_total{source=\"view\",code=\"200\"} 2",
            "yurt_hub_requests_total{source=\"none\",code=\"401\"} 1",
            "yurt_hub_link_up 1",
            "yurt_hub_store_commits_total 7",
            "yurt_hub_views{state=\"following\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    /// `YURT_WRITE_DOCS=1` writes it: `make docs`.
    #[test]
    fn the_document_says_what_is_exported() {
        let mut document = String::from(
            "# Metrics\n\n<!-- Written by `make docs`. -->\n\n`http://127.0.0.1:10267/metrics` on an edge node, for \
             everybody there, as OpenMetrics text. No label\nnames a user, a namespace or an object.\n\n\
             | metric | type | what |\n|---|---|---|\n",
        );
        let text = everything();
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            let (name, help) = line.split_once(' ').unwrap();
            let kind = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
            let suffix = if kind == "counter" { "_total" } else { "" };
            writeln!(document, "| `{name}{suffix}` | {kind} | {help} |").unwrap();
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        if std::env::var_os("YURT_WRITE_DOCS").is_some() {
            std::fs::write(&file, &document).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == document, "docs/metrics.md is not what the hub exports; `make docs` writes it");
    }
}
