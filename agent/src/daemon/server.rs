//! RUN/api.sock: accepts, checks who it is, reads bounded lines, passes requests to the queue and answers back.
//!
//! Invariants: who has no role ([`super::roles`]) gets one answer and is let go (with no group on the node the socket is
//! 0600: root alone); at most [`MAX_CONNECTIONS`]; a request line has at
//! most [`MAX_LINE`] bytes; one request at a time on a connection.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as Std;
use std::sync::Arc;

use berth_audit::Who;
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
use super::roles::{Groups, Role};
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
    /// One was, or a request on it: whose, the reason for the metric, and in words.
    Refused(Who, &'static str, String),
}

/// Binds and serves.
///
/// # Errors
/// `AddrInUse` while another agent serves the same folder; else the kernel's.
pub(crate) fn listen(folders: &Folders, groups: Groups, queue: UnboundedSender<Input>) -> io::Result<()> {
    let listener = Std::from(socket::listen(&folders.run, SOCKET)?);
    listener.set_nonblocking(true)?;
    if groups.any() {
        // Everybody reaches it; who has no role is sent away.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(folders.api(), mode)?;
    }
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // Root always finds a place.
        let others = Arc::new(Semaphore::new(MAX_CONNECTIONS / 2));
        let mut number = 0;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    number += 1;
                    let Ok((who, role)) = groups.who(stream.as_fd()) else {
                        tracing::warn!("api socket: the kernel does not say who connected");
                        continue;
                    };
                    let refuse = |why, text: String| {
                        let fault = Fault {
                            message: text.clone(),
                            hint: None,
                        };
                        // Who is sent away may not read; the socket takes a line without waiting.
                        let _ = stream.try_write(&line::<()>(&Answer::Error(fault)));
                        let _ = queue.send(Input::Api(News::Refused(who.clone(), why, text)));
                    };
                    if role == Role::None {
                        refuse(
                            "uid",
                            format!(
                                "uid {} has no role here: it is in none of the groups for it",
                                who.uid
                            ),
                        );
                        continue;
                    }
                    let places = if who.uid == 0 { &places } else { &others };
                    let Ok(place) = places.clone().try_acquire_owned() else {
                        refuse("connections", "too many connections".to_owned());
                        continue;
                    };
                    let queue = queue.clone();
                    tokio::spawn(async move {
                        let _ = queue.send(Input::Api(News::Opened));
                        if let Err(error) = serve(stream, number, &who, role, &queue).await {
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

async fn serve(
    mut stream: UnixStream,
    conn: u64,
    who: &Who,
    role: Role,
    queue: &UnboundedSender<Input>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = next_line(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let op = match parse(&request) {
            Ok(op) => op,
            Err((why, fault)) => {
                let _ = queue.send(Input::Api(News::Refused(who.clone(), why, fault.message.clone())));
                return stream.write_all(&line::<()>(&Answer::Error(fault))).await;
            }
        };
        let (reply, mut answers) = mpsc::channel(WAITING);
        let _ = queue.send(Input::Asked {
            op: Box::new(op),
            who: who.clone(),
            role,
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
