//! A walk along the way from this server to a node's kubelet: its own certificate, the agent's session, how far away it
//! is, kubelet and its certificate, the node's clock, how much the link carries. What comes after a hop that leads nowhere
//! is not tried.

use std::time::{Duration, Instant, SystemTime};

use http::{StatusCode, header};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use yurt_api::diagnosis::Check;
use yurt_api::status::{AgentStatus, LostAgent};
use yurt_api::tunnel::OpenErrorCode;
use yurt_node::certificate;

use super::kubelet_client::{KubeletError, Kubelets, Probe};
use super::tunnel::Tunnel;
use crate::server::registry::DialError;

/// How often the agent is asked.
const QUESTIONS: usize = 5;
/// How long it may take to answer one.
const ANSWER: Duration = Duration::from_secs(5);
/// How long kubelet may take.
const KUBELET: Duration = Duration::from_secs(20);
/// A round trip above it is worth a word: TLS to kubelet takes three.
const FAR: Duration = Duration::from_millis(500);
/// So is one that varies by more.
const UNSTEADY: Duration = Duration::from_millis(250);
/// What of kubelet's metrics is read at most, and for how long.
const SAMPLE: usize = 256 * 1024;
/// See [`SAMPLE`].
const SAMPLE_TIME: Duration = Duration::from_secs(4);
/// Bytes a second below which logs and copies are slow for a person: 512 kbit/s.
const SLOW: f64 = 64.0 * 1024.0;
/// Too little to say anything about the link.
const NOTHING: usize = 8 * 1024;
/// What two clocks may be apart: kubelet says full seconds, and tokens are taken that are a little early.
const APART: SignedDuration = SignedDuration::from_secs(5);
/// Beyond it certificates and tokens that were just issued are not valid yet.
const FAR_APART: SignedDuration = SignedDuration::from_mins(5);
/// When a certificate's end is worth a word.
const SOON: Duration = Duration::from_secs(24 * 3600);

/// What is looked at, and with what.
pub(super) struct Way<'a> {
    /// The node at its end.
    pub(super) node: &'a str,
    /// The sessions.
    pub(super) tunnel: &'a dyn Tunnel,
    /// The way from there on.
    pub(super) kubelets: &'a Kubelets,
    /// Until when agents take this server for what it is; nothing without a certificate.
    pub(super) serving_until: Option<SystemTime>,
}

impl Way<'_> {
    /// Walks it.
    pub(super) async fn walk(&self) -> Vec<Check> {
        let now = SystemTime::now();
        let mut checks =
            vec![ends("server-certificate", "the tunnel server's certificate", self.serving_until, now)];
        let (agents, lost) = (self.tunnel.agents(), self.tunnel.lost());
        let agent = agents.iter().find(|agent| agent.node == self.node);
        let lost = lost.iter().find(|agent| agent.node == self.node);
        if agent.is_some() {
            checks.push(session(agent, lost));
            checks.push(self.round_trip().await);
        } else {
            // This server leads there through the one that has it.
            let elsewhere = self.tunnel.everywhere().await.agents;
            let peer = elsewhere.iter().find(|agent| agent.node == self.node);
            checks.push(peer.map_or_else(|| session(None, lost), at_a_peer));
            checks.push(Check::skipped("round-trip", "this server has no session with the node"));
        }
        self.kubelet(&mut checks).await;
        checks
    }

    async fn round_trip(&self) -> Check {
        let mut times = Vec::new();
        for _ in 0..QUESTIONS {
            match self.tunnel.measure(self.node, ANSWER).await {
                Some(time) => times.push(time),
                None => break,
            }
        }
        round_trip(times)
    }

    async fn kubelet(&self, checks: &mut Vec<Check>) {
        let asked = SystemTime::now();
        let answer = tokio::time::timeout(KUBELET, self.kubelets.probe(self.node, Probe::Health)).await;
        let (response, shown) = match answer {
            Ok(Ok(answer)) => answer,
            outcome => {
                checks.push(match outcome {
                    Ok(Err(error)) => unreachable_kubelet(&error),
                    _ => Check::failed(
                        "kubelet",
                        "KubeletSilent",
                        format!("kubelet took the connection and said nothing for {KUBELET:?}"),
                        "look at kubelet on the node: `systemctl status kubelet`, `journalctl -u kubelet`",
                    ),
                });
                for check in ["kubelet-certificate", "clock", "throughput"] {
                    checks.push(Check::skipped(check, "kubelet does not answer"));
                }
                return;
            }
        };
        checks.push(health(response.status()));
        let until = shown.as_ref().and_then(valid_until);
        checks.push(ends("kubelet-certificate", "kubelet's serving certificate", until, asked));
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        checks.push(clock(date, Timestamp::now()));
        checks.push(self.throughput().await);
    }

    async fn throughput(&self) -> Check {
        let read = async {
            let (response, _) = self.kubelets.probe(self.node, Probe::Metrics).await.ok()?;
            let status = response.status();
            let mut body = response.into_body();
            let (began, mut bytes) = (Instant::now(), 0);
            let sample = async {
                while bytes < SAMPLE
                    && let Some(Ok(frame)) = body.frame().await
                {
                    bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
                }
            };
            let _ = tokio::time::timeout(SAMPLE_TIME, sample).await;
            Some((status, bytes, began.elapsed()))
        };
        match tokio::time::timeout(KUBELET, read).await {
            Ok(Some((StatusCode::OK, bytes, time))) => throughput(bytes, time),
            Ok(Some((status, ..))) => {
                Check::skipped("throughput", format!("kubelet answered {status} when asked for its metrics"))
            }
            _ => Check::skipped("throughput", "kubelet did not send its metrics"),
        }
    }
}

