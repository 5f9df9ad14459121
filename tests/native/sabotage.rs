//! Each enforcement step taken away from outside: the system call answers 0 and does nothing. The launch must not
//! happen, and the workload's first instruction must not run.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::bundle::{Bundle, text};
use crate::test;

/// The call, the first argument where only that one is meant, and what makes the bundle depend on it.
const CALLS: &[(&str, &str)] = &[
    ("prctl:38", "no_new_privs"),
    ("prctl:24", "the bounding set"),
    ("capset", "the capability sets"),
    ("seccomp:1", "the seccomp filter"),
    ("sched_setattr", "the scheduling policy"),
    ("pivot_root", "the root"),
    ("mount_setattr", "read-only and masked paths"),
    ("move_mount", "the mounts"),
    ("setresuid", "the user"),
    ("setresgid", "the group"),
    ("setgroups", "the supplementary groups"),
    ("prlimit64", "the resource limits"),
    ("sethostname", "the host name"),
    ("close_range", "inherited descriptors"),
];

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = vec![test(
        "sabotage::the bundle runs when nothing is sabotaged",
        || {
            let bundle = bundle()?;
            let output = bundle.run()?;
            ensure!(
                output.status.success() && text(&output).contains("FIRST-INSTRUCTION"),
                "{}",
                text(&output)
            );
            Ok(())
        },
    )];
    tests.extend(CALLS.iter().map(|&(call, what)| {
        test(format!("sabotage::{call} ({what}) does nothing"), move || {
            let mut bundle = bundle()?;
            if call == "capset" {
                // Exec alone gives root its bounding set, and takes everything from others: only what is inherited
                // depends on capset(2).
                let caps = serde_json::json!(["CAP_NET_BIND_SERVICE"]);
                for set in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
                    bundle.config["process"]["capabilities"][set] = caps.clone();
                }
            }
            let saboteur = env!("CARGO_BIN_EXE_berth-sabotage");
            let output = bundle.run_behind(&[
                "/bin/sh",
                "-c",
                "exec 9</etc/hostname && exec \"$@\"",
                "sh",
                saboteur,
                call,
                "--",
            ])?;
            let text = text(&output);
            ensure!(
                !text.contains("FIRST-INSTRUCTION"),
                "the workload ran without {what}:\n{text}"
            );
            ensure!(
                !output.status.success(),
                "the launch claims success without {what}:\n{text}"
            );
            ensure!(
                !text.trim().is_empty(),
                "no word about why the launch without {what} failed"
            );
            Ok(())
        })
    }));
    tests
}

/// A bundle whose every promise depends on a call above.
fn bundle() -> Result<Bundle> {
    let mut bundle = Bundle::sh("sabotage", "echo FIRST-INSTRUCTION")?;
    let process = &mut bundle.config["process"];
    process["user"] = serde_json::json!({"uid": 1234, "gid": 4321, "additionalGids": [77]});
    process["scheduler"] = serde_json::json!({"policy": "SCHED_FIFO", "priority": 7});
    let cpu = &mut bundle.config["linux"]["resources"]["cpu"];
    cpu["realtimeRuntime"] = 20_000.into();
    cpu["realtimePeriod"] = 1_000_000.into();
    Ok(bundle)
}
