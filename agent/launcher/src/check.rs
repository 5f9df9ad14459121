//! What a request must be before anything is made for it. Pure: ids, names, ranges and paths as text; what
//! needs the file system (image, profile, mount sources) is looked at by [`crate::launcher`].
//!
//! Invariants: every field of [`LaunchRequest`] is looked at here or there, none is trusted for having come
//! from the agent; a refusal names the field, the value and what is allowed.

mod devices;

use std::path::{Component, Path};
use std::str::FromStr;

use berth_rt::cpu::CpuSet;
use berth_rt::quiet::Resume;

use crate::socket::MAX_ID;
use crate::wire::{
    BindMount, CniRequest, DeviceGrant, InterfaceGrant, LaunchRequest, Network, ProcessRequest, QuietRequest,
    Refusal, StopRequest, VERSION,
};

pub use devices::devices;

/// Least memory a container can be given: the kernel needs this much to exec anything at all.
pub const MEMORY_MIN: u64 = 1 << 20;
/// Least and most bytes of log.
pub const LOG_BYTES: std::ops::RangeInclusive<u64> = 8192..=(1 << 40);
/// Longest grace, milliseconds: one hour.
pub const GRACE_MAX_MS: u64 = 3_600_000;
/// Longest period of a real-time budget, microseconds (sched_rt_period_us is an int).
pub const RT_PERIOD_MAX_US: u64 = i32::MAX as u64;
/// Most bytes of arguments and environment together (execve(2) has room for these with the smallest stack).
pub const ARGS_MAX: usize = 96 * 1024;
/// Most bytes of labels and notes together.
pub const WORDS_MAX: usize = 64 * 1024;
/// Most devices, interfaces and mounts, each.
pub const LIST_MAX: usize = 64;

/// A refusal of the stage `request`.
pub(crate) fn refuse(message: impl Into<String>) -> Refusal {
    Refusal {
        stage: "request".into(),
        message: message.into(),
        hint: None,
    }
}

fn refuse_hint(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal {
        hint: Some(hint.into()),
        ..refuse(message)
    }
}

/// Checks everything about a request that can be told from its text.
///
/// `online`: the CPUs of this node that are online.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(request: &LaunchRequest, online: &CpuSet) -> Result<(), Refusal> {
    if request.version != VERSION {
        return Err(refuse(format!(
            "version {} is not spoken here; this is version {VERSION}",
            request.version
        )));
    }
    id(&request.id)?;
    if request.workload.is_empty() || request.workload.len() > 253 || has_control(&request.workload) {
        return Err(refuse(format!(
            "workload {:?}: 1 to 253 characters, none of them control",
            request.workload
        )));
    }
    digest(&request.image)?;
    if request.profile.is_empty() || request.profile.len() > 128 || !request.profile.bytes().all(is_name) {
        return Err(refuse(format!(
            "profile {:?}: a name of a-z, 0-9, '.', '_' and '-'",
            request.profile
        )));
    }
    process(&request.process)?;
    if let Some(name) = &request.hostname {
        host_name(name)?;
    }
    placement(request, online)?;
    if let Some(scheduler) = &request.scheduler {
        scheduler
            .validate()
            .map_err(|e| refuse(format!("scheduler: {e}")))?;
    }
    if request.timer_slack_ns == Some(0) {
        return Err(refuse_hint(
            "timer_slack_ns 0 means the kernel's default, 50000",
            "leave it out for the default; 1 is the least",
        ));
    }
    if let Some(budget) = request.rt_budget {
        let (runtime, period) = (budget.runtime_us, budget.period_us);
        if period == 0 || period > RT_PERIOD_MAX_US || runtime == 0 || runtime > period {
            return Err(refuse(format!(
                "rt_budget of {runtime} µs every {period} µs: 1 to {RT_PERIOD_MAX_US} µs, runtime at most the period"
            )));
        }
    }
    if let Some(wanted) = &request.quiet {
        quiet(wanted, request.placement.shared)?;
    }
    if let Some(bytes) = request
        .memory_bytes
        .filter(|b| *b < MEMORY_MIN || *b > i64::MAX as u64)
    {
        return Err(refuse(format!("memory_bytes {bytes}: at least {MEMORY_MIN}")));
    }
    if let Some(pids) = request.pids.filter(|p| *p == 0 || *p > 4_194_304) {
        return Err(refuse(format!("pids {pids}: 1 to 4194304")));
    }
    devices(&request.devices)?;
    if request.devices.iter().any(|d| d.uevents) && !request.udev {
        return Err(refuse("uevents of a device without udev of the container"));
    }
    devices::vfio(&request.vfio, request.armed)?;
    if let Some(m) = request
        .mounts
        .iter()
        .find(|m| request.udev && m.destination.starts_with(crate::uevent::INSIDE))
    {
        return Err(refuse_hint(
            format!(
                "mount at {}: it has the records of its devices there",
                m.destination.display()
            ),
            "leave the mount or `device.uevents` out",
        ));
    }
    let mounted = |d: &&DeviceGrant| {
        d.mount.is_some() && request.mounts.iter().any(|m| m.destination == Path::new(&d.path))
    };
    if let Some(twice) = request.devices.iter().find(mounted) {
        return Err(refuse(format!(
            "filesystem at {}: it has a mount already",
            twice.path
        )));
    }
    interfaces(&request.interfaces, request.network)?;
    if let Some(cni) = &request.cni {
        network(cni, request.network)?;
    }
    mounts(&request.mounts)?;
    stop(request.stop)?;
    if !LOG_BYTES.contains(&request.log_max_bytes) {
        let (least, most) = (LOG_BYTES.start(), LOG_BYTES.end());
        return Err(refuse(format!(
            "log_max_bytes {}: {least} to {most}",
            request.log_max_bytes
        )));
    }
    words(request.labels.iter().chain(&request.notes))
}

