//! `logs`: of one container, of every container of a pod, or of all pods of a selector, through the tunnel.

pub mod lines;

use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ListParams, LogParams},
    core::Request,
};
use lines::Lines;
use tokio::{
    io::{AsyncWriteExt as _, Stdout},
    sync::mpsc,
};

use crate::{
    args::LogsArgs,
    cluster::target::{self, Reference},
    connect::{
        session::Session,
        tunnel::{self, Tunnel},
    },
    error::{Error, root},
    signals::interrupted,
};

/// How much of a log is read at once.
const CHUNK: usize = 16 * 1024;
/// Lines to print of each log with a selector, as kubectl.
const TAIL_OF_SELECTED: i64 = 10;
/// Pieces that wait for stdout when several logs are followed.
const QUEUE: usize = 64;

/// One log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    pod: String,
    container: String,
}

impl Source {
    fn prefix(&self) -> String {
        format!("[pod/{}/{}] ", self.pod, self.container)
    }
}

/// Runs the command.
///
/// # Errors
///
/// The server's answer in kubectl's words.
pub async fn run(session: &Session, args: &LogsArgs) -> Result<(), Error> {
    check(args)?;
    let sources = sources(session, args).await?;
    if sources.is_empty() {
        session.console.note(format!("No resources found in {} namespace.", session.namespace));
        return Ok(());
    }
    let most = usize::from(args.max_log_requests);
    if args.follow && sources.len() > most {
        return Err(Error::Failed(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {most}, use \
             --max-log-requests to increase the limit",
            sources.len()
        )));
    }
    let tunnel = tunnel::first(session).await?;
    let print = async {
        if args.follow && sources.len() > 1 {
            print_together(session, args, &tunnel, &sources).await
        } else {
            print_in_turn(session, args, &tunnel, &sources).await
        }
    };
    tokio::select! {
        result = print => result,
        () = interrupted() => Err(Error::Interrupted),
    }
}

fn check(args: &LogsArgs) -> Result<(), Error> {
    if args.since.is_some() && args.since_time.is_some() {
        return Err(Error::Failed("at most one of `sinceTime` or `sinceSeconds` may be specified".into()));
    }
    if args.tail.is_some_and(|tail| tail < -1) {
        return Err(Error::Failed("--tail must be greater than or equal to -1".into()));
    }
    Ok(())
}

/// Which logs are meant.
async fn sources(session: &Session, args: &LogsArgs) -> Result<Vec<Source>, Error> {
    let asked = args.container.as_deref().or(args.container_name.as_deref());
    let pods = match (&args.target, &args.selector) {
        (_, Some(selector)) => {
            let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
            api.list(&ListParams::default().labels(selector)).await?.items
        }
        (Some(target), None) => {
            let reference = Reference::parse(target)?;
            let found = target::find(session, &reference, args.pod_running_timeout).await?;
            if found.count > 1 {
                let name = found.first.name_any();
                session.console.note(format!("Found {} pods, using pod/{name}", found.count));
            }
            vec![found.first]
        }
        (None, None) => Vec::new(),
    };
    let mut sources = Vec::new();
    for pod in &pods {
        let name = pod.name_any();
        let containers = if args.all_containers {
            target::containers(pod)
        } else {
            let choice = target::choose_container(pod, asked)?;
            if let Some(remark) = choice.remark {
                session.console.note(remark);
            }
            vec![choice.name]
        };
        sources.extend(containers.into_iter().map(|container| Source { pod: name.clone(), container }));
    }
    Ok(sources)
}

fn params(args: &LogsArgs, container: &str) -> LogParams {
    let tail = args.tail.or_else(|| args.selector.is_some().then_some(TAIL_OF_SELECTED));
    LogParams {
        container: Some(container.to_owned()),
        follow: args.follow,
        limit_bytes: args.limit_bytes.map(i64::from),
        previous: args.previous,
        since_seconds: args.since.map(whole_seconds),
        since_time: args.since_time,
        tail_lines: tail.filter(|lines| *lines >= 0),
        timestamps: args.timestamps,
        ..LogParams::default()
    }
}

/// Rounded up: half a second ago is within the last second.
fn whole_seconds(duration: Duration) -> i64 {
    let up = u64::from(duration.subsec_nanos() > 0);
    i64::try_from(duration.as_secs().saturating_add(up)).unwrap_or(i64::MAX)
}

async fn open(
    session: &Session,
    args: &LogsArgs,
    tunnel: &Tunnel,
    source: &Source,
) -> Result<impl AsyncRead + use<>, Error> {
    let request = Request::new(Pod::url_path(&(), Some(&session.namespace)))
        .logs(&source.pod, &params(args, &source.container))
        .map_err(|error| Error::Failed(error.to_string()))?;
    tunnel.client.request_stream(request).await.map_err(|error| Error::from_server(&tunnel.address, error))
}

