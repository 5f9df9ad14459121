//! The other end: a blocking connection to the launcher or to a monitor, for the command line, for tests, and
//! as the place where an asynchronous daemon sees how it is done (it uses [`crate::frame`] with I/O of its own;
//! [`connect_launcher`] and [`connect_monitor`] give it the connected socket).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::frame::{FrameError, Lines, decode, descriptors, encode};
use crate::socket;
use crate::wire::Reply;

/// The launcher's socket in the run folder.
pub const LAUNCHER_SOCKET: &str = "launcher.sock";
/// The folder of the monitors' sockets in the run folder.
pub const MONITORS: &str = "monitors";

/// Containers whose end is recorded in RUN/containers and whose monitor has no socket: it died, and a launcher swept what
/// it left while no agent was there to be told. Its id is free once it has been swept by request.
pub fn left_behind(run_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(run_dir.join("containers")) else {
        return Vec::new(); // nothing was ever launched
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|id| run_dir.join("containers").join(id).join("exit.json").exists())
        .filter(|id| !run_dir.join(MONITORS).join(format!("{id}.sock")).exists())
        .collect()
}

/// Why a conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("{path}: {source}")]
    Connect {
        /// The socket.
        path: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Broken while talking.
    #[error("talking to {path}: {source}")]
    Io {
        /// The socket.
        path: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Not this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A reply that announces a descriptor came without it.
    #[error("{path}: a reply came without the descriptor it announces")]
    NoDescriptor {
        /// The socket.
        path: String,
    },
}

impl ClientError {
    /// The setting to change, where the environment is at fault.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Connect { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Some("is `berth launcher` running, with the same --run-dir?".into())
                }
                io::ErrorKind::PermissionDenied => {
                    Some("only root may talk to the launcher and to monitors".into())
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// One reply with the descriptor that belongs to it.
#[derive(Debug)]
pub struct Received {
    /// What was said.
    pub reply: Reply,
    /// The container's pidfd, beside `created` and beside the status of a container that lives.
    pub fd: Option<OwnedFd>,
}

/// A blocking connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: String,
    lines: Lines,
    fds: VecDeque<OwnedFd>,
}

/// A connected socket to the launcher below `run_dir`.
///
/// # Errors
/// [`ClientError::Connect`].
pub fn connect_launcher(run_dir: &Path) -> Result<UnixStream, ClientError> {
    connect(run_dir, LAUNCHER_SOCKET)
}

/// A connected socket to the monitor of container `id` below `run_dir`.
///
/// # Errors
/// [`ClientError::Connect`].
pub fn connect_monitor(run_dir: &Path, id: &str) -> Result<UnixStream, ClientError> {
    connect(&run_dir.join(MONITORS), &format!("{id}.sock"))
}

fn connect(folder: &Path, name: &str) -> Result<UnixStream, ClientError> {
    socket::connect(folder, name)
        .map(UnixStream::from)
        .map_err(|source| ClientError::Connect {
            path: folder.join(name).display().to_string(),
            source,
        })
}

impl Client {
    /// Connects to the launcher.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn launcher(run_dir: &Path) -> Result<Client, ClientError> {
        Ok(Client::new(connect_launcher(run_dir)?, LAUNCHER_SOCKET))
    }

    /// Connects to a monitor.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn monitor(run_dir: &Path, id: &str) -> Result<Client, ClientError> {
        Ok(Client::new(
            connect_monitor(run_dir, id)?,
            &format!("{MONITORS}/{id}.sock"),
        ))
    }

    /// Around a connected socket; `path` is what errors call it.
    pub fn new(stream: UnixStream, path: &str) -> Client {
        Client {
            stream,
            path: path.to_owned(),
            lines: Lines::new(),
            fds: VecDeque::new(),
        }
    }

    /// How long [`Client::receive`] waits; `None` for ever.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.stream.set_read_timeout(timeout).map_err(|e| self.io(e))
    }

    /// Sends one message, with `fds` beside it.
    ///
    /// # Errors
    /// [`ClientError::Io`], [`ClientError::Frame`].
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.send_line(&encode(message)?, fds)
    }

    /// Sends one line as it is.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn send_line(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let mut sent = 0;
        while sent < line.len() {
            let fds = if sent == 0 { fds } else { &[] };
            sent += socket::send(self.stream.as_fd(), &line[sent..], fds).map_err(|e| self.io(e))?;
        }
        Ok(())
    }

    /// The next line, without its newline; `None` at the end of the conversation.
    ///
    /// # Errors
    /// [`ClientError::Io`] (`WouldBlock` when the time is over), [`ClientError::Frame`].
    pub fn receive_line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut bytes = [0; 8192];
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(Some(line));
            }
            let mut fds = Vec::new();
            let n = socket::receive(self.stream.as_fd(), &mut bytes, &mut fds).map_err(|e| self.io(e))?;
            if n == 0 {
                return Ok(None);
            }
            self.lines.push(&bytes[..n]);
            self.fds.extend(fds);
        }
    }

    /// The next reply with its descriptor; `None` at the end of the conversation.
    ///
    /// # Errors
    /// As [`Client::receive_line`], and [`ClientError::NoDescriptor`].
    pub fn receive(&mut self) -> Result<Option<Received>, ClientError> {
        let Some(line) = self.receive_line()? else {
            return Ok(None);
        };
        let reply: Reply = decode(&line)?;
        let fd = match descriptors(&reply) {
            0 => None,
            _ => match self.fds.pop_front() {
                None => {
                    return Err(ClientError::NoDescriptor {
                        path: self.path.clone(),
                    });
                }
                some => some,
            },
        };
        Ok(Some(Received { reply, fd }))
    }

    /// The socket itself, to poll or to hand to an event loop.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
