//! What each shipped profile promises, seen from inside and from the kernel's own files: five capability sets, users,
//! no_new_privs, every system call, devices by their numbers, every mount. One table for this machine and for the guests.
//!
//! What is expected is written here or read from the profiles' documents by a second reading (`reference`); nothing is asked
//! of the code that puts them in force.

#[path = "../../agent/launcher/tests/reference/mod.rs"]
pub(crate) mod reference;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use berth_policies::{Seccomp, resolve};
use berth_runtime::seccomp::{Architecture, syscall_names, syscall_number};
use serde_json::Value;

use reference::Reference;

/// The image of every container here: a shell, and the worker that makes system calls.
pub(crate) const IMAGE: &str = "berth-sample-worker:latest";

/// Where the containers are.
pub(crate) trait Node {
    /// The output of a shell on the node.
    fn shell(&mut self, script: &str) -> Result<String>;
    /// The output of a shell that `berth exec` starts in a container.
    fn inside(&mut self, container: &str, script: &str) -> Result<String>;
    /// arm64, else x86_64.
    fn arm(&self) -> bool;
}

/// What a shipped profile gives.
pub(crate) struct Shipped {
    pub(crate) name: &'static str,
    /// `None`: all that the kernel has.
    capabilities: Option<&'static [&'static str]>,
    own_users: bool,
    writable_root: bool,
}

