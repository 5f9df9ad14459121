//! The API from the caller's side: blocking, one request at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use berth_launcher::socket;
use serde::de::DeserializeOwned;

use crate::api::{Answer, MAX_LINE, Op, Request, SOCKET, VERSION};
use crate::daemon::settings::Folders;

use super::table::with_hint;

/// A connection to the agent.
pub(super) struct Client {
    reader: BufReader<UnixStream>,
}

/// Connects, asks one thing, takes one answer.
pub(super) fn ask<T: DeserializeOwned>(folders: &Folders, op: Op) -> anyhow::Result<T> {
    let mut client = Client::connect(folders)?;
    client.send(op)?;
    client.answer()
}

impl Client {
    pub(super) fn connect(folders: &Folders) -> anyhow::Result<Client> {
        let fd: OwnedFd = socket::connect(&folders.run, SOCKET).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Some("is `berth agent` running, with the same --run-dir?".to_owned())
                }
                io::ErrorKind::PermissionDenied => Some("only root may talk to the agent".to_owned()),
                _ => None,
            };
            with_hint(format!("{}: {error}", folders.api().display()), hint)
        })?;
        Ok(Client {
            reader: BufReader::new(fd.into()),
        })
    }

    pub(super) fn send(&mut self, op: Op) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&Request { version: VERSION, op })?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            anyhow::bail!("the request has {} bytes; the agent takes {MAX_LINE}", line.len());
        }
        match self.reader.get_mut().write_all(&line) {
            // Sent away before it could ask: why stands in the answer.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// The socket, to poll.
    pub(super) fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.reader.get_ref().as_fd()
    }

    /// Has it read more than it gave out?
    pub(super) fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    /// The next answer; an error of the agent's is an error here.
    pub(super) fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        match self.next()? {
            Some(answer) => Ok(answer),
            None => anyhow::bail!("the agent ended the connection without an answer"),
        }
    }

    /// The next answer; `None` at the end.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        // Answers are the agent's own: they may be longer than what it takes, but not without end.
        let n = (&mut self.reader)
            .take(16 * MAX_LINE as u64)
            .read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(None);
        }
        match serde_json::from_slice(&line)? {
            Answer::Ok(value) => Ok(Some(value)),
            Answer::Error(fault) => Err(with_hint(fault.message, fault.hint)),
        }
    }
}
