//! Reading the actual values: the kernel is asked, never the configuration.
//!
//! Which facts at which stage: an armed container waits before the last steps of its set-up, so its ids, capabilities,
//! no_new_privs, seccomp, limits, label, policy and executable are judged only at the exec stop and later; all the
//! rest is judged at every stage. Listing all threads of the node (isolation) is left to the running proof, unless
//! isolation is promised.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use berth_rt::cgroup::Cgroup;
use berth_rt::partition::{Isolation, isolation};
use thiserror::Error;

use super::facts::{Facts, limit};
use super::procfs::{Process, rlimit, start_time};
use super::{IsolationPromise, NamespaceKind, Promise, Proof, Stage, mounts, namespaces, others, threads};

/// Where the kernel's answers are read.
#[derive(Debug, Clone, Copy)]
pub struct Where<'a> {
    /// A procfs mount in which the pid has its meaning: `/proc`.
    pub proc_root: &'a Path,
    /// The container's cgroup, for the device rules and the isolation. Without it those facts do not hold.
    pub cgroup: Option<&'a Cgroup>,
}

/// Why there is no proof at all.
#[derive(Debug, Error)]
pub enum ProofError {
    /// There is no such process (any more).
    #[error("process {pid} cannot be read: {source}")]
    Process {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Facts from anything but procfs are worth nothing.
    #[error("{} is not a procfs", path.display())]
    NotProcfs {
        /// The folder that should be one.
        path: PathBuf,
    },
}

impl ProofError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Process { source, .. } if source.raw_os_error() == Some(libc::EACCES) => {
                Some("mount /proc without hidepid for the agent, or give CAP_SYS_PTRACE".into())
            }
            Self::Process { .. } => None,
            Self::NotProcfs { .. } => Some("mount procfs there".into()),
        }
    }
}

/// Every fact of `promise`, at one read of each file.
pub fn read(promise: &Promise, pid: i32, stage: Stage, place: &Where<'_>) -> Result<Proof, ProofError> {
    let around = around(promise, pid, stage, place)?;
    within(promise, around, stage, place)
}

/// What exec(2) leaves as it is: cgroup and its files, devices, namespaces, maps, mounts, interfaces, isolation.
///
/// The first half of a proof. At the exec stop it may be taken while the process is still on its way there, once
/// nothing but its exec is left for it to do: what others could change meanwhile they could change as well between such
/// a proof and the first instruction.
#[derive(Debug)]
pub struct Around {
    process: Process,
    facts: Facts,
    seen: mounts::Seen,
}

/// The first half.
///
/// # Errors
/// [`ProofError`].
pub fn around(promise: &Promise, pid: i32, stage: Stage, place: &Where<'_>) -> Result<Around, ProofError> {
    let process = open(pid, place)?;
    let (mut facts, mut seen) = (
        Facts {
            list: Vec::with_capacity(48),
        },
        mounts::Seen::default(),
    );
    cgroups(&mut facts, promise, &process);
    let kept = |kind: &NamespaceKind| *kind != NamespaceKind::Time;
    namespaces::facts(&mut facts, promise, &process, place.proc_root, kept);
    namespaces::id_maps(&mut facts, promise, &process);
    let executes = promise.foreign_executable && stage == Stage::ExecStop;
    mounts::facts(&mut facts, promise, &process, executes.then_some(&mut seen));
    devices(&mut facts, promise, place);
    interfaces(&mut facts, promise, &process, stage, place.proc_root);
    isolated(&mut facts, promise, stage, place);
    Ok(Around { process, facts, seen })
}

/// The second half: threads and all that exec(2) may change. Gives the whole proof.
///
/// # Errors
/// [`ProofError`].
pub fn within(
    promise: &Promise,
    around: Around,
    stage: Stage,
    place: &Where<'_>,
) -> Result<Proof, ProofError> {
    let Around {
        process,
        mut facts,
        seen,
    } = around;
    threads::facts(&mut facts, promise, &process, stage);
    if stage == Stage::Running {
        others::facts(&mut facts, promise, &process, place);
    }
    // Where it was made for children, exec(2) enters it.
    let time = |kind: &NamespaceKind| *kind == NamespaceKind::Time;
    namespaces::facts(&mut facts, promise, &process, place.proc_root, time);
    if promise.foreign_executable && stage == Stage::ExecStop {
        mounts::executed(&mut facts, &seen, &process);
    }
    identity(&mut facts, promise, &process, stage, place.proc_root);
    if stage == Stage::ExecStop && promise.only_stdio {
        descriptors(&mut facts, promise.preserved, &process);
    }
    if stage != Stage::Armed {
        final_values(&mut facts, promise, &process);
    }
    if stage == Stage::Running && promise.undumpable {
        dumpable(&mut facts, promise, &process, place.proc_root);
    }
    Ok(proof(process.pid, stage, facts))
}

