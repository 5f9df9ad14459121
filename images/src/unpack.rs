//! Unpacking one layer's tar stream into an empty folder, in the form overlayfs takes as a lower layer.
//!
//! Kernel interface: every parent is opened with openat2(2), `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS |
//! RESOLVE_NO_XDEV`, below the folder's own descriptor; the last component is only ever made, replaced or changed
//! through `*at` calls that follow no link. Invariants: nothing outside the folder is created, changed, linked or
//! read, whatever the entries say; what is made is a file, folder, link, pipe or whiteout, never a device.
//!
//! OCI whiteouts become overlayfs's: `.wh.NAME` a character device 0/0 called NAME, `.wh..wh..opq` the attribute
//! `trusted.overlay.opaque=y` of its folder (for the root: a flag in the marker). A whiteout concerns the layers
//! below; what the same layer has under the name wins, and a folder is then opaque.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use xattr::FileExt;

use crate::entry::{PATH_MAX, clean, is_dir, is_whiteout, open_dir, set_opaque, show, stat};
use crate::error::LayerError;
use crate::layer::Found;
use crate::limits::{Bounded, Budget};
use crate::merged::IMPLIED_MODE;
use crate::tarstream::{Entry, Kind, TarStream};

/// Prefix of whiteouts.
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout of everything below a folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attempts to resolve a path while others rename files.
const RETRIES: u32 = 1000;
/// Most attributes listed as dropped for one layer.
const DROPPED_MAX: usize = 200;

/// The result of unpacking.
pub(crate) struct Unpacked {
    pub(crate) found: Found,
}

/// Unpacks `stream` (uncompressed tar) into the empty folder `into`, and reads the stream to its end.
pub(crate) fn unpack(stream: impl Read, into: &Path, budget: &mut Budget) -> Result<Unpacked, LayerError> {
    let made = |doing| {
        move |source| LayerError::Create {
            entry: "/".into(),
            doing,
            source,
        }
    };
    let root = OwnedFd::from(File::open(into).map_err(made("open"))?);
    let root_mode = Mode::from_bits_truncate(IMPLIED_MODE);
    fchmod(&root, root_mode)
        .map_err(io::Error::from)
        .map_err(made("set the mode"))?;
    let mut unpacker = Unpacker {
        root,
        parent: None,
        dirs: Vec::new(),
        implied: BTreeSet::new(),
        found: Found::default(),
    };
    let mut stream = TarStream::new(Bounded {
        inner: stream,
        left: budget.bytes,
        exceeded: false,
    });
    let result = unpacker.all(&mut stream, budget);
    let bounded = stream.into_inner();
    if bounded.exceeded {
        let entry = unpacker.found.entries.to_string();
        return Err(LayerError::Limit {
            entry: format!("number {entry}"),
            what: "bytes",
            limit: budget.limits.bytes,
        });
    }
    result?;
    budget.bytes = bounded.left;
    unpacker.finish()
}

struct Unpacker {
    root: OwnedFd,
    /// The folder of the entry before, so that neighbours need no new walk.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folders whose times are set at the end.
    dirs: Vec<(Vec<u8>, (i64, i64))>,
    implied: BTreeSet<Vec<u8>>,
    found: Found,
}

impl Unpacker {
    fn all<R: Read>(&mut self, stream: &mut TarStream<R>, budget: &mut Budget) -> Result<(), LayerError> {
        while let Some(entry) = stream.next_entry()? {
            let limit = |what, limit| LayerError::Limit {
                entry: show(&entry.path),
                what,
                limit,
            };
            budget.entries = budget
                .entries
                .checked_sub(1)
                .ok_or_else(|| limit("entries", budget.limits.entries))?;
            if entry.size > budget.bytes {
                return Err(limit("bytes", budget.limits.bytes));
            }
            self.found.entries += 1;
            self.place(&entry, stream)?;
        }
        stream.drain()
    }

