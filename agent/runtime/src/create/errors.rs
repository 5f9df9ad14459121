//! Why a container was not made, and what to change.

use std::io;
use std::path::{Path, PathBuf};

use berth_rt::cgroup::{ApplyError, AttachError, FileError};
use nix::errno::Errno;
use thiserror::Error;

use crate::hooks::HookError;
use crate::net::NetError;
use crate::report::Failure;
use crate::seccomp;

/// A container that was not made.
#[derive(Debug, Error)]
#[error("{cause}{}", crate::container::remains(left))]
pub struct CreateError {
    /// Why.
    #[source]
    pub cause: CreateCause,
    /// What could not be undone.
    pub left: Vec<String>,
}

impl CreateError {
    /// The setting to change, where the environment is at fault.
    pub fn hint(&self) -> Option<String> {
        self.cause.hint()
    }
}

/// Why a container was not made.
#[derive(Debug, Error)]
pub enum CreateCause {
    /// The id is in use.
    #[error("container `{0}` exists already")]
    Exists(String),
    /// A file of the state folder or of procfs.
    #[error("cannot {what} `{path}`: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The cgroup could not be made.
    #[error("cgroup: {0}")]
    Cgroup(#[from] berth_rt::cgroup::CreateError),
    /// A resource could not be limited.
    #[error("resources: {0}")]
    Apply(#[from] ApplyError),
    /// The process could not enter the cgroup.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A file of the cgroup.
    #[error(transparent)]
    CgroupFile(#[from] FileError),
    /// A system call of the caller's side.
    #[error("{what}: {}", errno.desc())]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A step inside the new process.
    #[error(transparent)]
    Inside(#[from] Failure),
    /// The new process ended without a word.
    #[error("the new process ended before it was ready: {0}")]
    Died(String),
    /// The seccomp section.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// The kernel lacks an action or a flag of the filter.
    #[error("linux.seccomp: {0}")]
    Unsupported(String),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
}

impl CreateCause {
    pub(super) fn call(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Call { what, errno }
    }

    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            what,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Exists(id) => Some(format!("delete container {id} first, or choose another id")),
            Self::Cgroup(source) => source.hint(),
            Self::Apply(source) => source.hint(),
            Self::Attach(source) => source.hint(),
            Self::Seccomp(source) => source.hint(),
            Self::Net(source) => source.hint(),
            Self::Inside(failure) => failure.hint(),
            Self::Call {
                what: "clone",
                errno: Errno::EPERM,
            } => Some("run as root with CAP_SYS_ADMIN".into()),
            Self::Call {
                what: "clone",
                errno: Errno::ENOSPC | Errno::EUSERS,
            } => Some("raise the namespace limits in /proc/sys/user/max_*_namespaces".into()),
            _ => None,
        }
    }
}

impl Failure {
    /// The setting to change, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match (self.step.as_str(), self.errno) {
            ("set resource limit", Errno::EPERM) => {
                format!(
                    "the runtime needs CAP_SYS_RESOURCE to raise {}, or ask for no more than its own hard limit",
                    self.path.display()
                )
            }
            ("executable file" | "exec", Errno::ENOENT) => "correct process.args or process.env PATH".into(),
            ("executable file" | "exec", Errno::EACCES) => {
                "make the file executable, on a mount without noexec".into()
            }
            ("exec", Errno::ENOEXEC) => "build the image for this node's architecture".into(),
            ("root file system", _) => {
                "build the image with plain directories at /dev, /proc and /sys".into()
            }
            ("bind" | "open root file system", Errno::ENOENT) => {
                "correct the path in the configuration".into()
            }
            ("seccomp", Errno::EINVAL) => {
                "the kernel needs CONFIG_SECCOMP_FILTER and every flag of linux.seccomp.flags".into()
            }
            ("open terminal", _) => "mount a devpts with newinstance and ptmxmode=0666 at /dev/pts".into(),
            ("idmap", Errno::EINVAL | Errno::EPERM | Errno::ENOSYS) => {
                "its file system must take idmapped mounts (Linux 5.12; overlay layers 5.19; tmpfs 6.3)".into()
            }
            ("writable layer", _) => "give the container an empty directory as its writable layer".into(),
            ("mount sysfs", Errno::EPERM) => {
                "a container with users of its own mounts sysfs only with a network namespace of its own: bind /sys"
                    .into()
            }
            ("setgroups" | "setgid" | "setuid", Errno::EINVAL) => {
                "map the id in linux.uidMappings and linux.gidMappings".into()
            }
            _ => return None,
        })
    }
}
