//! The fields of `process`: words, user, capabilities, limits, label, I/O priority.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{self as oci, IOPriorityClass};

use berth_rt::cpu::CpuSet;

use super::PlanError;
use super::recipe::absolute;
use crate::console::Size;
use crate::proof::CapabilitySets;
use crate::recipe::{Label, Limit, Process};

fn c_string(field: &str, text: &str) -> Result<CString, PlanError> {
    CString::new(text).map_err(|_| PlanError::refused(field, "it has a NUL byte"))
}

pub(super) fn oom_score(process: &oci::Process) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj() {
        Some(v) if !(-1000..=1000).contains(&v) => Err(PlanError::refused(
            "process.oomScoreAdj",
            format!("{v} is not between -1000 and 1000"),
        )),
        v => Ok(v),
    }
}

/// The last capability number of a set's bit mask and the mask itself.
fn capability_mask(set: Option<&oci::Capabilities>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |mask, c| mask | capability_bit(*c))
}

fn capability_bit(capability: oci::Capability) -> u64 {
    // The names are the kernel's on both sides; one that the other list lacks cannot be granted.
    format!("CAP_{capability}")
        .parse::<caps::Capability>()
        .map_or(0, |c| c.bitmask())
}

pub(crate) fn words(process: &oci::Process, own_users: bool) -> Result<Process, PlanError> {
    let args = process
        .args()
        .as_ref()
        .filter(|a| !a.is_empty())
        .ok_or(PlanError::Missing {
            field: "process.args",
        })?;
    let args = args
        .iter()
        .map(|a| c_string("process.args", a))
        .collect::<Result<_, _>>()?;
    let mut env = Vec::new();
    for pair in process.env().iter().flatten() {
        env.push(c_string("process.env", pair)?);
    }
    let cwd = absolute(&process.cwd().to_string_lossy(), "process.cwd")?;
    let user = process.user();
    let umask = user.umask().unwrap_or(0o022);
    if umask > 0o777 {
        return Err(PlanError::refused(
            "process.user.umask",
            format!("{umask:o} is more than 777"),
        ));
    }
    let capabilities = match process.capabilities() {
        None => CapabilitySets::default(),
        Some(sets) => CapabilitySets {
            bounding: capability_mask(sets.bounding().as_ref()),
            effective: capability_mask(sets.effective().as_ref()),
            inheritable: capability_mask(sets.inheritable().as_ref()),
            permitted: capability_mask(sets.permitted().as_ref()),
            ambient: capability_mask(sets.ambient().as_ref()),
        },
    };
    capabilities_fit(&capabilities, own_users)?;
    let mut rlimits = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        if rlimits.iter().any(|l: &Limit| l.name == name) {
            return Err(PlanError::refused(
                "process.rlimits",
                format!("{name} is there twice"),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(PlanError::refused(
                "process.rlimits",
                format!("{name}: soft is above hard"),
            ));
        }
        rlimits.push(Limit {
            resource: limit_number(limit.typ()),
            soft: limit.soft(),
            hard: limit.hard(),
            name,
        });
    }
    Ok(Process {
        args,
        env,
        cwd,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask,
        capabilities,
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        rlimits,
        label: label(process)?,
        landlock: None,
        core_cookie: false,
        personality: None,
        memory: None,
        callers_keyring: false,
        exec_cpus: process
            .exec_cpu_affinity()
            .as_ref()
            .map(exec_affinity)
            .transpose()?
            .unwrap_or_default(),
        terminal: terminal(process)?,
    })
}

/// The rules of capset(2) and prctl(2), said before anything is made.
fn capabilities_fit(sets: &CapabilitySets, own_users: bool) -> Result<(), PlanError> {
    let names = |mask: u64| {
        let all = caps::all();
        let mut list: Vec<String> = all
            .iter()
            .filter(|c| mask & c.bitmask() != 0)
            .map(ToString::to_string)
            .collect();
        list.sort();
        list.join(", ")
    };
    let refuse = |field: &str, mask: u64, why: &str| {
        Err(PlanError::refused(
            format!("process.capabilities.{field}"),
            format!("{} {why}", names(mask)),
        ))
    };
    let checks = [
        (
            "effective",
            sets.effective & !sets.permitted,
            "is not in permitted",
        ),
        ("ambient", sets.ambient & !sets.permitted, "is not in permitted"),
        (
            "ambient",
            sets.ambient & !sets.inheritable,
            "is not in inheritable",
        ),
    ];
    for (field, mask, why) in checks {
        if mask != 0 {
            return refuse(field, mask, why);
        }
    }
    if own_users {
        return Ok(()); // the first process of a user namespace has them all
    }
    let wanted = sets.permitted | sets.bounding | sets.inheritable;
    let mine = caps::read(None, caps::CapSet::Permitted)
        .map_err(|e| PlanError::refused("process.capabilities", format!("cannot read one's own: {e}")))?;
    let mine = mine.iter().fold(0, |mask, c| mask | c.bitmask());
    if wanted & !mine != 0 {
        return refuse("permitted", wanted & !mine, "is not held by the runtime itself");
    }
    Ok(())
}

fn limit_number(kind: oci::PosixRlimitType) -> u32 {
    use oci::PosixRlimitType as T;
    match kind {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Its size, where it has a terminal. The specification has consoleSize passed over without one.
fn terminal(process: &oci::Process) -> Result<Option<Size>, PlanError> {
    if !process.terminal().unwrap_or(false) {
        return Ok(None);
    }
    let Some(wanted) = process.console_size() else {
        return Ok(Some(Size::default()));
    };
    let number = |field: &str, value: u64| {
        u16::try_from(value).map_err(|_| {
            PlanError::refused(
                format!("process.consoleSize.{field}"),
                format!("{value} is more than 65535"),
            )
        })
    };
    Ok(Some(Size {
        rows: number("height", wanted.height())?,
        columns: number("width", wanted.width())?,
    }))
}

/// `execCPUAffinity`: while it joins, and of its program.
fn exec_affinity(affinity: &oci::ExecCPUAffinity) -> Result<(Option<CpuSet>, Option<CpuSet>), PlanError> {
    let list = |field: &str, text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|e| {
            PlanError::refused(
                format!("process.execCPUAffinity.{field}"),
                format!("`{text}`: {e}"),
            )
        }),
    };
    Ok((
        list("initial", affinity.initial())?,
        list("final", affinity.cpu_affinity_final())?,
    ))
}

/// A context or profile by its name alone, for whichever of the two the node has.
pub(crate) fn label_of(text: &str) -> Result<Option<Label>, PlanError> {
    let mut process = oci::Process::default();
    if selinux_enabled() {
        process.set_selinux_label(Some(text.to_owned()));
    } else {
        process.set_apparmor_profile(Some(text.to_owned()));
    }
    label(&process)
}

pub(super) fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn label(process: &oci::Process) -> Result<Option<Label>, PlanError> {
    let some = |l: &Option<String>| l.clone().filter(|l| !l.is_empty());
    match (some(process.selinux_label()), some(process.apparmor_profile())) {
        (Some(_), _) if !selinux_enabled() => Err(PlanError::refused(
            "process.selinuxLabel",
            "SELinux is not enabled on this node",
        )),
        (Some(_), Some(_)) => Err(PlanError::refused(
            "process.apparmorProfile",
            "process.selinuxLabel is there too",
        )),
        (Some(label), None) => Ok(Some(Label::Selinux(label))),
        (None, Some(profile)) if profile == "unconfined" => Ok(None),
        (None, Some(profile)) => {
            let on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
            if on.is_ok_and(|v| v.trim() == "Y") {
                Ok(Some(Label::Apparmor(profile)))
            } else {
                Err(PlanError::refused(
                    "process.apparmorProfile",
                    "AppArmor is not enabled on this node",
                ))
            }
        }
        (None, None) => Ok(None),
    }
}

/// ioprio class number and level.
pub(crate) fn io_priority(process: &oci::Process) -> Result<Option<(u32, u32)>, PlanError> {
    let Some(io) = process.io_priority() else {
        return Ok(None);
    };
    let class = match io.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(io.priority()) {
        Ok(level) if level <= 7 => Ok(Some((class, level))),
        _ => Err(PlanError::refused(
            "process.ioPriority.priority",
            format!("{} is not 0 to 7", io.priority()),
        )),
    }
}
