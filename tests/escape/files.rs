//! Descriptors, working folders, the runtime's own program, device nodes, kernel files, cgroups.
#![allow(unsafe_code)] // fcntl(2): a descriptor is made inheritable

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::Row;
use crate::lab::{Lab, Verdict, at_least, race_time};
use berth_tests::runtime::Runtime;

pub(crate) const ATTACKS: &[Row] = &[
    ("leaked-descriptors", "CVE-2024-21626, CVE-2016-9962", descriptors),
    ("working-folder", "CVE-2024-21626", working_folder),
    ("exec-working-folder", "CVE-2024-21626", exec_working_folder),
    ("own-program", "CVE-2019-5736", own_program),
    ("device-nodes", "device cgroup", |r| inside(r, "devices", &[])),
    (
        "kernel-files",
        "core_pattern, sysrq, uevent_helper, binfmt_misc",
        |r| inside(r, "kernel-files", &[]),
    ),
    (
        "writes-below-proc-sys",
        "every writable file of /proc and /sys",
        |r| inside(r, "proc-sys", &[]),
    ),
    ("release-agent", "CVE-2022-0492", |r| {
        inside(r, "release-agent", &[])
    }),
    (
        "cgroup-mount",
        "cgroup namespace, release_agent through a cgroup mount",
        cgroup_mount,
    ),
    ("file-handles", "open_by_handle_at (shocker)", |r| {
        inside(r, "handles", &[])
    }),
    ("chroot", "chroot and fchdir", chroot),
    ("user-namespace", "mounts from a nested user namespace", |r| {
        inside(r, "user-namespace", &[])
    }),
];

fn inside(runtime: &Runtime, attack: &str, words: &[&str]) -> Result<Verdict> {
    let lab = Lab::new(runtime, attack, words)?;
    let done = lab.run()?;
    lab.judge(&done)
}

fn chroot(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "chroot", &[])?;
    let canary = lab.canary();
    lab.config["process"]["args"]
        .as_array_mut()
        .context("args")?
        .push(canary.into());
    let done = lab.run()?;
    lab.judge(&done)
}

/// A folder of the host is open in the caller and inheritable: it must not reach the container.
fn descriptors(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "descriptors", &[])?;
    let canary = lab.canary();
    lab.config["process"]["args"]
        .as_array_mut()
        .context("args")?
        .push(canary.into());
    let folder = fs::File::open(lab.path("canary"))?;
    // SAFETY: F_SETFD with 0 takes close-on-exec away from a descriptor this function owns.
    unsafe { libc::fcntl(folder.as_raw_fd(), libc::F_SETFD, 0) };
    let done = lab.run()?;
    lab.judge(&done)
}

/// process.cwd names a descriptor of the runtime's.
fn working_folder(runtime: &Runtime) -> Result<Verdict> {
    let mut last = Verdict::Failed("no descriptor was tried".into());
    for n in 3..3 + at_least(9) {
        let mut lab = Lab::new(runtime, "climb", &[])?;
        let canary = lab.canary();
        lab.config["process"]["args"]
            .as_array_mut()
            .context("args")?
            .push(canary.into());
        lab.config["process"]["cwd"] = format!("/proc/self/fd/{n}").into();
        let done = lab.run()?;
        match lab.judge(&done)? {
            broken @ Verdict::Broken(_) => return Ok(broken),
            other => last = other,
        }
    }
    Ok(last)
}

fn exec_working_folder(runtime: &Runtime) -> Result<Verdict> {
    let lab = Lab::new(runtime, "sleep", &[])?;
    let created = lab.create()?;
    if !created.good || !lab.call(&["start", &lab.id])?.good {
        return Ok(Verdict::Failed(created.text));
    }
    let canary = lab.canary();
    let mut last = Verdict::Failed("no descriptor was tried".into());
    for n in 3..3 + at_least(9) {
        let cwd = format!("/proc/self/fd/{n}");
        let done = lab.call(&[
            "exec",
            "--cwd",
            &cwd,
            &lab.id,
            "/attacker",
            "inside",
            "climb",
            &canary,
        ])?;
        if done.text.contains(NO_EXEC) {
            return Ok(Verdict::NotHere("there is no exec".into()));
        }
        match lab.judge(&done)? {
            broken @ Verdict::Broken(_) => return Ok(broken),
            other => last = other,
        }
    }
    Ok(last)
}

/// What a runtime says that has no `exec`.
const NO_EXEC: &str = "unknown command `exec`";

/// The container lies in wait for whoever enters it, and writes into that process's program. Entered are a link
/// to /proc/self/exe and a script that names it; the runtime is a copy.
fn own_program(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "lie-in-wait", &[])?;
    let (copy, program) = runtime.copied(&lab.path("runtime"))?;
    lab.runtime = copy;
    let before = fs::read(&program)?;
    symlink("/proc/self/exe", lab.root("lure"))?;
    fs::write(lab.root("script"), "#!/proc/self/exe\n")?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(lab.root("script"), fs::Permissions::from_mode(0o755))?;
    let canary = lab.canary();
    lab.config["process"]["args"]
        .as_array_mut()
        .context("args")?
        .push(canary.into());
    lab.volume("result", "/result")?;
    let created = lab.create()?;
    if !created.good || !lab.call(&["start", &lab.id])?.good {
        return Ok(Verdict::Failed(created.text));
    }
    let begun = Instant::now();
    let mut tries = 0;
    while begun.elapsed() < race_time() || tries < at_least(5) {
        for program in ["/lure", "/script"] {
            let done = lab.call(&["exec", &lab.id, program, "--version"])?;
            if done.text.contains(NO_EXEC) {
                return Ok(Verdict::NotHere("there is no exec".into()));
            }
        }
        tries += 1;
    }
    // What is open for writing waits until nobody runs it.
    std::thread::sleep(Duration::from_millis(300));
    let ended = lab.call(&["delete", "--force", &lab.id])?;
    if fs::read(&program)? != before {
        return Ok(Verdict::Broken(
            "the runtime's own program was overwritten".into(),
        ));
    }
    let said = fs::read_to_string(lab.path("result/out")).unwrap_or_default();
    if said.contains("WATCHING") {
        return Ok(match lab.judge(&ended)? {
            broken @ Verdict::Broken(_) => broken,
            _ => Verdict::Held,
        });
    }
    Ok(Verdict::Failed(format!("the attacker never watched: {said}")))
}

/// A cgroup mount is asked for, writable: it shows the container's own part, without a release_agent.
fn cgroup_mount(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "cgroups", &[])?;
    let mounts = lab.config["mounts"].as_array_mut().context("mounts")?;
    mounts.push(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                       "options": ["nosuid", "noexec", "nodev", "relatime"]}),
    );
    let done = lab.run()?;
    lab.judge(&done)
}
