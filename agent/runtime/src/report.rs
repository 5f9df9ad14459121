//! The words between a new process and the caller that made it, over a SOCK_SEQPACKET pair: one message a packet.
//!
//! Up: [`Up`]. Down: [`Down`]. A failure carries the step, the path, the errno and the kernel's own words, so that
//! the caller can say everything the child knew. After [`Up::Ready`] the child only reads one start message (from
//! the socket, or from the start FIFO of a container that outlives its creator) and may send one failure more,
//! when exec does not happen.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

/// Longest message.
pub(crate) const LONGEST: usize = 160 * 1024;

/// A step of the set-up that failed inside the new process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done: `mount`, `pivot_root`, `exec`, ….
    pub step: String,
    /// The path, name or value it was done to.
    pub path: PathBuf,
    /// The kernel's answer; `UnknownErrno` where the refusal is our own.
    pub errno: Errno,
    /// More, where there is more to say.
    pub detail: String,
}

impl std::error::Error for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.step)?;
        if !self.path.as_os_str().is_empty() {
            write!(f, " `{}`", self.path.display())?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        if self.errno != Errno::UnknownErrno {
            write!(f, ": {}", self.errno.desc())?;
        }
        Ok(())
    }
}

impl Failure {
    pub(crate) fn new(step: &str, path: impl AsRef<Path>, errno: Errno) -> Self {
        Self {
            step: step.to_owned(),
            path: path.as_ref().to_owned(),
            errno,
            detail: String::new(),
        }
    }

    /// A refusal that is not the kernel's.
    pub(crate) fn refused(step: &str, path: impl AsRef<Path>, detail: &str) -> Self {
        Self {
            detail: detail.to_owned(),
            ..Self::new(step, path, Errno::UnknownErrno)
        }
    }

    pub(crate) fn with(mut self, detail: Option<String>) -> Self {
        self.detail = detail.unwrap_or_default();
        self
    }

    fn encode(&self) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        let mut out = vec![b'E'];
        out.extend((self.errno as i32).to_ne_bytes());
        out.extend(self.step.as_bytes());
        out.push(0);
        out.extend(self.path.as_os_str().as_bytes());
        out.push(0);
        out.extend(self.detail.as_bytes());
        out
    }

    /// From the bytes of a message (`E…`).
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let rest = bytes.strip_prefix(b"E")?;
        let (errno, rest) = rest.split_at_checked(4)?;
        let mut parts = rest.splitn(3, |b| *b == 0);
        Some(Self {
            errno: Errno::from_raw(i32::from_ne_bytes(errno.try_into().ok()?)),
            step: String::from_utf8_lossy(parts.next()?).into_owned(),
            path: PathBuf::from(std::ffi::OsStr::from_bytes(parts.next()?)),
            detail: String::from_utf8_lossy(parts.next()?).into_owned(),
        })
    }
}

/// Names a failing step: `call().step("mount", path)?`.
pub(crate) trait Step<T> {
    fn step(self, step: &str, path: impl AsRef<Path>) -> Result<T, Failure>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &str, path: impl AsRef<Path>) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(step, path, errno))
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: &str, path: impl AsRef<Path>) -> Result<T, Failure> {
        self.map_err(|e| {
            let errno = e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
            let detail = (errno == Errno::UnknownErrno).then(|| e.to_string());
            Failure::new(step, path, errno).with(detail)
        })
    }
}

/// A fact that only a process inside can read: name, promised, actual, where it was read.
pub(crate) type Inside = [String; 4];

/// From the child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Up {
    /// Mounts are made; run the hooks of the runtime's namespaces.
    Hooks,
    /// Everything is done; waiting for the start message. Microseconds of each step, and what was read inside.
    Ready(Vec<(String, u64)>, Vec<Inside>),
    Failed(Failure),
    /// The master of its terminal comes with this.
    Console,
    /// The number of its seccomp listener's descriptor; it waits for [`Down::Taken`].
    Notify(i32),
    /// From an exec's helper: the process inside.
    Joined(i32),
}

/// To the child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Down {
    /// User and group ids are mapped.
    Mapped,
    /// The cgroup is there; write `0` to each of these files to enter it (none: it holds the process already).
    Placed(Vec<CString>),
    /// The hooks of the runtime's namespaces ran; host pid for the state that hooks inside get.
    HooksDone(i32),
    /// The seccomp listener was taken.
    Taken,
    /// The seccomp program, flags first.
    Filter(u32, Vec<u8>),
    /// Go: with other arguments and more environment, where they are not empty.
    Start { args: Vec<CString>, env: Vec<CString> },
}

fn put_strings(out: &mut Vec<u8>, strings: &[CString]) {
    out.extend((strings.len() as u32).to_ne_bytes());
    strings.iter().for_each(|s| out.extend(s.as_bytes_with_nul()));
}

fn take_strings(bytes: &mut &[u8]) -> Option<Vec<CString>> {
    let (count, mut rest) = bytes.split_at_checked(4)?;
    let count = u32::from_ne_bytes(count.try_into().ok()?);
    let mut strings = Vec::new();
    for _ in 0..count {
        let end = rest.iter().position(|b| *b == 0)?;
        strings.push(CString::new(&rest[..end]).ok()?);
        rest = &rest[end + 1..];
    }
    *bytes = rest;
    Some(strings)
}

