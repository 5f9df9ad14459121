//! The file system of a block device, mounted inside while the container is there.
//!
//! Invariants: it is mounted detached, outside, from the node that has the device's number; nosuid, nodev and noexec
//! from the beginning, and through the container's id maps; only then is it attached, to a folder opened below the
//! container's root through no symbolic link. The kernel's own probe says whether it is of a type that was allowed, the
//! kernel's own word is its label. The mount is promised as long as it is there.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::{Container, ContainerError};
use crate::proof::MountPromise;
use crate::report::Failure;
use crate::sys::mount::{self as sys, FsContext, Resolve, attr, open_below};
use crate::sys::process::{self, CloneArgs, Cloned};

/// Types of file systems that lie on one block device, whose mounts go through id maps.
pub const FILESYSTEMS: [&str; 10] = [
    "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "squashfs", "vfat", "xfs",
];

/// A block device whose file system goes into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystem {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// The folder inside, absolute; it must be there.
    pub path: PathBuf,
    /// The types it may have, of [`FILESYSTEMS`], tried in order.
    pub types: Vec<String>,
    /// The label it must have.
    pub label: Option<String>,
    /// Writing is refused.
    pub read_only: bool,
}

const STEP: &str = "mount device at";

impl Filesystem {
    fn refused(&self, why: &str) -> Failure {
        Failure::refused(STEP, &self.path, why)
    }

    /// The node on the host, opened: what the kernel calls the device, and found to have its number.
    fn node(&self) -> Result<OwnedFd, Failure> {
        let uevent = format!("/sys/dev/block/{}:{}/uevent", self.major, self.minor);
        let text = fs::read_to_string(&uevent)
            .map_err(|e| Failure::new("read", &uevent, Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let name = name.ok_or_else(|| self.refused("the kernel has no name for the device"))?;
        let path = Path::new("/dev").join(name);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node =
            nix::fcntl::open(&path, flags, Mode::empty()).map_err(|e| Failure::new("open", &path, e))?;
        let stat = fstat(&node).map_err(|e| Failure::new("look at", &path, e))?;
        let block = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK;
        if !block || stat.st_rdev != makedev(u64::from(self.major), u64::from(self.minor)) {
            let what = format!(
                "{} is not block device {}:{}",
                path.display(),
                self.major,
                self.minor
            );
            return Err(self.refused(&what));
        }
        Ok(node)
    }

    /// A detached mount, and its type.
    fn mount(&self) -> Result<(OwnedFd, &str), Failure> {
        use std::os::fd::AsRawFd;
        let node = self.node()?;
        let source = format!("/proc/self/fd/{}", node.as_raw_fd());
        let mut attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        if self.read_only {
            attributes |= attr::RDONLY;
        }
        let mut said = Vec::new();
        for fs in &self.types {
            let open = || -> Result<FsContext, Errno> {
                let context = FsContext::open(fs)?;
                context.set("source", source.as_bytes())?;
                if self.read_only {
                    context.flag("ro")?;
                }
                Ok(context)
            };
            match open()
                .map_err(|e| (e, None))
                .and_then(|context| context.mount(attributes))
            {
                Ok(mount) => return Ok((mount, fs)),
                Err((Errno::ENODEV, _)) => said.push(format!("this kernel has no {fs}")),
                Err((errno, words)) => {
                    said.push(format!(
                        "{fs}: {}",
                        words.unwrap_or_else(|| errno.desc().to_owned())
                    ));
                }
            }
        }
        Err(self.refused(&format!(
            "block device {}:{} has no file system of these types: {}",
            self.major,
            self.minor,
            said.join("; ")
        )))
    }

    fn check_label(&self, mount: BorrowedFd<'_>, fs: &str) -> Result<(), Failure> {
        let Some(label) = &self.label else { return Ok(()) };
        match sys::label(mount) {
            Ok(actual) if actual == *label => Ok(()),
            Ok(actual) => Err(self.refused(&format!("its label is {actual:?}, not {label:?}"))),
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Err(self.refused(&format!(
                "this kernel does not tell the label of {fs}: leave `label` out and match ENV{{ID_FS_LABEL}}"
            ))),
            Err(errno) => Err(Failure::new("read the label of", &self.path, errno)),
        }
    }

    fn promise(&self, fs: &str) -> MountPromise {
        let access = if self.read_only { "ro" } else { "rw" };
        MountPromise {
            destination: self.path.to_string_lossy().into_owned(),
            fs_type: Some(fs.to_owned()),
            flags: [access, "nosuid", "nodev", "noexec"].map(str::to_owned).into(),
        }
    }
}

impl Container {
    fn namespace(&self, kind: &str) -> Result<OwnedFd, Failure> {
        let path = format!("/proc/{}/ns/{kind}", self.record.pid);
        nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| Failure::new("open", &path, e))
    }

    /// Does `work` in the container's mount namespace, in a process of its own.
    fn inside(&self, path: &Path, work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Failure> {
        let namespace = self.namespace("mnt")?;
        let failed = |errno| Failure::new(STEP, path, errno);
        match process::clone3(CloneArgs::default()).map_err(failed)? {
            Cloned::Child => {
                let done = setns(&namespace, CloneFlags::CLONE_NEWNS).and_then(|()| work());
                process::exit_now(done.err().map_or(0, |errno| errno as i32))
            }
            Cloned::Parent(_, pidfd) => loop {
                match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
                    Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                    Ok(WaitStatus::Exited(_, code)) => return Err(failed(Errno::from_raw(code))),
                    Ok(_) => return Err(failed(Errno::UnknownErrno)),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(failed(errno)),
                }
            },
        }
    }

    /// The folder inside as it is seen there, mounts followed and symbolic links not.
    fn folder(&self, path: &Path) -> Result<OwnedFd, ContainerError> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        open_below(self.root()?.as_fd(), path, flags, Resolve::NoLinks).map_err(|errno| match errno {
            Errno::ENOENT => Failure::refused(STEP, path, "the folder is not in the image").into(),
            errno => Failure::new(STEP, path, errno).into(),
        })
    }

