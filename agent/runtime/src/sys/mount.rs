//! The mount system calls of Linux 5.2 and later (open_tree, fsopen, fsconfig, fsmount, move_mount,
//! mount_setattr), openat2, pivot_root and umount2.
//!
//! Invariant: mounts are made detached, get their attributes while detached, and are then attached to a directory
//! or file that was opened beforehand, so that no path is looked up twice.
#![allow(unsafe_code)] // raw system calls: libc has no wrappers for these

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `OPEN_TREE_CLONE`.
const OPEN_TREE_CLONE: u32 = 1;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// Attributes of one mount (`MOUNT_ATTR_*`).
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    /// The whole access-time field.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const RELATIME: u64 = 0x0;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
    /// Ids are shown through the maps of a user namespace.
    pub(super) const IDMAP: u64 = 0x10_0000;
}

/// How a path below a root is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolve {
    /// Symbolic links are followed, but never out of the root; magic links are refused (ELOOP).
    InRoot,
    /// No symbolic link at all (ELOOP).
    NoLinks,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

pub(crate) fn cstring(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// openat2(2) below `root`; `flags` as for open(2), close-on-exec is added.
pub(crate) fn open_below(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    resolve: Resolve,
) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, 0, resolve)
}

/// Create a file (`flags` has O_CREAT) with this mode, through no symbolic link.
pub(crate) fn create_below(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, mode, Resolve::NoLinks)
}

fn openat2(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: i32,
    mode: u32,
    resolve: Resolve,
) -> Result<OwnedFd, Errno> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    let name = cstring(relative)?;
    let mut how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: u64::from(mode),
        resolve: match resolve {
            Resolve::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
            Resolve::NoLinks => {
                libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS
            }
        },
    };
    loop {
        // SAFETY: `name` and `how` outlive the call and the size is that of `how`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                name.as_ptr(),
                &raw mut how,
                std::mem::size_of::<OpenHow>(),
            )
        };
        match owned(result) {
            // A rename beside the lookup: the kernel could not prove that it stayed inside.
            Err(Errno::EAGAIN) => continue,
            done => return done,
        }
    }
}

/// A detached copy of the mount at `path` (bind mount without a target), with everything below when `recursive`.
pub(crate) fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let name = cstring(path)?;
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    if path.as_os_str().is_empty() {
        flags |= libc::AT_EMPTY_PATH as u32;
    }
    // SAFETY: `name` outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// A file system being configured (fsopen(2)).
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// fsopen(2).
    pub(crate) fn open(fs: &str) -> Result<Self, Errno> {
        let name = CString::new(fs).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `name` outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    fn config(&self, command: u32, key: Option<&str>, value: Option<&[u8]>, aux: i32) -> Result<(), Errno> {
        let key = key.map(CString::new).transpose().map_err(|_| Errno::EINVAL)?;
        let value = value.map(CString::new).transpose().map_err(|_| Errno::EINVAL)?;
        // SAFETY: both strings outlive the call; absent ones are null, as the command demands.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                command,
                key.as_ref().map_or(std::ptr::null(), |k| k.as_ptr()),
                value.as_ref().map_or(std::ptr::null(), |v| v.as_ptr()),
                aux,
            )
        };
        Errno::result(result).map(drop)
    }

    /// A parameter with a value.
    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Errno> {
        self.config(FSCONFIG_SET_STRING, Some(key), Some(value), 0)
    }

    /// A parameter that is a descriptor.
    pub(crate) fn set_descriptor(&self, key: &str, value: BorrowedFd<'_>) -> Result<(), Errno> {
        self.config(FSCONFIG_SET_FD, Some(key), None, value.as_raw_fd())
    }

    /// A parameter without one.
    pub(crate) fn flag(&self, key: &str) -> Result<(), Errno> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None, 0)
    }

    /// Create the super block and a detached mount of it with these attributes.
    ///
    /// A failure comes with the kernel's own words, where it left any.
    pub(crate) fn mount(self, attributes: u64) -> Result<OwnedFd, (Errno, Option<String>)> {
        self.config(FSCONFIG_CMD_CREATE, None, None, 0)
            .map_err(|errno| (errno, self.message()))?;
        // SAFETY: no pointers.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
            .map_err(|errno| (errno, self.message()))
    }

    /// The kernel's own words on the last failure, where it left any.
    pub(crate) fn message(&self) -> Option<String> {
        let mut buffer = [0u8; 256];
        let n = nix::unistd::read(&self.0, &mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..n]);
        Some(text.trim().trim_start_matches("e ").to_owned()).filter(|t| !t.is_empty())
    }
}

