//! Mounts as the container sees them: mountinfo, and the mount a path lies on by statx(2)'s mount id.
//!
//! Paths are resolved in the container's root (openat2, RESOLVE_IN_ROOT): its symlinks cannot lead outside, and what
//! is judged is the file that the workload would get, not a line of mountinfo that something may cover. Most of them lie
//! in a few folders: each folder is resolved once, and a name in it takes one statx(2), which follows no link.
#![allow(unsafe_code)] // statx(2) with the mount id has no safe wrapper

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::facts::Facts;
use super::procfs::Process;
use super::{MountPromise, Promise};

/// One line of mountinfo.
struct Mount<'a> {
    options: &'a str,
    fs_type: &'a str,
    super_options: &'a str,
}

impl Mount<'_> {
    fn has(&self, flag: &str) -> bool {
        let word = |list: &str| list.split(',').any(|w| w == flag);
        word(self.options) || flag == "ro" && word(self.super_options)
    }

    fn show(&self) -> String {
        format!("{} {}", self.fs_type, self.options)
    }
}

fn parse(text: &str) -> HashMap<u64, Mount<'_>> {
    let mut mounts = HashMap::with_capacity(32);
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut words = before.split(' ');
        let id = words.next().and_then(|w| w.parse().ok());
        let options = words.nth(4);
        let mut rest = after.split(' ');
        if let (Some(id), Some(options), Some(fs_type), Some(super_options)) =
            (id, options, rest.next(), rest.nth(1))
        {
            mounts.insert(
                id,
                Mount {
                    options,
                    fs_type,
                    super_options,
                },
            );
        }
    }
    mounts
}

/// What statx says of one path.
struct Place {
    mount: u64,
    mount_root: bool,
    directory: bool,
    link: bool,
    null: bool,
}

fn place(fd: impl AsFd) -> io::Result<Place> {
    named(fd, c"")
}

/// Of a name in a folder; a link is not followed. Of the descriptor itself: no name.
fn named(fd: impl AsFd, name: &CStr) -> io::Result<Place> {
    const ASKED: u32 = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_MNT_ID;
    // SAFETY: all-zero bytes are a valid statx.
    let mut out: libc::statx = unsafe { std::mem::zeroed() };
    const HOW: i32 =
        libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: an open descriptor, a C string, a writable statx.
    let answer = unsafe { libc::statx(fd.as_fd().as_raw_fd(), name.as_ptr(), HOW, ASKED, &mut out) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    if out.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "statx gives no mount id (Linux 5.8 or later is needed)",
        ));
    }
    let kind = u32::from(out.stx_mode) & libc::S_IFMT;
    Ok(Place {
        mount: out.stx_mnt_id,
        mount_root: out.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        directory: kind == libc::S_IFDIR,
        link: kind == libc::S_IFLNK,
        null: kind == libc::S_IFCHR && (out.stx_rdev_major, out.stx_rdev_minor) == (1, 3),
    })
}

fn open(root: &OwnedFd, path: &str, flags: OFlag) -> io::Result<Option<OwnedFd>> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root, path, how) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Folder and name of a path that has both, the root's own folder as an empty one; `None` for what wants a look as a whole.
fn split(path: &str) -> Option<(&str, CString)> {
    let (folder, name) = path.strip_prefix('/').map(|_| path)?.rsplit_once('/')?;
    let plain = !matches!(name, "" | "." | "..");
    plain
        .then(|| CString::new(name).ok())
        .flatten()
        .map(|name| (folder, name))
}

/// Paths below a root.
struct Paths {
    root: OwnedFd,
    /// Folders that were resolved; `None`: there is no such one.
    folders: RefCell<HashMap<String, Option<OwnedFd>>>,
}

impl Paths {
    /// `Ok(None)`: there is no such path.
    fn find(&self, path: &str) -> io::Result<Option<Place>> {
        match split(path) {
            Some((folder, name)) => match self.beside(folder, &name)? {
                // It may lead anywhere below the root.
                Some(place) if place.link => self.whole(path),
                found => Ok(found),
            },
            None => self.whole(path),
        }
    }

