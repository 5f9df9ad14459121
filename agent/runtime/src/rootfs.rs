//! The container's mounts, made in its new mount namespace: root, file systems, binds, masked and read-only
//! paths, pivot_root.
//!
//! Invariants: the sources of bind mounts are cloned before anything else changes; every path inside is resolved
//! below the root by openat2 and the mount is attached to the descriptor that came back; an image whose /dev,
//! /proc or /sys is a symbolic link is refused; what a masked file shows is a character device 1:3, checked.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat, mode_t};

use crate::options::Options;
use crate::overlay;
use crate::prepare::Prepared;
use crate::recipe::{Mount, Recipe, Root};
use crate::report::{Failure, Step};
use crate::sys::mount::{self as sys, FsContext, Resolve, attr, fs_magic, open_below};

/// `f_type` of procfs.
pub(crate) const PROC_MAGIC: i64 = 0x9fa0;
const O_PATH: i32 = libc::O_PATH;

/// What lxcfs and its like may put over files of /proc.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The root and the trees that will be mounted in it.
pub(crate) struct Rootfs<'a> {
    recipe: &'a Recipe,
    pub(crate) root: OwnedFd,
    /// One for each mount of the recipe: the cloned source of a bind, or what was prepared outside.
    trees: Vec<Option<OwnedFd>>,
    /// One for each device of the recipe that was prepared outside and does not lie below /dev.
    nodes: Vec<Option<OwnedFd>>,
    prepared_outside: bool,
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Apply attributes and propagation to a detached (or our own) mount.
pub(crate) fn adjust(
    mount: BorrowedFd<'_>,
    o: &Options,
    own_flags: bool,
    path: &Path,
) -> Result<(), Failure> {
    if own_flags && (o.set != 0 || o.clear != 0) {
        sys::set_attributes(mount, false, o.set, o.clear, 0).step("mount flags", path)?;
    }
    if o.set_below != 0 || o.clear_below != 0 {
        sys::set_attributes(mount, true, o.set_below, o.clear_below, 0)
            .step("recursive mount flags", path)?;
    }
    for (flag, recursive) in &o.propagation {
        sys::set_attributes(mount, *recursive, 0, 0, *flag).step("mount propagation", path)?;
    }
    Ok(())
}