/// What is set for its cores: theirs alone, and words that cannot be a path.
fn quiet(wanted: &QuietRequest, shared: bool) -> Result<(), Refusal> {
    let of_cores = QuietRequest {
        strict: false,
        hugepages: Vec::new(),
        ..wanted.clone()
    };
    if shared && of_cores != QuietRequest::default() {
        return Err(refuse_hint(
            "quiet: idle states, clock, interrupts and share are set for whole cores only",
            "place it on whole cores",
        ));
    }
    let word = |text: &String| {
        !text.is_empty()
            && text.len() < 16
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if let Some(governor) = wanted.governor.as_ref().filter(|text| !word(text)) {
        return Err(refuse(format!(
            "quiet.governor {governor:?}: the name of a governor"
        )));
    }
    if let Some(share) = wanted.share.filter(|share| !(1..=100).contains(share)) {
        return Err(refuse(format!("quiet.share {share}: 1 to 100")));
    }
    let sizes = wanted.hugepages.iter().map(|huge| huge.size_kib);
    if wanted.hugepages.len() > LIST_MAX || sizes.clone().any(|kib| !kib.is_power_of_two()) {
        return Err(refuse(format!(
            "quiet.hugepages: at most {LIST_MAX} sizes, each a power of two in KiB"
        )));
    }
    if matches!(wanted.resume, Some(Resume::Within(us)) if i32::try_from(us).is_err()) {
        return Err(refuse("quiet.resume: at most 2147483647 us"));
    }
    Ok(())
}

/// A container id: `[a-z0-9][a-z0-9._-]*`, at most [`MAX_ID`] characters (its socket's name holds it).
///
/// # Errors
/// Says what an id is.
pub fn id(id: &str) -> Result<(), Refusal> {
    let first = id
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !first || id.len() > MAX_ID || !id.bytes().all(is_name) {
        return Err(refuse(format!(
            "id {id:?}: a-z or 0-9, then a-z, 0-9, '.', '_' or '-', {MAX_ID} characters at most"
        )));
    }
    Ok(())
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn digest(image: &str) -> Result<(), Refusal> {
    let hex = image.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    if hex.is_some_and(|hex| {
        hex.bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }) {
        return Ok(());
    }
    Err(refuse_hint(
        format!("image {image:?}: a manifest digest, sha256: and 64 of 0-9a-f"),
        "the agent resolves a reference to a digest; `berth image ls` shows both",
    ))
}

/// Args, environment and working directory of a process, of a container or of an exec.
///
/// # Errors
/// The first that is wrong.
pub fn process(process: &ProcessRequest) -> Result<(), Refusal> {
    let lists = [("command", &process.command), ("args", &process.args)];
    let mut bytes = 0;
    for (field, list) in lists {
        for (n, text) in list.iter().enumerate() {
            bytes += text.len() + 9;
            if text.contains('\0') {
                return Err(refuse(format!("process.{field}[{n}] holds a NUL byte")));
            }
        }
    }
    if process.command.first().is_some_and(String::is_empty) {
        return Err(refuse("process.command[0] is empty"));
    }
    bytes += environment(&process.env)?;
    if bytes > ARGS_MAX {
        return Err(refuse(format!(
            "arguments and environment of {bytes} bytes: {ARGS_MAX} at most"
        )));
    }
    match &process.cwd {
        Some(cwd) => inside("process.cwd", cwd.as_ref()),
        None => Ok(()),
    }
}

/// Names and values of environment variables; says how many bytes they take.
///
/// # Errors
/// The first that is wrong.
pub fn environment(env: &[(String, String)]) -> Result<usize, Refusal> {
    let mut bytes = 0;
    for (name, value) in env {
        bytes += name.len() + value.len() + 10;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(refuse(format!(
                "environment name {name:?}: not empty, without '=' and NUL"
            )));
        }
        if value.contains('\0') {
            return Err(refuse(format!(
                "the value of {name} in the environment holds a NUL byte"
            )));
        }
    }
    Ok(bytes)
}

fn host_name(name: &str) -> Result<(), Refusal> {
    let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(right) {
        return Err(refuse(format!(
            "hostname {name:?}: 1 to 64 letters, digits, '.', '-' and '_'"
        )));
    }
    Ok(())
}

fn placement(request: &LaunchRequest, online: &CpuSet) -> Result<(), Refusal> {
    let placement = &request.placement;
    let cpus = CpuSet::from_str(&placement.cpus).map_err(|e| refuse(format!("placement.cpus: {e}")))?;
    if cpus.is_empty() {
        return Err(refuse("placement.cpus is empty"));
    }
    if !cpus.is_subset(online) {
        return Err(refuse(format!(
            "placement.cpus {cpus}: this node has {online} online"
        )));
    }
    CpuSet::from_str(&placement.mems).map_err(|e| refuse(format!("placement.mems: {e}")))?;
    if placement.shared && placement.require_isolated {
        return Err(refuse_hint(
            "placement: the shared pool is never isolated",
            "isolation: required goes with whole cores (`cpus: N`)",
        ));
    }
    Ok(())
}

/// A network of the node's plug-ins.
fn network(cni: &CniRequest, namespace: Network) -> Result<(), Refusal> {
    if namespace == Network::Host {
        return Err(refuse_hint(
            "cni with network: host",
            "a network of its own needs a namespace of its own",
        ));
    }
    if !crate::cni::bare(&cni.network) {
        return Err(refuse(format!(
            "cni.network {:?}: letters, digits, '.', '_' and '-', at most 64",
            cni.network
        )));
    }
    if cni.ports.len() > 256 {
        return Err(refuse(format!("{} ports: at most 256", cni.ports.len())));
    }
    for port in &cni.ports {
        if port.host == 0 || port.container == 0 || !["tcp", "udp", "sctp"].contains(&port.protocol.as_str())
        {
            return Err(refuse(format!(
                "port {}:{}/{}: 1 to 65535 on both sides, and tcp, udp or sctp",
                port.host, port.container, port.protocol
            )));
        }
    }
    Ok(())
}

/// Interfaces moved in at launch or with `start`.
///
/// # Errors
/// The first that is wrong.
pub fn interfaces(interfaces: &[InterfaceGrant], network: Network) -> Result<(), Refusal> {
    limit("interfaces", interfaces.len())?;
    if network == Network::Host && !interfaces.is_empty() {
        return Err(refuse_hint(
            "an interface cannot be moved into a container with the host's network",
            "network: none gives it one of its own",
        ));
    }
    for (n, interface) in interfaces.iter().enumerate() {
        let inside = interface.inside();
        for name in [&interface.name, inside] {
            let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
            if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(wrong) {
                return Err(refuse(format!(
                    "interface {name:?}: 1 to 15 bytes, no '/', ':' or blank"
                )));
            }
        }
        if inside == "lo" || interface.name == "lo" {
            return Err(refuse("interface lo stays where it is"));
        }
        if interface.mtu.is_some_and(|mtu| !(68..=65_535).contains(&mtu)) {
            return Err(refuse(format!("interface {}: MTU 68 to 65535", interface.name)));
        }
        if interface.vlan.is_some_and(|id| !(1..=4094).contains(&id)) {
            return Err(refuse(format!("interface {}: VLAN 1 to 4094", interface.name)));
        }
        limit("addresses", interface.addresses.len())?;
        let most = |a: &std::net::IpAddr| if a.is_ipv4() { 32 } else { 128 };
        if interface.addresses.iter().any(|(a, length)| *length > most(a)) {
            return Err(refuse(format!(
                "interface {}: an address with a length that none has",
                interface.name
            )));
        }
        if interface.index == 0 || interface.index > i32::MAX as u32 {
            return Err(refuse(format!(
                "interface {}: index {} is none",
                interface.name, interface.index
            )));
        }
        let others = &interfaces[..n];
        if others
            .iter()
            .any(|o| o.index == interface.index || o.inside() == inside)
        {
            return Err(refuse(format!("interface {inside} is given twice")));
        }
    }
    Ok(())
}

fn mounts(mounts: &[BindMount]) -> Result<(), Refusal> {
    limit("mounts", mounts.len())?;
    for (n, mount) in mounts.iter().enumerate() {
        inside("mount source", &mount.source)?;
        inside("mount destination", &mount.destination)?;
        for own in ["/proc", "/sys", "/dev"] {
            if mount.destination.starts_with(own) {
                return Err(refuse(format!(
                    "mount destination {}: {own} is the container's own",
                    mount.destination.display()
                )));
            }
        }
        if mount.destination == Path::new("/") {
            return Err(refuse("mount destination /: the root is the image's"));
        }
        if mounts[..n].iter().any(|m| m.destination == mount.destination) {
            return Err(refuse(format!(
                "mount destination {} is given twice",
                mount.destination.display()
            )));
        }
    }
    Ok(())
}

/// Is `source`, with every link followed, a path that no container may see? `own` are berth's folders.
pub(crate) fn forbidden_source(source: &Path, own: &[&Path]) -> Option<String> {
    for kernel in ["/proc", "/sys", "/dev"] {
        if source.starts_with(kernel) {
            return Some(format!("{kernel} of the host"));
        }
    }
    if source == Path::new("/") {
        return Some("the host's root".into());
    }
    own.iter()
        .find(|own| source.starts_with(own) || own.starts_with(source))
        .map(|own| format!("berth's own folder {}", own.display()))
}

fn stop(stop: StopRequest) -> Result<(), Refusal> {
    signal(stop.signal)?;
    if stop.grace_ms > GRACE_MAX_MS {
        return Err(refuse(format!(
            "stop.grace_ms {}: {GRACE_MAX_MS} at most",
            stop.grace_ms
        )));
    }
    Ok(())
}

/// A signal number that can be sent.
///
/// # Errors
/// Says which are.
pub fn signal(signal: i32) -> Result<(), Refusal> {
    // 32 and 33 are the C library's own.
    if !(1..=64).contains(&signal) || signal == 32 || signal == 33 {
        return Err(refuse(format!("signal {signal}: 1 to 31 or 34 to 64")));
    }
    Ok(())
}

/// Labels and notes: bounded, for every monitor keeps them.
///
/// # Errors
/// Says how many there may be.
pub fn words<'a>(words: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), Refusal> {
    let bytes: usize = words.map(|(k, v)| k.len() + v.len()).sum();
    if bytes > WORDS_MAX {
        return Err(refuse(format!(
            "labels and notes of {bytes} bytes: {WORDS_MAX} at most"
        )));
    }
    Ok(())
}

fn limit(field: &str, n: usize) -> Result<(), Refusal> {
    if n > LIST_MAX {
        return Err(refuse(format!("{n} {field}: {LIST_MAX} at most")));
    }
    Ok(())
}

/// An absolute path in its shortest form.
fn inside(field: &str, path: &Path) -> Result<(), Refusal> {
    let text = path.to_string_lossy();
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    // components() hides "//" and "/./": joined again, they must give the same text.
    let again: std::path::PathBuf = path.components().collect();
    if !path.is_absolute()
        || !plain
        || again.as_os_str() != path.as_os_str()
        || text.len() > 4000
        || has_control(&text)
    {
        return Err(refuse(format!(
            "{field} {text:?}: an absolute path without '.', '..', '//' or a '/' at its end"
        )));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
