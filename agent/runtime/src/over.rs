//! Without pivot_root(2): the container's root lies over that of its mount namespace and is entered with chroot(2), as
//! initramfs hands over. For nodes whose root is such a file system, which the kernel lets nobody pivot away from.
//!
//! Invariants: who leaves the chroot with `..` meets the container's root again, for it lies over the other; only who may
//! unmount it gets below, so a container with CAP_SYS_ADMIN is refused; of the node's mounts none but the one that was
//! root is left below. In a namespace with users of its own they stay: the kernel has locked them.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// linux/capability.h
const SYS_ADMIN: u64 = 1 << 21;

/// May the container do without pivot_root? Why not.
pub(crate) fn refused(bounding: u64, own_users: bool) -> Option<&'static str> {
    (bounding & SYS_ADMIN != 0 && !own_users)
        .then_some("a container with CAP_SYS_ADMIN could unmount its root, and would have the node's")
}

/// Take away the mounts on the root that this process still has, but for the container's, which covers it whole.
pub(crate) fn let_go() -> Result<(), Errno> {
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    for path in on_the_root(&text) {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // It was hidden by another one, which has gone with it or before it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The mount points of what is mounted on the root itself: proc_pid_mountinfo(5).
fn on_the_root(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|b| *b == b'\n');
    let lines: Vec<Vec<&[u8]>> = lines.map(|l| l.split(|b| *b == b' ').collect()).collect();
    let root = lines.iter().find(|l| l.get(4) == Some(&&b"/"[..]));
    let Some(root) = root.and_then(|l| l.first()) else {
        return Vec::new();
    };
    let below = lines.iter().filter(|l| l.get(1) == Some(root));
    let points = below.filter_map(|l| l.get(4)).filter(|point| **point != b"/");
    points.map(|point| unescaped(point)).collect()
}

/// Blanks and their like stand as `\` and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(byte) = text.get(at) {
        let digits = text.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let digits = digits.and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_root() {
        let text = b"21 1 0:2 / / rw - rootfs rootfs rw\n22 21 0:3 / /proc rw - proc proc rw\n\
            23 22 0:4 / /proc/sys rw - x x rw\n24 21 0:5 / /my\\040disk rw - x x rw\n\
            25 21 0:6 / / rw - overlay x rw\n26 25 0:7 / /proc rw - proc proc rw\n";
        assert_eq!(
            on_the_root(text),
            [PathBuf::from("/proc"), PathBuf::from("/my disk")]
        );
        assert!(on_the_root(b"").is_empty());
    }

    #[test]
    fn who_may_unmount_is_refused() {
        assert!(refused(SYS_ADMIN, false).is_some());
        assert!(refused(SYS_ADMIN, true).is_none() && refused(1, false).is_none());
    }
}