    /// Mount the file system of a device inside.
    ///
    /// # Errors
    /// Its type or label is another one than was allowed, the folder is not there, or the kernel's refusal.
    pub fn mount_device(&mut self, wanted: &Filesystem) -> Result<(), ContainerError> {
        let target = self.folder(&wanted.path)?;
        let (mount, fs) = wanted.mount()?;
        wanted.check_label(mount.as_fd(), fs)?;
        if self.record.promise.uid_map.is_some() {
            let users = self.namespace("user")?;
            sys::set_idmap(mount.as_fd(), false, users.as_fd()).map_err(|errno| match errno {
                Errno::EINVAL => wanted.refused(&format!(
                    "this kernel does not show {fs} through the ids of a user namespace"
                )),
                errno => Failure::new(STEP, &wanted.path, errno),
            })?;
        }
        self.inside(&wanted.path, || sys::attach(mount.as_fd(), target.as_fd()))?;
        self.record.promise.mounts.push(wanted.promise(fs));
        Ok(())
    }

    /// Take it off again, whoever uses it; what is mounted there no longer is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unmount_device(&mut self, wanted: &Filesystem) -> Result<(), ContainerError> {
        let path = wanted.path.to_string_lossy();
        self.record
            .promise
            .mounts
            .retain(|m| m.destination != path || m.fs_type.is_none());
        let folder = match self.folder(&wanted.path) {
            Ok(folder) => folder,
            // Its mount namespace went with it.
            Err(ContainerError::NotRunning { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        let stat = fstat(&folder).map_err(|e| Failure::new("look at", &wanted.path, e))?;
        if stat.st_dev != makedev(u64::from(wanted.major), u64::from(wanted.minor)) {
            return Ok(());
        }
        let off = || {
            nix::unistd::fchdir(&folder)?;
            umount2(".", MntFlags::MNT_DETACH)
        };
        Ok(self.inside(&wanted.path, off)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_in_order_and_each_once() {
        assert!(FILESYSTEMS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn what_is_promised() {
        let wanted = Filesystem {
            major: 7,
            minor: 1,
            path: "/data".into(),
            types: vec!["ext4".into()],
            label: None,
            read_only: true,
        };
        assert_eq!(wanted.promise("ext4").flags, ["ro", "nosuid", "nodev", "noexec"]);
        let write = Filesystem {
            read_only: false,
            ..wanted
        };
        assert_eq!(write.promise("ext4").flags[0], "rw");
    }
}
