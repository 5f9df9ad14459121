//! Device nodes on the container's own tmpfs at /dev, and the usual links beside them.
//!
//! Invariants: nodes are made below an opened root and never through a symbolic link; with a user namespace they are
//! made outside it ([`crate::prepare`]), with the host's ids of their owners.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::recipe::{Node, NodeKind, Recipe, Users, outside};
use crate::report::{Failure, Step};
use crate::rootfs::make_path;
use crate::sys::mount::{self as sys, Resolve, open_below};

/// What every container has, as the OCI specification lists them: name and minor number, major 1 or 5.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Link name and target.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Nodes that every container has and that `wanted` does not replace.
pub(crate) fn defaults(wanted: &[Node]) -> Vec<Node> {
    DEFAULTS
        .iter()
        .map(|(name, major, minor)| Node {
            path: Path::new("/dev").join(name),
            kind: NodeKind::Char,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .filter(|node| !wanted.iter().any(|w| w.path == node.path))
        .collect()
}

/// Make all nodes and links. The umask is 0.
pub(crate) fn populate(root: BorrowedFd<'_>, recipe: &Recipe) -> Result<(), Failure> {
    let dev = open_below(
        root,
        Path::new("/dev"),
        libc::O_PATH | libc::O_DIRECTORY,
        Resolve::NoLinks,
    )
    .step("open", "/dev")?;
    fill(dev.as_fd(), recipe)?;
    for node in recipe.devices.iter().filter(|n| !n.path.starts_with("/dev")) {
        make(root, dev.as_fd(), node, None)?;
    }
    Ok(())
}

/// The links, and the nodes below /dev, on the tmpfs `dev`.
pub(crate) fn fill(dev: BorrowedFd<'_>, recipe: &Recipe) -> Result<(), Failure> {
    let users = recipe.users.as_ref();
    for (name, target) in LINKS {
        let path = Path::new("/dev").join(name);
        if recipe.devices.iter().any(|d| d.path == path) {
            continue;
        }
        symlinkat(target, dev, name).step("symlink", &path)?;
        if users.is_some() {
            give(dev, Path::new(name), users, &path)?;
        }
    }
    for node in recipe.devices.iter().filter(|n| n.path.starts_with("/dev")) {
        make(dev, dev, node, users)?;
    }
    Ok(())
}

/// The nodes that lie elsewhere than below /dev and were prepared outside the user namespace.
pub(crate) fn bind_prepared(
    root: BorrowedFd<'_>,
    recipe: &Recipe,
    nodes: &[Option<OwnedFd>],
) -> Result<(), Failure> {
    for (node, tree) in recipe.devices.iter().zip(nodes) {
        let Some(tree) = tree else { continue };
        let target = make_path(root, &node.path, false)?;
        sys::attach(tree.as_fd(), target.as_fd()).step("bind device node", &node.path)?;
    }
    Ok(())
}

/// To the root of the user namespace.
fn give(directory: BorrowedFd<'_>, name: &Path, users: Option<&Users>, path: &Path) -> Result<(), Failure> {
    let Some(users) = users else { return Ok(()) };
    chown(directory, name.as_os_str(), (0, 0), Some(users), path)
}

fn chown(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    (uid, gid): (u32, u32),
    users: Option<&Users>,
    path: &Path,
) -> Result<(), Failure> {
    let step = "chown device node";
    let (uid, gid) = match users {
        None => (uid, gid),
        Some(users) => match (outside(&users.uids, uid), outside(&users.gids, gid)) {
            (Some(uid), Some(gid)) => (uid, gid),
            _ => {
                let why = format!("{uid}:{gid} is not mapped in the user namespace");
                return Err(Failure::refused(step, path, &why));
            }
        },
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(directory, name, Some(uid), Some(gid), flags).step(step, path)
}

/// Make one node. `at` is the container's root, or `dev` itself where there is none yet.
pub(crate) fn make(
    at: BorrowedFd<'_>,
    dev: BorrowedFd<'_>,
    node: &Node,
    users: Option<&Users>,
) -> Result<(), Failure> {
    let refuse = || Failure::refused("make device node", &node.path, "the path names no file");
    let name = node.path.file_name().ok_or_else(refuse)?;
    let parent = node.path.parent().ok_or_else(refuse)?;
    let below = parent.strip_prefix("/dev").ok();
    if below.is_some_and(|b| b.as_os_str().is_empty()) {
        return mknod(dev, name, node, users);
    }
    let (start, way) = match below {
        Some(below) => (dev, below),
        None => (at, parent),
    };
    let directory = make_path(start, way, true).map_err(|mut failure| {
        failure.path.clone_from(&node.path);
        failure
    })?;
    if users.is_some() {
        for part in way.ancestors().filter(|p| !p.as_os_str().is_empty()) {
            give(start, part, users, &node.path)?;
        }
    }
    mknod(directory.as_fd(), name, node, users)
}

/// The node itself, with its mode and owner.
pub(crate) fn mknod(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    node: &Node,
    users: Option<&Users>,
) -> Result<(), Failure> {
    let kind = match node.kind {
        NodeKind::Char => SFlag::S_IFCHR,
        NodeKind::Block => SFlag::S_IFBLK,
        NodeKind::Fifo => SFlag::S_IFIFO,
    };
    let mode = Mode::from_bits_truncate(node.mode & 0o7777);
    let device = makedev(u64::from(node.major), u64::from(node.minor));
    mknodat(directory, name, kind, mode, device).step("make device node", &node.path)?;
    if node.uid != 0 || node.gid != 0 || users.is_some() {
        chown(directory, name, (node.uid, node.gid), users, &node.path)?;
        // chown clears set-id bits
        if node.mode & 0o6000 != 0 {
            fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink)
                .step("chmod device node", &node.path)?;
        }
    }
    Ok(())
}

fn is_node(stat: &FileStat, kind: NodeKind, major: u32, minor: u32) -> bool {
    let expected = match kind {
        NodeKind::Char => SFlag::S_IFCHR,
        NodeKind::Block => SFlag::S_IFBLK,
        NodeKind::Fifo => SFlag::S_IFIFO,
    };
    stat.st_mode & SFlag::S_IFMT.bits() == expected.bits()
        && stat.st_rdev == makedev(u64::from(major), u64::from(minor))
}

/// The container's null device, opened and found to be one.
pub(crate) fn open_null(root: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let path = Path::new("/dev/null");
    let null = open_below(root, path, libc::O_PATH, Resolve::NoLinks).step("open", path)?;
    if !is_node(&fstat(&null).step("stat", path)?, NodeKind::Char, 1, 3) {
        return Err(Failure::refused("mask file", path, "it is not the null device"));
    }
    Ok(null)
}

/// Put a node below an already running container's /dev, which `root` leads to.
pub(crate) fn inject(root: BorrowedFd<'_>, node: &Node, users: Option<&Users>) -> Result<(), Failure> {
    let dev = open_below(
        root,
        Path::new("/dev"),
        libc::O_PATH | libc::O_DIRECTORY,
        Resolve::NoLinks,
    )
    .step("open", "/dev")?;
    make(root, dev.as_fd(), node, users)
}

/// A link to a node, in a running container's /dev. What is there already stays as it is.
pub(crate) fn link(root: BorrowedFd<'_>, path: &Path, node: &Path) -> Result<(), Failure> {
    let step = "make device link";
    let folder = path.parent().unwrap_or(Path::new("/dev"));
    let Some(name) = path.file_name() else {
        return Err(Failure::refused(step, path, "the path names no file"));
    };
    let directory = make_path(root, folder, true)?;
    match symlinkat(node, &directory, name) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Failure::new(step, path, errno)),
    }
}

