//! The launcher as the agent sees it: is it there, who starts it, and what is asked of it.
//!
//! Invariants: the launcher is found by its socket and watched by a pidfd (the socket's peer), whoever started
//! it; one that the agent starts is a process of its own session and outlives the agent; starting it again after
//! its death is the agent's job only with [`super::settings::LauncherBy::Agent`], by way of the starter.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use berth_launcher::client::{ClientError, connect_launcher};
use berth_launcher::frame::{Lines, decode, encode};
use berth_launcher::socket;
use berth_launcher::wire::{self, LauncherRequest, Refusal, Reply};
use prometheus::{IntCounter, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep, timeout};

use super::fd::Readable;
use super::metrics::register;
use super::settings::Settings;
use super::starter::Starter;
use super::{Input, LauncherNews};

/// Between two looks for the socket of a launcher that comes up.
const LOOK: Duration = Duration::from_millis(10);
/// So long a launcher may take to come up before it is told and started again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before one that died is started again.
const PAUSE: Duration = Duration::from_millis(100);
/// So long a sweep may take.
const SWEEP: Duration = Duration::from_secs(30);

/// Counters of the launcher.
pub(crate) struct Metrics {
    pub starts: IntCounter,
    pub deaths: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        Ok(Metrics {
            starts: counter("berth_launcher_starts_total", "Launchers started by the agent.")?,
            deaths: counter(
                "berth_launcher_deaths_total",
                "Launchers that ended while the agent watched.",
            )?,
        })
    }
}

/// Watches the launcher for ever: tells when it is there and when it is gone, and starts it where that is ours.
pub(crate) async fn keep(settings: Settings, mut starter: Option<Starter>, queue: UnboundedSender<Input>) {
    let tell = |news| {
        // The agent may be ending.
        let _ = queue.send(Input::Launcher(news));
    };
    loop {
        match watch(&settings.folders.run) {
            Ok((pid, pidfd)) => {
                tell(LauncherNews::There(pid));
                if let Err(error) = pidfd.ready().await {
                    tell(LauncherNews::Trouble(error.to_string()));
                }
                tell(LauncherNews::Gone(pid));
                sleep(PAUSE).await;
                continue;
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => tell(LauncherNews::Trouble(error.to_string())),
        }
        if let Some(starter) = &mut starter {
            match starter.start() {
                Ok(pid) => tell(LauncherNews::Started(pid)),
                Err(error) => tell(LauncherNews::Trouble(format!(
                    "cannot start the launcher: {error}"
                ))),
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && watch(&settings.folders.run).is_err() {
            sleep(LOOK).await;
        }
        if Instant::now() >= deadline {
            let socket = settings.folders.run.join(berth_launcher::client::LAUNCHER_SOCKET);
            tell(LauncherNews::Trouble(format!(
                "no launcher listens on {}",
                socket.display()
            )));
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The process behind the socket.
fn watch(run: &Path) -> io::Result<(i32, Readable)> {
    let stream = connect_launcher(run).map_err(|error| match error {
        ClientError::Connect { source, .. } => source,
        other => io::Error::other(other),
    })?;
    let (pid, _) = socket::peer(stream.as_fd())?;
    let pidfd = socket::pidfd_open(pid)?;
    Ok((pid, Readable::new(pidfd.as_fd())?))
}

/// Sends a launch request; the connection, and what of the line the socket did not take.
///
/// # Errors
/// No launcher, or a request that is too long.
pub(crate) fn launch(run: &Path, request: wire::LaunchRequest) -> Result<(UnixStream, Vec<u8>), Refusal> {
    let refuse = |message: String, hint: Option<String>| Refusal {
        stage: "launcher".to_owned(),
        message,
        hint,
    };
    let line =
        encode(&LauncherRequest::Launch(Box::new(request))).map_err(|e| refuse(e.to_string(), None))?;
    let stream = connect_launcher(run).map_err(|e| refuse(e.to_string(), e.hint()))?;
    stream
        .set_nonblocking(true)
        .map_err(|e| refuse(e.to_string(), None))?;
    let sent = match socket::send(stream.as_fd(), &line, &[]) {
        Ok(sent) => sent,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        Err(e) => return Err(refuse(e.to_string(), None)),
    };
    Ok((stream, line[sent..].to_vec()))
}

/// Asks whether the launcher answers; [`LauncherNews::Answered`] comes if it does.
pub(crate) fn ask(run: &Path, queue: &UnboundedSender<Input>) {
    let (run, queue) = (run.to_owned(), queue.clone());
    tokio::spawn(async move {
        match timeout(SWEEP, ping(&run)).await {
            // The agent may be ending.
            Ok(Ok(())) => drop(queue.send(Input::Launcher(LauncherNews::Answered))),
            Ok(Err(error)) => tracing::debug!(%error, "ping"),
            Err(_) => tracing::debug!("ping: no answer"),
        }
    });
}

async fn ping(run: &Path) -> io::Result<()> {
    let stream = connect_launcher(run).map_err(io::Error::other)?;
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    let request = LauncherRequest::Ping {
        version: wire::VERSION,
    };
    stream
        .write_all(&encode(&request).map_err(io::Error::other)?)
        .await?;
    let mut lines = Lines::new();
    loop {
        let mut bytes = [0; 256];
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        lines.push(&bytes[..n]);
        if let Some(line) = lines.next_line().map_err(io::Error::other)? {
            return match decode(&line).map_err(io::Error::other)? {
                Reply::Done => Ok(()),
                other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
            };
        }
    }
}

/// Asks for a sweep and waits for the answer.
pub(crate) async fn sweep(run: &Path, id: &str) -> Result<(), Refusal> {
    let refuse = |message: String| Refusal {
        stage: "sweep".to_owned(),
        message,
        hint: None,
    };
    let talk = async {
        let stream = connect_launcher(run).map_err(|e| refuse(e.to_string()))?;
        let io = |e: io::Error| refuse(e.to_string());
        stream.set_nonblocking(true).map_err(io)?;
        let mut stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
        let request = LauncherRequest::Sweep {
            version: wire::VERSION,
            id: id.to_owned(),
        };
        stream
            .write_all(&encode(&request).map_err(|e| refuse(e.to_string()))?)
            .await
            .map_err(io)?;
        let mut lines = Lines::new();
        loop {
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).await.map_err(io)?;
            if n == 0 {
                return Err(refuse("the launcher ended".to_owned()));
            }
            lines.push(&bytes[..n]);
            if let Some(line) = lines.next_line().map_err(|e| refuse(e.to_string()))? {
                return match decode(&line) {
                    Ok(Reply::Done) => Ok(()),
                    Ok(Reply::Refused(refusal)) => Err(refusal),
                    Ok(other) => Err(refuse(format!("unexpected answer {other:?}"))),
                    Err(error) => Err(refuse(error.to_string())),
                };
            }
        }
    };
    match timeout(SWEEP, talk).await {
        Ok(done) => done,
        Err(_) => Err(refuse(format!("no answer within {} s", SWEEP.as_secs()))),
    }
}
