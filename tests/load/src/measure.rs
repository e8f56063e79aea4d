//! Requests one after the other on every connection, and the sum of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::connect::Target;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) accept: String,
    pub(crate) token: String,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    requests: usize,
    requests_per_second: f64,
    /// Of one answer's body.
    bytes: usize,
    p50_ms: f64,
    p99_ms: f64,
}

/// The first answer of each connection warms things up and does not count.
pub(crate) async fn measure(
    target: &Target,
    request: &Request,
    connections: u16,
    time: Duration,
) -> anyhow::Result<Report> {
    let mut senders = Vec::new();
    let mut bytes = 0;
    for _ in 0..connections {
        let mut sender = target.connect().await?;
        bytes = ask(&mut sender, request).await?;
        senders.push(sender);
    }
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for mut sender in senders {
        let request = request.clone();
        workers.spawn(async move {
            let mut times = Vec::new();
            while started.elapsed() < time {
                let asked = Instant::now();
                ask(&mut sender, &request).await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(worker) = workers.join_next().await {
        times.extend(worker??);
    }
    let took = started.elapsed();
    times.sort_unstable();
    Ok(Report {
        requests: times.len(),
        #[allow(clippy::cast_precision_loss, reason = "a count of requests is small")]
        requests_per_second: times.len() as f64 / took.as_secs_f64(),
        bytes,
        p50_ms: milliseconds(percentile(&times, 50)),
        p99_ms: milliseconds(percentile(&times, 99)),
    })
}

/// The length of the answer's body, which must be a 200.
async fn ask(sender: &mut SendRequest<Empty<Bytes>>, request: &Request) -> anyhow::Result<usize> {
    let asked = http::Request::get(format!("https://kubernetes.default.svc{}", request.path))
        .header(http::header::ACCEPT, &request.accept)
        .header(http::header::AUTHORIZATION, format!("Bearer {}", request.token))
        .body(Empty::new())?;
    sender.ready().await.context("the connection ended")?;
    let response = sender.send_request(asked).await?;
    let status = response.status();
    let mut body = response.into_body();
    let (mut length, mut start) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            length += data.len();
            if start.len() < 1024 {
                start.extend_from_slice(&data[..data.len().min(1024)]);
            }
        }
    }
    ensure!(status == 200, "{} answered {status}: {}", request.path, String::from_utf8_lossy(&start));
    Ok(length)
}

/// The value that `percent` of the sorted ones do not exceed (nearest rank); zero if there are none.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(100));
        assert_eq!(percentile(&values, 99), Duration::from_millis(198));
        assert_eq!(percentile(&values[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
