//! One connection to a monitor (or, until it has forked one, to the launcher), as a task: lines out, replies in.
//!
//! Invariants: nothing waits for a peer (what the socket does not take is kept here); an order goes out at once, from
//! within the call that gives it, and never before an earlier one; every line goes to the
//! agent's queue in order, with the descriptor that belongs to it; the end of the connection is the last word.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Std;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use berth_launcher::frame::{Lines, decode, descriptors};
use berth_launcher::socket;
use berth_launcher::wire::Reply;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::Input;

/// What came from a monitor.
#[derive(Debug)]
pub(crate) enum Said {
    /// A line.
    Reply(Box<Reply>, Option<OwnedFd>),
    /// The connection ended.
    Closed,
}

/// What both sides of a connection have.
struct Shared {
    stream: UnixStream,
    /// What the socket has not taken yet.
    out: Mutex<Vec<u8>>,
    /// No more orders come.
    closed: AtomicBool,
    /// Something is left in `out`, or it is closed.
    changed: Notify,
}

impl Shared {
    /// Sends what the socket takes; is something left?
    fn flush(&self, more: &[u8]) -> io::Result<bool> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.extend_from_slice(more);
        while !out.is_empty() {
            match socket::send(self.stream.as_fd(), &out, &[]) {
                Ok(n) => drop(out.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

/// Where orders go in. Dropped: the connection ends.
pub(crate) struct Orders(Arc<Shared>);

impl Orders {
    /// Sends a line, now or as soon as the socket takes it. A connection that is broken says so by its end.
    pub(crate) fn send(&self, line: &[u8]) {
        if self.0.flush(line).unwrap_or(true) {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

/// Serves `stream` until it ends or what is returned is dropped. `rest`: what of the first line was not yet sent.
pub(crate) fn spawn(
    id: String,
    serial: u64,
    stream: Std,
    rest: Vec<u8>,
    queue: UnboundedSender<Input>,
) -> io::Result<Orders> {
    stream.set_nonblocking(true)?;
    let shared = Arc::new(Shared {
        stream: UnixStream::from_std(stream)?,
        out: Mutex::new(rest),
        closed: AtomicBool::new(false),
        changed: Notify::new(),
    });
    let orders = Orders(shared.clone());
    tokio::spawn(async move {
        if let Err(error) = serve(&id, serial, &shared, &queue).await {
            tracing::debug!(id, %error, "connection to monitor");
        }
        // The agent may be gone already.
        let _ = queue.send(Input::Said {
            id,
            serial,
            said: Said::Closed,
        });
    });
    Ok(orders)
}

async fn serve(id: &str, serial: u64, shared: &Shared, queue: &UnboundedSender<Input>) -> io::Result<()> {
    let stream = &shared.stream;
    let (mut lines, mut fds) = (Lines::new(), VecDeque::new());
    loop {
        let interest = if shared.flush(&[])? {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        tokio::select! {
            () = shared.changed.notified() => {}
            ready = stream.ready(interest) => {
                let ready = ready?;
                if ready.is_writable() {
                    // Readiness is only taken back by a call that did not go through.
                    let _ = stream.try_io(Interest::WRITABLE, || match shared.flush(&[]) {
                        Ok(true) => Err(io::ErrorKind::WouldBlock.into()),
                        other => other.map(drop),
                    });
                }
                if (ready.is_readable() || ready.is_read_closed())
                    && !read(id, serial, stream, &mut lines, &mut fds, queue)?
                {
                    return Ok(());
                }
            }
        }
        if shared.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// Reads what there is; false at the end.
fn read(
    id: &str,
    serial: u64,
    stream: &UnixStream,
    lines: &mut Lines,
    fds: &mut VecDeque<OwnedFd>,
    queue: &UnboundedSender<Input>,
) -> io::Result<bool> {
    let mut bytes = [0; 8192];
    loop {
        let mut new = Vec::new();
        let n = match stream.try_io(Interest::READABLE, || {
            socket::receive(stream.as_fd(), &mut bytes, &mut new)
        }) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) => return Err(e),
        };
        if n == 0 {
            return Ok(false);
        }
        lines.push(&bytes[..n]);
        fds.extend(new);
        while let Some(line) = lines.next_line().map_err(io::Error::other)? {
            let reply: Reply = decode(&line).map_err(io::Error::other)?;
            let fd = if descriptors(&reply) > 0 {
                fds.pop_front()
            } else {
                None
            };
            let said = Said::Reply(Box::new(reply), fd);
            let _ = queue.send(Input::Said {
                id: id.to_owned(),
                serial,
                said,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_order_is_sent_at_once_and_what_the_socket_does_not_take_follows_in_order() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("runtime");
        let (ours, mut theirs) = Std::pair().expect("pair");
        let (queue, mut said) = tokio::sync::mpsc::unbounded_channel();
        let orders = runtime.block_on(async { spawn("a".into(), 1, ours, Vec::new(), queue).expect("link") });
        theirs.set_nonblocking(true).expect("nonblocking");
        // No task has had a turn.
        orders.send(b"first\n");
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(theirs.read(&mut buffer).expect("there already"), 6);
        // More than a socket takes: the rest is the task's.
        let lines: Vec<Vec<u8>> = (0..40).map(|n| vec![b'a' + n % 26; 1 << 16]).collect();
        for line in &lines {
            orders.send(line);
        }
        let wanted = lines.concat();
        let mut got = Vec::new();
        runtime.block_on(async {
            while got.len() < wanted.len() {
                match theirs.read(&mut buffer) {
                    Ok(n) => got.extend_from_slice(&buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(got == wanted, "all of it, in order");
            // Nobody gives orders any more: the connection ends.
            drop(orders);
            let last = said.recv().await;
            assert!(
                matches!(
                    last,
                    Some(Input::Said {
                        said: Said::Closed,
                        ..
                    })
                ),
                "{last:?}"
            );
        });
    }
}