/// A detached copy of the source of a bind mount, which hears of the host's later mounts unless the options say
/// otherwise; `users` are those whose maps it is shown through.
pub(crate) fn bind(
    recipe: &Recipe,
    mount: &Mount,
    recursive: bool,
    users: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Failure> {
    let tree = source(recipe, &mount.source, recursive).step("bind", &mount.source)?;
    if mount.options.propagation.is_empty() {
        sys::set_attributes(tree.as_fd(), true, 0, 0, libc::MS_SLAVE)
            .step("mount propagation", &mount.source)?;
    }
    idmap(mount, tree.as_fd(), users)?;
    Ok(tree)
}

/// Show a detached mount through maps, where that is asked for.
pub(crate) fn idmap(
    mount: &Mount,
    tree: BorrowedFd<'_>,
    users: Option<BorrowedFd<'_>>,
) -> Result<(), Failure> {
    match (&mount.idmap, users) {
        (Some(wanted), Some(users)) => {
            sys::set_idmap(tree, wanted.recursive, users).step("idmap", &mount.destination)
        }
        (Some(_), None) => Err(Failure::refused("idmap", &mount.destination, "there are no maps")),
        (None, _) => Ok(()),
    }
}

/// A detached copy of what is to be bound.
fn source(recipe: &Recipe, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    if !recipe.plain_sources {
        return sys::clone_tree(AT_FDCWD, path, recursive);
    }
    // The path was judged without links: one that is there now was put there since.
    let host = open_dir(Path::new("/"))?;
    let found = open_below(host.as_fd(), path, O_PATH, Resolve::NoLinks)?;
    sys::clone_tree(found.as_fd(), Path::new(""), recursive)
}

/// A file system of its own, detached.
pub(crate) fn new_fs(
    recipe: &Recipe,
    mount: &Mount,
    data: &[(String, Option<String>)],
) -> Result<OwnedFd, Failure> {
    let step = format!("mount {}", mount.fs);
    let dest = &mount.destination;
    let context = FsContext::open(&mount.fs).step(&step, dest)?;
    let words = |errno| Failure::new(&step, dest, errno).with(context.message());
    if !mount.source.as_os_str().is_empty() {
        use std::os::unix::ffi::OsStrExt;
        context
            .set("source", mount.source.as_os_str().as_bytes())
            .map_err(words)?;
    }
    for (key, value) in data {
        let result = match value {
            Some(value) => context.set(key, value.as_bytes()),
            None => context.flag(key),
        };
        result.map_err(|errno| {
            let mut failure = words(errno);
            failure.detail = format!("option \"{key}\": {}", failure.detail);
            failure
        })?;
    }
    if let Some(label) = &recipe.mount_label
        && matches!(mount.fs.as_str(), "tmpfs" | "devpts" | "ramfs")
    {
        context.set("context", label.as_bytes()).map_err(words)?;
    }
    context
        .mount(mount.options.set)
        .map_err(|(errno, message)| Failure::new(&step, dest, errno).with(message))
}

/// From here on no mount of this namespace reaches the host's. Read back before the first one is made: one that got there
/// would outlive the container.
fn cut_off() -> Result<(), Failure> {
    sys::set_root_attributes(true, 0, libc::MS_SLAVE).step("mount propagation", "/")?;
    let path = "/proc/self/mountinfo";
    let mut lines = BufReader::new(File::open(path).step("open", path)?).lines();
    while let Some(line) = lines
        .next()
        .transpose()
        .map_err(|e| Failure::refused("read", path, &e.to_string()))?
    {
        // proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields up to a hyphen.
        let mut fields = line.split(' ').skip(4);
        if fields.next() == Some("/") && fields.take_while(|f| *f != "-").any(|f| f.starts_with("shared:")) {
            return Err(Failure::refused(
                "mount propagation, read back",
                "/",
                "it is still shared",
            ));
        }
    }
    Ok(())
}

impl<'a> Rootfs<'a> {
    /// Clone the sources, cut the host off from what follows, and attach the root. In a user namespace the sources
    /// and the root have been prepared outside; else `idmaps` are the maps of the mounts that have some.
    pub(crate) fn begin(
        recipe: &'a Recipe,
        prepared: Option<Prepared>,
        idmaps: &[Option<OwnedFd>],
        joined: Option<&OwnedFd>,
    ) -> Result<Self, Failure> {
        let prepared_outside = prepared.is_some();
        let (root, trees, nodes) = match prepared {
            Some(prepared) => {
                cut_off()?;
                let at = match &recipe.root {
                    Root::Dir(path) => path,
                    Root::Overlay { at, .. } => at,
                };
                // A place that the users of the namespace cannot reach gives way to one that is always there.
                let target = match open_dir(at) {
                    _ if recipe.over => open_dir(Path::new("/")),
                    Err(Errno::EACCES) => open_dir(Path::new("/")),
                    other => other,
                };
                let target = target.step("open root file system", at)?;
                sys::attach(prepared.root.as_fd(), target.as_fd()).step("mount root file system", at)?;
                (prepared.root, prepared.trees, prepared.nodes)
            }
            None => {
                let mut trees = Vec::with_capacity(recipe.mounts.len());
                for (at, mount) in recipe.mounts.iter().enumerate() {
                    let users = idmaps.get(at).and_then(Option::as_ref).map(AsFd::as_fd);
                    trees.push(match mount.options.bind {
                        Some(recursive) => Some(bind(recipe, mount, recursive, users)?),
                        None if mount.idmap.is_some() => {
                            let tree = new_fs(recipe, mount, &mount.options.data)?;
                            idmap(mount, tree.as_fd(), users)?;
                            Some(tree)
                        }
                        None => None,
                    });
                }
                (Self::attach_root(recipe, joined)?, trees, Vec::new())
            }
        };
        for name in ["dev", "proc", "sys"] {
            match fstatat(&root, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if kind_of(&stat) == SFlag::S_IFLNK => {
                    let why = "it is a symbolic link in the image; such an image is refused";
                    return Err(Failure::refused(
                        "root file system",
                        Path::new("/").join(name),
                        why,
                    ));
                }
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Failure::new("root file system", Path::new("/").join(name), errno)),
            }
        }
        Ok(Self {
            recipe,
            root,
            trees,
            nodes,
            prepared_outside,
        })
    }

    fn attach_root(recipe: &Recipe, joined: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
        match &recipe.root {
            Root::Dir(path) => {
                let tree = sys::clone_tree(AT_FDCWD, path, true).step("open root file system", path)?;
                sys::set_attributes(tree.as_fd(), true, 0, 0, libc::MS_SLAVE)
                    .step("mount propagation", path)?;
                match joined {
                    Some(namespace) => crate::joined::enter(namespace)?,
                    None => cut_off()?,
                }
                let path = if recipe.over { Path::new("/") } else { path };
                let target = open_dir(path).step("open root file system", path)?;
                sys::attach(tree.as_fd(), target.as_fd()).step("mount root file system", path)?;
                Ok(tree)
            }
            Root::Overlay { lower, upper, at } => {
                cut_off()?;
                overlay::mount(lower, upper.as_ref(), at, recipe.mount_label.as_deref())
            }
        }
    }

    /// Make every mount, and the device nodes as soon as /dev is there.
    pub(crate) fn mounts(&mut self) -> Result<(), Failure> {
        for (at, mount) in self.recipe.mounts.iter().enumerate() {
            let tree = self.trees[at].take();
            self.mount(mount, tree)?;
            if mount.destination == Path::new("/dev") {
                if self.prepared_outside {
                    crate::dev::bind_prepared(self.root.as_fd(), self.recipe, &self.nodes)?;
                } else {
                    crate::dev::populate(self.root.as_fd(), self.recipe)?;
                }
            }
        }
        Ok(())
    }

    fn mount(&self, mount: &Mount, tree: Option<OwnedFd>) -> Result<(), Failure> {
        let dest = &mount.destination;
        let (fd, directory) = match tree {
            Some(tree) => {
                let tree = match self.prepared_outside || self.recipe.in_order {
                    true => in_its_turn(tree, mount, self.prepared_outside),
                    false => tree,
                };
                let stat = fstat(&tree).step("bind", &mount.source)?;
                if !self.prepared_outside {
                    adjust(tree.as_fd(), &mount.options, true, dest)?;
                }
                let directory = is_dir(&stat);
                (tree, directory)
            }
            None if mount.fs == "cgroup" => return self.mount_cgroups(mount),
            None if mount.options.copy_up => (self.filled(mount)?, true),
            None => (new_fs(self.recipe, mount, &mount.options.data)?, true),
        };
        let target = self.target(dest, directory)?;
        self.check_proc(mount, &fd, &target)?;
        sys::attach(fd.as_fd(), target.as_fd()).step("mount", dest)?;
        if mount.options.bind.is_none() {
            adjust(fd.as_fd(), &mount.options, false, dest)?;
        }
        Ok(())
    }

    /// A tmpfs with what the image has at its place, read-only only after that.
    fn filled(&self, mount: &Mount) -> Result<OwnedFd, Failure> {
        let dest = &mount.destination;
        let mut open = mount.clone();
        open.options.set &= !attr::RDONLY;
        let tmpfs = new_fs(self.recipe, &open, &mount.options.data)?;
        if let Some(place) = self.existing(dest)? {
            crate::copyup::copy(place.as_fd(), tmpfs.as_fd(), dest)?;
        }
        if mount.options.set & attr::RDONLY != 0 {
            sys::set_attributes(tmpfs.as_fd(), false, attr::RDONLY, 0, 0).step("mount flags", dest)?;
        }
        Ok(tmpfs)
    }

    /// A container's own cgroup directory and nothing above it, whatever the cgroup version.
    fn mount_cgroups(&self, mount: &Mount) -> Result<(), Failure> {
        let dest = &mount.destination;
        let clone = |path: &Path| {
            let tree = sys::clone_tree(AT_FDCWD, path, false).step("bind cgroup", path)?;
            sys::set_attributes(
                tree.as_fd(),
                false,
                mount.options.set,
                mount.options.clear,
                libc::MS_SLAVE,
            )
            .step("mount flags", dest)?;
            Ok::<_, Failure>(tree)
        };
        if self.recipe.cgroup_v2 {
            let [(_, path)] = &self.recipe.cgroups[..] else {
                return Err(Failure::refused(
                    "mount cgroup",
                    dest,
                    "the container has no cgroup",
                ));
            };
            let target = self.target(dest, true)?;
            return sys::attach(clone(path)?.as_fd(), target.as_fd()).step("mount cgroup", dest);
        }
        let tmpfs = FsContext::open("tmpfs").step("mount tmpfs", dest)?;
        tmpfs.set("mode", b"755").step("mount tmpfs", dest)?;
        let set = mount.options.set & !attr::RDONLY;
        let tmpfs = tmpfs
            .mount(set)
            .map_err(|(e, m)| Failure::new("mount tmpfs", dest, e).with(m))?;
        sys::attach(tmpfs.as_fd(), self.target(dest, true)?.as_fd()).step("mount tmpfs", dest)?;
        for (name, path) in &self.recipe.cgroups {
            mkdirat(&tmpfs, name.as_str(), Mode::from_bits_truncate(0o755)).step("mkdir", dest.join(name))?;
            let target = open_below(tmpfs.as_fd(), Path::new(name), O_PATH, Resolve::NoLinks)
                .step("mount cgroup", dest.join(name))?;
            sys::attach(clone(path)?.as_fd(), target.as_fd()).step("mount cgroup", dest.join(name))?;
        }
        if mount.options.set & attr::RDONLY != 0 {
            sys::set_attributes(tmpfs.as_fd(), false, attr::RDONLY, 0, 0).step("mount flags", dest)?;
        }
        Ok(())
    }

    /// Nothing but procfs on /proc, and nothing inside it but the files that lxcfs replaces.
    fn check_proc(&self, mount: &Mount, fd: &OwnedFd, target: &OwnedFd) -> Result<(), Failure> {
        let dest = &mount.destination;
        let step = "mount";
        if dest == Path::new("/proc") {
            if fs_magic(fd).step(step, dest)? != PROC_MAGIC {
                return Err(Failure::refused(
                    step,
                    dest,
                    "only a proc file system may be mounted on /proc",
                ));
            }
        } else if fs_magic(target).step(step, dest)? == PROC_MAGIC
            && !PROC_FILES.iter().any(|f| dest == Path::new(f))
        {
            return Err(Failure::refused(
                step,
                dest,
                "nothing may be mounted inside /proc",
            ));
        }
        Ok(())
    }

    /// Open the mount point, making it first where it is missing.
    fn target(&self, dest: &Path, directory: bool) -> Result<OwnedFd, Failure> {
        match open_below(self.root.as_fd(), dest, O_PATH, Resolve::InRoot) {
            Err(Errno::ENOENT) => make_path(self.root.as_fd(), dest, directory),
            other => other.step("open mount point", dest),
        }
    }

    /// Masked paths show nothing; read-only paths cannot be written. A path that is not there needs neither.
    pub(crate) fn hide(&self) -> Result<(), Failure> {
        let mut empty: Option<OwnedFd> = None;
        let mut null: Option<OwnedFd> = None;
        for path in &self.recipe.masked {
            let Some(target) = self.existing(path)? else {
                continue;
            };
            let stat = fstat(&target).step("mask", path)?;
            let cover = if is_dir(&stat) {
                match &empty {
                    Some(tmpfs) => {
                        sys::clone_tree(tmpfs.as_fd(), Path::new(""), false).step("mask directory", path)?
                    }
                    None => {
                        let context = FsContext::open("tmpfs").step("mask directory", path)?;
                        context.set("nr_inodes", b"1").step("mask directory", path)?;
                        let tmpfs = context
                            .mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
                            .map_err(|(errno, m)| Failure::new("mask directory", path, errno).with(m))?;
                        sys::attach(tmpfs.as_fd(), target.as_fd()).step("mask directory", path)?;
                        empty = Some(tmpfs);
                        continue;
                    }
                }
            } else {
                if null.is_none() {
                    null = Some(crate::dev::open_null(self.root.as_fd())?);
                }
                let Some(null) = &null else { continue };
                sys::clone_tree(null.as_fd(), Path::new(""), false).step("mask file", path)?
            };
            sys::attach(cover.as_fd(), target.as_fd()).step("mask", path)?;
        }
        for path in &self.recipe.readonly {
            let Some(target) = self.existing(path)? else {
                continue;
            };
            let tree = sys::clone_tree(target.as_fd(), Path::new(""), true).step("make read-only", path)?;
            sys::set_attributes(tree.as_fd(), true, attr::RDONLY, 0, 0).step("make read-only", path)?;
            sys::attach(tree.as_fd(), target.as_fd()).step("make read-only", path)?;
        }
        Ok(())
    }

    fn existing(&self, path: &Path) -> Result<Option<OwnedFd>, Failure> {
        match open_below(self.root.as_fd(), path, O_PATH, Resolve::InRoot) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(Failure::new("open", path, errno)),
        }
    }

    /// The root of the namespace from here on.
    pub(crate) fn pivot(&self) -> Result<(), Failure> {
        if self.recipe.root_flags != 0 {
            sys::set_attributes(self.root.as_fd(), false, self.recipe.root_flags, 0, 0)
                .step("flags of the root", "/")?;
        }
        if self.recipe.over {
            if self.recipe.users.is_none() && self.recipe.new & libc::CLONE_NEWNS as u64 != 0 {
                crate::over::let_go().step("umount", "/")?;
            }
            sys::enter_root(self.root.as_fd()).step("chroot", "/")?;
        } else {
            sys::pivot(self.root.as_fd()).step("pivot_root", "/")?;
        }
        if let Some((flag, recursive)) = self.recipe.propagation {
            sys::set_root_attributes(recursive, 0, flag).step("linux.rootfsPropagation", "/")?;
        }
        Ok(())
    }
}