    fn whole(&self, path: &str) -> io::Result<Option<Place>> {
        open(&self.root, path, OFlag::empty())?.map(place).transpose()
    }

    fn beside(&self, folder: &str, name: &CStr) -> io::Result<Option<Place>> {
        let mut folders = self.folders.borrow_mut();
        let at = if folder.is_empty() {
            &self.root
        } else {
            if !folders.contains_key(folder) {
                folders.insert(folder.to_owned(), open(&self.root, folder, OFlag::O_DIRECTORY)?);
            }
            match folders.get(folder).and_then(Option::as_ref) {
                Some(at) => at,
                None => return Ok(None),
            }
        };
        match named(at, name) {
            Ok(place) => Ok(Some(place)),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The ids of the mounts a process sees, for what is asked of them later.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<u64, String>);

/// At the exec stop: does the executed file lie on one of the container's mounts? Later the program may execute what it
/// likes, a file without a name in memory for one.
pub(super) fn executed(facts: &mut Facts, seen: &Seen, process: &Process) {
    let (promised, source) = ("on a mount of the container", process.source("exe"));
    match process.file("exe").and_then(place).map(|p| seen.0.get(&p.mount)) {
        Ok(Some(mount)) => facts.add("executable.mount", promised, mount, source, true),
        Ok(None) => facts.add("executable.mount", promised, "not in mountinfo", source, false),
        Err(e) => facts.unreadable("executable.mount", promised, source, &e),
    }
}

/// Root flags, mounts, masked and read-only paths. `seen`: an executable will be looked for on these mounts.
pub(super) fn facts(facts: &mut Facts, promise: &Promise, process: &Process, seen: Option<&mut Seen>) {
    let nothing = promise.root_flags.is_empty() && promise.mounts.is_empty() && seen.is_none();
    if nothing && promise.masked_paths.is_empty() && promise.readonly_paths.is_empty() {
        return;
    }
    let source = process.source("mountinfo");
    let text = match process.read("mountinfo") {
        Ok(text) => text,
        Err(e) => return facts.unreadable("mounts", "readable", source, &e),
    };
    let mounts = parse(&text);
    if let Some(seen) = seen {
        seen.0 = mounts.iter().map(|(id, mount)| (*id, mount.show())).collect();
    }
    let root = match process.root() {
        Ok(root) => root,
        Err(e) => return facts.unreadable("mounts", "readable", process.source("root"), &e),
    };
    if !promise.root_flags.is_empty() {
        let promised = promise.root_flags.join(",");
        match place(&root).map(|p| mounts.get(&p.mount)) {
            Ok(Some(mount)) => {
                let holds = promise.root_flags.iter().all(|f| mount.has(f));
                facts.add("mount.root", promised, mount.show(), source.clone(), holds);
            }
            Ok(None) => facts.add("mount.root", promised, "not in mountinfo", source.clone(), false),
            Err(e) => facts.unreadable("mount.root", promised, source.clone(), &e),
        }
    }
    let paths = Paths {
        root,
        folders: RefCell::default(),
    };
    for mount in &promise.mounts {
        one(facts, mount, &paths, &mounts, &source);
    }
    hidden(facts, "paths.masked", &promise.masked_paths, &source, |path| {
        Ok(match paths.find(path)? {
            None => None,
            Some(place) if place.null => None,
            Some(place) => {
                let mount = mounts.get(&place.mount);
                let empty = place.directory
                    && place.mount_root
                    && mount.is_some_and(|m| m.fs_type == "tmpfs" && m.has("ro"));
                (!empty).then(|| mount.map_or_else(|| "no mount".to_owned(), Mount::show))
            }
        })
    });
    hidden(
        facts,
        "paths.readonly",
        &promise.readonly_paths,
        &source,
        |path| {
            Ok(match paths.find(path)? {
                None => None,
                Some(place) => match mounts.get(&place.mount) {
                    Some(mount) if mount.has("ro") => None,
                    other => Some(other.map_or_else(|| "no mount".to_owned(), Mount::show)),
                },
            })
        },
    );
}

fn one(
    facts: &mut Facts,
    promise: &MountPromise,
    paths: &Paths,
    mounts: &HashMap<u64, Mount<'_>>,
    source: &str,
) {
    let name = format!("mount.{}", promise.destination);
    let mut promised = promise.fs_type.clone().unwrap_or_else(|| "mounted".into());
    if !promise.flags.is_empty() {
        promised = format!("{promised} {}", promise.flags.join(","));
    }
    match paths.find(&promise.destination) {
        Ok(Some(place)) => {
            let mount = mounts.get(&place.mount);
            let holds = place.mount_root
                && mount.is_some_and(|m| {
                    promise.fs_type.as_deref().is_none_or(|t| t == m.fs_type)
                        && promise.flags.iter().all(|f| m.has(f))
                });
            let actual = match (mount, place.mount_root) {
                (Some(mount), true) => mount.show(),
                (Some(mount), false) => format!("not a mount point, lies on {}", mount.show()),
                (None, _) => "not in mountinfo".into(),
            };
            facts.add(name, promised, actual, source, holds);
        }
        Ok(None) => facts.add(name, promised, "absent", source, false),
        Err(e) => facts.unreadable(name, promised, source, &e),
    }
}

/// One fact for a list of paths; `open` says what is wrong with one.
fn hidden(
    facts: &mut Facts,
    name: &str,
    paths: &[String],
    source: &str,
    open: impl Fn(&str) -> io::Result<Option<String>>,
) {
    if paths.is_empty() {
        return;
    }
    let mut wrong = String::new();
    for path in paths {
        let found = open(path).unwrap_or_else(|e| Some(format!("unreadable: {e}")));
        if let Some(found) = found {
            wrong.push_str(&format!(
                "{}{path} ({found})",
                if wrong.is_empty() { "" } else { ", " }
            ));
        }
    }
    let count = format!("{} paths", paths.len());
    let holds = wrong.is_empty();
    facts.add(
        name,
        count.clone(),
        if holds { count } else { format!("open: {wrong}") },
        source,
        holds,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_names() {
        let name = |text: &str| CString::new(text).unwrap();
        assert_eq!(split("/proc"), Some(("", name("proc"))));
        assert_eq!(split("/proc/a/b"), Some(("/proc/a", name("b"))));
        for whole in ["/", "proc", "proc/x", "/proc/", "/a/..", "/a/.", ""] {
            assert_eq!(split(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_path_is_what_lies_there_in_the_root_and_nowhere_else() {
        let temp = std::env::temp_dir().join(format!("berth-proof-paths-{}", std::process::id()));
        let at = |name: &str| temp.join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/file"), "").unwrap();
        for (target, link) in [
            ("/a/b", "inside"),
            ("/dev/null", "outside"),
            ("../../../dev", "a/climbs"),
            ("/a", "folder"),
        ] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        let paths = Paths {
            root: std::fs::File::open(&temp).unwrap().into(),
            folders: RefCell::default(),
        };
        let folder = |path: &str| paths.find(path).map(|found| found.map(|place| place.directory));
        let table = [
            ("/a", Some(true)),
            ("/a/b", Some(true)),
            ("/a/file", Some(false)),
            ("/a/none", None),
            ("/none/none", None),
            ("/a/file/below", None),
            // Links lead where they do below the root.
            ("/inside", Some(true)),
            ("/folder/b", Some(true)),
            ("/folder/file", Some(false)),
            ("/outside", None),
            ("/a/climbs", None),
            ("/a/climbs/null", None),
            ("/", Some(true)),
            ("/a/../a/b", Some(true)),
        ];
        let answers = table.map(|(path, expected)| (path, expected, folder(path).ok()));
        std::fs::remove_dir_all(&temp).unwrap();
        for (path, expected, answer) in answers {
            assert_eq!(answer, Some(expected), "{path}");
        }
    }
}
