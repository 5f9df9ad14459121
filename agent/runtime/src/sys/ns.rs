//! What a namespace's file says of it: ioctl_ns(2).
#![allow(unsafe_code)] // ioctl(2) has no safe wrapper

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const NS_GET_PARENT: libc::c_ulong = 0xb702;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;

/// `CLONE_NEW*` of the namespace; ENOTTY of a file that is none.
pub(crate) fn kind(fd: impl AsFd) -> Result<u64, Errno> {
    // SAFETY: no argument.
    let kind = Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE as _) })?;
    Ok(kind as u64)
}

/// The user namespace that a user namespace was made in; EPERM where that is none of the caller's.
pub(crate) fn parent(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no argument.
    let fd = Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_PARENT as _) })?;
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Who made a user namespace, in the caller's ids: that user has every right in it.
pub(crate) fn owner(fd: impl AsFd) -> Result<u32, Errno> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid_t, alive here.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_OWNER_UID as _, &raw mut uid) })?;
    Ok(uid)
}