impl Up {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hooks => b"H".to_vec(),
            Self::Ready(steps, inside) => {
                let steps = steps.iter().map(|(step, us)| format!("{us} {step}"));
                let inside = inside
                    .iter()
                    .map(|fact| format!("={}", fact.join("\t").replace('\n', " ")));
                let text: Vec<String> = steps.chain(inside).collect();
                [b"R", text.join("\n").as_bytes()].concat()
            }
            Self::Failed(failure) => failure.encode(),
            Self::Console => b"C".to_vec(),
            Self::Notify(fd) => [&b"N"[..], &fd.to_ne_bytes()].concat(),
            Self::Joined(pid) => [&b"J"[..], &pid.to_ne_bytes()].concat(),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (b'H', []) => Some(Self::Hooks),
            (b'R', lines) => {
                let (mut steps, mut inside) = (Vec::new(), Vec::new());
                for line in std::str::from_utf8(lines).ok()?.lines() {
                    if let Some(fact) = line.strip_prefix('=') {
                        let words: Vec<String> = fact.split('\t').map(str::to_owned).collect();
                        inside.push(words.try_into().ok()?);
                    } else {
                        let (us, step) = line.split_once(' ')?;
                        steps.push((step.to_owned(), us.parse().ok()?));
                    }
                }
                Some(Self::Ready(steps, inside))
            }
            (b'C', []) => Some(Self::Console),
            (b'N', fd) => Some(Self::Notify(i32::from_ne_bytes(fd.try_into().ok()?))),
            (b'J', pid) => Some(Self::Joined(i32::from_ne_bytes(pid.try_into().ok()?))),
            (b'E', _) => Failure::decode(bytes).map(Self::Failed),
            _ => None,
        }
    }
}

impl Down {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Mapped => b"M".to_vec(),
            Self::Placed(files) => {
                let mut out = vec![b'G'];
                put_strings(&mut out, files);
                out
            }
            Self::HooksDone(pid) => [&b"h"[..], &pid.to_ne_bytes()].concat(),
            Self::Taken => b"n".to_vec(),
            Self::Filter(flags, program) => [&b"F"[..], &flags.to_ne_bytes(), program].concat(),
            Self::Start { args, env } => {
                let mut out = vec![b'S'];
                if !args.is_empty() || !env.is_empty() {
                    put_strings(&mut out, args);
                    put_strings(&mut out, env);
                }
                out
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (b'M', []) => Some(Self::Mapped),
            (b'G', mut rest) => {
                let files = take_strings(&mut rest)?;
                rest.is_empty().then_some(Self::Placed(files))
            }
            (b'h', pid) => Some(Self::HooksDone(i32::from_ne_bytes(pid.try_into().ok()?))),
            (b'n', []) => Some(Self::Taken),
            (b'F', rest) => {
                let (flags, program) = rest.split_at_checked(4)?;
                Some(Self::Filter(
                    u32::from_ne_bytes(flags.try_into().ok()?),
                    program.to_vec(),
                ))
            }
            (b'S', []) => Some(Self::Start {
                args: Vec::new(),
                env: Vec::new(),
            }),
            (b'S', mut rest) => {
                let args = take_strings(&mut rest)?;
                let env = take_strings(&mut rest)?;
                rest.is_empty().then_some(Self::Start { args, env })
            }
            _ => None,
        }
    }
}

/// Send one message.
pub(crate) fn send_to(socket: BorrowedFd<'_>, message: &[u8]) -> Result<(), Errno> {
    loop {
        match send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => continue,
            other => return other.map(drop),
        }
    }
}

/// Receive one message; `None` at the end of the other side.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<&[u8]>, Errno> {
    loop {
        match recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::empty()) {
            // A peer that ended with messages unread: told once, then what it had sent can be read.
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            Ok(0) => return Ok(None),
            Ok(n) => return Ok(Some(&buffer[..n])),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let failure = Failure::new("mount", "/proc", Errno::EPERM).with(Some("why\0not".into()));
        for up in [
            Up::Hooks,
            Up::Ready(vec![], vec![]),
            Up::Ready(
                vec![("a b".into(), 7), ("c".into(), 0)],
                vec![["n", "p q", "", "s"].map(String::from)],
            ),
            Up::Failed(failure),
            Up::Console,
            Up::Notify(9),
            Up::Joined(70_000),
        ] {
            assert_eq!(Up::decode(&up.encode()), Some(up));
        }
        let words = |w: &[&str]| w.iter().map(|s| CString::new(*s).unwrap()).collect::<Vec<_>>();
        let downs = [
            Down::Mapped,
            Down::Taken,
            Down::Placed(words(&["/sys/fs/cgroup/cpu/x/tasks"])),
            Down::HooksDone(5),
            Down::Filter(3, vec![1, 2, 3]),
            Down::Start {
                args: vec![],
                env: vec![],
            },
            Down::Start {
                args: words(&["/bin/x", ""]),
                env: words(&["A=1"]),
            },
        ];
        for down in downs {
            assert_eq!(Down::decode(&down.encode()), Some(down));
        }
        assert_eq!(Down::decode(b"S\x05\0\0\0a"), None);
        assert_eq!(Up::decode(b""), None);
    }
}
