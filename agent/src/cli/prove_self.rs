//! `berth prove agent` and `berth prove launcher`: berth's own processes, read from the kernel from outside, by the
//! caller. The one thing that no file of the kernel shows, Landlock rules, the agent tries and tells: such a row says so.

use std::fs;
use std::path::Path;

use berth_rt::cpu::CpuSet;
use berth_runtime::proof::Fact;

use crate::daemon::sandbox::Sandbox;

/// What /proc says of one process.
struct Process {
    root: String,
    status: String,
}

impl Process {
    fn open(pid: u32) -> anyhow::Result<Process> {
        let root = format!("/proc/{pid}");
        let status = fs::read_to_string(format!("{root}/status"))?;
        Ok(Process { root, status })
    }

    fn field(&self, name: &str) -> String {
        let line = self
            .status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or_else(
            || "not told".to_owned(),
            |value| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        )
    }

    fn equal(&self, facts: &mut Vec<Fact>, name: &str, field: &str, promised: &str) {
        let actual = self.field(field);
        facts.push(fact(
            name,
            promised,
            &actual,
            &format!("{}/status {field}", self.root),
            actual == promised,
        ));
    }

    fn link(&self, file: &str) -> String {
        fs::read_link(Path::new(&self.root).join(file))
            .map_or_else(|e| e.to_string(), |l| l.display().to_string())
    }

    /// What has no promise is shown all the same.
    fn shown(&self, facts: &mut Vec<Fact>) {
        for kind in ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"] {
            let (own, first) = (
                self.link(&format!("ns/{kind}")),
                fs::read_link(format!("/proc/1/ns/{kind}")),
            );
            let same = first.is_ok_and(|first| first.display().to_string() == own);
            let words = format!("{own}{}", if same { ", that of process 1" } else { "" });
            facts.push(fact(
                &format!("namespace.{kind}"),
                "shown",
                &words,
                &format!("{}/ns/{kind}", self.root),
                true,
            ));
        }
        let file = format!("{}/attr/current", self.root);
        let label = fs::read_to_string(&file).map_or_else(
            |_| "no LSM label".to_owned(),
            |l| l.trim_end_matches(['\0', '\n']).to_owned(),
        );
        facts.push(fact("lsm.label", "shown", &label, &file, true));
    }
}

fn fact(name: &str, promised: &str, actual: &str, source: &str, holds: bool) -> Fact {
    Fact {
        name: name.to_owned(),
        promised: promised.to_owned(),
        actual: actual.to_owned(),
        source: source.to_owned(),
        holds,
    }
}

/// The agent.
pub(super) fn agent(sandbox: &Sandbox) -> anyhow::Result<Vec<Fact>> {
    let process = Process::open(sandbox.pid)?;
    let mut facts = Vec::new();
    process.equal(&mut facts, "uid", "Uid", "0 0 0 0");
    for (name, field) in [
        ("caps.effective", "CapEff"),
        ("caps.permitted", "CapPrm"),
        ("caps.inheritable", "CapInh"),
        ("caps.bounding", "CapBnd"),
        ("caps.ambient", "CapAmb"),
    ] {
        process.equal(&mut facts, name, field, "0000000000000000");
    }
    process.equal(&mut facts, "no_new_privs", "NoNewPrivs", "1");
    process.equal(&mut facts, "seccomp.mode", "Seccomp", "2");
    let filters = process.field("Seccomp_filters");
    let some = filters.parse::<u32>().is_ok_and(|n| n > 0);
    facts.push(fact(
        "seccomp.filters",
        "1 or more",
        &filters,
        &format!("{}/status Seccomp_filters", process.root),
        some,
    ));
    process.equal(&mut facts, "threads", "Threads", "1");
    let source =
        "open(2) of /, tried and told by the agent itself: no file of the kernel shows Landlock rules";
    let version = format!("{} (version {} of Landlock)", sandbox.probe, sandbox.landlock);
    facts.push(fact(
        "landlock",
        "EACCES",
        &version,
        source,
        sandbox.probe == "EACCES" && sandbox.landlock > 0,
    ));
    let cpus = process.field("Cpus_allowed_list");
    let within = match (cpus.parse::<CpuSet>(), sandbox.housekeeping.parse::<CpuSet>()) {
        (Ok(own), Ok(housekeeping)) => own.is_subset(&housekeeping),
        _ => false,
    };
    let promised = format!("within the housekeeping CPUs {}", sandbox.housekeeping);
    facts.push(fact(
        "cpus.allowed",
        &promised,
        &cpus,
        &format!("{}/status Cpus_allowed_list", process.root),
        within,
    ));
    for missing in &sandbox.missing {
        facts.push(fact("missing", "nothing", missing, "--on-missing report", false));
    }
    process.shown(&mut facts);
    Ok(facts)
}

/// The launcher: what it promises of itself. A filter, Landlock rules or no_new_privs would be inherited by every
/// container, so it has none; what holds it is its policy.
pub(super) fn launcher(pid: u32) -> anyhow::Result<Vec<Fact>> {
    let process = Process::open(pid)?;
    let mut facts = Vec::new();
    process.equal(&mut facts, "uid", "Uid", "0 0 0 0");
    process.equal(&mut facts, "threads", "Threads", "1");
    for (name, field) in [("no_new_privs", "NoNewPrivs"), ("seccomp.mode", "Seccomp")] {
        process.equal(&mut facts, name, field, "0");
    }
    let exe = process.link("exe");
    let sealed = exe.starts_with("/memfd:berth");
    facts.push(fact(
        "executable",
        "a sealed copy in memory",
        &exe,
        &format!("{}/exe", process.root),
        sealed,
    ));
    let stdin = process.link("fd/0");
    facts.push(fact(
        "stdin",
        "/dev/null",
        &stdin,
        &format!("{}/fd/0", process.root),
        stdin == "/dev/null",
    ));
    let bounding = process.field("CapBnd");
    facts.push(fact(
        "caps.bounding",
        "shown",
        &bounding,
        &format!("{}/status CapBnd", process.root),
        true,
    ));
    process.shown(&mut facts);
    Ok(facts)
}
