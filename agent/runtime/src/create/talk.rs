//! What the maker of a container and its first process say to each other while it is being made.
//!
//! Invariant: a process that has given up is asked for its last words: they say why.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxSeccomp;

use super::CreateCause;
use crate::report::{self, Down, Up};
use crate::seccomp;
use crate::state;
use crate::sys::fds;
use crate::sys::process as sys;

/// The caller's view of the child while it is being made.
pub(super) struct Child<'a> {
    pub(super) pid: Pid,
    pub(super) socket: &'a OwnedFd,
    /// The master of its terminal, once it has sent it.
    pub(super) console: RefCell<Option<OwnedFd>>,
    pub(super) seccomp: Option<&'a LinuxSeccomp>,
    pub(super) state: &'a state::HookState,
}

impl Child<'_> {
    pub(super) fn send(&self, message: &Down) -> Result<(), CreateCause> {
        self.sent(report::send_to(self.socket.as_fd(), &message.encode()))
    }

    pub(super) fn sent(&self, outcome: Result<(), Errno>) -> Result<(), CreateCause> {
        match outcome {
            Ok(()) => Ok(()),
            // It has given up: its last words say why.
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(self.last_words()),
            Err(errno) => Err(CreateCause::Call {
                what: "send to the new process",
                errno,
            }),
        }
    }

    /// Its cgroups, which it enters itself: the kernel lets a process of one thread move itself at once, and has everybody
    /// else wait until no process of the node is in the middle of a fork or an exec. With a user namespace it may open
    /// none of these files, and gets them opened: it counts who opened them.
    pub(super) fn place(&self, files: Vec<PathBuf>, opened: bool) -> Result<(), CreateCause> {
        let name = |path: PathBuf| CString::new(path.into_os_string().into_encoded_bytes());
        if !opened {
            return self.send(&Down::Placed(
                files.into_iter().filter_map(|f| name(f).ok()).collect(),
            ));
        }
        let mut open = Vec::with_capacity(files.len());
        for path in &files {
            let file = fs::OpenOptions::new().write(true).open(path);
            open.push(file.map_err(CreateCause::file("open", path))?);
        }
        let list: Vec<_> = open.iter().map(AsFd::as_fd).collect();
        let message = Down::Placed(Vec::new()).encode();
        self.sent(fds::send(self.socket.as_fd(), &message, &list))
    }

    /// Its next word; descriptors that come on the way are seen to.
    pub(super) fn receive(&self) -> Result<Up, CreateCause> {
        let mut buffer = vec![0u8; 16 * 1024];
        loop {
            let (n, mut list) = match fds::receive(self.socket.as_fd(), &mut buffer) {
                // It ended with messages unread: told once, then what it had sent can be read.
                Err(Errno::ECONNRESET) => continue,
                other => other.map_err(CreateCause::call("receive from the new process"))?,
            };
            if n == 0 {
                return Err(self.died());
            }
            match Up::decode(&buffer[..n]) {
                Some(Up::Console) => *self.console.borrow_mut() = list.pop(),
                Some(Up::Notify(number)) => self.pass_listener(number)?,
                Some(up) => return Ok(up),
                None => return Err(CreateCause::Died("it sent something unknown".into())),
            }
        }
    }

    /// The listener of its seccomp filter goes to who answers.
    pub(super) fn pass_listener(&self, number: i32) -> Result<(), CreateCause> {
        let listener = self.seccomp.and_then(|s| {
            Some(seccomp::Listener {
                path: s.listener_path().clone()?,
                metadata: s.listener_metadata().clone(),
            })
        });
        let listener = listener.ok_or_else(|| CreateCause::Died("it sent something unknown".into()))?;
        let pidfd = sys::pidfd_open(self.pid).map_err(CreateCause::call("open the new process"))?;
        let fd = sys::pidfd_getfd(pidfd.as_fd(), number)
            .map_err(CreateCause::call("take the seccomp listener"))?;
        let state = self.state.at(self.pid.as_raw(), "creating");
        crate::notify::send(&listener, self.pid.as_raw(), &state, fd)?;
        self.send(&Down::Taken)
    }

    pub(super) fn last_words(&self) -> CreateCause {
        match self.receive() {
            Ok(Up::Failed(failure)) => failure.into(),
            Ok(_) => self.died(),
            Err(cause) => cause,
        }
    }

    pub(super) fn unexpected(&self, up: Up) -> CreateCause {
        match up {
            Up::Failed(failure) => failure.into(),
            _ => CreateCause::Died("it sent its messages in another order".into()),
        }
    }

    pub(super) fn died(&self) -> CreateCause {
        let status = nix::sys::wait::waitpid(self.pid, None);
        CreateCause::Died(status.map_or_else(|e| e.desc().to_owned(), |s| format!("{s:?}")))
    }
}
