//! Requests one after the other on every connection, and the sum of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::connect::Target;
use crate::counts::Counts;

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) accept: String,
    pub(crate) token: String,
}

/// How it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) connections: u16,
    pub(crate) turns: u32,
    /// Of one server.
    pub(crate) turn: Duration,
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
    /// By how much it is slower than the first server, each turn's median less that server's in the same turn: the
    /// median of the turns.
    added_p50_ms: f64,
    /// Of this process, for one request.
    client_cpu_us: f64,
    /// Of the server's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<OfServer>,
}

/// What a server's process spent on one request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfServer {
    cpu_us: f64,
    switches: f64,
}

type Sender = SendRequest<Empty<Bytes>>;

/// One server, and what it has done so far.
struct Tried {
    senders: Vec<Sender>,
    process: Option<u32>,
    bytes: usize,
    times: Vec<Duration>,
    medians: Vec<Duration>,
    took: Duration,
    client: Counts,
    server: Counts,
}

/// The first answer of each connection warms things up and does not count.
pub(crate) async fn measure(
    targets: &[Target],
    processes: &[u32],
    request: &Request,
    schedule: Schedule,
) -> anyhow::Result<Vec<Report>> {
    let mut tried = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let (mut senders, mut bytes) = (Vec::new(), 0);
        for _ in 0..schedule.connections {
            let mut sender = target.connect().await?;
            bytes = ask(&mut sender, request).await?;
            senders.push(sender);
        }
        tried.push(Tried {
            senders,
            process: processes.get(number).copied(),
            bytes,
            times: Vec::new(),
            medians: Vec::new(),
            took: Duration::ZERO,
            client: Counts::default(),
            server: Counts::default(),
        });
    }
    for _ in 0..schedule.turns {
        for server in &mut tried {
            server.turn(request, schedule.turn).await?;
        }
    }
    let first = tried.first().map(|server| server.medians.clone()).unwrap_or_default();
    Ok(tried.into_iter().map(|server| server.report(&first)).collect())
}

impl Tried {
    async fn turn(&mut self, request: &Request, time: Duration) -> anyhow::Result<()> {
        let read = |process: Option<u32>| process.map_or(Ok(Counts::default()), Counts::of);
        let (client, server) = (Counts::of(std::process::id())?, read(self.process)?);
        let started = Instant::now();
        let mut workers = JoinSet::new();
        for mut sender in self.senders.drain(..) {
            let request = request.clone();
            workers.spawn(async move {
                let mut times = Vec::new();
                while started.elapsed() < time {
                    let asked = Instant::now();
                    ask(&mut sender, &request).await?;
                    times.push(asked.elapsed());
                }
                anyhow::Ok((sender, times))
            });
        }
        let mut times = Vec::new();
        while let Some(worker) = workers.join_next().await {
            let (sender, of_one) = worker??;
            self.senders.push(sender);
            times.extend(of_one);
        }
        self.took += started.elapsed();
        self.client += Counts::of(std::process::id())?.since(client);
        self.server += read(self.process)?.since(server);
        times.sort_unstable();
        self.medians.push(percentile(&times, 50));
        self.times.append(&mut times);
        Ok(())
    }

    /// `first` are the medians of the server that it is compared with.
    fn report(mut self, first: &[Duration]) -> Report {
        self.times.sort_unstable();
        let mut added: Vec<f64> = self
            .medians
            .iter()
            .zip(first)
            .map(|(own, first)| milliseconds(*own) - milliseconds(*first))
            .collect();
        added.sort_unstable_by(f64::total_cmp);
        #[allow(clippy::cast_precision_loss, reason = "a count of requests is small")]
        let requests = self.times.len() as f64;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / requests;
        Report {
            requests: self.times.len(),
            requests_per_second: requests / self.took.as_secs_f64(),
            bytes: self.bytes,
            p50_ms: milliseconds(percentile(&self.times, 50)),
            p99_ms: milliseconds(percentile(&self.times, 99)),
            added_p50_ms: added.get(added.len() / 2).copied().unwrap_or_default(),
            client_cpu_us: each(self.client.on_cpu),
            server: self.process.map(|_| OfServer {
                cpu_us: each(self.server.on_cpu),
                #[allow(clippy::cast_precision_loss, reason = "a count of switches is small")]
                switches: self.server.switches as f64 / requests,
            }),
        }
    }
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
