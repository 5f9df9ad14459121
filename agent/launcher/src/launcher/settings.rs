//! How the launcher is started, and why it may not serve.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::harden::HardenError;
use crate::policy::{Parse, from_json};
use crate::ranges;

/// How the launcher is started.
#[derive(Debug, Clone)]
pub struct LauncherConfig {
    /// RUN: sockets, records; on a tmpfs.
    pub run_dir: PathBuf,
    /// STATE: images, logs, writable layers.
    pub state_dir: PathBuf,
    /// ETC: the node's own profiles in `profiles/NAME.json`.
    pub config_dir: PathBuf,
    /// The read-only store of images that came with the firmware; it need not be there.
    pub preloaded_dir: PathBuf,
    /// cgroup below which every container gets one of its own, relative to the hierarchies' roots.
    pub cgroup_parent: String,
    /// Between two running proofs; at least 100 ms.
    pub proof_interval: Duration,
    /// Reads the policy's text.
    pub parse_policy: Parse,
    /// Where audit records go besides the log: `none`, `journald`, `syslog`.
    pub audit_to: String,
    /// Most bytes of the audit log, at least 64 KiB.
    pub audit_bytes: u64,
    /// First host id of the ranges that containers with a user namespace of their own get, a multiple of 65536.
    pub id_base: u32,
}

impl Default for LauncherConfig {
    fn default() -> LauncherConfig {
        LauncherConfig {
            run_dir: "/run/berth".into(),
            state_dir: "/var/lib/berth".into(),
            config_dir: "/etc/berth".into(),
            preloaded_dir: "/usr/share/berth/images".into(),
            cgroup_parent: "berth".into(),
            proof_interval: Duration::from_secs(2),
            parse_policy: from_json,
            audit_to: "none".into(),
            audit_bytes: 16 << 20,
            id_base: ranges::BASE,
        }
    }
}

/// Why the launcher does not serve.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// A setting cannot be.
    #[error("{setting}: {reason}")]
    Setting {
        /// The flag.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// It is not run by root.
    #[error("the launcher runs as root, not as uid {0}")]
    NotRoot(u32),
    /// Another thread runs in this process.
    #[error("this process has {0} threads: the launcher forks, so it must be alone")]
    Threads(usize),
    /// Making itself hard failed.
    #[error("making the launcher hard: {0}")]
    Harden(#[from] HardenError),
    /// A folder, the socket or a signal could not be set up.
    #[error("{what}: {source}")]
    Setup {
        /// What was set up.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// No cgroup hierarchy that can be used.
    #[error("cgroups: {message}")]
    Cgroups {
        /// The whole chain of causes.
        message: String,
        /// What to change.
        hint: Option<String>,
    },
    /// The image store cannot be read.
    #[error("images: {message}")]
    Images {
        /// The whole chain of causes.
        message: String,
        /// What to change.
        hint: Option<String>,
    },
}

impl LauncherError {
    /// The setting to change, where the environment is at fault.
    pub fn hint(&self) -> Option<String> {
        match self {
            LauncherError::Harden(e) => e.hint(),
            LauncherError::Cgroups { hint, .. } | LauncherError::Images { hint, .. } => hint.clone(),
            LauncherError::Setup { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("another launcher serves this --run-dir".into())
            }
            LauncherError::NotRoot(_) => Some("start it by its systemd unit, or with sudo".into()),
            _ => None,
        }
    }
}
