//! `berth agent`: the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use berth_documents::Size;
use berth_hotplug::monitor::{RECEIVE_BUFFER, Source};
use clap::{Args, ValueEnum};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::daemon;
use crate::daemon::roles::GroupNames;
use crate::daemon::settings::{Folders, LauncherBy, OnMissing, Settings};
use crate::daemon::watchdog::Wanted;

use super::{DONE, Outcome};

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Parent of the containers' cgroups
    #[arg(long, value_name = "PATH", default_value = "berth")]
    cgroup_parent: String,
    /// Loopback address for Prometheus metrics, or `off`; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464", value_parser = metrics)]
    metrics: Metrics,
    /// Who starts the launcher
    #[arg(long, value_enum, default_value = "own")]
    launcher: Launcher,
    /// Where device events come from: udev where udevd runs, else the kernel
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = source)]
    devices: Source,
    /// Seconds between two enumerations although no event was lost
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    resync: u64,
    /// Bytes of receive buffer to ask for on the device event socket; the kernel gives up to net.core.rmem_max to those
    /// without CAP_NET_ADMIN
    #[arg(long, value_name = "BYTES", default_value_t = RECEIVE_BUFFER, value_parser = buffer)]
    device_buffer: usize,
    /// Hardware watchdog that resets the node when agent or launcher stop answering: /dev/watchdog0
    #[arg(long, value_name = "DEVICE")]
    watchdog: Option<PathBuf>,
    /// Seconds without a keep-alive until the hardware watchdog resets the node
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(4..=3600), requires = "watchdog")]
    watchdog_timeout: u32,
    /// Seconds before that at which the kernel's pre-timeout governor acts, where the driver has it
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3599), requires = "watchdog")]
    watchdog_pretimeout: Option<u32>,
    /// Where the kernel lacks a mechanism of the agent's own sandbox
    #[arg(long, value_enum, default_value = "refuse")]
    on_missing: Missing,
    /// Group whose members may look: a name or a number
    #[arg(long, value_name = "GROUP", default_value = "berth-read")]
    read_group: String,
    /// Group whose members may stop and start what is declared
    #[arg(long, value_name = "GROUP", default_value = "berth-operate")]
    operate_group: String,
    /// Group whose members may do everything
    #[arg(long, value_name = "GROUP", default_value = "berth-admin")]
    admin_group: String,
    /// Where audit records go besides the audit log: none, journald or syslog; a launcher that the agent starts too
    #[arg(long, value_name = "WHERE", default_value = "none", value_parser = ["none", "journald", "syslog"])]
    audit_to: String,
    /// Most bytes of the agent's audit log
    #[arg(long, value_name = "SIZE", default_value = "16Mi")]
    audit_max: Size,
    /// Log format
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or TARGET=LEVEL,…
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy)]
struct Metrics(Option<SocketAddr>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Launcher {
    /// The agent, as a process that outlives it
    Own,
    /// Others (systemd); the agent waits for its socket
    External,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Missing {
    /// The agent does not start
    Refuse,
    /// It starts and says so in its log and in `berth prove agent`
    Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// A line of text
    Text,
    /// A line of JSON
    Json,
}

fn metrics(text: &str) -> Result<Metrics, String> {
    if text == "off" {
        return Ok(Metrics(None));
    }
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "an address such as 127.0.0.1:9464, or off".to_owned())?;
    if !address.ip().is_loopback() {
        return Err("metrics are served on loopback addresses only".to_owned());
    }
    Ok(Metrics(Some(address)))
}

fn buffer(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|bytes| (4096..=1 << 30).contains(bytes))
        .ok_or_else(|| "4096 to 1073741824 bytes".to_owned())
}

fn source(text: &str) -> Result<Source, String> {
    text.parse()
}

pub(super) fn main(folders: Folders, args: AgentArgs) -> Outcome {
    let filter: Targets = args.log.parse()?;
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match args.log_format {
        LogFormat::Text => registry.with(log.with_ansi(false)).init(),
        LogFormat::Json => registry.with(log.json()).init(),
    }
    daemon::main(Settings {
        folders,
        cgroup_parent: args.cgroup_parent,
        metrics: args.metrics.0,
        launcher: match args.launcher {
            Launcher::Own => LauncherBy::Agent,
            Launcher::External => LauncherBy::Others,
        },
        devices: args.devices,
        device_buffer: args.device_buffer,
        resync: Duration::from_secs(args.resync),
        watchdog: args.watchdog.map(|device| Wanted {
            device,
            timeout: args.watchdog_timeout,
            pretimeout: args.watchdog_pretimeout,
        }),
        on_missing: match args.on_missing {
            Missing::Refuse => OnMissing::Refuse,
            Missing::Report => OnMissing::Report,
        },
        groups: GroupNames {
            read: args.read_group,
            operate: args.operate_group,
            admin: args.admin_group,
        },
        audit_to: args.audit_to,
        audit_bytes: args.audit_max.bytes(),
    })?;
    Ok(DONE)
}
