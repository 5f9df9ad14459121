//! Profiles as an operator meets them: each shipped one from inside, ids of its own, recording a run and what fails
//! when one thing of the recorded profile is taken away.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use berth_runtime::seccomp::{Architecture, syscall_names, syscall_number};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::journey::{pid, wait_running};
use crate::loaded;
use crate::shipped::reference::Reference;
use crate::shipped::{self, Node, SHIPPED};
use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "profiles::each shipped one: what is inside is what it says",
            shipped,
        ),
        test(
            "profiles::dumpable or not: who of its own user looks into it",
            dumpable,
        ),
        test("profiles::the filter of a profile asks who listens", notified),
        test(
            "profiles::files are not labelled where there are no labels",
            unlabelled,
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

/// This machine, as the table of the shipped profiles asks it.
struct Here<'a>(&'a Agent);

impl Node for Here<'_> {
    fn shell(&mut self, script: &str) -> Result<String> {
        let out = Command::new("sh").args(["-c", script]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "{script}: {text}{said}");
        Ok(text)
    }

    fn inside(&mut self, container: &str, script: &str) -> Result<String> {
        self.0.ok(&["exec", container, "--", "/bin/sh", "-c", script])
    }

    fn arm(&self) -> bool {
        cfg!(target_arch = "aarch64")
    }
}

/// Does this machine give its root every capability? If not, nobody can hand them all on.
fn has_every_capability() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:\t"));
    let held = u64::from_str_radix(mask.context("CapEff")?, 16)?;
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?;
    Ok(held.count_ones() == last + 1)
}

fn shipped() -> Result<()> {
    let mut agent = Agent::start("shipped")?;
    agent.apply(&format!(
        "{}{}",
        shipped::UNFILTERED,
        shipped::workload("unfiltered", "unfiltered")
    ))?;
    wait_running(&mut agent, "unfiltered", 1)?;
    let lacking = shipped::lacking(&mut Here(&agent), "unfiltered")?;
    agent.ok(&["stop", "unfiltered"])?;
    let all = has_every_capability()?;
    for one in &SHIPPED {
        agent.apply(&shipped::workload(one.name, one.name))?;
        if one.name == "privileged" && !all {
            agent.wait_for("privileged is refused by the capability it lacks", |a| {
                Ok(a.ok(&["ps"])?.contains("is not held by the runtime itself"))
            })?;
            continue;
        }
        wait_running(&mut agent, one.name, 1)?;
        let pid = pid(&agent, one.name)?;
        shipped::check(&mut Here(&agent), one, one.name, pid, &lacking)
            .with_context(|| format!("profile {}", one.name))?;
        in_force(one.name, i32::try_from(pid)?)?;
        agent.ok(&["prove", one.name])?;
        agent.ok(&["stop", one.name])?;
    }
    agent.finish()
}

/// The filter that the kernel has loaded for a container's first process, read back and evaluated: every call of this
/// architecture's table, with arguments around every value that the profile compares with.
fn in_force(profile: &str, pid: i32) -> Result<()> {
    let arm = cfg!(target_arch = "aarch64");
    let Some((document, node)) = shipped::filter(profile, arm)? else {
        return Ok(());
    };
    let filter = loaded::filter(pid)?;
    let reference = Reference::of(&document, &node);
    let native = Architecture::NATIVE;
    let mut judged = 0;
    for name in syscall_names() {
        let Some(number) = syscall_number(native, name) else {
            continue;
        };
        for args in reference.arguments(name) {
            let (expected, answer) = (
                reference.answer(name, &args),
                filter.evaluate(native, number, &args),
            );
            ensure!(
                answer == Some(expected),
                "{profile}: {name}({args:x?}): {answer:x?}, not {expected:x}"
            );
            judged += 1;
        }
    }
    ensure!(judged > 700, "{profile}: {judged}");
    Ok(())
}

fn dumpable() -> Result<()> {
    let mut agent = Agent::start("dumpable")?;
    for dumpable in [true, false] {
        let name = if dumpable { "open" } else { "closed" };
        agent.apply(&shipped::dumpable(name, dumpable))?;
        wait_running(&mut agent, name, 1)?;
        let said = Here(&agent).inside(name, shipped::LOOK)?;
        ensure!(said.contains("looked") == dumpable, "dumpable {dumpable}: {said}");
        agent.ok(&["prove", name])?;
        agent.ok(&["stop", name])?;
    }
    agent.finish()
}

/// SCMP_ACT_NOTIFY in a profile: the listener that it names gets the descriptor and the state, and decides; where nobody listens
/// nothing is launched.
fn notified() -> Result<()> {
    let mut agent = Agent::start("notified")?;
    let path = agent.path("asks.sock");
    let document = format!(
        "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {{name: asks}}\nspec:\n  seccomp:\n    defaultAction: SCMP_ACT_ALLOW\n    \
         listenerPath: {}\n    listenerMetadata: word\n    syscalls: [{{names: [mkdir, mkdirat], action: SCMP_ACT_NOTIFY}}]\n---\n{}",
        path.display(),
        shipped::workload("asks", "asks")
    );
    agent.apply(&document)?;
    agent.wait_for("without a listener it is refused by name", |a| {
        let said = a.ok(&["ps"])?;
        Ok(said.contains("listenerPath") && said.contains("asks.sock"))
    })?;
    agent.ok(&["stop", "asks"])?;
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let taker = std::thread::spawn(move || -> Result<(Value, OwnedFd)> {
        let (stream, _) = listener.accept()?;
        let mut buffer = vec![0u8; 64 * 1024];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let bytes = got.bytes;
        let descriptor = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(list) => list.first().copied(),
            _ => None,
        });
        let descriptor = descriptor.context("no descriptor")?;
        Ok((serde_json::from_slice(&buffer[..bytes])?, loaded::own(descriptor)))
    });
    agent.ok(&["start", "asks"])?;
    wait_running(&mut agent, "asks", 1)?;
    let (state, notifications) = taker.join().map_err(|_| anyhow::anyhow!("the listener"))??;
    ensure!(
        state["metadata"] == "word" && state["fds"] == json!(["seccompFd"]),
        "{state}"
    );
    // Nobody answers any more: each such call has no effect.
    drop(notifications);
    agent.ok(&["stop", "asks"])?;
    agent.finish()
}

fn unlabelled() -> Result<()> {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        berth_tests::skips::skip("profiles::unlabelled", "this machine has SELinux");
        return Ok(());
    }
    let mut agent = Agent::start("unlabelled")?;
    let source = agent.path("data");
    std::fs::create_dir(&source)?;
    let mounts = format!(
        "  mounts: [{{source: {}, destination: /tmp/data, relabel: private}}]\n",
        source.display()
    );
    agent.apply(&(shipped::workload("labelled", "strict") + &mounts))?;
    agent.wait_for("it is refused by name", |a| {
        Ok(a.ok(&["ps"])?.contains("SELinux is not enabled"))
    })?;
    agent.ok(&["stop", "labelled"])?;
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