/// Take a link away, if it still leads to that node.
pub(crate) fn unlink(root: BorrowedFd<'_>, path: &Path, node: &Path) {
    let folder = path.parent().unwrap_or(Path::new("/dev"));
    let (Some(name), Ok(directory)) = (
        path.file_name(),
        open_below(root, folder, libc::O_PATH | libc::O_DIRECTORY, Resolve::NoLinks),
    ) else {
        return;
    };
    if nix::fcntl::readlinkat(&directory, name).is_ok_and(|target| Path::new(&target) == node) {
        // It may have gone meanwhile, which is what is wanted.
        let _ = nix::unistd::unlinkat(&directory, name, nix::unistd::UnlinkatFlags::NoRemoveDir);
    }
}

/// Take it away again, if it is that device and not something the container has put there.
pub(crate) fn eject(root: BorrowedFd<'_>, node: &Node) -> Result<bool, Failure> {
    let parent = node.path.parent().unwrap_or(Path::new("/dev"));
    let Some(name) = node.path.file_name() else {
        return Err(Failure::refused(
            "remove device node",
            &node.path,
            "the path names no file",
        ));
    };
    let directory = match open_below(root, parent, libc::O_PATH | libc::O_DIRECTORY, Resolve::NoLinks) {
        Ok(directory) => directory,
        Err(Errno::ENOENT) => return Ok(false),
        Err(errno) => return Err(Failure::new("open", parent, errno)),
    };
    match nix::sys::stat::fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if is_node(&stat, node.kind, node.major, node.minor) => {
            let flag = nix::unistd::UnlinkatFlags::NoRemoveDir;
            nix::unistd::unlinkat(&directory, name, flag).step("remove device node", &node.path)?;
            Ok(true)
        }
        Ok(_) | Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Failure::new("remove device node", &node.path, errno)),
    }
}
