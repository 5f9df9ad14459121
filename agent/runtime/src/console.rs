//! Terminals: a pty inside the container's own devpts, and the caller's terminal while one is relayed.
//!
//! Invariants: the master is opened through the container's root and found to be on a devpts; the slave is the
//! kernel's own answer for that master (TIOCGPTPEER), never a path that something inside could have replaced; a
//! terminal that was made raw gets its old settings back.
#![allow(unsafe_code)] // terminal ioctls

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::termios::{self, SetArg, Termios};
use nix::unistd::{Uid, fchown};
use serde::{Deserialize, Serialize};

use crate::report::{Failure, Step};
use crate::rootfs::make_path;
use crate::sys::mount::{self as sys, Resolve, fs_magic, open_below};

/// `f_type` of devpts.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Rows and columns; 0: not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines of characters, 0 to 65535.
    pub rows: u16,
    /// Characters in a line, 0 to 65535.
    pub columns: u16,
}

/// Both ends of a terminal.
pub(crate) struct Pty {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

/// A new terminal on the devpts below `root`, its slave owned by `uid`.
pub(crate) fn open(root: BorrowedFd<'_>, uid: u32, size: Size) -> Result<Pty, Failure> {
    let path = Path::new("/dev/pts/ptmx");
    let step = "open terminal";
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = open_below(root, path, flags, Resolve::NoLinks).step(step, path)?;
    if fs_magic(&master).step(step, path)? != DEVPTS_MAGIC {
        return Err(Failure::refused(step, path, "it is not on a devpts"));
    }
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })
        .step(step, path)?;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let slave = Errno::result(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    })
    .step(step, path)?;
    // SAFETY: the kernel has just returned this descriptor.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    if size != Size::default() {
        set_size(master.as_fd(), size).step("set terminal size", path)?;
    }
    fchown(&slave, Some(Uid::from_raw(uid)), None).step("chown terminal", path)?;
    Ok(Pty { master, slave })
}

/// The slave as /dev/console too.
pub(crate) fn as_console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Failure> {
    let path = Path::new("/dev/console");
    let target = match open_below(root, path, libc::O_PATH, Resolve::NoLinks) {
        Err(Errno::ENOENT) => make_path(root, path, false)?,
        other => other.step("open mount point", path)?,
    };
    let tree = sys::clone_tree(slave, Path::new(""), false).step("bind", path)?;
    sys::attach(tree.as_fd(), target.as_fd()).step("mount", path)
}

/// Make it the controlling terminal of this session leader.
pub(crate) fn control(slave: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Set rows and columns; the foreground processes get SIGWINCH.
///
/// # Errors
/// It is no terminal.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> Result<(), Errno> {
    let words = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const words) }).map(drop)
}

/// Rows and columns.
///
/// # Errors
/// It is no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> Result<Size, Errno> {
    // SAFETY: all-zero bytes are a valid winsize.
    let mut words: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut words) })?;
    Ok(Size {
        rows: words.ws_row,
        columns: words.ws_col,
    })
}

/// A terminal in raw mode until this is dropped.
#[derive(Debug)]
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Everything typed goes through, nothing is echoed.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn begin(terminal: BorrowedFd<'_>) -> Result<Self, Errno> {
        let terminal = crate::sys::process::dup_high(terminal)?;
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before); // a terminal that is gone needs none
    }
}

/// Copies between a terminal's master and this process's standard input and output.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    typed: Option<Vec<u8>>,
}

impl Relay {
    /// Relay this master.
    pub fn new(master: OwnedFd) -> Self {
        Self {
            master,
            typed: Some(Vec::new()),
        }
    }

    /// The master, to be polled.
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Is input still wanted?
    pub fn reads(&self) -> bool {
        self.typed.as_ref().is_some_and(Vec::is_empty)
    }

    /// Standard input can be read: pass it on. At its end the terminal gets its end-of-file character.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub fn input(&mut self, from: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut buffer = [0u8; 4096];
        match nix::unistd::read(from, &mut buffer) {
            Ok(0) => {
                self.typed = None;
                write_all(self.master.as_fd(), &[4])
            }
            Ok(n) => write_all(self.master.as_fd(), &buffer[..n]),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
            Err(Errno::EIO) => {
                self.typed = None; // a background process, or a terminal that hung up
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// The terminal can be read: pass it on. `false`: its other end is closed.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn output(&mut self, to: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut buffer = [0u8; 4096];
        match nix::unistd::read(&self.master, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => Ok(false),
            Ok(n) => write_all(to, &buffer[..n]).map(|()| true),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// The size of `like` becomes that of the terminal.
    pub fn resize(&self, like: BorrowedFd<'_>) {
        if let Ok(size) = size(like) {
            let _ = set_size(self.master.as_fd(), size); // its other end may be closed
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [nix::poll::PollFd::new(to, nix::poll::PollFlags::POLLOUT)];
                let _ = nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE); // the write says what is wrong
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
