//! One connection to a monitor (or, until it has forked one, to the launcher), as a task: lines out, replies in.
//!
//! Invariants: nothing waits for a peer (what the socket does not take is kept here); every line goes to the
//! agent's queue in order, with the descriptor that belongs to it; the end of the connection is the last word.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Std;

use berth_launcher::frame::{Lines, decode, descriptors};
use berth_launcher::socket;
use berth_launcher::wire::Reply;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Input;

/// What came from a monitor.
#[derive(Debug)]
pub(crate) enum Said {
    /// A line.
    Reply(Box<Reply>, Option<OwnedFd>),
    /// The connection ended.
    Closed,
}

/// Serves `stream` until it ends or `orders` is closed. `rest`: what of the first line was not yet sent.
pub(crate) fn spawn(
    id: String,
    serial: u64,
    stream: Std,
    rest: Vec<u8>,
    orders: UnboundedReceiver<Vec<u8>>,
    queue: UnboundedSender<Input>,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    tokio::spawn(async move {
        if let Err(error) = serve(&id, serial, &stream, rest, orders, &queue).await {
            tracing::debug!(id, %error, "connection to monitor");
        }
        // The agent may be gone already.
        let _ = queue.send(Input::Said {
            id,
            serial,
            said: Said::Closed,
        });
    });
    Ok(())
}

async fn serve(
    id: &str,
    serial: u64,
    stream: &UnixStream,
    mut out: Vec<u8>,
    mut orders: UnboundedReceiver<Vec<u8>>,
    queue: &UnboundedSender<Input>,
) -> io::Result<()> {
    let (mut lines, mut fds) = (Lines::new(), VecDeque::new());
    loop {
        let interest = if out.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        tokio::select! {
            order = orders.recv() => match order {
                Some(bytes) => out.extend(bytes),
                None => return Ok(()),
            },
            ready = stream.ready(interest) => {
                let ready = ready?;
                if (ready.is_readable() || ready.is_read_closed())
                    && !read(id, serial, stream, &mut lines, &mut fds, queue)?
                {
                    return Ok(());
                }
            }
        }
        write(stream, &mut out)?;
    }
}

/// Sends what the socket takes.
fn write(stream: &UnixStream, out: &mut Vec<u8>) -> io::Result<()> {
    while !out.is_empty() {
        match stream.try_io(Interest::WRITABLE, || socket::send(stream.as_fd(), out, &[])) {
            Ok(n) => drop(out.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
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
