//! Every field of the OCI specification on this machine's kernel: the cases of berth-fields with berth, and with
//! Debian's crun and runc, which show that a case asks for the right thing.

use std::process::Command;

use anyhow::{Result, ensure};
use berth_tests::agent::workspace;
use libtest_mimic::Trial;

use crate::bundle::text;
use crate::test;

const PROGRAM: &str = env!("CARGO_BIN_EXE_berth-fields");

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("fields::each has its effect, or is refused by name", || {
            all("berth")
        }),
        test("fields::the same cases with crun", || all("crun")),
        test("fields::the same cases with runc", || all("runc")),
        test("fields::the table of conformance.md is the cases'", table),
        test("fields::a runtime that is none holds nothing", nobody),
    ]
}

fn all(runtime: &str) -> Result<()> {
    let output = Command::new(PROGRAM).args(["all", runtime]).output()?;
    let text = text(&output);
    println!("{text}");
    ensure!(output.status.success(), "{text}");
    Ok(())
}

fn table() -> Result<()> {
    let output = Command::new(PROGRAM).arg("table").output()?;
    ensure!(output.status.success(), "{}", text(&output));
    let table = String::from_utf8(output.stdout)?;
    let page = std::fs::read_to_string(workspace().join("docs/conformance.md"))?;
    ensure!(
        page.contains(&table),
        "put what `berth-fields table` says into docs/conformance.md:\n{table}"
    );
    Ok(())
}

/// A program that runs nothing and answers 0 must not pass.
fn nobody() -> Result<()> {
    let output = Command::new(PROGRAM).args(["all", "true"]).output()?;
    ensure!(!output.status.success(), "{}", text(&output));
    Ok(())
}