/// All of them.
pub(crate) const SHIPPED: [Shipped; 6] = [
    Shipped {
        name: "strict",
        capabilities: Some(&[]),
        own_users: true,
        writable_root: false,
    },
    Shipped {
        name: "device-worker",
        capabilities: Some(&["NET_RAW"]),
        own_users: true,
        writable_root: false,
    },
    Shipped {
        name: "system",
        capabilities: Some(&[
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "NET_BIND_SERVICE",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ]),
        own_users: true,
        writable_root: true,
    },
    Shipped {
        name: "realtime",
        capabilities: Some(&["IPC_LOCK", "SYS_NICE"]),
        own_users: false,
        writable_root: false,
    },
    Shipped {
        name: "network-function",
        capabilities: Some(&["IPC_LOCK", "SYS_NICE", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"]),
        own_users: false,
        writable_root: false,
    },
    Shipped {
        name: "privileged",
        capabilities: None,
        own_users: false,
        writable_root: true,
    },
];

/// Capabilities by number (capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Who may open a device.
#[derive(PartialEq)]
enum May {
    Everyone,
    NetworkFunction,
    Privileged,
}

/// Character and block devices by number. None of them does anything when it is opened and closed.
const DEVICES: [(&str, u32, u32, May); 18] = [
    ("c", 1, 3, May::Everyone),
    ("c", 1, 5, May::Everyone),
    ("c", 1, 7, May::Everyone),
    ("c", 1, 8, May::Everyone),
    ("c", 1, 9, May::Everyone),
    ("c", 5, 0, May::Everyone),
    ("c", 5, 2, May::Everyone),
    ("c", 136, 7, May::Everyone),
    ("c", 10, 196, May::NetworkFunction),
    ("c", 1, 11, May::Privileged),
    ("c", 10, 200, May::Privileged),
    ("c", 10, 229, May::Privileged),
    ("c", 10, 232, May::Privileged),
    ("c", 10, 237, May::Privileged),
    ("c", 13, 63, May::Privileged),
    ("c", 189, 0, May::Privileged),
    ("b", 7, 0, May::Privileged),
    ("b", 259, 0, May::Privileged),
];

/// Calls that are not made though they are allowed: they end, halt or change the caller, or write every disk's cache.
const NOT_MADE: [&str; 16] = [
    "exit",
    "exit_group",
    "fork",
    "vfork",
    "clone",
    "clone3",
    "pause",
    "rt_sigreturn",
    "sigreturn",
    "rt_sigsuspend",
    "restart_syscall",
    "sync",
    "umask",
    "uretprobe",
    "set_tid_address",
    "setsid",
];

/// A workload that waits, under a profile.
pub(crate) fn workload(name: &str, profile: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: {IMAGE}\n  profile: {profile}\n  \
         command: [\"/bin/sh\", \"-c\", \"while :; do sleep 0.2; done\"]\n  cpus: shared\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
    )
}

/// `strict` without a filter: what its kernel answers to a call that nobody refuses.
pub(crate) const UNFILTERED: &str = "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {name: unfiltered}\n\
     spec: {extends: strict, seccomp: {unconfined: true}}\n---\n";

/// A workload that waits, and its profile: `strict`, but for `dumpable`.
pub(crate) fn dumpable(name: &str, dumpable: bool) -> String {
    format!(
        "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {{name: {name}}}\nspec: {{dumpable: {dumpable}}}\n---\n{}",
        workload(name, name)
    )
}

/// Another process of the same user looks into the first.
pub(crate) const LOOK: &str = "cat /proc/1/environ >/dev/null 2>&1 && echo looked; true";

fn architecture(arm: bool) -> Architecture {
    if arm {
        Architecture::Aarch64
    } else {
        Architecture::X86_64
    }
}

/// The calls that are made where they are allowed.
fn harmless(arm: bool) -> BTreeMap<u32, &'static str> {
    syscall_names()
        .filter(|name| !NOT_MADE.contains(name))
        .filter_map(|name| Some((syscall_number(architecture(arm), name)?, name)))
        .collect()
}

/// A command inside that makes calls by number.
fn making(numbers: impl Iterator<Item = u32>) -> String {
    let list: Vec<String> = numbers.map(|n| n.to_string()).collect();
    format!("/bin/device-worker --calls {}", list.join(","))
}

/// Its answer: errno by number.
fn answers(said: &str) -> Result<BTreeMap<u32, i64>> {
    let answer: Value = serde_json::from_str(said.trim()).with_context(|| said.to_owned())?;
    let object = answer["errno"].as_object().context("no answers")?;
    object
        .iter()
        .map(|(number, errno)| Ok((number.parse()?, errno.as_i64().context("no number")?)))
        .collect()
}

/// The filter of a shipped profile as its document, and what its conditions ask for; `None`: it has no filter.
pub(crate) fn filter(profile: &str, arm: bool) -> Result<Option<(Value, reference::Node)>> {
    let profile = resolve(profile, &BTreeMap::new())?;
    let Seccomp::Filter(filter) = &profile.seccomp else {
        return Ok(None);
    };
    let node = reference::Node {
        caps: profile.capabilities.clone(),
        arm,
        kernel: (6, 1),
    };
    Ok(Some((serde_json::to_value(filter)?, node)))
}

/// What a profile answers to every call, each argument all ones: its errno, or none where it is allowed.
fn judged(profile: &str, arm: bool) -> Result<BTreeMap<u32, (&'static str, Option<i64>)>> {
    let found = filter(profile, arm)?;
    let reference = found
        .as_ref()
        .map(|(document, node)| Reference::of(document, node));
    let mut all = BTreeMap::new();
    for (number, name) in harmless(arm) {
        let answer = reference
            .as_ref()
            .map_or(0x7fff_0000, |r| r.answer(name, &[u64::MAX; 6]));
        let errno = match answer >> 16 {
            5 => Some(i64::from(answer & 0xffff)),
            0x7fff => None,
            _ => anyhow::bail!("{name}: {answer:#x}"),
        };
        all.insert(number, (name, errno));
    }
    Ok(all)
}

/// Of the calls that `strict` allows, those that this kernel does not have: asked in a container without a filter.
pub(crate) fn lacking(node: &mut dyn Node, unfiltered: &str) -> Result<BTreeSet<u32>> {
    let allowed: Vec<u32> = judged("realtime", node.arm())?
        .into_iter()
        .filter_map(|(number, (_, errno))| errno.is_none().then_some(number))
        .collect();
    let answers = answers(&node.inside(unfiltered, &making(allowed.iter().copied()))?)?;
    ensure!(answers.len() == allowed.len(), "{} answers", answers.len());
    let lacking: BTreeSet<u32> = answers
        .into_iter()
        .filter_map(|(number, errno)| (errno == 38).then_some(number))
        .collect();
    ensure!(
        lacking.len() < allowed.len() / 4,
        "hardly a call is there: {lacking:?}"
    );
    Ok(lacking)
}

/// The calls that are made under a profile, and what it says to each.
fn asked(shipped: &Shipped, arm: bool) -> Result<BTreeMap<u32, (&'static str, Option<i64>)>> {
    let mut expected = judged(shipped.name, arm)?;
    if shipped.capabilities.is_none() {
        // With every right of the node a call may do what it says: only those that any container may make.
        let strict = judged("strict", arm)?;
        expected.retain(|number, _| strict[number].1.is_none());
    }
    Ok(expected)
}

/// Each call that the profile refuses is refused with its errno; each that it allows comes through to the kernel.
fn calls(shipped: &Shipped, arm: bool, said: &str, lacking: &BTreeSet<u32>) -> Result<()> {
    let answers = answers(said)?;
    let (mut refused, mut through) = (0, 0);
    for (number, (name, errno)) in asked(shipped, arm)? {
        let answer = *answers
            .get(&number)
            .with_context(|| format!("no answer to {name}"))?;
        match errno {
            Some(errno) => {
                ensure!(answer == errno, "{name}: {answer}, not {errno}");
                refused += 1;
            }
            None if lacking.contains(&number) => {}
            None => {
                ensure!(answer != 38, "{name} is refused");
                through += 1;
            }
        }
    }
    let least = if shipped.capabilities.is_some() { 60 } else { 0 };
    ensure!(
        refused >= least && through > 150,
        "{refused} refused, {through} through"
    );
    Ok(())
}

/// The five sets, users, no_new_privs and the filter of the container's first process.
fn status(shipped: &Shipped, text: &str, last: u32, map: &str) -> Result<()> {
    let known = CAPABILITIES.iter().enumerate().filter(|(n, _)| *n as u32 <= last);
    let bits = match shipped.capabilities {
        None => (1u64 << (last + 1)) - 1,
        Some(names) => known
            .filter(|(_, name)| names.contains(name))
            .fold(0, |bits, (n, _)| bits | 1 << n),
    };
    let confined = u8::from(shipped.capabilities.is_some());
    let mut lines: Vec<String> = ["CapPrm", "CapEff", "CapBnd"]
        .iter()
        .map(|set| format!("{set}:\t{bits:016x}"))
        .collect();
    lines.extend(["CapInh", "CapAmb"].map(|set| format!("{set}:\t{:016x}", 0)));
    lines.push(format!("NoNewPrivs:\t{confined}"));
    // What the machine itself lays on everything is no filter of the profile's.
    if confined == 1 {
        lines.push("Seccomp:\t2".into());
    }
    for line in lines {
        ensure!(text.contains(&line), "no `{line}` in\n{text}");
    }
    let map: Vec<&str> = map.split_ascii_whitespace().collect();
    ensure!(
        map.len() == 3 && map[0] == "0" && (map[1] != "0") == shipped.own_users,
        "{map:?}"
    );
    Ok(())
}

/// Device nodes of every number, made from outside and opened from inside: the device rules alone decide.
fn devices(shipped: &Shipped, said: &str) -> Result<()> {
    for (kind, major, minor, may) in &DEVICES {
        let name = format!("/dev/probe-{kind}-{major}-{minor} ");
        let line = said.lines().find(|l| l.starts_with(&name));
        let line = line.with_context(|| said.to_owned())?;
        let open = match may {
            May::Everyone => true,
            May::NetworkFunction => ["network-function", "privileged"].contains(&shipped.name),
            May::Privileged => shipped.name == "privileged",
        };
        // Let through, it is opened or its driver answers.
        let refused = line.contains("Operation not permitted");
        ensure!(refused != open, "{line}");
        ensure!(!line.contains("Permission denied"), "not asked: {line}");
    }
    Ok(())
}

/// Flags of every mount, the root, masked and read-only paths in the kernel's table; `there`: what of them there is inside.
fn mounts(shipped: &Shipped, table: &str, masked: &[String], fixed: &[String], there: &str) -> Result<()> {
    let confined = shipped.capabilities.is_some();
    let mut points: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() > 6, "{line}");
        let (point, options) = (words[4], words[5].split(',').collect::<Vec<_>>());
        // What masks a file is the container's own /dev/null, and that must open.
        let device = ["/dev", "/dev/pts"].contains(&point) || words[3] == "/null";
        if confined {
            ensure!(options.contains(&"nosuid"), "{line}");
            ensure!(device || options.contains(&"nodev"), "{line}");
        }
        points.insert(point, options);
    }
    let root = points.get("/").context("no root")?;
    ensure!(root.contains(&"rw") == shipped.writable_root, "{root:?}");
    let mut seen = 0;
    for path in masked.iter().chain(fixed) {
        let options = points.get(path.as_str());
        if !there.lines().any(|l| l == path) {
            continue;
        }
        seen += 1;
        ensure!(options.is_some() == confined, "{path}: {options:?}");
        if fixed.contains(path) && confined {
            ensure!(
                options.is_some_and(|o| o.contains(&"ro")),
                "{path} can be written"
            );
        }
    }
    ensure!(seen > 8, "hardly one of the paths is there: {there}");
    Ok(())
}

