//! Capabilities of the running agent: none.
//!
//! What it does after start needs no capability: its files, sockets and folders are root's own (the owner needs
//! no CAP_DAC_OVERRIDE), /proc and /sys are read as anybody reads them, signals and cgroups are the monitors'
//! work. CAP_NET_ADMIN was needed once, to size the event socket's buffer. The bounding set stays while the
//! agent starts the launcher itself (a root process gets its rights back at exec); with a launcher of its own
//! unit the bounding set goes too, and no_new_privs is set.

use caps::{CapSet, CapsHashSet};

use super::settings::LauncherBy;

/// Gives up every capability.
///
/// # Errors
/// What the kernel refused.
pub(crate) fn drop_capabilities(launcher: LauncherBy) -> anyhow::Result<()> {
    if launcher == LauncherBy::Others {
        for capability in caps::all() {
            if caps::has_cap(None, CapSet::Bounding, capability)? {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        nix::sys::prctl::set_no_new_privs()?;
    }
    let none = CapsHashSet::new();
    caps::clear(None, CapSet::Ambient)?;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::set(None, set, &none)?;
    }
    Ok(())
}
