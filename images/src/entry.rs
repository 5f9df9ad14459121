//! Small steps of unpacking: an entry's path taken apart, and what lies under a name.
//!
//! Nothing here follows a link in the last component.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use xattr::FileExt;

/// Longest path of an entry in bytes; the store's own path comes before it and both must fit PATH_MAX.
pub(crate) const PATH_MAX: usize = 3072;

/// Splits a path into its components. Refuses absolute ones and `..`, drops `.`.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.len() > PATH_MAX {
        return Err(format!(
            "the path has {} bytes, the most is {PATH_MAX}",
            path.len()
        ));
    }
    if path.contains(&0) {
        return Err("a zero byte in the path".into());
    }
    if path.first() == Some(&b'/') {
        return Err("an absolute path".into());
    }
    let parts: Vec<&[u8]> = path
        .split(|b| *b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    if parts.contains(&b"..".as_slice()) {
        return Err("'..' in the path".into());
    }
    Ok(parts)
}

pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && stat.st_rdev == 0
}

pub(crate) fn is_dir(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

/// What is there under a name, following no link.
pub(crate) fn stat(dir: &OwnedFd, name: &[u8]) -> Result<Option<FileStat>, Errno> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn open_dir(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

pub(crate) fn set_opaque(dir: OwnedFd) -> io::Result<()> {
    File::from(dir).set_xattr("trusted.overlay.opaque", b"y")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_taken_apart_or_refused() {
        assert_eq!(clean(b"./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
        assert!(clean(b"./").unwrap().is_empty());
        let long = vec![b'a'; PATH_MAX + 1];
        for (bad, part) in [
            (&b"/etc/passwd"[..], "absolute"),
            (b"a/../b", "'..'"),
            (b"..", "'..'"),
            (b"a\0b", "zero"),
            (&long, "bytes"),
        ] {
            assert!(clean(bad).unwrap_err().contains(part));
        }
    }

    proptest! {
        #[test]
        fn no_cleaned_path_leaves(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(parts) = clean(&path) {
                prop_assert!(parts.iter().all(|part| !part.is_empty() && *part != b".." && *part != b"." && !part.contains(&b'/') && !part.contains(&0)));
            }
        }
    }
}
