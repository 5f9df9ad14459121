//! A mount namespace that is there already. The container's root lies over the namespace's (see [`crate::over`]): whoever
//! is in it keeps the root that he has, and what was there is there again once the container is deleted.
//!
//! Invariants: sources of mounts and the root come from the caller's namespace, where the bundle is; nothing reaches
//! another namespace (one whose root is shared is refused); what lies on the namespace's root before is written down
//! before anything is made, so that a creation that was cut off can be cleared; another container's root is never
//! taken away.
#![allow(unsafe_code)] // statx(2) with the number of the mount

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use serde::{Deserialize, Serialize};

use crate::report::{Failure, Step};
use crate::state;
use crate::sys::fds;
use crate::sys::ns;
use crate::sys::process::{self as sys, CloneArgs, Cloned};

/// The file in the state folder.
pub(crate) const FILE: &str = "mounts.json";

/// A namespace with a container's root on top, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lent {
    path: PathBuf,
    inode: u64,
    /// The mount that was on top before.
    before: u64,
    /// The container's, once it is made.
    own: Option<u64>,
}

/// What a helper is to do inside.
#[derive(Clone, Copy)]
enum Do {
    Look,
    /// Take away the mount on top if it is this one, or any but the one that was there before.
    TakeAway(Option<u64>, u64),
}

/// Open a mount namespace's file.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match ns::kind(&fd) {
        Ok(kind) if kind == libc::CLONE_NEWNS as u64 => Ok(fd),
        _ => Err(Errno::EINVAL),
    }
}

impl Lent {
    /// Look, and write it down in the state folder, before the container's root comes on top.
    pub(crate) fn begin(path: &Path, fd: &OwnedFd, dir: &Path) -> Result<Self, Errno> {
        let lent = Self {
            path: path.to_owned(),
            inode: fstat(fd)?.st_ino,
            before: in_it(fd, Do::Look)?,
            own: None,
        };
        lent.put(dir)?;
        Ok(lent)
    }

    /// The container's root is on top.
    pub(crate) fn made(mut self, fd: &OwnedFd, dir: &Path) -> Result<(), Errno> {
        self.own = Some(in_it(fd, Do::Look)?);
        self.put(dir)
    }

    fn put(&self, dir: &Path) -> Result<(), Errno> {
        let io = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        let text = serde_json::to_vec(self).map_err(|_| Errno::EINVAL)?;
        state::prepare_file(dir, FILE, &text).map_err(io)?;
        state::put_file(dir, FILE).map_err(io)
    }
}

/// Give back the namespace that a state folder says is lent; `first` is the container's own descriptor of it, where it
/// was there to be had. A namespace that is gone has taken the mounts with it.
pub(crate) fn give_back(dir: &Path, first: Option<OwnedFd>) -> Result<(), String> {
    let file = dir.join(FILE);
    let text = match fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| format!("{}: {e}", file.display()))?,
    };
    let lent: Lent = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let same = |fd: &OwnedFd| fstat(fd).is_ok_and(|s| s.st_ino == lent.inode);
    let fd = first.or_else(|| open(&lent.path).ok()).filter(same);
    let Some(fd) = fd else { return Ok(()) };
    let said = in_it(&fd, Do::TakeAway(lent.own, lent.before));
    said.map(drop).map_err(|errno| match errno {
        Errno::EBUSY => format!(
            "mount namespace `{}`: another root lies over the container's: take that away first",
            lent.path.display()
        ),
        errno => format!("mount namespace `{}`: {}", lent.path.display(), errno.desc()),
    })
}

/// In the container's first process, with everything cloned from the caller's namespace: join, and be sure that what is
/// mounted on its root reaches nobody else.
pub(crate) fn enter(fd: &OwnedFd) -> Result<(), Failure> {
    let step = "join mount namespace";
    // The caller's procfs: there may be none inside.
    let proc = crate::rootfs::open_dir(Path::new("/proc")).step(step, "/proc")?;
    setns(fd, CloneFlags::CLONE_NEWNS).step(step, "")?;
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(&proc, "self/mountinfo", flags, Mode::empty()).step(step, "mountinfo")?;
    let text = std::io::read_to_string(fs::File::from(file)).step(step, "mountinfo")?;
    let on_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let shared = |line: &str| {
        let optional = line.split(' ').skip(6).take_while(|f| *f != "-");
        optional.into_iter().any(|f| f.starts_with("shared:"))
    };
    match text.lines().filter(on_root).map(shared).reduce(|a, b| a || b) {
        Some(false) => Ok(()),
        Some(true) => {
            let why = "its root is shared with other namespaces: make it private there first";
            Err(Failure::refused(step, "/", why))
        }
        None => Err(Failure::refused(step, "/", "its root cannot be found")),
    }
}

/// A helper that enters the namespace: the number of the mount on top, or what was asked for is done.
fn in_it(fd: &OwnedFd, what: Do) -> Result<u64, Errno> {
    let (ours, theirs) = nix::sys::socket::socketpair(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::SeqPacket,
        None,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
    )?;
    let helper = match sys::clone3(CloneArgs::default())? {
        Cloned::Parent(_, helper) => helper,
        Cloned::Child => {
            let _ = sys::set_not_dumpable();
            let _ = sys::set_parent_death_signal(libc::SIGKILL);
            let done = setns(fd, CloneFlags::CLONE_NEWNS)
                .and_then(|()| top())
                .and_then(|top| {
                    match what {
                        Do::Look => {}
                        Do::TakeAway(_, before) if top == before => {}
                        Do::TakeAway(Some(own), _) if top != own => return Err(Errno::EBUSY),
                        Do::TakeAway(..) => umount2("/", MntFlags::MNT_DETACH)?,
                    }
                    Ok(top)
                });
            let number = match done {
                Ok(top) => top.to_ne_bytes().to_vec(),
                Err(errno) => (errno as i32).to_ne_bytes().to_vec(),
            };
            let told = fds::send(theirs.as_fd(), &number, &[]);
            sys::exit_now(i32::from(told.is_err()));
        }
    };
    drop(theirs);
    let mut buffer = [0u8; 8];
    let said = fds::receive(ours.as_fd(), &mut buffer).map(|(n, _)| n);
    while waitid(Id::PIDFd(helper.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    match said? {
        8 => Ok(u64::from_ne_bytes(buffer)),
        4 => Err(Errno::from_raw(i32::from_ne_bytes([
            buffer[0], buffer[1], buffer[2], buffer[3],
        ]))),
        _ => Err(Errno::ECHILD), // the helper was killed
    }
}

/// The number of the mount that is this process's root: unique since Linux 6.8, before that as long as it is there.
fn top() -> Result<u64, Errno> {
    const STATX_MNT_ID: u32 = 0x1000;
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a literal, and the kernel fills in a statx, for which all zeroes is valid.
    let stat = unsafe {
        let mask = STATX_MNT_ID | STATX_MNT_ID_UNIQUE;
        Errno::result(libc::statx(
            libc::AT_FDCWD,
            c"/".as_ptr(),
            0,
            mask,
            stat.as_mut_ptr(),
        ))?;
        stat.assume_init()
    };
    match stat.stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) {
        0 => Err(Errno::ENOSYS),
        _ => Ok(stat.stx_mnt_id),
    }
}
