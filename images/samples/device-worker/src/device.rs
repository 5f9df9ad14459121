//! The device: a block or character node, or a network interface.
//!
//! What cannot be opened is reported in the worker's lines, and tried again: a worker shows what its container
//! was given, so a refusal is an answer and not an end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use serde_json::{Value, json};

use crate::args::Args;
use crate::kernel;

/// Bytes read from a block device each time.
const BLOCK: usize = 4096;

/// What the worker works on.
pub(crate) enum Device {
    /// Nothing was given.
    None,
    /// A device node.
    Node {
        path: String,
        /// Kept open, but for a block device: that is opened for each look and closed again, as long as somebody
        /// holds a loop device it cannot be removed.
        file: Option<File>,
        /// Could it be opened the last time?
        opened: bool,
        kind: &'static str,
        number: String,
        bytes: u64,
        problem: Option<String>,
    },
    /// A network interface.
    Interface {
        name: String,
        socket: Option<OwnedFd>,
        up: Option<bool>,
        /// Frames the kernel took from us.
        sent: u64,
        problem: Option<String>,
    },
}

impl Device {
    /// Opens what the arguments name.
    pub(crate) fn open(args: &Args) -> Self {
        let mut device = match (&args.device, &args.interface) {
            (Some(path), _) => Self::Node {
                path: path.clone(),
                file: None,
                opened: false,
                kind: "absent",
                number: String::new(),
                bytes: 0,
                problem: None,
            },
            (None, Some(name)) => Self::Interface {
                name: name.clone(),
                socket: None,
                up: None,
                sent: 0,
                problem: None,
            },
            (None, None) => Self::None,
        };
        device.look();
        device
    }

    /// Reads from the device, or asks for the interface's state. Never blocks.
    pub(crate) fn look(&mut self) {
        match self {
            Self::None => {}
            Self::Node {
                path,
                file,
                opened,
                kind,
                number,
                bytes,
                problem,
            } => {
                let looked = match file {
                    Some(open) => read(open, kind),
                    None => {
                        let found = open_node(path);
                        *opened = found.is_ok();
                        found.and_then(|(open, what, devnum)| {
                            (*kind, *number) = (what, devnum);
                            read(file.insert(open), kind)
                        })
                    }
                };
                if *kind == "block" {
                    *file = None;
                }
                match looked {
                    Ok(got) => {
                        *bytes += got;
                        *problem = None;
                    }
                    Err(error) => *problem = Some(error.to_string()),
                }
            }
            Self::Interface {
                name,
                socket,
                up,
                sent,
                problem,
            } => {
                *problem = None;
                match kernel::interface_up(name) {
                    Ok(state) => *up = Some(state),
                    Err(error) => {
                        *up = None;
                        *problem = Some(format!("interface state: {error}"));
                    }
                }
                if socket.is_none() {
                    match kernel::packet_socket(name) {
                        Ok(opened) => *socket = Some(opened),
                        Err(error) if problem.is_none() => *problem = Some(format!("raw socket: {error}")),
                        Err(_) => {}
                    }
                }
                if let (Some(socket), Some(true)) = (socket, *up) {
                    match kernel::send_frame(socket) {
                        Ok(()) => *sent += 1,
                        Err(error) if problem.is_none() => *problem = Some(format!("send: {error}")),
                        Err(_) => {}
                    }
                }
            }
        }
    }

    /// What is said of the device in a line.
    pub(crate) fn state(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Node {
                path,
                file: _,
                opened,
                kind,
                number,
                bytes,
                problem,
            } => json!({
                "path": path, "open": opened, "kind": kind, "number": number, "bytes": bytes,
                "problem": problem,
            }),
            Self::Interface {
                name,
                socket,
                up,
                sent,
                problem,
            } => json!({
                "interface": name, "open": socket.is_some(), "up": up, "sent": sent, "problem": problem,
            }),
        }
    }
}

/// Opens for reading and writing, or for reading where that is all that is allowed.
fn open_node(path: &str) -> io::Result<(File, &'static str, String)> {
    let open = |write| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags)
            .open(path)
    };
    let file = open(true).or_else(|_| open(false))?;
    let meta = file.metadata()?;
    let kind = match meta.file_type() {
        kind if kind.is_block_device() => "block",
        kind if kind.is_char_device() => "char",
        _ => return Err(io::Error::other("no device node")),
    };
    let number = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
    Ok((file, kind, number))
}

/// Reads a block (from the start of a block device; whatever is there of a character device).
fn read(file: &mut File, kind: &str) -> io::Result<u64> {
    let mut buffer = [0u8; BLOCK];
    if kind == "block" {
        file.seek(SeekFrom::Start(0))?;
    }
    match file.read(&mut buffer) {
        Ok(got) => Ok(got as u64),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(error),
    }
}