fn valid_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    certificate::validity(certificate).map(|validity| validity.not_after)
}

/// How long a certificate is still good.
fn ends(check: &str, what: &str, until: Option<SystemTime>, now: SystemTime) -> Check {
    let Some(until) = until else {
        return Check::skipped(check, format!("{what} cannot be read"));
    };
    let at = Timestamp::try_from(until).map_or_else(|_| "an unknown day".to_owned(), |at| at.to_string());
    let advice = if check == "server-certificate" {
        "yurt-controller renews it: see the log of that Deployment"
    } else {
        "kubelet renews it with serverTLSBootstrap, or makes one of its own when it starts without: see its log; a CSR of \
         `kubernetes.io/kubelet-serving` may wait for somebody to approve it"
    };
    match until.duration_since(now) {
        Ok(left) if left > SOON => Check::passed(check, format!("{what} is valid until {at}")),
        Ok(_) => Check::warning(check, "CertificateExpiresSoon", format!("{what} ends at {at}"), advice),
        Err(_) => Check::failed(check, "CertificateExpired", format!("{what} has expired at {at}"), advice),
    }
}

fn at_a_peer(agent: &AgentStatus) -> Check {
    let AgentStatus { server, connected_since, .. } = agent;
    Check::passed(
        "session",
        format!("it is connected to server {server} since {connected_since}, and led there"),
    )
}

fn session(agent: Option<&AgentStatus>, lost: Option<&LostAgent>) -> Check {
    let Some(agent) = agent else {
        let message = match lost {
            Some(lost) => format!(
                "the agent is not connected to this server; it was until {} from {}: {}",
                lost.last_seen, lost.remote_address, lost.reason
            ),
            None => "the agent is not connected, and was not since this server started".to_owned(),
        };
        return Check::failed(
            "session",
            "NotConnected",
            message,
            "`yurtd doctor` on the node says why; the node has to reach the port for agents of a tunnel server",
        );
    };
    if let Some(duplicate) = &agent.duplicate {
        return Check::failed(
            "session",
            "TwoMachines",
            format!(
                "two machines show this node's certificate, the last ones from {} and {} ({} times, last at {}): the \
                 session leads now to the one, now to the other",
                duplicate.older_address, duplicate.newer_address, duplicate.times, duplicate.last
            ),
            "one is a copy of the other: give it a node name and a certificate of its own (`kubeadm reset`, `kubeadm join`)",
        );
    }
    let AgentStatus { remote_address, connected_since, version, .. } = agent;
    Check::passed("session", format!("connected from {remote_address} since {connected_since} ({version})"))
}

