//! Framing without I/O: one JSON object a line, at most [`MAX_LINE`] bytes with its newline.
//!
//! Invariants: an encoded message never holds a newline but its last byte; a [`Lines`] buffer never grows
//! beyond one line and one read; descriptors pair with messages by order, because a message that carries some
//! is always sent with its first byte (see [`descriptors`] and [`Command::descriptors`]).

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::{Command, Event, Reply, VERSION};

/// Most bytes of one line, newline included.
pub const MAX_LINE: usize = 1 << 20;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No newline within [`MAX_LINE`].
    #[error("a line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Not the JSON that was expected here.
    #[error("not a message of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The first message of a connection names no version.
    #[error("the first message of a connection carries no \"version\"")]
    NoVersion,
    /// A version this build does not speak.
    #[error("version {0} is not spoken here; this is version {VERSION}")]
    Version(u64),
}

/// One message as a line, newline included.
///
/// # Errors
/// [`FrameError::TooLong`] beyond [`MAX_LINE`]; [`FrameError::Malformed`] for a value JSON cannot hold.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(FrameError::TooLong);
    }
    Ok(line)
}

/// The message in one line (with or without its newline).
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(line)?)
}

/// The first message of a connection: its version is looked at before anything else, so that a message of
/// another version is refused for its version and not for a field unknown here.
///
/// # Errors
/// [`FrameError::NoVersion`], [`FrameError::Version`], [`FrameError::Malformed`].
pub fn decode_first<T: DeserializeOwned>(line: &[u8]) -> Result<T, FrameError> {
    #[derive(serde::Deserialize)]
    struct Head {
        version: Option<u64>,
    }
    let head: Head = serde_json::from_slice(line)?;
    match head.version {
        None => Err(FrameError::NoVersion),
        Some(v) if v != u64::from(VERSION) => Err(FrameError::Version(v)),
        Some(_) => decode(line),
    }
}

/// How many descriptors travel with a reply: one (the container's pidfd) with `created` and with a status of a
/// container that lives, one (the master of its terminal) with the start of an exec that has one, none otherwise.
pub fn descriptors(reply: &Reply) -> usize {
    match reply {
        Reply::Event(event) => usize::from(matches!(**event, Event::Created { .. })),
        Reply::ExecStarted { terminal, .. } => usize::from(*terminal),
        Reply::Status(status) => usize::from(status.pid.is_some()),
        _ => 0,
    }
}

impl Command {
    /// How many descriptors travel with a command: three (stdin, stdout, stderr) with an `exec` without a terminal, none otherwise.
    pub fn descriptors(&self) -> usize {
        match self {
            Command::Exec { terminal: None, .. } => 3,
            _ => 0,
        }
    }
}

/// Takes bytes as they come, gives whole lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no newline.
    searched: usize,
}

impl Lines {
    /// An empty one.
    pub fn new() -> Lines {
        Lines::default()
    }

    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line without its newline; `None` until more bytes come.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]: nothing more can be read from such a peer.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let newline = self.buffer[self.searched..].iter().position(|b| *b == b'\n');
        let Some(at) = newline.map(|n| n + self.searched) else {
            self.searched = self.buffer.len();
            return if self.buffer.len() >= MAX_LINE {
                Err(FrameError::TooLong)
            } else {
                Ok(None)
            };
        };
        if at >= MAX_LINE {
            return Err(FrameError::TooLong);
        }
        let rest = self.buffer.split_off(at + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::LauncherRequest;

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let text = b"one\ntwo\n\nthree";
        for cut in 1..text.len() {
            let mut lines = Lines::new();
            let mut seen = Vec::new();
            for part in text.chunks(cut) {
                lines.push(part);
                while let Some(line) = lines.next_line().unwrap() {
                    seen.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(seen, ["one", "two", ""], "cut {cut}");
            lines.push(b"\n");
            assert_eq!(lines.next_line().unwrap().unwrap(), b"three");
        }
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let mut lines = Lines::new();
        lines.push(&vec![b'x'; MAX_LINE - 1]);
        assert!(lines.next_line().unwrap().is_none());
        lines.push(b"\n");
        assert_eq!(lines.next_line().unwrap().unwrap().len(), MAX_LINE - 1);
        lines.push(&vec![b'x'; MAX_LINE]);
        assert!(matches!(lines.next_line(), Err(FrameError::TooLong)));
        assert!(matches!(encode(&"x".repeat(MAX_LINE)), Err(FrameError::TooLong)));
    }

    #[test]
    fn the_version_is_looked_at_first() {
        let cases = [
            (r#"{"op":"ping","version":1}"#, ""),
            (r#"{"op":"ping"}"#, "carries no \"version\""),
            (
                r#"{"op":"quantum","version":7,"new":true}"#,
                "version 7 is not spoken here; this is version 1",
            ),
            (r#"{"op":"quantum","version":1}"#, "unknown variant `quantum`"),
            (r#"{"op":"ping","version":1,"added-later":3}"#, ""),
            ("ping", "not a message of this protocol"),
            (r#"{"op":"ping","version":-1}"#, "not a message of this protocol"),
        ];
        for (line, refusal) in cases {
            match decode_first::<LauncherRequest>(line.as_bytes()) {
                Ok(_) => assert_eq!(refusal, "", "{line}"),
                Err(e) => {
                    assert!(
                        !refusal.is_empty() && e.to_string().contains(refusal),
                        "{line}: {e}"
                    );
                }
            }
        }
    }
}
