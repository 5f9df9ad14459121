//! Removing a tree that somebody else has filled: a layer of an image, or what a container wrote.
//!
//! Kernel interface: openat(2), unlinkat(2) and renameat(2) below opened folders; no link is followed. Invariant: the
//! number of open descriptors and the depth of the stack do not grow with the depth of the tree. A folder below a
//! folder of the top is moved up to the top instead of being descended into: a tree of a hundred thousand folders in
//! one another costs two system calls more for each, where a recursive walk ends the process.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

const FOLDER: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Removes the folder `path` with all in it, however deep.
///
/// # Errors
/// The kernel's; `NotFound` where there is no such folder, `ENOTDIR` where it is none.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let mut top = Dir::open(path, FOLDER, Mode::empty())?;
    let mut moved = 0u64;
    loop {
        let names = names(&mut top)?;
        if names.is_empty() {
            break;
        }
        for name in &names {
            if remove_one(&top, name)? {
                continue;
            }
            let mut dir = Dir::openat(&top, name.as_c_str(), FOLDER, Mode::empty())?;
            for below in self::names(&mut dir)? {
                if !remove_one(&dir, &below)? {
                    raise(&dir, &below, &top, &mut moved)?;
                }
            }
            drop(dir);
            unlinkat(&top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
    drop(top);
    std::fs::remove_dir(path)
}

/// Every name of a folder but `.` and `..`.
fn names(dir: &mut Dir) -> io::Result<Vec<CString>> {
    let mut all = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            all.push(entry.file_name().to_owned());
        }
    }
    Ok(all)
}

/// Removes a file or an empty folder; false: a folder with something in it.
fn remove_one(dir: impl AsFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(dir.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match unlinkat(dir.as_fd(), name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        // A file that may not be removed.
        Err(Errno::ENOTDIR) => Err(Errno::EPERM.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Moves a folder to the top, under a name that is free there: rename(2) replaces an empty folder alone.
fn raise(dir: impl AsFd, name: &CStr, top: impl AsFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let new = format!(".removed-{moved}");
        match renameat(dir.as_fd(), name, top.as_fd(), new.as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_tree_goes_and_what_its_links_show_stays() {
        let temp = tempfile::tempdir().unwrap();
        let (tree, other) = (temp.path().join("tree"), temp.path().join("other"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join(".removed-1/x/y")).unwrap();
        fs::write(tree.join(".removed-2"), "a file in the way").unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        for at in ["link", "a/b/link", "a/b/c/link"] {
            symlink(&other, tree.join(at)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && other.join("kept").exists());
        assert_eq!(remove_tree(&tree).unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink(&other, &tree).unwrap();
        assert!(remove_tree(&tree).is_err(), "a link is no folder");
        assert!(other.join("kept").exists());
    }

    #[test]
    fn no_depth_is_too_deep() {
        use nix::sys::stat::mkdirat;
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = Dir::open(&tree, FOLDER, Mode::empty()).unwrap();
        // A recursive walk runs out of descriptors or of the stack of a thread.
        for _ in 0..22_000 {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = Dir::openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