fn round_trip(mut times: Vec<Duration>) -> Check {
    let check = "round-trip";
    times.sort();
    let (Some(least), Some(most)) = (times.first(), times.last()) else {
        return Check::failed(
            check,
            "AgentSilent",
            format!("the agent did not answer within {ANSWER:?}"),
            "the link is lost or overloaded; the session ends by itself when that stays so, and `session` says so then",
        );
    };
    let (median, jitter) = (times[times.len() / 2], *most - *least);
    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let message = format!("{} (median of {}), {} between them", millis(median), times.len(), millis(jitter));
    if times.len() < QUESTIONS {
        return Check::warning(
            check,
            "AgentSilent",
            format!("{message}; then no answer"),
            "the link loses packets",
        );
    }
    if median > FAR || jitter > UNSTEADY {
        return Check::warning(
            check,
            "SlowRoundTrip",
            message,
            "commands begin after six round trips; the link may be full: `throughput` says what it carries",
        );
    }
    Check::passed(check, message)
}

fn unreachable_kubelet(error: &KubeletError) -> Check {
    let look = "look at kubelet on the node: `systemctl status kubelet`, `journalctl -u kubelet`";
    let (code, hint) = match error {
        KubeletError::Dial(DialError::NotConnected(_)) => {
            return Check::skipped("kubelet", "there is no session");
        }
        KubeletError::Dial(DialError::Rejected { code: OpenErrorCode::Refused, .. }) => (
            "KubeletRefuses",
            "nothing listens there: kubelet is stopped, or listens on another port than `yurtd` was told when the node was \
             converted",
        ),
        KubeletError::Dial(DialError::Rejected { code: OpenErrorCode::TimedOut, .. }) => (
            "KubeletSilent",
            "a firewall on the node drops the agent's connections to kubelet, or kubelet is stopped by a signal",
        ),
        KubeletError::Dial(_) => ("AgentFails", "`yurtd doctor` and `journalctl -u yurtd` on the node"),
        KubeletError::NoCertificate(_) => {
            ("NoClientCertificate", "`kubectl get csr`, and the log of yurt-controller")
        }
        KubeletError::Failed { .. } => ("KubeletFails", look),
        KubeletError::Ours(_) => ("ServerFails", "the log of the tunnel server"),
    };
    Check::failed("kubelet", code, error.to_string(), hint)
}

fn health(status: StatusCode) -> Check {
    let check = "kubelet";
    match status {
        StatusCode::OK => Check::passed(check, "kubelet answers at its port and says that it is well"),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Check::failed(
            check,
            "KubeletForbids",
            format!("kubelet answered {status} to the tunnel server"),
            "plain kubectl works; `kubectl yurt logs` and exec need what ClusterRole yurt-tunnel-server grants \
             (nodes/proxy) and a kubelet that asks the API server (authorization mode Webhook, the cluster's client CA)",
        ),
        status => Check::failed(
            check,
            "KubeletUnhealthy",
            format!("kubelet answered {status} when asked whether it is well"),
            "`journalctl -u kubelet` on the node",
        ),
    }
}