/// The server answered, and then the connection failed.
fn broken(error: &std::io::Error) -> Error {
    Error::Failed(format!("lost connection to the log: {}", root(error)))
}

/// One log after the other.
async fn print_in_turn(
    session: &Session,
    args: &LogsArgs,
    tunnel: &Tunnel,
    sources: &[Source],
) -> Result<(), Error> {
    let mut stdout = tokio::io::stdout();
    for source in sources {
        match print_one(session, args, tunnel, source, &mut stdout).await {
            Err(Error::Pipe) => return Err(Error::Pipe),
            Err(error) if args.ignore_errors => session.console.note(error.plain(&tunnel.address)),
            result => result?,
        }
    }
    Ok(())
}

async fn print_one(
    session: &Session,
    args: &LogsArgs,
    tunnel: &Tunnel,
    source: &Source,
    stdout: &mut Stdout,
) -> Result<(), Error> {
    let mut log = std::pin::pin!(open(session, args, tunnel, source).await?);
    let mut lines = Lines::new(args.prefix.then(|| source.prefix()));
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = log.read(&mut buffer).await.map_err(|error| broken(&error))?;
        if count == 0 {
            return Ok(());
        }
        let text = lines.passing(buffer.get(..count).unwrap_or_default());
        stdout.write_all(&text).await?;
        stdout.flush().await?;
    }
}

/// Several logs at once; a line of one is never broken by a line of another.
async fn print_together(
    session: &Session,
    args: &LogsArgs,
    tunnel: &Tunnel,
    sources: &[Source],
) -> Result<(), Error> {
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(QUEUE);
    let read = async move {
        let copies = futures::stream::iter(sources)
            .map(|source| copy(session, args, tunnel, source, sender.clone()))
            .buffer_unordered(sources.len());
        let mut copies = std::pin::pin!(copies);
        while let Some(result) = copies.next().await {
            match result {
                Err(error) if args.ignore_errors && !matches!(error, Error::Pipe) => {
                    session.console.note(error.plain(&tunnel.address));
                }
                result => result?,
            }
        }
        // The last sender ends here, and with it the writer, when it has written everything.
        Ok::<(), Error>(())
    };
    let write = async {
        let mut stdout = tokio::io::stdout();
        while let Some(piece) = pieces.recv().await {
            stdout.write_all(&piece).await?;
            stdout.flush().await?;
        }
        Ok::<(), Error>(())
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Passes the whole lines of one log on.
async fn copy(
    session: &Session,
    args: &LogsArgs,
    tunnel: &Tunnel,
    source: &Source,
    pieces: mpsc::Sender<Vec<u8>>,
) -> Result<(), Error> {
    let mut log = std::pin::pin!(open(session, args, tunnel, source).await?);
    let mut lines = Lines::new(args.prefix.then(|| source.prefix()));
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = log.read(&mut buffer).await.map_err(|error| broken(&error))?;
        let piece = match count {
            0 => lines.rest(),
            _ => lines.whole(buffer.get(..count).unwrap_or_default()),
        };
        if !piece.is_empty() && pieces.send(piece).await.is_err() {
            return Err(Error::Pipe);
        }
        if count == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> LogsArgs {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Logs(args) => args,
            _ => unreachable!("the line says logs"),
        }
    }

    #[test]
    fn a_selector_shortens_the_logs_unless_told_otherwise() {
        assert_eq!(params(&args("kubectl-yurt logs nginx"), "c").tail_lines, None);
        assert_eq!(params(&args("kubectl-yurt logs -l app=web"), "c").tail_lines, Some(10));
        assert_eq!(params(&args("kubectl-yurt logs -l app=web --tail=-1"), "c").tail_lines, None);
        assert_eq!(params(&args("kubectl-yurt logs nginx --tail 3"), "c").tail_lines, Some(3));
    }

    #[test]
    fn a_part_of_a_second_counts_as_one() {
        assert_eq!(whole_seconds(Duration::from_millis(1500)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(60)), 60);
    }

    #[test]
    fn two_beginnings_are_one_too_many() {
        let line = "kubectl-yurt logs nginx --since 5m --since-time 2026-01-01T00:00:00Z";
        assert!(check(&args(line)).is_err());
        assert!(check(&args("kubectl-yurt logs nginx --tail=-2")).is_err());
        assert!(check(&args("kubectl-yurt logs nginx -f --since 5m")).is_ok());
    }
}