/// The facts that move on their own while a container runs (cgroup, threads, policy, limits of the cgroup, isolation that
/// was promised: a partition becomes invalid without a word), for a monitor that asks every few seconds. Namespaces, mounts and maps need privileges the workload does not have.
pub fn read_cheap(promise: &Promise, pid: i32, place: &Where<'_>) -> Result<Proof, ProofError> {
    let process = open(pid, place)?;
    let mut facts = Facts {
        list: Vec::with_capacity(24),
    };
    cgroups(&mut facts, promise, &process);
    threads::facts(&mut facts, promise, &process, Stage::Running);
    identity(&mut facts, promise, &process, Stage::Running, place.proc_root);
    devices(&mut facts, promise, place);
    others::facts(&mut facts, promise, &process, place);
    if promise.isolation == IsolationPromise::Isolated {
        // Of a partition three files are read; only where there is none, every thread of the node.
        isolated(&mut facts, promise, Stage::Running, place);
    }
    Ok(proof(pid, Stage::Running, facts))
}

fn open(pid: i32, place: &Where<'_>) -> Result<Process, ProofError> {
    Process::open(place.proc_root, pid)
        .map_err(|source| ProofError::Process { pid, source })?
        .ok_or_else(|| ProofError::NotProcfs {
            path: place.proc_root.into(),
        })
}

fn proof(pid: i32, stage: Stage, facts: Facts) -> Proof {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Proof {
        pid,
        stage,
        at: since.as_nanos() as u64,
        facts: facts.list,
    }
}

fn cgroups(facts: &mut Facts, promise: &Promise, process: &Process) {
    if !promise.cgroups.is_empty() {
        let source = process.source("cgroup");
        match process.read("cgroup") {
            Err(e) => facts.unreadable("cgroup", "readable", source, &e),
            Ok(text) => {
                for (controller, promised) in &promise.cgroups {
                    let controller = if controller == "unified" { "" } else { controller };
                    let name = format!(
                        "cgroup.{}",
                        if controller.is_empty() {
                            "unified"
                        } else {
                            controller
                        }
                    );
                    let actual = cgroup_path(&text, controller);
                    let holds = actual == Some(promised);
                    facts.add(
                        name,
                        promised,
                        actual.unwrap_or("no such controller"),
                        source.as_str(),
                        holds,
                    );
                }
            }
        }
    }
    for file in &promise.cgroup_files {
        let source = file.path.display().to_string();
        let name = file
            .path
            .file_name()
            .map_or_else(|| source.clone(), |n| n.to_string_lossy().into_owned());
        match std::fs::read_to_string(&file.path) {
            Ok(text) => facts.equal(&name, &file.value.trim_end(), &text.trim_end(), &source),
            Err(e) => facts.unreadable(name, &file.value, source, &e),
        }
    }
}

/// The path of one controller in /proc/PID/cgroup; the empty name is version 2.
pub(super) fn cgroup_path<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (list, path) = rest.split_once(':')?;
        list.split(',').any(|c| c == controller).then_some(path)
    })
}

/// Rules in the words of devices.list, one for each device, access letters in the order r, w, m.
fn device_words<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut merged: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    for line in words {
        let (device, access) = line.rsplit_once(' ').unwrap_or((line, ""));
        merged.entry(device.to_owned()).or_default().push_str(access);
    }
    merged
        .into_iter()
        .map(|(device, access)| {
            let access: String = "rwm".chars().filter(|c| access.contains(*c)).collect();
            format!("{device} {access}")
        })
        .collect()
}

fn devices(facts: &mut Facts, promise: &Promise, place: &Where<'_>) {
    let Some(promised) = &promise.devices else { return };
    let promised = device_words(promised.iter().map(String::as_str));
    let show = |words: &[String]| {
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    };
    let source = "device rules of the cgroup";
    let Some(cgroup) = place.cgroup else {
        return facts.unreadable("devices", show(&promised), source, &"the cgroup is not known");
    };
    match cgroup.device_rules() {
        Ok(rules) => {
            let words = rules.rules.iter().map(|rule| {
                let word = rule.to_string();
                word.strip_prefix("allow ").map_or(word.clone(), str::to_owned)
            });
            let all = rules.default_allow.then(|| "a *:* rwm".to_owned());
            let words: Vec<String> = all.into_iter().chain(words).collect();
            let actual = device_words(words.iter().map(String::as_str));
            facts.add(
                "devices",
                show(&promised),
                show(&actual),
                source,
                promised == actual,
            );
        }
        Err(e) => facts.unreadable("devices", show(&promised), source, &e),
    }
}

