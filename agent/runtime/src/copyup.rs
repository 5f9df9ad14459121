//! `tmpcopyup`: a tmpfs begins with what the image has at its place.
//!
//! Invariants: nothing of the container runs yet; symbolic links are copied, never followed; owner, mode and contents
//! are kept, extended attributes are not; what is neither file, folder, link nor FIFO is refused by name.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;

use crate::report::{Failure, Step};

const STEP: &str = "copy up";

/// Copy the folder `from` into the empty file system `to`.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, shown: &Path) -> Result<(), Failure> {
    let path = |fd: BorrowedFd<'_>| PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
    let (from, to) = (path(from), path(to));
    let meta = fs::metadata(&from).step(STEP, shown)?;
    folder(&from, &to, shown)?;
    std::os::unix::fs::chown(&to, Some(meta.uid()), Some(meta.gid())).step(STEP, shown)?;
    fs::set_permissions(&to, meta.permissions()).step(STEP, shown)
}

fn folder(from: &Path, to: &Path, shown: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(from).step(STEP, shown)? {
        let entry = entry.step(STEP, shown)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let shown = shown.join(entry.file_name());
        let meta = fs::symlink_metadata(&source).step(STEP, &shown)?;
        let kind = meta.file_type();
        if kind.is_symlink() {
            let leads = fs::read_link(&source).step(STEP, &shown)?;
            symlink(leads, &target).step(STEP, &shown)?;
        } else if kind.is_dir() {
            fs::create_dir(&target).step(STEP, &shown)?;
            folder(&source, &target, &shown)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).step(STEP, &shown)?;
        } else if kind.is_fifo() {
            nix::unistd::mkfifo(&target, Mode::empty()).step(STEP, &shown)?;
        } else {
            return Err(Failure::refused(
                STEP,
                &shown,
                "it is a device or a socket, which is not copied",
            ));
        }
        lchown(&target, Some(meta.uid()), Some(meta.gid())).step(STEP, &shown)?;
        if !kind.is_symlink() {
            // chown clears set-id bits
            let mode = fs::Permissions::from_mode(meta.permissions().mode() & 0o7777);
            fs::set_permissions(&target, mode).step(STEP, &shown)?;
        }
    }
    Ok(())
}
