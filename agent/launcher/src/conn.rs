//! One non-blocking connection: lines and descriptors in, a bounded queue out.
//!
//! Invariants: nothing here ever blocks; a peer that does not read loses its connection when more than
//! [`MAX_QUEUED`] bytes wait for it, and asks anew with `hello`; a peer cannot make this side hold more than
//! one line and [`socket::MAX_DESCRIPTORS`] descriptors.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use crate::frame::{FrameError, Lines, MAX_LINE, encode};
use crate::socket;
use crate::wire::Reply;

/// Most bytes that wait for a peer: one longest line and a few short ones.
pub const MAX_QUEUED: usize = MAX_LINE + (1 << 18);

/// Bytes taken from a socket at once.
const READ: usize = 4096;

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    stream: OwnedFd,
    lines: Lines,
    fds: VecDeque<OwnedFd>,
    out: VecDeque<Waiting>,
    queued: usize,
    /// The peer said hello, or was there from the launch: it gets events.
    pub subscribed: bool,
    /// Closed once all that waits is sent.
    pub closing: bool,
}

/// What a read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Some bytes, or none just now.
    Open,
    /// The peer is gone.
    End,
}

impl Conn {
    /// Around a non-blocking socket.
    pub fn new(stream: OwnedFd) -> Conn {
        Conn {
            stream,
            lines: Lines::new(),
            fds: VecDeque::new(),
            out: VecDeque::new(),
            queued: 0,
            subscribed: false,
            closing: false,
        }
    }

    /// What to poll for.
    pub fn interest(&self) -> PollFlags {
        let mut flags = if self.closing {
            PollFlags::empty()
        } else {
            PollFlags::POLLIN
        };
        flags.set(PollFlags::POLLOUT, !self.out.is_empty());
        flags
    }

    /// Reads once.
    ///
    /// # Errors
    /// The kernel's, or too many descriptors: close the connection.
    pub fn read(&mut self) -> io::Result<Read> {
        let mut bytes = [0; READ];
        let mut fds = Vec::new();
        match socket::receive(self.stream.as_fd(), &mut bytes, &mut fds) {
            Ok(0) => Ok(Read::End),
            Ok(n) => {
                self.lines.push(&bytes[..n]);
                self.fds.extend(fds);
                if self.fds.len() > socket::MAX_DESCRIPTORS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "descriptors without a message for them",
                    ));
                }
                Ok(Read::Open)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Read::Open),
            Err(e) => Err(e),
        }
    }

    /// The next whole line.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        self.lines.next_line()
    }

    /// The next `n` descriptors; `None` where fewer came.
    pub fn take_fds(&mut self, n: usize) -> Option<Vec<OwnedFd>> {
        (self.fds.len() >= n).then(|| self.fds.drain(..n).collect())
    }

    /// Queues one message and sends what the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` where too much waits already (close the connection); else the kernel's.
    pub fn say(&mut self, reply: &Reply, fds: Vec<OwnedFd>) -> io::Result<()> {
        let bytes = encode(reply).map_err(io::Error::other)?;
        self.queued += bytes.len();
        self.out.push_back(Waiting { bytes, sent: 0, fds });
        self.flush()?;
        if self.queued > MAX_QUEUED {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the peer does not read",
            ));
        }
        Ok(())
    }

    /// Sends what the socket takes now.
    ///
    /// # Errors
    /// The kernel's: close the connection.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(first) = self.out.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(AsFd::as_fd).collect();
            match socket::send(self.stream.as_fd(), &first.bytes[first.sent..], &fds) {
                Ok(n) => {
                    first.sent += n;
                    self.queued -= n;
                    first.fds.clear();
                    if first.sent == first.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// All said?
    pub fn idle(&self) -> bool {
        self.out.is_empty()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Refusal, Reply};

    fn pair() -> (Conn, OwnedFd) {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        (Conn::new(a.into()), b.into())
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_and_never_waited_for() {
        let (mut conn, _peer) = pair();
        let reply = Reply::Refused(Refusal {
            stage: "x".into(),
            message: "y".repeat(60_000),
            hint: None,
        });
        let mut said = 0;
        while conn.say(&reply, Vec::new()).is_ok() {
            said += 1;
            assert!(said < 200, "the queue has no bound");
        }
        assert!(said > 10);
    }

    #[test]
    fn descriptors_without_a_message_end_the_connection() {
        let (mut conn, peer) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut ended = false;
        for _ in 0..20 {
            socket::send(peer.as_fd(), b"x", &[file.as_fd()]).unwrap();
            if conn.read().is_err() {
                ended = true;
                break;
            }
        }
        assert!(ended);
    }

    #[test]
    fn a_message_and_its_descriptor_survive_a_full_socket() {
        let (mut conn, peer) = pair();
        let long = Reply::Refused(Refusal {
            stage: "x".into(),
            message: "y".repeat(400_000),
            hint: None,
        });
        conn.say(&long, Vec::new()).unwrap();
        assert!(!conn.idle());
        let file = std::fs::File::open("/dev/null").unwrap();
        conn.say(&Reply::Done, vec![file.into()]).unwrap();
        let (mut lines, mut fds, mut got) = (Lines::new(), Vec::new(), Vec::new());
        let mut buffer = vec![0; 65536];
        while got.len() < 2 {
            let n = socket::receive(peer.as_fd(), &mut buffer, &mut fds).unwrap();
            lines.push(&buffer[..n]);
            while let Some(line) = lines.next_line().unwrap() {
                got.push(line);
            }
            conn.flush().unwrap();
        }
        assert!(got[0].len() > 400_000);
        assert_eq!(fds.len(), 1);
        assert!(conn.idle());
    }
}
