//! What can go wrong with a container after it was made.

use std::io;
use std::path::PathBuf;

use berth_rt::cgroup::{ApplyError, DeviceError, FileError, FreezeError};
use nix::errno::Errno;
use thiserror::Error;

use crate::net::NetError;
use crate::report::Failure;
use crate::state::Status;

/// A stored container that cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is none.
    #[error("container `{id}` does not exist")]
    NotFound {
        /// The id.
        id: String,
    },
    /// Its state cannot be read.
    #[error("state of container `{id}`: {source}")]
    State {
        /// The id.
        id: String,
        /// The cause.
        source: io::Error,
    },
    /// It is being made.
    #[error("container `{id}` is being created by {by}")]
    Creating {
        /// The id.
        id: String,
        /// The process that makes it.
        by: String,
    },
    /// Its making was cut off.
    #[error("container `{id}` was never wholly made")]
    Unfinished {
        /// The id.
        id: String,
    },
}

impl OpenError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unfinished { id } | Self::State { id, .. } => {
                Some(format!("free it with `delete --force {id}`"))
            }
            Self::Creating { .. } => Some("wait until it is made, or kill that process".into()),
            Self::NotFound { .. } => {
                Some("`list` shows those that exist; --root names the folder of their states".into())
            }
        }
    }
}

/// Something that cannot be done to a container.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// Its first process has ended.
    #[error("container `{id}` is not running")]
    NotRunning {
        /// The id.
        id: String,
    },
    /// Its cgroup is gone.
    #[error("container `{id}` has no cgroup")]
    NoCgroup {
        /// The id.
        id: String,
    },
    /// A signal was refused.
    #[error("cannot send signal {signal} to container `{id}`: {}", errno.desc())]
    Signal {
        /// The id.
        id: String,
        /// The signal.
        signal: i32,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The freezer.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Killing all its processes.
    #[error(transparent)]
    Kill(#[from] berth_rt::cgroup::KillError),
    /// Device permission.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device node.
    #[error(transparent)]
    Node(#[from] Failure),
    /// The description of a device is not valid.
    #[error("device `{path}`: {reason}")]
    BadDevice {
        /// Path inside.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// It stands somewhere else.
    #[error("container `{id}` cannot be {what}: it is {}", status.as_str())]
    Status {
        /// The id.
        id: String,
        /// What was asked: `paused`, `resumed`, `updated`.
        what: &'static str,
        /// Where it stands.
        status: Status,
    },
    /// A resource that cannot be changed.
    #[error("resources.{field} is refused: {reason}")]
    Resource {
        /// Path below `resources`.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A resource that cannot be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A counter of the cgroup.
    #[error(transparent)]
    Counter(#[from] FileError),
    /// The record.
    #[error("cannot store the state of container `{id}`: {source}")]
    Store {
        /// The id.
        id: String,
        /// The cause.
        source: io::Error,
    },
}

impl ContainerError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Freeze(e) => e.hint(),
            Self::Kill(e) => e.hint(),
            Self::Device(e) => e.hint(),
            Self::Net(e) => e.hint(),
            Self::Node(e) => e.hint(),
            Self::Apply(e) => e.hint(),
            _ => None,
        }
    }
}

/// One thing that could not be freed.
#[derive(Debug, Error)]
#[error("{what}: {message}")]
pub struct DeleteError {
    /// `process`, `cgroup`, `state`, `poststop`.
    pub what: &'static str,
    /// What went wrong and where.
    pub message: String,
}
