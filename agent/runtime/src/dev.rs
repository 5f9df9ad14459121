//! Device nodes on the container's own tmpfs at /dev, and the usual links beside them.
//!
//! Invariants: nodes are made below an opened root and never through a symbolic link; a node that cannot be made
//! (user namespaces) is the host's own, bound, after its device number was compared with the one asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, makedev, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::recipe::{Node, NodeKind, Recipe};
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
    for (name, target) in LINKS {
        if recipe
            .devices
            .iter()
            .any(|d| d.path == Path::new("/dev").join(name))
        {
            continue;
        }
        symlinkat(target, &dev, name).step("symlink", Path::new("/dev").join(name))?;
    }
    for node in &recipe.devices {
        make(root, &dev, node, recipe.bind_devices)?;
    }
    Ok(())
}

/// Directory and name of a node; directories on the way are made.
fn place(root: BorrowedFd<'_>, dev: &OwnedFd, node: &Node) -> Result<(OwnedFd, std::ffi::OsString), Failure> {
    let refuse = || Failure::refused("make device node", &node.path, "the path names no file");
    let name = node.path.file_name().ok_or_else(refuse)?.to_owned();
    let parent = node.path.parent().ok_or_else(refuse)?;
    let directory = if parent == Path::new("/dev") {
        dev.try_clone().step("open", parent)?
    } else {
        make_path(root, parent, true)?
    };
    Ok((directory, name))
}

/// Make (or bind) one node.
pub(crate) fn make(root: BorrowedFd<'_>, dev: &OwnedFd, node: &Node, bind: bool) -> Result<(), Failure> {
    let (directory, name) = place(root, dev, node)?;
    let step = "make device node";
    if bind && node.kind != NodeKind::Fifo {
        return bind_host_node(&directory, Path::new(&name), node);
    }
    let kind = match node.kind {
        NodeKind::Char => SFlag::S_IFCHR,
        NodeKind::Block => SFlag::S_IFBLK,
        NodeKind::Fifo => SFlag::S_IFIFO,
    };
    let mode = Mode::from_bits_truncate(node.mode & 0o7777);
    let device = makedev(u64::from(node.major), u64::from(node.minor));
    mknodat(&directory, name.as_os_str(), kind, mode, device).step(step, &node.path)?;
    if node.uid != 0 || node.gid != 0 {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        fchownat(
            &directory,
            name.as_os_str(),
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .step("chown device node", &node.path)?;
        // chown clears set-id bits
        if node.mode & 0o6000 != 0 {
            fchmodat(&directory, name.as_os_str(), mode, FchmodatFlags::FollowSymlink)
                .step("chmod device node", &node.path)?;
        }
    }
    Ok(())
}

fn bind_host_node(directory: &OwnedFd, name: &Path, node: &Node) -> Result<(), Failure> {
    let step = "bind device node";
    let host = sys::clone_tree(AT_FDCWD, &node.path, false).step(step, &node.path)?;
    let stat = fstat(&host).step(step, &node.path)?;
    if !is_node(&stat, node.kind, node.major, node.minor) {
        let why = format!("the host's node is not device {}:{}", node.major, node.minor);
        return Err(Failure::refused(step, &node.path, &why));
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY | libc::O_NOFOLLOW;
    drop(sys::create_below(directory.as_fd(), name, flags, 0o644).step(step, &node.path)?);
    let target =
        open_below(directory.as_fd(), name, libc::O_PATH, Resolve::NoLinks).step(step, &node.path)?;
    sys::attach(host.as_fd(), target.as_fd()).step(step, &node.path)
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
pub(crate) fn inject(root: BorrowedFd<'_>, node: &Node) -> Result<(), Failure> {
    let dev = open_below(
        root,
        Path::new("/dev"),
        libc::O_PATH | libc::O_DIRECTORY,
        Resolve::NoLinks,
    )
    .step("open", "/dev")?;
    make(root, &dev, node, false)
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