/// Everything of one profile, for a container that runs under it.
pub(crate) fn check(
    node: &mut dyn Node,
    shipped: &Shipped,
    container: &str,
    pid: i64,
    lacking: &BTreeSet<u32>,
) -> Result<()> {
    let strict: Value = serde_json::from_str(include_str!("../../policies/profiles/strict.json"))?;
    let list = |field: &str| -> Result<Vec<String>> {
        let all = strict[field]["set"].as_array().context("no list")?;
        Ok(all.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let (masked, fixed) = (list("maskedPaths")?, list("readonlyPaths")?);
    let confined = shipped.capabilities.is_some();
    let nodes: Vec<String> = DEVICES
        .iter()
        .map(|(kind, major, minor, _)| {
            format!("mknod -m 666 /proc/{pid}/root/dev/probe-{kind}-{major}-{minor} {kind} {major} {minor}")
        })
        .collect();
    let outside = node.shell(&format!(
        "{} && cat /proc/{pid}/status && echo == && cat /proc/sys/kernel/cap_last_cap && echo == && \
         cat /proc/{pid}/uid_map && echo == && cat /proc/{pid}/mountinfo",
        nodes.join(" && ")
    ))?;
    // One process inside for all of it: in a guest each costs a second.
    let inside = node.inside(
        container,
        &format!(
            "{calls}; echo ==; for d in /dev/probe-*; do e=$( (: <$d) 2>&1 ); echo \"$d ${{e:-opened}}\"; done; echo ==; \
             for p in {masked} {fixed}; do [ ! -e $p ] || echo $p; done; echo ==; \
             touch /probe 2>/dev/null && echo root; echo 4 2>/dev/null >/proc/sys/kernel/printk && echo sysctl; echo ==; \
             {look} for p in {masked}; do if [ -d $p ]; then ls -A $p; else head -c 1 $p; fi 2>/dev/null; done | wc -c",
            calls = making(asked(shipped, node.arm())?.into_keys()),
            masked = masked.join(" "),
            fixed = fixed.join(" "),
            // Unmasked, some of them wait for a reader.
            look = if confined { "" } else { "echo 0 ||" },
        ),
    )?;
    node.shell(&format!("rm /proc/{pid}/root/dev/probe-*"))?;
    let outside: Vec<&str> = outside.split("==\n").collect();
    let inside: Vec<&str> = inside.split("==\n").collect();
    ensure!(outside.len() == 4 && inside.len() == 5, "{outside:?}\n{inside:?}");
    status(shipped, outside[0], outside[1].trim().parse()?, outside[2])?;
    calls(shipped, node.arm(), inside[0], lacking)?;
    devices(shipped, inside[1])?;
    mounts(shipped, outside[3], &masked, &fixed, inside[2])?;
    ensure!(
        inside[3].contains("root") == shipped.writable_root && (!confined || !inside[3].contains("sysctl")),
        "written: {}",
        inside[3]
    );
    ensure!(inside[4].trim() == "0", "masked paths show {} bytes", inside[4]);
    Ok(())
}