/// Each interface as the kernel shows it in the process's own network namespace. Whether it is up is judged until
/// the program begins: a program with CAP_NET_ADMIN may set it down.
fn interfaces(facts: &mut Facts, promise: &Promise, process: &Process, stage: Stage, proc_root: &Path) {
    if promise.interfaces.is_empty() {
        return;
    }
    let path = proc_root.join(process.pid.to_string()).join("ns/net");
    let source = format!("rtnetlink in {}", path.display());
    let states = crate::net::states(&path);
    for promised in &promise.interfaces {
        let name = format!("interface.{}", promised.name);
        let words = crate::net::State {
            index: promised.index,
            name: promised.name.clone(),
            up: stage != Stage::Running,
            mtu: promised.mtu,
            vlan: promised.vlan,
            addresses: promised.addresses.clone(),
        };
        match &states {
            Err(e) => facts.unreadable(name, words.to_string(), source.as_str(), e),
            Ok(states) => {
                let actual = states.iter().find(|s| s.index == promised.index);
                let holds = actual.is_some_and(|actual| actual.covers(&words));
                let actual = actual.map_or_else(|| "not there".to_owned(), ToString::to_string);
                facts.add(name, words.to_string(), actual, source.as_str(), holds);
            }
        }
    }
}

fn identity(facts: &mut Facts, promise: &Promise, process: &Process, stage: Stage, proc_root: &Path) {
    if let Some(promised) = promise.start_time {
        let source = process.source("stat");
        match process.read("stat").map(|text| start_time(&text)) {
            Ok(Some(actual)) => facts.equal("start_time", &promised, &actual, &source),
            Ok(None) => facts.add("start_time", promised.to_string(), "malformed", source, false),
            Err(e) => facts.unreadable("start_time", promised.to_string(), source, &e),
        }
    }
    if promise.terminal && stage == Stage::ExecStop {
        let source = process.source("stat");
        match process.read("stat").map(|text| terminal(&text)) {
            // Major numbers 136 to 143 are the slaves of devpts.
            Ok(Some(tty)) => facts.add(
                "terminal",
                "on a devpts",
                format!("{}:{}", tty >> 8 & 0xfff, tty & 0xff),
                source,
                (136..144).contains(&(tty >> 8 & 0xfff)),
            ),
            Ok(None) => facts.add("terminal", "on a devpts", "malformed", source, false),
            Err(e) => facts.unreadable("terminal", "on a devpts", source, &e),
        }
    }
    if promise.foreign_executable && stage != Stage::Armed {
        let source = process.source("exe");
        let own = nix::sys::stat::stat(&proc_root.join("self/exe"));
        match (process.stat("exe"), own) {
            (Ok(file), Ok(own)) => {
                let other = (file.dev, file.ino) != (own.st_dev, own.st_ino);
                let actual = if other { "another file" } else { "berth" };
                facts.add("executable", "not berth", actual, source, other);
            }
            (Err(e), _) => facts.unreadable("executable", "not berth", source, &e),
            (_, Err(e)) => facts.unreadable("executable", "not berth", source, &e),
        }
    }
}

/// Field 7 of /proc/PID/stat: the device of the controlling terminal.
fn terminal(stat: &str) -> Option<u32> {
    let rest = stat.rsplit_once(')')?.1;
    let number: i32 = rest.split_ascii_whitespace().nth(4)?.parse().ok()?;
    Some(number as u32)
}

/// What is open when the program begins came from outside; what it opens later is its own.
fn descriptors(facts: &mut Facts, preserved: u32, process: &Process) {
    let last = 2 + i32::try_from(preserved).unwrap_or(0);
    let (promised, source) = (
        match preserved {
            0 => "0, 1, 2 at most".to_owned(),
            _ => format!("0 to {last} at most"),
        },
        process.source("fd"),
    );
    match process.descriptors() {
        Ok(mut open) => {
            open.sort_unstable();
            let words: Vec<String> = open.iter().map(i32::to_string).collect();
            facts.add(
                "descriptors",
                promised,
                words.join(", "),
                source,
                open.iter().all(|fd| *fd <= last),
            );
        }
        Err(e) => facts.unreadable("descriptors", promised, source, &e),
    }
}

