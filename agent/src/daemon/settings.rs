//! What `berth agent` was told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use berth_hotplug::monitor::Source;

/// Folders shared by all commands.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    /// Sockets and what does not outlive a boot.
    pub run: PathBuf,
    /// Images, logs, state.
    pub state: PathBuf,
    /// Documents.
    pub config: PathBuf,
    /// The read-only store of images that came with the firmware; it need not be there.
    pub preloaded: PathBuf,
}

impl Folders {
    /// RUN/api.sock.
    pub(crate) fn api(&self) -> PathBuf {
        self.run.join(crate::api::SOCKET)
    }

    /// STATE/images.
    pub(crate) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// STATE/audit/CHAIN: `agent` or `launcher`.
    pub(crate) fn audit(&self, chain: &str) -> PathBuf {
        self.state.join("audit").join(chain)
    }

    /// STATE/logs/ID.log.
    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.state.join("logs").join(format!("{id}.log"))
    }

    /// RUN/monitors/ID.sock.
    pub(crate) fn monitor(&self, id: &str) -> PathBuf {
        self.run
            .join(berth_launcher::client::MONITORS)
            .join(format!("{id}.sock"))
    }

    /// STATE/state/desired.json.
    pub(crate) fn desired(&self) -> PathBuf {
        self.state.join("state").join("desired.json")
    }
}

/// Who starts the launcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LauncherBy {
    /// The agent, as a child in a session of its own.
    Agent,
    /// Somebody else (systemd); the agent waits for its socket.
    Others,
}

/// What happens where the kernel lacks a mechanism of the agent's own sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnMissing {
    /// The agent does not start.
    Refuse,
    /// It starts, and says so in its log and in `berth prove agent`.
    Report,
}

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The folders.
    pub folders: Folders,
    /// Parent of the containers' cgroups.
    pub cgroup_parent: String,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Who starts the launcher.
    pub launcher: LauncherBy,
    /// Where device events come from.
    pub devices: Source,
    /// Bytes of receive buffer to ask for on the device event socket.
    pub device_buffer: usize,
    /// How often the devices are enumerated although no event was lost.
    pub resync: Duration,
    /// The hardware watchdog that is kept alive.
    pub watchdog: Option<super::watchdog::Wanted>,
    /// What happens where the kernel lacks a mechanism of the agent's own sandbox.
    pub on_missing: OnMissing,
    /// Whose members may ask for what.
    pub groups: super::roles::GroupNames,
    /// Where audit records go besides the log.
    pub audit_to: String,
    /// Most bytes of the audit log.
    pub audit_bytes: u64,
}
