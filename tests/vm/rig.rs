//! The rig itself: what it says and does when a test or a guest fails.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::vm::Vm;
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::boots::{BASE, Guest, Spec};
use crate::on_guest;

/// A guest whose kernel is in no archive.
pub(crate) fn without_a_guest() -> Vec<Trial> {
    vec![Trial::test(
        "rig::a guest that cannot be built is told once",
        || {
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
        },
    )]
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
