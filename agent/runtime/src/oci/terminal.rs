//! Terminals of the command line: the console socket that gets a master, or a relay to the caller's own terminal.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Failed;
use crate::console::{self, Raw, Relay, Size};
use crate::sys::fds;

/// Who takes the master of a terminal.
pub(super) enum Taker {
    /// There is no terminal.
    Nobody,
    /// A caller that listens.
    Socket(UnixStream),
    /// This process.
    Relay,
}

/// Decide before anything is made; a console socket is connected at once.
pub(super) fn taker(terminal: bool, socket: Option<&Path>, stays: bool) -> Result<Taker, Failed> {
    match (terminal, socket) {
        (false, None) => Ok(Taker::Nobody),
        (false, Some(_)) => Err(Failed::new(
            "--console-socket is refused: process.terminal is false",
            Some("set process.terminal to true, or leave --console-socket out".into()),
        )),
        (true, Some(path)) => match UnixStream::connect(path) {
            Ok(stream) => Ok(Taker::Socket(stream)),
            Err(e) => Err(Failed::new(
                format!("cannot connect to --console-socket `{}`: {e}", path.display()),
                Some("let something listen there before the container is made".into()),
            )),
        },
        (true, None) if stays => Ok(Taker::Relay),
        (true, None) => Err(Failed::new(
            "process.terminal is true and nobody takes the terminal",
            Some("give a --console-socket, or set process.terminal to false".into()),
        )),
    }
}

/// The size of the caller's terminal, where it has one.
pub(super) fn own_size() -> Option<Size> {
    console::size(std::io::stdin().as_fd()).ok()
}

/// A relay under way.
pub(super) struct Session {
    pub(super) relay: Relay,
    _raw: Option<Raw>,
}

/// Hand the master over. Relaying, the caller's terminal is raw until the session is dropped.
pub(super) fn hand_over(taker: Taker, master: Option<OwnedFd>) -> Result<Option<Session>, Failed> {
    let Some(master) = master else { return Ok(None) };
    match taker {
        Taker::Nobody => Ok(None),
        Taker::Socket(stream) => fds::send(stream.as_fd(), b"/dev/ptmx", &[master.as_fd()])
            .map(|()| None)
            .map_err(|e| {
                let message = format!("cannot send the terminal to --console-socket: {}", e.desc());
                Failed::new(message, None)
            }),
        Taker::Relay => {
            let stdin = std::io::stdin();
            let raw = match stdin.is_terminal() {
                true => Some(
                    Raw::begin(stdin.as_fd())
                        .map_err(|e| Failed::new(format!("standard input: {}", e.desc()), None))?,
                ),
                false => None,
            };
            let relay = Relay::new(master);
            relay.resize(stdin.as_fd());
            Ok(Some(Session { relay, _raw: raw }))
        }
    }
}
