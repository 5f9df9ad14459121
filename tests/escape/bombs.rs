//! Bombs: tasks, memory, descriptors, inotify. Each ends within its own limit, and everything is freed after it.

use std::fs;

use anyhow::Result;
use serde_json::json;

use crate::Row;
use crate::lab::{Lab, Verdict};
use berth_tests::runtime::Runtime;

pub(crate) const ATTACKS: &[Row] = &[
    ("fork-bomb", "pids limit 64", |r| bomb(r, "fork-bomb")),
    ("memory-bomb", "memory limit 128 MiB", memory),
    ("descriptor-bomb", "RLIMIT_NOFILE 512", |r| {
        bomb(r, "descriptor-bomb")
    }),
    ("inotify-bomb", "of another uid than root", inotify),
    ("stop-fork-bomb", "SIGKILL to all of a fork bomb", stop_fork_bomb),
];

fn bomb(runtime: &Runtime, name: &str) -> Result<Verdict> {
    let lab = Lab::new(runtime, name, &[])?;
    let done = lab.run()?;
    lab.judge(&done)
}

/// It is ended by the kernel: no word of it is the sign.
fn memory(runtime: &Runtime) -> Result<Verdict> {
    let lab = Lab::new(runtime, "memory-bomb", &[])?;
    let done = lab.run()?;
    if !done.text.contains("GROWING") {
        return Ok(Verdict::Failed(done.text));
    }
    if done.good || done.text.contains("DONE") {
        return Ok(Verdict::Broken("it had four times its limit".into()));
    }
    Ok(Verdict::Held)
}

/// The number of inotify instances is one for each uid and all containers: what a container of uid 4242 takes, the
/// host's root must not miss.
fn inotify(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "inotify-bomb", &[])?;
    lab.config["process"]["user"] = json!({"uid": 4242, "gid": 4242});
    let result = lab.volume("result", "/result")?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&result, fs::Permissions::from_mode(0o777))?;
    fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o755))?;
    let created = lab.create()?;
    if !created.good || !lab.call(&["start", &lab.id])?.good {
        return Ok(Verdict::Failed(created.text));
    }
    for _ in 0..500 {
        if fs::read_to_string(result.join("out")).is_ok_and(|t| t.contains("HOLDING")) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let host = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::IN_CLOEXEC);
    let said = fs::read_to_string(result.join("out")).unwrap_or_default();
    let _ = lab.call(&["delete", "--force", &lab.id]);
    if !said.contains("HOLDING") {
        return Ok(Verdict::Failed(format!("the attacker held nothing: {said}")));
    }
    Ok(match host {
        Ok(_) => Verdict::Held,
        Err(e) => Verdict::Broken(format!("the host's root has no inotify left: {e}")),
    })
}

/// Every process forks as fast as it can and ignores signals: one delete ends all.
fn stop_fork_bomb(runtime: &Runtime) -> Result<Verdict> {
    let lab = Lab::new(runtime, "endless-fork-bomb", &[])?;
    let created = lab.create()?;
    if !created.good || !lab.call(&["start", &lab.id])?.good {
        return Ok(Verdict::Failed(created.text));
    }
    let pid = lab.pid()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let deleted = lab.call(&["delete", "--force", &lab.id])?;
    if deleted.hung {
        return Ok(Verdict::Broken("delete --force hangs".into()));
    }
    let left = (0..300).all(|n| {
        if n > 0 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        processes(&lab.id) > 0
    });
    Ok(if left {
        Verdict::Broken(format!(
            "{} of its processes are left ({pid} was the first)",
            processes(&lab.id)
        ))
    } else {
        Verdict::Held
    })
}

fn processes(id: &str) -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|e| fs::read_to_string(e.path().join("cgroup")).is_ok_and(|c| c.contains(id)))
        .count()
}