fn final_values(facts: &mut Facts, promise: &Promise, process: &Process) {
    if let Some(promised) = promise.timer_slack_ns {
        let source = process.source("timerslack_ns");
        let realtime = promise.scheduler.as_ref().is_some_and(|s| s.is_realtime());
        let words = if realtime {
            format!("{promised} (0 under a real-time policy)")
        } else {
            promised.to_string()
        };
        match process.read("timerslack_ns") {
            Ok(text) => {
                let actual = text.trim();
                let holds = actual.parse() == Ok(promised) || realtime && actual == "0";
                facts.add("timer_slack", words, actual, source, holds);
            }
            Err(e) => facts.unreadable("timer_slack", words, source, &e),
        }
    }
    if !promise.rlimits.is_empty() {
        let source = process.source("limits");
        match process.read("limits") {
            Err(e) => facts.unreadable("rlimits", "readable", source, &e),
            Ok(text) => {
                for (name, promised) in &promise.rlimits {
                    let show = |soft, hard| format!("{}:{}", limit(soft), limit(hard));
                    let actual = rlimit(&text, name);
                    let words = actual.map_or_else(|| "no such limit".to_owned(), |(s, h)| show(s, h));
                    let holds = actual == Some((promised.soft, promised.hard));
                    facts.add(
                        name,
                        show(promised.soft, promised.hard),
                        words,
                        source.as_str(),
                        holds,
                    );
                }
            }
        }
    }
    if let Some(promised) = &promise.lsm_label {
        text(facts, process, "lsm.label", "attr/current", promised, |actual| {
            actual == promised
        });
    } else {
        // Nobody asked for one: what is in force is said all the same.
        let source = process.source("attr/current");
        let actual = process.read("attr/current").unwrap_or_default();
        let actual = match actual.trim_end_matches(['\0', '\n', ' ']) {
            "" => "none in force",
            label => label,
        };
        facts.add("lsm", "reported", actual, source, true);
    }
    if promise.core_cookie {
        let (promised, source) = ("a cookie of its own", "prctl(PR_SCHED_CORE_GET)");
        let cookie = |pid| crate::sys::process::core_cookie(pid);
        match cookie(process.pid).and_then(|theirs| Ok((theirs, cookie(0)?))) {
            Ok((theirs, own)) => {
                let holds = theirs != 0 && theirs != own;
                facts.add("sched.core", promised, format!("{theirs:#x}"), source, holds);
            }
            Err(errno) => facts.unreadable("sched.core", promised, source, &errno.desc()),
        }
    }
    if let Some(promised) = promise.oom_score_adj {
        let words = promised.to_string();
        text(
            facts,
            process,
            "oom_score_adj",
            "oom_score_adj",
            &words,
            |actual| actual.parse() == Ok(promised),
        );
    }
    if let Some(promised) = promise.personality {
        let holds = |actual: &str| u32::from_str_radix(actual, 16) == Ok(promised);
        text(
            facts,
            process,
            "personality",
            "personality",
            &format!("{promised:08x}"),
            holds,
        );
    }
}

/// The files of a process that is not dumpable belong to root of its user namespace. Where that is the program's own user there
/// is nothing to tell it by.
fn dumpable(facts: &mut Facts, promise: &Promise, process: &Process, proc_root: &Path) {
    let maps = promise.uid_map.iter().flatten();
    let root = maps
        .filter(|map| map.inside == 0)
        .map(|map| map.outside)
        .next()
        .unwrap_or(0);
    if promise.uid == Some(root) {
        return;
    }
    let file = proc_root.join(process.pid.to_string()).join("mem");
    let source = format!("owner of {}", file.display());
    let promised = format!("user {root}");
    match std::fs::metadata(&file).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)) {
        Ok(owner) => facts.add(
            "dumpable",
            promised,
            format!("user {owner}"),
            source,
            owner == root,
        ),
        Err(e) => facts.unreadable("dumpable", promised, source, &e),
    }
}

fn text(
    facts: &mut Facts,
    process: &Process,
    name: &str,
    file: &str,
    promised: &str,
    holds: impl Fn(&str) -> bool,
) {
    let source = process.source(file);
    match process.read(file) {
        Ok(actual) => {
            let actual = actual.trim_end_matches(['\0', '\n', ' ']);
            facts.add(name, promised, actual, source, holds(actual));
        }
        Err(e) => facts.unreadable(name, promised, source, &e),
    }
}

fn isolated(facts: &mut Facts, promise: &Promise, stage: Stage, place: &Where<'_>) {
    let must = promise.isolation == IsolationPromise::Isolated;
    if !must && (promise.isolation == IsolationPromise::None || stage != Stage::Running) {
        return;
    }
    let promised = if must { "isolated" } else { "reported" };
    let source = "cpuset partition, Cpus_allowed of every thread";
    let (Some(cpus), Some(cgroup)) = (&promise.cpus, place.cgroup) else {
        return facts.unreadable(
            "cpus.isolation",
            promised,
            source,
            &"the cgroup or its CPUs are not known",
        );
    };
    let own: std::collections::HashSet<i32> = match cgroup.procs() {
        Ok(pids) => pids.into_iter().collect(),
        Err(e) => return facts.unreadable("cpus.isolation", promised, source, &e),
    };
    match isolation(cgroup, cpus, place.proc_root, &|pid| own.contains(&pid)) {
        Ok(actual) => {
            let holds = !must || matches!(actual, Isolation::Isolated { .. });
            facts.add("cpus.isolation", promised, actual.to_string(), source, holds);
        }
        Err(e) => facts.unreadable("cpus.isolation", promised, source, &e),
    }
}
