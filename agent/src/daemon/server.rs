//! RUN/api.sock: accepts, checks who it is, reads bounded lines, passes requests to the queue and answers back.
//!
//! Invariants: root alone (socket 0600, and the peer's uid); at most [`MAX_CONNECTIONS`]; a request line has at
//! most [`MAX_LINE`] bytes; one request at a time on a connection.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as Std;
use std::sync::Arc;

use berth_launcher::socket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::api::{Answer, Fault, MAX_LINE, Request, SOCKET, VERSION};

use super::Input;
use super::metrics::register;
use super::settings::Folders;
use super::wait::line;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Answers (events) that may wait for a client that reads slowly.
const WAITING: usize = 8192;

/// Counters of the API.
pub(crate) struct Metrics {
    pub requests: IntCounterVec,
    pub refused: IntCounterVec,
    pub connections: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let requests = Opts::new("berth_api_requests_total", "API requests, by operation.");
        let refused = Opts::new(
            "berth_api_refused_total",
            "API connections and requests refused, by reason.",
        );
        let connections = IntGauge::new("berth_api_connections", "Open API connections.");
        Ok(Metrics {
            requests: register(registry, IntCounterVec::new(requests, &["op"]))?,
            refused: register(registry, IntCounterVec::new(refused, &["reason"]))?,
            connections: register(registry, connections)?,
        })
    }
}

/// Of a connection.
#[derive(Debug)]
pub(crate) enum News {
    /// One more.
    Opened,
    /// This one ended.
    Closed(u64),
    /// One was, or a request on it: the reason for the metric.
    Refused(&'static str),
}

/// Binds and serves.
///
/// # Errors
/// `AddrInUse` while another agent serves the same folder; else the kernel's.
pub(crate) fn listen(folders: &Folders, queue: UnboundedSender<Input>) -> io::Result<()> {
    let listener = Std::from(socket::listen(&folders.run, SOCKET)?);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut number = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    number += 1;
                    let refuse = |why| {
                        let _ = queue.send(Input::Api(News::Refused(why)));
                    };
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        refuse("connections");
                        continue;
                    };
                    if !socket::peer(stream.as_fd()).is_ok_and(|(_, uid)| uid == 0) {
                        refuse("uid");
                        continue;
                    }
                    let queue = queue.clone();
                    tokio::spawn(async move {
                        let _ = queue.send(Input::Api(News::Opened));
                        if let Err(error) = serve(stream, number, &queue).await {
                            tracing::debug!(%error, "api connection");
                        }
                        let _ = queue.send(Input::Api(News::Closed(number)));
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "api socket");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn serve(mut stream: UnixStream, conn: u64, queue: &UnboundedSender<Input>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = next_line(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let op = match parse(&request) {
            Ok(op) => op,
            Err((why, fault)) => {
                let _ = queue.send(Input::Api(News::Refused(why)));
                return stream.write_all(&line::<()>(&Answer::Error(fault))).await;
            }
        };
        let (reply, mut answers) = mpsc::channel(WAITING);
        let _ = queue.send(Input::Asked {
            op: Box::new(op),
            conn,
            reply,
        });
        let mut byte = [0; 1];
        let mut half_closed = false;
        loop {
            tokio::select! {
                biased;
                answer = answers.recv() => match answer {
                    Some(bytes) => stream.write_all(&bytes).await?,
                    None => break,
                },
                // Bytes before the answer are the next request; the end means nobody waits any more.
                n = stream.read(&mut byte), if !half_closed && buffer.len() < MAX_LINE => match n? {
                    0 if hung_up(&stream) => return Ok(()),
                    // It has asked its last, and still listens.
                    0 => half_closed = true,
                    _ => buffer.push(byte[0]),
                }
            }
        }
    }
}

/// Is the other end closed altogether, and not only for writing?
fn hung_up(stream: &UnixStream) -> bool {
    let mut one = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut one, PollTimeout::ZERO).is_ok();
    polled && one[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP))
}

/// The next line without its newline; `None` at the end.
async fn next_line(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut searched = 0;
    loop {
        if let Some(at) = buffer[searched..].iter().position(|b| *b == b'\n') {
            let rest = buffer.split_off(searched + at + 1);
            let mut line = std::mem::replace(buffer, rest);
            line.pop();
            return Ok(Some(line));
        }
        searched = buffer.len();
        if buffer.len() > MAX_LINE {
            let text = format!("a line of more than {MAX_LINE} bytes");
            stream
                .write_all(&line::<()>(&Answer::Error(Fault {
                    message: text.clone(),
                    hint: None,
                })))
                .await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut bytes = [0; 8192];
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&bytes[..n]);
    }
}

/// The request, or why it is refused. The version is looked at before anything else.
fn parse(bytes: &[u8]) -> Result<crate::api::Op, (&'static str, Fault)> {
    #[derive(serde::Deserialize)]
    struct Head {
        version: Option<u64>,
    }
    let fault = |message: String, hint: Option<&str>| Fault {
        message,
        hint: hint.map(str::to_owned),
    };
    let head: Head =
        serde_json::from_slice(bytes).map_err(|e| ("syntax", fault(format!("no request: {e}"), None)))?;
    match head.version {
        Some(v) if v == u64::from(VERSION) => {}
        Some(v) => {
            let text = format!("a request of version {v}: this agent speaks version {VERSION}");
            return Err(("version", fault(text, Some("use the berth of the running agent"))));
        }
        None => return Err(("version", fault("a request without `version`".to_owned(), None))),
    }
    let request: Request =
        serde_json::from_slice(bytes).map_err(|e| ("request", fault(format!("no request: {e}"), None)))?;
    Ok(request.op)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn requests_are_refused_with_a_reason() {
        for (line, why) in [
            ("", "syntax"),
            ("[]", "syntax"),
            ("{\"op\":\"ps\"}", "version"),
            ("{\"version\":2,\"op\":\"ps\"}", "version"),
            ("{\"version\":1}", "request"),
            ("{\"version\":1,\"op\":\"fly\"}", "request"),
            ("{\"version\":1,\"op\":\"inspect\"}", "request"),
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().0, why, "{line}");
        }
        assert!(parse(b"{\"version\":1,\"op\":\"ps\"}").is_ok());
    }
}
