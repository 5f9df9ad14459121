//! Capabilities of the running agent: none.
//!
//! What it does after start needs no capability: its files, sockets and folders are root's own (the owner needs
//! no CAP_DAC_OVERRIDE), /proc and /sys are read as anybody reads them, signals and cgroups are the monitors'
//! work. CAP_NET_ADMIN was needed once, to size the event socket's buffer, CAP_SETPCAP to give the bounding set up.
//! The agent starts no program: the launcher is its own unit's or the starter's.

use berth_rt::cpu::CpuSet;
use caps::{CapSet, CapsHashSet};

/// Gives up every capability, and the way back to them.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn drop_capabilities() -> anyhow::Result<()> {
    for capability in caps::all() {
        if caps::has_cap(None, CapSet::Bounding, capability)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    nix::sys::prctl::set_no_new_privs()?;
    let none = CapsHashSet::new();
    caps::clear(None, CapSet::Ambient)?;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::set(None, set, &none)?;
    }
    Ok(())
}

/// Keeps this process on `cpus`.
///
/// # Errors
/// What the kernel refused: none of them is in its cpuset.
pub(crate) fn keep_to(cpus: &CpuSet) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus.iter() {
        set.set(usize::try_from(cpu).unwrap_or(usize::MAX))?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}