fn clock(date: Option<&str>, now: Timestamp) -> Check {
    let check = "clock";
    let parsed = date.and_then(|date| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
    let Some(theirs) = parsed else {
        return Check::skipped(check, "kubelet did not say what time it is");
    };
    let off = theirs.duration_since(now);
    if off.abs() <= APART {
        return Check::passed(check, "the node's clock and this server's are the same to a few seconds");
    }
    let side = if off.is_negative() { "behind" } else { "ahead of" };
    let message = format!(
        "the node's clock is {:#} {side} this server's",
        SignedDuration::from_secs(off.abs().as_secs())
    );
    let hint = "set the node's clock (`timedatectl`, chrony): certificates and tokens are only valid between two times";
    if off.abs() > FAR_APART {
        Check::failed(check, "ClockOff", message, hint)
    } else {
        Check::warning(check, "ClockOff", message, hint)
    }
}

fn throughput(bytes: usize, time: Duration) -> Check {
    let check = "throughput";
    let kib = bytes / 1024;
    if bytes < NOTHING && time < SAMPLE_TIME {
        return Check::skipped(check, format!("kubelet's metrics are only {kib} KiB"));
    }
    let rate = bytes as f64 / time.as_secs_f64().max(1e-6);
    let message =
        format!("{kib} KiB from the node in {:.1} s: {:.0} KiB/s", time.as_secs_f64(), rate / 1024.0);
    if rate < SLOW {
        return Check::warning(
            check,
            "SlowLink",
            message,
            "what else runs over this link has a share of it; `kubectl logs --tail` asks for less",
        );
    }
    Check::passed(check, message)
}

#[cfg(test)]
mod tests {
    use yurt_api::diagnosis::Verdict;

    use super::*;

    fn said(check: &Check) -> (Verdict, Option<&str>) {
        (check.verdict, check.code.as_deref())
    }

    #[test]
    fn a_clock_that_is_a_day_off_is_named_and_one_of_some_seconds_is_not() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let at = |date: &str| clock(Some(date), now);
        assert_eq!(said(&at("Sat, 28 Nov 2026 11:59:58 GMT")), (Verdict::Passed, None));
        assert_eq!(said(&at("Sat, 28 Nov 2026 12:00:40 GMT")), (Verdict::Warning, Some("ClockOff")));
        let day = at("Fri, 27 Nov 2026 12:00:00 GMT");
        assert_eq!(said(&day), (Verdict::Failed, Some("ClockOff")));
        assert!(day.message.contains("24h behind"), "{}", day.message);
        assert_eq!(said(&clock(Some("yesterday"), now)), (Verdict::Skipped, None));
        assert_eq!(said(&clock(None, now)), (Verdict::Skipped, None));
    }

    #[test]
    fn a_slow_link_is_one_and_a_short_answer_says_nothing() {
        // 256 kbit/s.
        let slow = throughput(128 * 1024, SAMPLE_TIME);
        assert_eq!(said(&slow), (Verdict::Warning, Some("SlowLink")));
        assert!(slow.message.contains("32 KiB/s"), "{}", slow.message);
        assert_eq!(said(&throughput(SAMPLE, Duration::from_millis(40))), (Verdict::Passed, None));
        assert_eq!(said(&throughput(2000, Duration::from_millis(4))), (Verdict::Skipped, None));
        // Nothing at all in all the time that there was.
        assert_eq!(said(&throughput(0, SAMPLE_TIME)), (Verdict::Warning, Some("SlowLink")));
    }

    #[test]
    fn a_round_trip_is_judged_by_its_median_and_by_how_much_it_varies() {
        let of = |millis: &[u64]| round_trip(millis.iter().map(|ms| Duration::from_millis(*ms)).collect());
        assert_eq!(said(&of(&[4, 5, 4, 6, 5])), (Verdict::Passed, None));
        assert_eq!(said(&of(&[600, 610, 605, 601, 602])), (Verdict::Warning, Some("SlowRoundTrip")));
        assert_eq!(said(&of(&[4, 5, 4, 400, 5])), (Verdict::Warning, Some("SlowRoundTrip")));
        assert_eq!(said(&of(&[4, 5])), (Verdict::Warning, Some("AgentSilent")));
        assert_eq!(said(&of(&[])), (Verdict::Failed, Some("AgentSilent")));
    }

    #[test]
    fn a_certificate_is_judged_by_how_long_it_is_still_good() {
        let now = SystemTime::now();
        let of = |until| said(&ends("server-certificate", "it", until, now)).1.map(str::to_owned);
        assert_eq!(of(Some(now + 2 * SOON)), None);
        assert_eq!(of(Some(now + SOON / 2)).as_deref(), Some("CertificateExpiresSoon"));
        assert_eq!(of(Some(now - SOON)).as_deref(), Some("CertificateExpired"));
    }
}