    fn place<R: Read>(&mut self, entry: &Entry, stream: &mut TarStream<R>) -> Result<(), LayerError> {
        let refuse = |problem: String| LayerError::Entry {
            entry: show(&entry.path),
            problem,
        };
        let made = |doing| {
            move |errno: Errno| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source: errno.into(),
            }
        };
        let parts = clean(&entry.path).map_err(refuse)?;
        let Some((name, above)) = parts.split_last() else {
            if entry.kind != Kind::Dir {
                return Err(refuse("the root is no folder".into()));
            }
            let root = self.root.try_clone().map_err(|source| LayerError::Create {
                entry: "/".into(),
                doing: "open",
                source,
            })?;
            self.dirs.push((Vec::new(), entry.mtime));
            return self.attributes(entry, root);
        };
        if above.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(refuse("a path through a whiteout".into()));
        }
        let parent = self.open_parent(above, entry)?;
        if name.starts_with(WHITEOUT) {
            let done = self.whiteout(&parent, above, name, entry);
            self.parent = Some((above.join(&b'/'), parent));
            return done;
        }
        let existing = stat(&parent, name).map_err(made("look at"))?;
        let mut opaque = false;
        if let Some(there) = existing {
            let merges = is_dir(&there) && entry.kind == Kind::Dir;
            if !merges {
                opaque = is_whiteout(&there) && entry.kind == Kind::Dir;
                let flag = if is_dir(&there) {
                    UnlinkatFlags::RemoveDir
                } else {
                    UnlinkatFlags::NoRemoveDir
                };
                match unlinkat(&parent, *name, flag) {
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                        return Err(refuse("replaces a folder that the same layer has filled".into()));
                    }
                    other => other.map_err(made("replace"))?,
                }
            }
        }
        match entry.kind {
            Kind::Dir => {
                match mkdirat(&parent, *name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(made("create the folder")(errno)),
                }
                let path = parts.join(&b'/');
                self.implied.remove(&path);
                self.dirs.push((path, entry.mtime));
                let dir = open_dir(&parent, name).map_err(made("open the folder"))?;
                if opaque {
                    let copy = dir.try_clone().and_then(set_opaque);
                    copy.map_err(|source| LayerError::Create {
                        entry: show(&entry.path),
                        doing: "make opaque",
                        source,
                    })?;
                }
                self.attributes(entry, dir)?;
            }
            Kind::File => {
                let flags =
                    OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file =
                    openat(&parent, *name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(made("create"))?;
                let file = copy(stream, File::from(file), entry)?;
                self.attributes(entry, file.into())?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > PATH_MAX {
                    return Err(refuse("a symbolic link without a usable target".into()));
                }
                symlinkat(entry.link.as_slice(), &parent, *name).map_err(made("create the link"))?;
                self.named_attributes(entry, &parent, name)?;
            }
            Kind::Fifo => {
                mknodat(&parent, *name, SFlag::S_IFIFO, Mode::S_IRUSR, 0).map_err(made("create the pipe"))?;
                self.named_attributes(entry, &parent, name)?;
                let mode = Mode::from_bits_truncate(entry.mode);
                fchmodat(&parent, *name, mode, FchmodatFlags::FollowSymlink).map_err(made("set the mode"))?;
            }
            Kind::HardLink => self.hard_link(entry, &parent, name)?,
            Kind::CharDevice | Kind::BlockDevice => {
                return Err(refuse(
                    "a device node: devices come from the node, not from an image".into(),
                ));
            }
        }
        // What was replaced may be the very link that led here.
        self.parent = existing.is_none().then(|| (above.join(&b'/'), parent));
        Ok(())
    }

    /// Opens the folder an entry lies in. Links in the way are resolved inside the root. A folder that is not
    /// there is made, and remembered as implied.
    fn open_parent(&mut self, above: &[&[u8]], entry: &Entry) -> Result<OwnedFd, LayerError> {
        let made = |doing| {
            move |source| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source,
            }
        };
        let path = above.join(&b'/');
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
        {
            return Ok(fd);
        }
        if above.is_empty() {
            return self.root.try_clone().map_err(made("open"));
        }
        match self.resolve(&path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(made("open the folder of")(errno.into())),
        }
        let mut at = self.root.try_clone().map_err(made("open"))?;
        for depth in 1..=above.len() {
            let so_far = above[..depth].join(&b'/');
            at = match self.resolve(&so_far) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR) => self.imply(&at, above[depth - 1], so_far, entry)?,
                Err(errno) => return Err(made("open the folder of")(errno.into())),
            };
        }
        Ok(at)
    }

    /// Makes a folder that has no entry (yet).
    fn imply(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        entry: &Entry,
    ) -> Result<OwnedFd, LayerError> {
        let made = |doing| {
            move |errno: Errno| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source: errno.into(),
            }
        };
        let refuse = |problem: String| LayerError::Entry {
            entry: show(&entry.path),
            problem,
        };
        let mut opaque = false;
        match stat(at, name).map_err(made("look at the folder of"))? {
            None => {}
            Some(there) if is_whiteout(&there) => {
                unlinkat(at, name, UnlinkatFlags::NoRemoveDir).map_err(made("replace"))?;
                opaque = true;
            }
            Some(_) => return Err(refuse(format!("{} is no folder inside the image", show(&path)))),
        }
        mkdirat(at, name, Mode::S_IRWXU).map_err(made("create the folder of"))?;
        let dir = open_dir(at, name).map_err(made("open the folder of"))?;
        fchmod(&dir, Mode::from_bits_truncate(IMPLIED_MODE))
            .map_err(made("set the mode of the folder of"))?;
        if opaque {
            let set = dir.try_clone().and_then(set_opaque);
            set.map_err(|source| LayerError::Create {
                entry: show(&path),
                doing: "make opaque",
                source,
            })?;
        } else {
            self.implied.insert(path);
        }
        Ok(dir)
    }

    /// Opens a folder below the root, links resolved as a process inside would see them.
    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(
                ResolveFlag::RESOLVE_IN_ROOT
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        // The kernel answers EAGAIN when '..' was crossed while anything on the system was renamed.
        for _ in 0..RETRIES {
            match openat2(self.root.as_fd(), path, how) {
                Err(Errno::EAGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    fn whiteout(
        &mut self,
        parent: &OwnedFd,
        above: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let refuse = |problem: &str| LayerError::Entry {
            entry: show(&entry.path),
            problem: problem.into(),
        };
        let made = |doing| {
            move |source: io::Error| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source,
            }
        };
        if entry.kind != Kind::File || entry.size > 0 {
            return Err(refuse("a whiteout that is no empty file"));
        }
        if name == OPAQUE {
            if above.is_empty() {
                self.found.opaque_root = true;
                return Ok(());
            }
            return parent
                .try_clone()
                .and_then(set_opaque)
                .map_err(made("make opaque"));
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." || hidden.starts_with(WHITEOUT) {
            return Err(refuse("a whiteout that hides no name"));
        }
        match stat(parent, hidden)
            .map_err(io::Error::from)
            .map_err(made("look at"))?
        {
            None => mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)
                .map_err(io::Error::from)
                .map_err(made("create the whiteout")),
            Some(there) if is_dir(&there) => {
                let mut path = above.join(&b'/');
                path.extend(if above.is_empty() { &b""[..] } else { b"/" });
                path.extend(hidden);
                self.implied.remove(&path);
                let dir = open_dir(parent, hidden).map_err(io::Error::from);
                dir.and_then(set_opaque).map_err(made("make opaque"))
            }
            Some(_) => Ok(()),
        }
    }

    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<(), LayerError> {
        let refuse = |problem: String| LayerError::Entry {
            entry: show(&entry.path),
            problem,
        };
        let made = |doing| {
            move |errno: Errno| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source: errno.into(),
            }
        };
        let target = show(&entry.link);
        let parts =
            clean(&entry.link).map_err(|problem| refuse(format!("hard link to {target:?}: {problem}")))?;
        let Some((last, above)) = parts.split_last() else {
            return Err(refuse("a hard link to the root".into()));
        };
        let absent = || {
            refuse(format!(
                "hard link to {target:?}, which the layer does not have (before it)"
            ))
        };
        let from = match self.resolve(
            if above.is_empty() {
                b".".to_vec()
            } else {
                above.join(&b'/')
            }
            .as_slice(),
        ) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(absent()),
            Err(errno) => return Err(made("open the link's target")(errno)),
        };
        let there = stat(&from, last)
            .map_err(made("look at the link's target"))?
            .ok_or_else(absent)?;
        let format = there.st_mode & SFlag::S_IFMT.bits();
        if format != SFlag::S_IFREG.bits() && format != SFlag::S_IFLNK.bits() {
            return Err(refuse(format!("hard link to {target:?}, which is no file")));
        }
        linkat(&from, *last, parent, name, AtFlags::empty()).map_err(made("create the hard link"))
    }

    /// Owner, attributes, mode and time of a file or folder, in the order in which the kernel keeps all of them.
    fn attributes(&mut self, entry: &Entry, fd: OwnedFd) -> Result<(), LayerError> {
        let made = |doing| {
            move |errno: Errno| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source: errno.into(),
            }
        };
        fchown(
            &fd,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(made("set the owner"))?;
        fchmod(&fd, Mode::from_bits_truncate(entry.mode)).map_err(made("set the mode"))?;
        let file = File::from(fd);
        self.drop_unknown(entry)?;
        for (name, value) in &entry.xattrs {
            if name == "security.capability" && entry.kind == Kind::File {
                file.set_xattr(name, value).map_err(|source| LayerError::Create {
                    entry: show(&entry.path),
                    doing: "set security.capability",
                    source,
                })?;
            }
        }
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1);
        futimens(&file, &time, &time).map_err(made("set the time"))
    }

    /// Owner and time of a link or pipe.
    fn named_attributes(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<(), LayerError> {
        let made = |doing| {
            move |errno: Errno| LayerError::Create {
                entry: show(&entry.path),
                doing,
                source: errno.into(),
            }
        };
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(made("set the owner"))?;
        self.drop_unknown(entry)?;
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1);
        utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(made("set the time"))
    }

    /// Lists what is not carried over; refuses what would change the meaning of the layer.
    fn drop_unknown(&mut self, entry: &Entry) -> Result<(), LayerError> {
        for (name, _) in &entry.xattrs {
            if name.starts_with("trusted.") || name.starts_with("user.overlay.") {
                let problem = format!("the attribute {name}: overlayfs would take it for its own");
                return Err(LayerError::Entry {
                    entry: show(&entry.path),
                    problem,
                });
            }
        }
        let kept = |name: &str| name == "security.capability" && entry.kind == Kind::File;
        let names = entry
            .xattrs
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !kept(name))
            .chain(&entry.unknown);
        for name in names {
            if self.found.dropped.len() < DROPPED_MAX {
                self.found.dropped.push(format!("{}: {name}", show(&entry.path)));
            }
        }
        Ok(())
    }

    /// Times of folders, when nothing more is made in them.
    fn finish(mut self) -> Result<Unpacked, LayerError> {
        for (path, mtime) in self.dirs.iter().rev() {
            let target = if path.is_empty() {
                b".".as_slice()
            } else {
                path.as_slice()
            };
            let time = TimeSpec::new(mtime.0, mtime.1);
            let set = self.resolve(target).and_then(|dir| futimens(&dir, &time, &time));
            // A folder that a later entry replaced has no time any more.
            if let Err(errno) = set
                && !matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
            {
                return Err(LayerError::Create {
                    entry: show(path),
                    doing: "set the time",
                    source: errno.into(),
                });
            }
        }
        for path in std::mem::take(&mut self.implied) {
            let text = String::from_utf8(path).map_err(|error| LayerError::Entry {
                entry: show(error.as_bytes()),
                problem: "a folder without an entry of its own whose name is not UTF-8".into(),
            })?;
            self.found.implied.push(text);
        }
        Ok(Unpacked { found: self.found })
    }
}

/// Copies an entry's content.
fn copy<R: Read>(stream: &mut TarStream<R>, mut to: File, entry: &Entry) -> Result<File, LayerError> {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let got = stream.read_content(&mut buffer)?;
        if got == 0 {
            return Ok(to);
        }
        to.write_all(&buffer[..got])
            .map_err(|source| LayerError::Create {
                entry: show(&entry.path),
                doing: "write",
                source,
            })?;
    }
}
