//! What a container with a user namespace cannot make from inside it, made outside: the root (its layers shown through
//! the container's maps), the sources of bind mounts, file systems of block devices, /dev with its nodes.
//!
//! ```text
//! caller ── clone ──> container's first process: waits for its maps, then for the mounts
//!    │ makes them detached, and sends them; where that needs something attached (a layer that overlayfs finds by its
//!    │ path alone, before Linux 6.15; a device node elsewhere than below /dev):
//!    └───── clone ──> helper: the host's users, a mount namespace of its own; makes them detached, sends them, ends
//! ```
//! Invariants: nothing is ever attached in the caller's mount namespace; nothing is changed but the owner of a
//! new writable layer; what is sent is detached, and goes to the first process alone; /dev is a tmpfs of the
//! initial user namespace, so that a device node there can be opened and more can be made later (a tmpfs mounted
//! inside takes no nodes).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::overlay;
use crate::recipe::{IdMapping, Mount, Recipe, Root, Users, outside};
use crate::report::{self, Failure, Step, Up};
use crate::rootfs::{self, open_dir};
use crate::sys::fds;
use crate::sys::mount::{self as sys, attr};
use crate::sys::process::{self as process, CloneArgs, Cloned};

/// File systems that a user namespace may mount itself.
const OWN: [&str; 7] = ["proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "overlay"];

/// The mounts of a container with a user namespace, as they arrive in it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) root: OwnedFd,
    /// One for each mount of the recipe.
    pub(crate) trees: Vec<Option<OwnedFd>>,
    /// One for each device of the recipe.
    pub(crate) nodes: Vec<Option<OwnedFd>>,
}

