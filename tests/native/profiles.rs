//! Profiles as an operator meets them: each shipped one from inside, ids of its own, recording a run and what fails
//! when one thing of the recorded profile is taken away.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::journey::{pid, wait_running};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "profiles::each shipped one: what is inside is what it says",
            shipped,
        ),
        test(
            "profiles::two containers have ids of their own, and free them",
            ids,
        ),
        test(
            "profiles::a recorded run runs under its profile, and not with less",
            recorded,
        ),
    ]
}

const IMAGE: &str = "berth-sample-busybox:latest";

fn workload(name: &str, profile: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: {IMAGE}\n  profile: {profile}\n  \
         command: [\"/bin/sh\", \"-c\", \"while :; do sleep 0.1; done\"]\n  cpus: shared\n  stop: {{signal: SIGKILL, grace: 1s}}\n"
    )
}

/// The bit of a capability (capability.h), asked of the machine's own list through `capsh`-like numbers.
fn mask(names: &[&str], last: u32) -> u64 {
    const ALL: [&str; 41] = [
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
    let known = ALL.iter().enumerate().filter(|(n, _)| *n as u32 <= last);
    known
        .filter(|(_, name)| names.contains(name))
        .fold(0, |bits, (n, _)| bits | 1 << n)
}

fn shipped() -> Result<()> {
    let mut agent = Agent::start("shipped")?;
    let table: [(&str, &[&str], bool, bool); 4] = [
        // name, capabilities, own users, writable root
        ("strict", &[], true, false),
        ("device-worker", &["NET_RAW"], true, false),
        (
            "system",
            &[
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
            ],
            true,
            true,
        ),
        (
            "network-function",
            &["IPC_LOCK", "SYS_NICE", "NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"],
            false,
            false,
        ),
    ];
    for (profile, capabilities, own_users, writable) in table {
        agent.apply(&workload(profile, profile))?;
        wait_running(&mut agent, profile, 1)?;
        let script = "cat /proc/self/status; echo ---; cat /proc/self/uid_map; echo ---; \
             touch /probe 2>/dev/null && echo writable || echo read-only; \
             cat /proc/kcore > /dev/null 2>&1 || echo masked; wc -c < /proc/keys; \
             echo 1 > /proc/sys/kernel/printk 2>/dev/null || echo fixed; ls /dev | wc -l; \
             dd if=/dev/sda of=/dev/null count=1 2>/dev/null || echo no disk";
        let said = agent.ok(&["exec", profile, "--", "/bin/sh", "-c", script])?;
        let bits = mask(capabilities, 40);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let line = format!("{set}:\t{bits:016x}");
            ensure!(said.contains(&line), "{profile}: no `{line}` in\n{said}");
        }
        for line in [
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            ensure!(said.contains(line), "{profile}: no `{line}` in\n{said}");
        }
        let map = said.split("---\n").nth(1).context("no map")?.trim().to_owned();
        let words: Vec<&str> = map.split_ascii_whitespace().collect();
        ensure!(
            (words[1] != "0") == own_users && words[0] == "0",
            "{profile}: {map}"
        );
        for (word, there) in [
            ("writable", writable),
            ("read-only", !writable),
            ("fixed", true),
            ("no disk", true),
        ] {
            ensure!(said.contains(word) == there, "{profile}: {word}: {said}");
        }
        agent.ok(&["prove", profile])?;
        agent.ok(&["stop", profile])?;
    }
    agent.finish()
}

fn uid_map(pid: i64) -> Result<(u32, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let words: Vec<u32> = text
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok((words[1], words[2]))
}

fn ids() -> Result<()> {
    let mut agent = Agent::start("ids")?;
    agent.apply(&workload("one", "strict"))?;
    agent.apply(&format!("---\n{}", workload("two", "strict")))?;
    wait_running(&mut agent, "one", 1)?;
    wait_running(&mut agent, "two", 1)?;
    let mut firsts = BTreeSet::new();
    for name in ["one", "two"] {
        let pid = pid(&agent, name)?;
        let (first, count) = uid_map(pid)?;
        ensure!(count == 65536 && first >= 0x1000_0000, "{name}: {first} {count}");
        firsts.insert(first);
        // Root inside is that id for the rest of the node.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(status.contains(&format!("Uid:\t{first}\t")), "{status}");
        let proof = agent.ok(&["prove", name])?;
        ensure!(
            proof.contains("uid_map") && proof.contains(&format!("0:{first}:65536")),
            "{proof}"
        );
    }
    ensure!(firsts.len() == 2, "they share a range: {firsts:?}");
    let ranges = agent.path("state").join("ranges");
    ensure!(std::fs::read_dir(&ranges)?.count() == 2);
    agent.ok(&["stop", "one", "two"])?;
    agent.wait_for("the ranges are free", |_| {
        Ok(std::fs::read_dir(&ranges)?.count() == 0)
    })?;
    agent.finish()
}

/// A run that makes a file, gives it away and locks it; each of it needs a right of its own.
const SAMPLE: [&str; 3] = [
    "/bin/sh",
    "-c",
    "echo hi > /made && chown 5:5 /made && chmod 600 /made && cat /etc/passwd > /dev/null",
];

fn recorded() -> Result<()> {
    let agent = Agent::prepare("recorded")?;
    let run = |args: &[&str]| {
        let mut command = agent.command();
        command
            .args(args)
            .arg(IMAGE)
            .args(SAMPLE)
            .output()
            .context("berth profile")
    };
    let out = run(&["profile", "record", "sample", "--under", "system", "--files"])?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let document: Value = serde_json::from_slice(&out.stdout)?;
    let spec = &document["spec"];
    ensure!(
        spec["capabilities"]["set"] == json!(["CAP_CHOWN", "CAP_FOWNER"]),
        "{}",
        spec["capabilities"]
    );
    let file = agent.path("recorded.yaml");
    let path = file.to_str().context("path")?.to_owned();
    let attempt = |document: &Value| -> Result<(bool, String)> {
        std::fs::write(&file, serde_json::to_vec(document)?)?;
        let out = run(&["profile", "try", "sample", "-f", &path])?;
        Ok((
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned(),
        ))
    };
    let (done, said) = attempt(&document)?;
    ensure!(done, "under its own profile: {said}");
    for capability in ["CAP_CHOWN", "CAP_FOWNER"] {
        let mut less = document.clone();
        let set = less["spec"]["capabilities"]["set"]
            .as_array_mut()
            .context("set")?;
        set.retain(|name| name != capability);
        let (done, said) = attempt(&less)?;
        ensure!(!done && said.contains(capability), "without {capability}: {said}");
    }
    // Calls without which this program cannot do its work; others it can live without.
    for call in ["openat", "chown", "chmod", "wait4", "dup2"] {
        let mut less = document.clone();
        let names = &mut less["spec"]["seccomp"]["syscalls"][0]["names"];
        let names = names.as_array_mut().context("names")?;
        let before = names.len();
        names.retain(|name| name != call);
        ensure!(names.len() == before - 1, "{call} was not recorded");
        let (done, said) = attempt(&less)?;
        ensure!(
            !done && said.contains(&format!("system call {call}: the filter answers EPERM")),
            "without {call}: {said}"
        );
    }
    let mut less = document.clone();
    less["spec"]["landlock"]["paths"]
        .as_array_mut()
        .context("paths")?
        .retain(|rule| rule["path"] != "/");
    let (done, said) = attempt(&less)?;
    ensure!(!done && said.contains("EACCES"), "without its files: {said}");
    agent.finish()
}
