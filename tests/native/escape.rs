//! Published escapes against `berth oci` on this machine's kernel: one test for each attack of berth-escape.

use std::process::Command;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use crate::bundle::text;
use crate::test;

/// The suite and its attacker.
const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-escape");

pub(crate) fn tests() -> Vec<Trial> {
    let list = Command::new(PROGRAM).arg("list").output();
    let list = list
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let mut tests: Vec<Trial> = list
        .lines()
        .map(|name| {
            let name = name.to_owned();
            test(format!("escape::{name}"), move || attack(&name))
        })
        .collect();
    tests.push(test("escape::a runtime that is none holds nothing", nobody));
    tests
}

fn attack(name: &str) -> Result<()> {
    let output = Command::new(PROGRAM).args(["one", name, "berth"]).output()?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok(())
}

/// A program that runs nothing and answers 0 must not pass for one that holds everything.
fn nobody() -> Result<()> {
    let output = Command::new(PROGRAM)
        .args(["one", "device-nodes", "true"])
        .output()?;
    ensure!(!output.status.success(), "{}", text(&output));
    Ok(())
}