/// Why the mounts were not made.
#[derive(Debug)]
pub(crate) enum Unprepared {
    /// A step of the helper.
    Failed(Failure),
    /// A system call of the caller.
    Call(&'static str, Errno),
    /// The first process is gone: it says why.
    Gone,
}

/// Is it made outside?
fn is_prepared(mount: &Mount) -> bool {
    mount.options.bind.is_some()
        || mount.idmap.is_some()
        || mount.destination == Path::new("/dev")
        || !OWN.contains(&mount.fs.as_str())
}

/// Make everything and send it over `to`. `users` is the container's user namespace, `idmaps` those of single mounts.
pub(crate) fn outside_in(
    recipe: &Recipe,
    pid: Pid,
    idmaps: &[Option<OwnedFd>],
    to: BorrowedFd<'_>,
) -> Result<(), Unprepared> {
    let call = |what| move |errno| Unprepared::Call(what, errno);
    let users = open_users(pid).map_err(call("open the user namespace"))?;
    if recipe.devices.iter().all(|node| node.path.starts_with("/dev")) {
        let before = umask(Mode::empty());
        let made = make(recipe, users.as_fd(), idmaps, false);
        umask(before);
        if let Some(all) = made.map_err(Unprepared::Failed)? {
            return match send(&all, to) {
                Err(Errno::EPIPE | Errno::ECONNRESET) => Err(Unprepared::Gone),
                other => other.map_err(call("send mounts")),
            };
        }
    }
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(call("socketpair"))?;
    let cloned = process::clone3(CloneArgs {
        namespaces: libc::CLONE_NEWNS as u64,
        ..CloneArgs::default()
    })
    .map_err(call("clone"))?;
    let pidfd = match cloned {
        Cloned::Child => match help(recipe, users.as_fd(), idmaps, to) {
            Ok(()) => process::exit_now(0),
            Err(failure) => {
                // The caller is gone if this fails: nobody is left to be told.
                let _ = report::send_to(theirs.as_fd(), &Up::Failed(failure).encode());
                process::exit_now(1)
            }
        },
        Cloned::Parent(_, pidfd) => pidfd,
    };
    drop(theirs);
    let mut buffer = vec![0u8; 16 * 1024];
    let said = report::receive(&ours, &mut buffer).map(|bytes| bytes.and_then(Up::decode));
    let status = loop {
        match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    match (said, status) {
        (Ok(Some(Up::Failed(failure))), _) if matches!(failure.errno, Errno::EPIPE | Errno::ECONNRESET) => {
            Err(Unprepared::Gone)
        }
        (Ok(Some(Up::Failed(failure))), _) => Err(Unprepared::Failed(failure)),
        (Ok(None), Ok(WaitStatus::Exited(_, 0))) => Ok(()),
        (Err(errno), _) | (_, Err(errno)) => Err(Unprepared::Call("wait for the mounts", errno)),
        (_, Ok(status)) => {
            let how = format!("the helper ended: {status:?}");
            Err(Unprepared::Failed(Failure::refused("prepare mounts", "", &how)))
        }
    }
}

fn open_users(pid: Pid) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{pid}/ns/user");
    nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// One user namespace for each mount that has maps of its own.
pub(crate) fn idmaps(recipe: &Recipe) -> Result<Vec<Option<OwnedFd>>, (&'static str, Errno)> {
    let mut all = Vec::new();
    if recipe.mounts.iter().all(|m| m.idmap.is_none()) {
        return Ok(all);
    }
    for mount in &recipe.mounts {
        all.push(match &mount.idmap {
            Some(IdMapping {
                maps: Some((uids, gids)),
                ..
            }) => Some(users_with(uids, gids)?),
            _ => None,
        });
    }
    Ok(all)
}

/// A user namespace with these maps and nobody in it.
fn users_with(uids: &str, gids: &str) -> Result<OwnedFd, (&'static str, Errno)> {
    let namespaces = libc::CLONE_NEWUSER as u64;
    let caller = nix::unistd::getpid();
    let cloned = process::clone3(CloneArgs {
        namespaces,
        ..CloneArgs::default()
    })
    .map_err(|e| ("clone for mounts[].uidMappings", e))?;
    let (pid, pidfd) = match cloned {
        Cloned::Child => {
            let _ = process::set_parent_death_signal(libc::SIGKILL); // it is killed in a moment anyway
            if nix::unistd::getppid() != caller {
                process::exit_now(1); // the caller was killed before the signal was asked for
            }
            loop {
                nix::unistd::pause();
            }
        }
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    let write = |name: &str, text: &str| {
        std::fs::write(format!("/proc/{pid}/{name}"), text)
            .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    };
    let made = write("uid_map", uids)
        .map_err(|e| ("mounts[].uidMappings", e))
        .and_then(|()| write("gid_map", gids).map_err(|e| ("mounts[].gidMappings", e)))
        .and_then(|()| open_users(pid).map_err(|e| ("open the user namespace of a mount", e)));
    let _ = process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL); // it cannot have ended
    while waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    made
}

/// In the helper.
fn help(
    recipe: &Recipe,
    users: BorrowedFd<'_>,
    idmaps: &[Option<OwnedFd>],
    to: BorrowedFd<'_>,
) -> Result<(), Failure> {
    process::set_parent_death_signal(libc::SIGKILL).step("set parent death signal", "")?;
    umask(Mode::empty());
    match make(recipe, users, idmaps, true)? {
        Some(all) => send(&all, to).step("send mounts", ""),
        None => Err(Failure::refused("prepare mounts", "", "nothing was made")),
    }
}

/// Everything, detached, with the place where it goes; the umask is 0. `attached`: this mount namespace is the
/// helper's own, and something may be attached in it. `None`: nothing of the sort was allowed and it is needed.
fn make(
    recipe: &Recipe,
    users: BorrowedFd<'_>,
    idmaps: &[Option<OwnedFd>],
    attached: bool,
) -> Result<Option<Vec<(u32, OwnedFd)>>, Failure> {
    let Some(ids) = &recipe.users else {
        return Err(Failure::refused(
            "prepare mounts",
            "",
            "there is no user namespace",
        ));
    };
    let mut out: Vec<(u32, OwnedFd)> = Vec::new();
    if !attached {
        match detached_root(recipe, ids, users)? {
            Some(root) => out.push((0, root)),
            None => return Ok(None),
        }
    }
    for (at, mount) in recipe.mounts.iter().enumerate() {
        let own = idmaps.get(at).and_then(Option::as_ref).map(AsFd::as_fd);
        if let Some(recursive) = mount.options.bind {
            let tree = rootfs::bind(recipe, mount, recursive, Some(own.unwrap_or(users)))?;
            rootfs::adjust(tree.as_fd(), &mount.options, true, &mount.destination)?;
            out.push((1 + at as u32, tree));
        } else if is_prepared(mount) {
            let tree = new_fs(recipe, ids, mount)?;
            rootfs::idmap(mount, tree.as_fd(), Some(own.unwrap_or(users)))?;
            out.push((1 + at as u32, tree));
        }
    }
    if attached {
        sys::set_root_attributes(true, 0, libc::MS_SLAVE).step("mount propagation", "/")?;
        out.push((0, root(recipe, ids, users)?));
        let first = 1 + recipe.mounts.len() as u32;
        nodes(recipe, ids, first, &mut out)?;
    }
    Ok(Some(out))
}

fn send(all: &[(u32, OwnedFd)], to: BorrowedFd<'_>) -> Result<(), Errno> {
    for part in all.chunks(fds::MOST) {
        let slots: Vec<u8> = part.iter().flat_map(|(slot, _)| slot.to_le_bytes()).collect();
        let list: Vec<BorrowedFd<'_>> = part.iter().map(|(_, fd)| fd.as_fd()).collect();
        fds::send(to, &[&b"T"[..], &slots].concat(), &list)?;
    }
    fds::send(to, b"T", &[])
}

/// A file system of the initial user namespace; /dev belongs to the container's root and has its nodes at once.
fn new_fs(recipe: &Recipe, ids: &Users, mount: &Mount) -> Result<OwnedFd, Failure> {
    let mut data = mount.options.data.clone();
    let dest = &mount.destination;
    if mount.fs == "tmpfs" && mount.idmap.is_none() {
        // Words of inside: the file system's own ids are the host's.
        for (key, maps) in [("uid", &ids.uids), ("gid", &ids.gids)] {
            let inside = match data.iter().position(|(k, _)| k == key) {
                Some(at) => data.remove(at).1.and_then(|v| v.parse().ok()),
                None => Some(0),
            };
            let id = inside.and_then(|id| outside(maps, id)).ok_or_else(|| {
                let why = format!("its {key} is not mapped in the user namespace");
                Failure::refused("mount tmpfs", dest, &why)
            })?;
            data.push((key.to_owned(), Some(id.to_string())));
        }
    }
    let tree = rootfs::new_fs(recipe, mount, &data)?;
    if dest == Path::new("/dev") {
        crate::dev::fill(tree.as_fd(), recipe)?;
    }
    Ok(tree)
}

/// The root, detached, without attaching anything on the way; `None`: this kernel's overlayfs finds layers by their
/// paths alone, and these must be shown through the maps.
fn detached_root(recipe: &Recipe, ids: &Users, users: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Failure> {
    let Root::Overlay { lower, upper, at } = &recipe.root else {
        return root(recipe, ids, users).map(Some);
    };
    let mut layers = Vec::with_capacity(lower.len());
    for path in lower {
        layers.push(layer(path, ids, users)?);
    }
    if upper.is_none() && layers.len() == 1 {
        return Ok(layers.pop());
    }
    if let Some((upper, _)) = upper {
        own(upper, ids)?;
    }
    overlay::by_descriptors(&layers, upper.as_ref(), at, recipe.mount_label.as_deref())
}

/// A layer as it is shown to the container, detached.
fn layer(path: &Path, ids: &Users, users: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let tree = sys::clone_tree(AT_FDCWD, path, false).step("open layer", path)?;
    sys::set_attributes(tree.as_fd(), false, attr::RDONLY, 0, libc::MS_PRIVATE).step("open layer", path)?;
    if ids.idmap_root {
        sys::set_idmap(tree.as_fd(), false, users).step("idmap", path)?;
    }
    Ok(tree)
}

/// The root, detached; in the helper.
fn root(recipe: &Recipe, ids: &Users, users: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    match &recipe.root {
        Root::Dir(path) => {
            let tree = sys::clone_tree(AT_FDCWD, path, true).step("open root file system", path)?;
            sys::set_attributes(tree.as_fd(), true, 0, 0, libc::MS_SLAVE).step("mount propagation", path)?;
            if ids.idmap_root {
                sys::set_idmap(tree.as_fd(), true, users).step("idmap", path)?;
            }
            Ok(tree)
        }
        Root::Overlay { lower, upper, at } => {
            if ids.idmap_root {
                for path in lower {
                    // Over itself, in this namespace alone: overlayfs finds it by its path.
                    let tree = layer(path, ids, users)?;
                    let target = open_dir(path).step("open layer", path)?;
                    sys::attach(tree.as_fd(), target.as_fd()).step("mount layer", path)?;
                }
            }
            if let Some((upper, _)) = upper {
                own(upper, ids)?;
            }
            let attached = overlay::mount(lower, upper.as_ref(), at, recipe.mount_label.as_deref())?;
            sys::clone_tree(attached.as_fd(), Path::new(""), false).step("mount overlay", at)
        }
    }
}

/// The writable layer belongs to the container's root. A new one is given to it; one that others wrote is refused.
fn own(upper: &Path, ids: &Users) -> Result<(), Failure> {
    let step = "writable layer";
    let (Some(uid), Some(gid)) = (outside(&ids.uids, 0), outside(&ids.gids, 0)) else {
        return Err(Failure::refused(
            step,
            upper,
            "the user namespace does not map its root",
        ));
    };
    let meta = std::fs::symlink_metadata(upper).step(step, upper)?;
    if (meta.uid(), meta.gid()) == (uid, gid) {
        return Ok(());
    }
    let empty = std::fs::read_dir(upper).step(step, upper)?.next().is_none();
    if meta.uid() != 0 || !empty {
        let why = format!(
            "it belongs to user {}, the container's root is {uid}: it was written under other maps",
            meta.uid()
        );
        return Err(Failure::refused(step, upper, &why));
    }
    std::os::unix::fs::lchown(upper, Some(uid), Some(gid)).step(step, upper)
}

/// Device nodes outside /dev, each a mount of its own.
fn nodes(recipe: &Recipe, ids: &Users, first: u32, out: &mut Vec<(u32, OwnedFd)>) -> Result<(), Failure> {
    let mut place: Option<OwnedFd> = None;
    for (at, node) in recipe.devices.iter().enumerate() {
        if node.path.starts_with("/dev") {
            continue;
        }
        let step = "make device node";
        if place.is_none() {
            let tmpfs = sys::FsContext::open("tmpfs").step(step, &node.path)?;
            let tmpfs = tmpfs
                .mount(attr::NOSUID | attr::NOEXEC)
                .map_err(|(e, m)| Failure::new(step, &node.path, e).with(m))?;
            // Nothing below /proc is needed any more; what is not attached cannot be cloned.
            let target = open_dir(Path::new("/proc")).step(step, "/proc")?;
            sys::attach(tmpfs.as_fd(), target.as_fd()).step(step, "/proc")?;
            place = Some(tmpfs);
        }
        let Some(place) = &place else { continue };
        let name = format!("n{at}");
        crate::dev::mknod(place.as_fd(), std::ffi::OsStr::new(&name), node, Some(ids))?;
        let tree = sys::clone_tree(place.as_fd(), Path::new(&name), false).step(step, &node.path)?;
        out.push((first + at as u32, tree));
    }
    Ok(())
}

/// In the first process: take what the helper sends.
pub(crate) fn receive(recipe: &Recipe, from: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Prepared, Failure> {
    let step = "receive mounts";
    let bad = || Failure::refused(step, "", "unexpected message from the runtime");
    let none = |n: usize| (0..n).map(|_| None).collect::<Vec<Option<OwnedFd>>>();
    let (mut trees, mut nodes) = (none(recipe.mounts.len()), none(recipe.devices.len()));
    let mut root = None;
    loop {
        let (n, list) = fds::receive(from, buffer).step(step, "")?;
        if n == 0 {
            return Err(Failure::refused(step, "", "the runtime is gone"));
        }
        let slots = buffer[..n].strip_prefix(b"T").ok_or_else(bad)?;
        if slots.len() != 4 * list.len() {
            return Err(bad());
        }
        if list.is_empty() {
            let root = root.ok_or_else(bad)?;
            return Ok(Prepared { root, trees, nodes });
        }
        for (slot, fd) in slots.chunks_exact(4).zip(list) {
            let slot = slot
                .iter()
                .rev()
                .fold(0usize, |all, b| all << 8 | usize::from(*b));
            match slot.checked_sub(1) {
                None => root = Some(fd),
                Some(at) if at < trees.len() => trees[at] = Some(fd),
                Some(at) => *nodes.get_mut(at - trees.len()).ok_or_else(bad)? = Some(fd),
            }
        }
    }
}