/// What was made before the mounts it comes after in the configuration, as one that is made now: since Linux 6.8 the
/// kernel lists mounts by age. On a kernel that copies nothing detached (before 6.15) it stays as it is.
fn in_its_turn(tree: OwnedFd, mount: &Mount, outside: bool) -> OwnedFd {
    let unbindable = |(flag, _): &(u64, bool)| *flag == libc::MS_UNBINDABLE;
    // Of another mount namespace, or with its propagation already.
    if outside && (mount.options.bind.is_some() || mount.options.propagation.iter().any(unbindable)) {
        return tree;
    }
    sys::clone_tree(tree.as_fd(), Path::new(""), true).unwrap_or(tree)
}

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(
        path,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// mkdir -p below `root`, never through a symbolic link that leads out; the last part is a directory or an empty
/// file. Returns it opened with O_PATH.
pub(crate) fn make_path(root: BorrowedFd<'_>, path: &Path, directory: bool) -> Result<OwnedFd, Failure> {
    let step = "create mount point";
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let mut sofar = PathBuf::from("/");
    let mut parent =
        open_below(root, &sofar, O_PATH | libc::O_DIRECTORY, Resolve::InRoot).step(step, path)?;
    for (i, name) in names.iter().enumerate() {
        sofar.push(name);
        let last = i + 1 == names.len();
        parent = match open_below(root, &sofar, O_PATH, Resolve::InRoot) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) if last && !directory => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY | libc::O_NOFOLLOW;
                let dir = parent.as_fd();
                drop(sys::create_below(dir, Path::new(name), flags, 0o644).step(step, &sofar)?);
                open_below(dir, Path::new(name), O_PATH, Resolve::NoLinks).step(step, &sofar)?
            }
            Err(Errno::ENOENT) => {
                // A dangling symbolic link is EEXIST here and is refused by the open that follows.
                match mkdirat(&parent, *name, Mode::from_bits_truncate(0o755 as mode_t)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(Failure::new(step, &sofar, errno)),
                }
                open_below(
                    parent.as_fd(),
                    Path::new(name),
                    O_PATH | libc::O_DIRECTORY,
                    Resolve::NoLinks,
                )
                .step(step, &sofar)?
            }
            Err(errno) => return Err(Failure::new(step, &sofar, errno)),
        };
    }
    Ok(parent)
}
