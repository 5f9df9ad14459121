//! Memory: limit, swap, reservation and the v1-only fields (`memory.limit_in_bytes` and its like in v1, `memory.max`,
//! `memory.swap.max`, `memory.low` in v2).
//!
//! OCI's `swap` is memory and swap together; v2's file is swap alone. v1 holds limit ≤ memsw limit at every moment, so
//! the order of the two writes depends on what was there.

use std::path::Path;

use oci_spec::runtime::LinuxMemory;

use super::file;
use super::resources::{optional, or_max};
use super::{ApplyError, Cgroup, Controller};

fn field(name: &str) -> String {
    format!("linux.resources.memory.{name}")
}

fn unsupported(name: &str, reason: &str) -> ApplyError {
    ApplyError::Unsupported {
        field: field(name),
        reason: reason.into(),
    }
}

/// The checks that are the same for both versions.
fn check(memory: &LinuxMemory, dir: &Path, usage: &str) -> Result<(), ApplyError> {
    for (name, value) in [
        ("limit", memory.limit()),
        ("swap", memory.swap()),
        ("reservation", memory.reservation()),
    ] {
        if value.is_some_and(|value| value < -1) {
            return Err(ApplyError::Invalid {
                field: field(name),
                reason: "below -1 (-1 is no limit)".into(),
            });
        }
    }
    if let (Some(limit), Some(swap)) = (memory.limit(), memory.swap())
        && swap >= 0
        && (limit < 0 || swap < limit)
    {
        let reason = format!("{swap} is memory and swap together, so it cannot be below the limit {limit}");
        return Err(ApplyError::Invalid {
            field: field("swap"),
            reason,
        });
    }
    if memory.check_before_update() == Some(true)
        && let Some(limit) = memory.limit().and_then(|limit| u64::try_from(limit).ok())
    {
        let used: u64 = file::parse(&dir.join(usage))
            .map_err(|error| ApplyError::file(&field("checkBeforeUpdate"), error))?;
        if used > limit {
            let reason = format!("{used} bytes are in use, more than the limit {limit}");
            return Err(ApplyError::Invalid {
                field: field("limit"),
                reason,
            });
        }
    }
    Ok(())
}

impl Cgroup {
    pub(crate) fn memory_v1(&self, memory: &LinuxMemory, dir: &Path) -> Result<(), ApplyError> {
        check(memory, dir, "memory.usage_in_bytes")?;
        let put =
            |name: &str, file: &str, value: String| self.put(&field(name), Controller::Memory, file, &value);
        let set_limit = |limit: i64| put("limit", "memory.limit_in_bytes", limit.to_string());
        let set_swap = |swap: i64| put("swap", "memory.memsw.limit_in_bytes", swap.to_string());
        match (memory.limit(), memory.swap()) {
            (Some(limit), Some(swap)) => match set_limit(limit) {
                // Above the old memsw limit: that one must move first.
                Err(ApplyError::File { error, .. }) if error.errno() == Some(libc::EINVAL) => {
                    set_swap(swap)?;
                    set_limit(limit)?;
                }
                other => {
                    other?;
                    set_swap(swap)?;
                }
            },
            (Some(limit), None) => set_limit(limit)?,
            (None, Some(swap)) => set_swap(swap)?,
            (None, None) => {}
        }
        if let Some(reservation) = memory.reservation() {
            put(
                "reservation",
                "memory.soft_limit_in_bytes",
                reservation.to_string(),
            )?;
        }
        if let Some(kernel) = memory.kernel() {
            put("kernel", "memory.kmem.limit_in_bytes", kernel.to_string())?;
            // Kernels since 5.16 take the number and do nothing with it.
            let now = file::read(&dir.join("memory.kmem.limit_in_bytes"));
            let now = now.map_err(|e| ApplyError::file(&field("kernel"), e))?;
            if kernel >= 0
                && now
                    .trim()
                    .parse::<i64>()
                    .is_ok_and(|now| now / 4096 != kernel / 4096)
            {
                let why = "this kernel has no limit of its own for kernel memory any more";
                return Err(unsupported("kernel", why));
            }
        }
        if let Some(tcp) = memory.kernel_tcp() {
            put("kernelTCP", "memory.kmem.tcp.limit_in_bytes", tcp.to_string())?;
        }
        if let Some(swappiness) = memory.swappiness() {
            put("swappiness", "memory.swappiness", swappiness.to_string())?;
        }
        if let Some(disable) = memory.disable_oom_killer() {
            put(
                "disableOOMKiller",
                "memory.oom_control",
                u8::from(disable).to_string(),
            )?;
        }
        if let Some(hierarchical) = memory.use_hierarchy() {
            optional(
                put(
                    "useHierarchy",
                    "memory.use_hierarchy",
                    u8::from(hierarchical).to_string(),
                ),
                hierarchical,
            )?;
        }
        Ok(())
    }

    pub(crate) fn memory_v2(&self, memory: &LinuxMemory, dir: &Path) -> Result<(), ApplyError> {
        check(memory, dir, "memory.current")?;
        let put =
            |name: &str, file: &str, value: String| self.put(&field(name), Controller::Memory, file, &value);
        for (name, given) in [
            ("kernel", memory.kernel().is_some()),
            ("kernelTCP", memory.kernel_tcp().is_some()),
        ] {
            if given {
                return Err(unsupported(
                    name,
                    "cgroup v2 counts kernel memory as memory and has no limit of its own for it",
                ));
            }
        }
        if memory.swappiness().is_some() {
            return Err(unsupported(
                "swappiness",
                "cgroup v2 has no swappiness of a group",
            ));
        }
        if memory.disable_oom_killer() == Some(true) {
            return Err(unsupported(
                "disableOOMKiller",
                "cgroup v2 cannot turn the OOM killer off",
            ));
        }
        if memory.use_hierarchy() == Some(false) {
            return Err(unsupported("useHierarchy", "cgroup v2 is always hierarchical"));
        }
        match (memory.swap(), memory.limit()) {
            (Some(swap), _) if swap < 0 => put("swap", "memory.swap.max", "max".into())?,
            (Some(swap), Some(limit)) => put("swap", "memory.swap.max", (swap - limit).to_string())?,
            (Some(_), None) => {
                let reason =
                    "it is memory and swap together, and means nothing to cgroup v2 without limit".into();
                return Err(ApplyError::Invalid {
                    field: field("swap"),
                    reason,
                });
            }
            (None, _) => {}
        }
        if let Some(limit) = memory.limit() {
            put("limit", "memory.max", or_max(limit))?;
        }
        if let Some(reservation) = memory.reservation() {
            put("reservation", "memory.low", or_max(reservation))?;
        }
        Ok(())
    }
}
