//! What a cgroup has used, from the kernel's counters. A counter that this kernel, hierarchy or cgroup does not have
//! is `None`.

use serde::{Deserialize, Serialize};

use super::file::{self, FileError, keyed};
use super::{Cgroup, Controller, Version};

/// Counters of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Memory in use now, in bytes (`memory.usage_in_bytes`, `memory.current`).
    pub memory_bytes: Option<u64>,
    /// The most memory there was, in bytes (`memory.max_usage_in_bytes`, `memory.peak`).
    pub memory_peak_bytes: Option<u64>,
    /// Processes killed for want of memory (`oom_kill` of `memory.oom_control`, `memory.events`).
    pub oom_kills: Option<u64>,
    /// Processes and threads there now (`pids.current`).
    pub pids: Option<u64>,
    /// CPU time used, in microseconds (`cpuacct.usage`, `usage_usec` of `cpu.stat`).
    pub cpu_us: Option<u64>,
    /// Periods in which the bandwidth limit stopped the group (`nr_throttled` of `cpu.stat`).
    pub throttled_periods: Option<u64>,
}

impl Cgroup {
    /// Reads the counters.
    ///
    /// # Errors
    /// [`FileError`] for a file that is there and cannot be read.
    pub fn stats(&self) -> Result<Stats, FileError> {
        let read = |controller, v1: &str, v2: &str| -> Result<Option<String>, FileError> {
            let Some(dir) = self.dir(controller) else {
                return Ok(None);
            };
            let version = self.hierarchy().tree(controller).map(|tree| tree.version);
            let name = if version == Some(Version::V2) { v2 } else { v1 };
            file::read_if_there(&dir.join(name))
        };
        let number = |text: Option<String>| text.and_then(|text| text.parse().ok());
        let field = |text: &Option<String>, key| text.as_deref().and_then(|text| keyed(text, key));
        let oom = read(Controller::Memory, "memory.oom_control", "memory.events")?;
        let cpu = read(Controller::Cpu, "cpu.stat", "cpu.stat")?;
        let accounted = match self.dir(Controller::Cpuacct) {
            Some(dir) => match file::read_if_there(&dir.join("cpuacct.usage"))? {
                Some(ns) => ns.parse::<u64>().ok().map(|ns| ns / 1000),
                None => field(&file::read_if_there(&dir.join("cpu.stat"))?, "usage_usec"),
            },
            None => None,
        };
        Ok(Stats {
            memory_bytes: number(read(
                Controller::Memory,
                "memory.usage_in_bytes",
                "memory.current",
            )?),
            memory_peak_bytes: number(read(
                Controller::Memory,
                "memory.max_usage_in_bytes",
                "memory.peak",
            )?),
            oom_kills: field(&oom, "oom_kill"),
            pids: number(read(Controller::Pids, "pids.current", "pids.current")?),
            cpu_us: accounted,
            throttled_periods: field(&cpu, "nr_throttled"),
        })
    }
}
