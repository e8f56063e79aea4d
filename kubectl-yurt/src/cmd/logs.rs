//! `logs`: of one container, of every container of a pod, or of all pods of a selector, through the tunnel.

pub mod lines;

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
    cluster::workload,
    connect::{
        session::Session,
        tunnel::{self, Tunnel},
    },
    error::{Error, root},
    options::pods::{Containers, Logs, LogsOf, Since},
    output::Console,
    signals::interrupted,
};

/// How much of a log is read at once.
const CHUNK: usize = 16 * 1024;
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
pub async fn run(session: &Session, console: Console, options: &Logs) -> Result<(), Error> {
    let sources = sources(session, console, options).await?;
    if sources.is_empty() {
        console.note(format!("No resources found in {} namespace.", session.namespace));
        return Ok(());
    }
    let most = options.max_log_requests;
    if options.follow && sources.len() > most {
        return Err(Error::Failed(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {most}, use \
             --max-log-requests to increase the limit",
            sources.len()
        )));
    }
    let tunnel = tunnel::first(session).await?;
    let reader = Reader { tunnel, namespace: &session.namespace, options, console };
    let print = async {
        if options.follow && sources.len() > 1 {
            reader.print_together(&sources).await
        } else {
            reader.print_in_turn(&sources).await
        }
    };
    tokio::select! {
        result = print => result,
        () = interrupted() => Err(Error::Interrupted),
    }
}

/// Which logs are meant.
async fn sources(session: &Session, console: Console, options: &Logs) -> Result<Vec<Source>, Error> {
    let pods = match &options.of {
        LogsOf::Labelled(selector) => {
            let api: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
            api.list(&ListParams::default().labels(selector)).await?.items
        }
        LogsOf::Target(target) => {
            let found = workload::find(session, target, options.pod_running_timeout).await?;
            if found.count > 1 {
                let name = found.first.name_any();
                console.note(format!("Found {} pods, using pod/{name}", found.count));
            }
            vec![found.first]
        }
    };
    let mut sources = Vec::new();
    for pod in &pods {
        let name = pod.name_any();
        let asked = match &options.containers {
            Containers::All => {
                let all = workload::containers(pod).into_iter();
                sources.extend(all.map(|container| Source { pod: name.clone(), container }));
                continue;
            }
            Containers::Named(name) => Some(name.as_str()),
            Containers::Default => None,
        };
        let choice = workload::choose_container(pod, asked)?;
        if let Some(remark) = choice.remark {
            console.note(remark);
        }
        sources.push(Source { pod: name, container: choice.name });
    }
    Ok(sources)
}

fn params(options: &Logs, container: &str) -> LogParams {
    let (since_seconds, since_time) = match options.since {
        None => (None, None),
        Some(Since::Seconds(seconds)) => (Some(seconds), None),
        Some(Since::Time(time)) => (None, Some(time)),
    };
    LogParams {
        container: Some(container.to_owned()),
        follow: options.follow,
        limit_bytes: options.limit_bytes.map(i64::from),
        previous: options.previous,
        since_seconds,
        since_time,
        tail_lines: options.tail,
        timestamps: options.timestamps,
        ..LogParams::default()
    }
}

/// The server answered, and then the connection failed.
fn broken(error: &std::io::Error) -> Error {
    Error::Failed(format!("lost connection to the log: {}", root(error)))
}

/// Reads logs through one tunnel server.
struct Reader<'a> {
    tunnel: Tunnel,
    namespace: &'a str,
    options: &'a Logs,
    console: Console,
}

impl Reader<'_> {
    async fn open(&self, source: &Source) -> Result<impl AsyncRead + use<>, Error> {
        let request = Request::new(Pod::url_path(&(), Some(self.namespace)))
            .logs(&source.pod, &params(self.options, &source.container))
            .map_err(|error| Error::Failed(error.to_string()))?;
        let log = self.tunnel.client.request_stream(request).await;
        log.map_err(|error| Error::from_server(&self.tunnel.address, error))
    }

    /// Passes one log on, piece by piece as `cut` makes them of what has arrived; `None` is its end.
    async fn read(
        &self,
        source: &Source,
        cut: impl Fn(&mut Lines, Option<&[u8]>) -> Vec<u8>,
        mut to: impl AsyncFnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut log = std::pin::pin!(self.open(source).await?);
        let mut lines = Lines::new(self.options.prefix.then(|| source.prefix()));
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = log.read(&mut buffer).await.map_err(|error| broken(&error))?;
            let arrived = buffer.get(..count).filter(|arrived| !arrived.is_empty());
            let piece = cut(&mut lines, arrived);
            if !piece.is_empty() {
                to(piece).await?;
            }
            if arrived.is_none() {
                return Ok(());
            }
        }
    }

    /// What became of one of several logs: with `--ignore-errors` a failure is said and the others go on.
    fn settle(&self, result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(error) if self.options.ignore_errors && !matches!(error, Error::Pipe) => {
                self.console.note(error.plain(&self.tunnel.address));
                Ok(())
            }
            result => result,
        }
    }

    /// One log after the other, as the bytes come.
    async fn print_in_turn(&self, sources: &[Source]) -> Result<(), Error> {
        let mut stdout = tokio::io::stdout();
        for source in sources {
            let cut = |lines: &mut Lines, arrived: Option<&[u8]>| lines.passing(arrived.unwrap_or_default());
            let result = self.read(source, cut, async |piece| write(&mut stdout, &piece).await).await;
            self.settle(result)?;
        }
        Ok(())
    }

    /// Several logs at once; a line of one is never broken by a line of another.
    async fn print_together(&self, sources: &[Source]) -> Result<(), Error> {
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(QUEUE);
        let read = async move {
            let cut = |lines: &mut Lines, arrived: Option<&[u8]>| match arrived {
                Some(arrived) => lines.whole(arrived),
                None => lines.rest(),
            };
            let copies = futures::stream::iter(sources)
                .map(|source| {
                    let sender = sender.clone();
                    self.read(source, cut, async move |piece| {
                        sender.send(piece).await.map_err(|_| Error::Pipe)
                    })
                })
                .buffer_unordered(sources.len());
            let mut copies = std::pin::pin!(copies);
            while let Some(result) = copies.next().await {
                self.settle(result)?;
            }
            // The last sender ends here, and with it the writer, when it has written everything.
            Ok::<(), Error>(())
        };
        let write = async {
            let mut stdout = tokio::io::stdout();
            while let Some(piece) = pieces.recv().await {
                write(&mut stdout, &piece).await?;
            }
            Ok::<(), Error>(())
        };
        tokio::try_join!(read, write).map(|_| ())
    }
}

async fn write(stdout: &mut Stdout, piece: &[u8]) -> Result<(), Error> {
    stdout.write_all(piece).await?;
    Ok(stdout.flush().await?)
}