/// FS_IOC_GETFSLABEL of linux/fs.h: the label of the file system of a mount, at most 255 bytes.
pub(crate) fn label(mount: BorrowedFd<'_>) -> Result<String, Errno> {
    nix::ioctl_read_buf!(get_label, 0x94, 49, libc::c_char);
    let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    let root = nix::fcntl::openat(mount, ".", flags, nix::sys::stat::Mode::empty())?;
    let mut buffer = [0 as libc::c_char; 256];
    // SAFETY: the kernel writes at most FSLABEL_MAX (256) bytes, the size of the buffer, which the request's number holds.
    unsafe { get_label(root.as_raw_fd(), &mut buffer)? };
    let bytes: Vec<u8> = buffer.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Attach a detached mount on top of an open directory or file.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both paths are the empty string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// Change attributes and propagation (`MS_PRIVATE`, …; 0 leaves it) of an open mount.
pub(crate) fn set_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> Result<(), Errno> {
    set_attributes_at(
        mount.as_raw_fd(),
        c"",
        recursive,
        MountAttr {
            set,
            clear,
            propagation,
            userns_fd: 0,
        },
    )
}

/// Show the ids of a detached mount through the maps of a user namespace: what is id N on the disk is what that
/// namespace maps N to.
pub(crate) fn set_idmap(mount: BorrowedFd<'_>, recursive: bool, users: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attributes_at(
        mount.as_raw_fd(),
        c"",
        recursive,
        MountAttr {
            set: attr::IDMAP,
            clear: 0,
            propagation: 0,
            userns_fd: users.as_raw_fd() as u64,
        },
    )
}

/// Attributes and propagation of the mount at `/` of the calling process.
pub(crate) fn set_root_attributes(recursive: bool, set: u64, propagation: u64) -> Result<(), Errno> {
    set_attributes_at(
        libc::AT_FDCWD,
        c"/",
        recursive,
        MountAttr {
            set,
            clear: 0,
            propagation,
            userns_fd: 0,
        },
    )
}

fn set_attributes_at(
    dir: RawFd,
    path: &std::ffi::CStr,
    recursive: bool,
    mut attr: MountAttr,
) -> Result<(), Errno> {
    let mut flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: path and attr outlive the call and the size is that of `attr`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags,
            &raw mut attr,
            std::mem::size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Make the open mount `root` the root of this mount namespace and let go of the old one.
///
/// pivot_root(".", ".") puts the old root on top of the new; umount2 with MNT_DETACH takes it off again.
pub(crate) fn pivot(root: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::unistd::fchdir(root)?;
    // SAFETY: both strings are literals.
    Errno::result(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // SAFETY: the string is a literal.
    Errno::result(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    nix::unistd::chdir("/")
}

/// The open directory becomes the root of this process alone, and its working directory: fchdir(2), chroot(2).
pub(crate) fn enter_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    nix::unistd::fchdir(root)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}

/// fstatfs(2): the magic number of the file system that holds `fd`.
pub(crate) fn fs_magic(fd: impl AsFd) -> Result<i64, Errno> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the whole structure on success; it is read only then.
    unsafe {
        Errno::result(libc::fstatfs(fd.as_fd().as_raw_fd(), stat.as_mut_ptr()))?;
        Ok(stat.assume_init().f_type)
    }
}
