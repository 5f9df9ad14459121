//! The rig itself: what it says and does when a test or a guest fails.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::vm::Vm;
use libtest_mimic::Failed;

use serde_json::json;

use crate::boots::{BASE, Guest, Spec};
use crate::lanes::Trial;
use crate::on_guest;

/// What a guest's image and QEMU need of the machine.
const PROGRAMS: [&str; 10] = [
    "qemu-system-x86_64",
    "qemu-system-aarch64",
    "cpio",
    "mke2fs",
    "modprobe",
    "zstd",
    "python3",
    "secilc",
    "setfiles",
    "apt-cache",
];

/// This very program on a machine that lacks something: a line for each guest says what, and how much was not run, and
/// the run fails.
fn lacking(missing: &[&str], out: &Path, guest: &str, words: &str) -> Result<()> {
    let programs = tempfile::tempdir()?;
    let path = std::env::var_os("PATH").context("no PATH")?;
    for program in PROGRAMS.iter().filter(|program| !missing.contains(program)) {
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join(program))
            .find(|file| file.exists());
        if let Some(found) = found {
            std::os::unix::fs::symlink(found, programs.path().join(program))?;
        }
    }
    let run = Command::new(std::env::current_exe()?)
        // Of all tests none: what is asked of the machine is asked first.
        .args(["--exact", "no such test"])
        .env("PATH", programs.path())
        .env("RIG_OUT", out)
        .output()?;
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    let line = said
        .lines()
        .find(|line| line.starts_with(&format!("SKIP guest {guest}: ")))
        .with_context(|| format!("no word of the guest {guest} in\n{said}"))?;
    ensure!(
        line.contains(words) && line.ends_with(" tests were not run"),
        "{line}"
    );
    ensure!(!run.status.success(), "it ended with {}:\n{said}", run.status);
    Ok(())
}

fn machines() -> Result<()> {
    let empty = tempfile::tempdir()?;
    for (missing, out, guest, words) in [
        (
            &["qemu-system-x86_64"][..],
            empty.path(),
            "rt-6.12",
            "qemu-system-x86_64 is missing (apt-get install",
        ),
        (
            &["qemu-system-aarch64"],
            Path::new("/sys/rig"),
            "arm64",
            "qemu-system-aarch64 is missing (apt-get install",
        ),
        // No archive's lists can be read.
        (
            &["apt-cache"],
            empty.path(),
            "arm64",
            "dpkg --add-architecture arm64 && apt-get update",
        ),
        // A file system without a free block.
        (
            &[],
            Path::new("/sys/rig"),
            "rt-6.12",
            " MiB are free for the guest's image",
        ),
    ] {
        lacking(missing, out, guest, words)
            .with_context(|| format!("without {missing:?} in {}", out.display()))?;
    }
    Ok(())
}

/// Machines that lack something; a guest whose kernel is in no archive.
pub(crate) fn without_a_guest() -> Vec<Trial> {
    vec![
        Trial::test("rig::a machine without QEMU, packages or disk is told so", || {
            machines().map_err(|e| Failed::from(format!("{e:#}")))
        }),
        Trial::test("rig::a guest that cannot be built is told once", || {
            let guest = Guest::new(Spec {
                name: "nowhere",
                kernel: "linux-image-no-such-kernel-amd64",
                ..BASE
            });
            let (first, second) = (
                attempt(&guest, "one", |_| Ok(()))?,
                attempt(&guest, "two", |_| Ok(()))?,
            );
            for (text, words) in [
                (
                    &first,
                    "no package linux-image-no-such-kernel-amd64:amd64 in the archive",
                ),
                (&first, "was not run"),
                (&second, "not run: nowhere::one says why"),
            ] {
                if !text.contains(words) || text.lines().count() > 1 {
                    return Err(format!("no {words:?} in {text:?}, or more than one line").into());
                }
            }
            Ok(())
        }),
    ]
}

/// A test that fails on purpose, and a look at what it left.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let inner = guest.clone();
    let name = "a test that fails leaves nothing plugged";
    vec![Trial::test(format!("{}::{name}", guest.name()), move || {
        let text = attempt(&inner, "fails on purpose", |vm| {
            on_guest::agent(vm)?;
            vm.plug(
                "e1000e",
                json!({"id": "left", "bus": "rp1", "netdev": "net2", "mac": "52:54:00:be:27:77"}),
            )?;
            vm.until(
                "the card is there",
                "cat /sys/class/net/*/address | grep be:27:77",
                crate::devices::LIMIT,
            )?;
            bail!("on purpose")
        })?;
        inner
            .attempt("looks", move |vm| looks(vm, &text))
            .map_err(Failed::from)
    })]
}

fn looks(vm: &mut Vm, text: &str) -> Result<()> {
    ensure!(text.starts_with("on purpose"), "{text}");
    let kept = text
        .rsplit("console and log are kept in ")
        .next()
        .map(Path::new)
        .context("no folder")?;
    for file in ["console.log", "qemu.log", "guest.log"] {
        ensure!(kept.join(file).exists(), "no {file} in {}", kept.display());
    }
    ensure!(
        std::fs::read_to_string(kept.join("guest.log"))?.contains("device events from"),
        "guest.log has no line of the agent's"
    );
    let there = vm.qmp("qom-list", json!({"path": "/machine/peripheral"}))?;
    ensure!(!there.to_string().contains("\"left\""), "still plugged: {there}");
    vm.forget();
    Ok(())
}

/// What the test said when it failed.
fn attempt(guest: &Guest, name: &str, body: impl Fn(&mut Vm) -> Result<()>) -> Result<String, Failed> {
    match guest.attempt(name, body) {
        Ok(()) => Err(format!("{name} did not fail").into()),
        Err(text) => Ok(text),
    }
}
