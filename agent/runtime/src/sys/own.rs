//! The runtime's own program, kept from who runs in a container that it enters.
//!
//! A process that has entered a container and executes `/proc/self/exe` (a link or a script of the image's) is this
//! program for a moment, and who shares its pid namespace reaches the file by /proc/PID/exe (CVE-2019-5736). So the
//! program first runs itself once more from a mount of its own that cannot be written: what is reached is reached
//! through that mount. open_tree(2), mount_setattr(2), execveat(2); costs nothing where it happened already.
#![allow(unsafe_code)] // execveat(2) of a descriptor has no safe wrapper

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::mount::{attr, clone_tree, set_attributes};

const EXE: &str = "/proc/self/exe";

/// Returns once this process runs from a file that cannot be written through /proc/PID/exe.
pub(crate) fn unwritable() -> Result<(), Errno> {
    let exe = nix::fcntl::open(EXE, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstatvfs(&exe)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let seals = fcntl(&exe, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if seals.is_ok_and(|s| s.contains(SealFlag::F_SEAL_WRITE)) {
        return Ok(());
    }
    let tree = clone_tree(AT_FDCWD, Path::new(EXE), false)?;
    set_attributes(tree.as_fd(), false, attr::RDONLY, 0, 0)?;
    if !fstatvfs(&tree)?.flags().contains(FsFlags::ST_RDONLY) {
        return Err(Errno::EPERM); // executed again it would only be here once more
    }
    let strings = |list: Vec<Vec<u8>>| -> Result<Vec<CString>, Errno> {
        list.into_iter()
            .map(|s| CString::new(s).map_err(|_| Errno::EINVAL))
            .collect()
    };
    let args = strings(std::env::args_os().map(OsStringExt::into_vec).collect())?;
    let join = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        [key.into_vec(), value.into_vec()].join(&b'=')
    };
    let env = strings(std::env::vars_os().map(join).collect())?;
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    // SAFETY: both arrays end with a null pointer and, like the strings they point to, outlive the call.
    unsafe {
        libc::execveat(
            tree.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr().cast(),
            envp.as_ptr().cast(),
            libc::AT_EMPTY_PATH,
        );
    }
    Err(Errno::last())
}
