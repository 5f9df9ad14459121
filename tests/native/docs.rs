//! The operator's documents name what there is: every metric of a scrape, every command, every shipped profile.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, workspace};
use libtest_mimic::Trial;

use crate::test;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("docs::every metric of a scrape is in metrics.md", metrics),
        test("docs::every command is in commands.md", commands),
        test("docs::every shipped profile is in profiles.md", profiles),
        test("docs::every test that SPECIFICATION names exists", specification),
    ]
}

fn page(name: &str) -> Result<String> {
    let path = workspace().join("docs/operate").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn metrics() -> Result<()> {
    let agent = Agent::start("docs")?;
    let log = agent.log();
    let port: String = log
        .split("metrics address=127.0.0.1:")
        .nth(1)
        .context("the log does not name the address of the metrics")?
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut scrape = String::new();
    socket.read_to_string(&mut scrape)?;
    let page = page("metrics.md")?;
    let named: BTreeSet<&str> = page
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .collect();
    let all: Vec<&str> = scrape
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    ensure!(all.len() > 20, "only {} metrics:\n{scrape}", all.len());
    let absent: Vec<&&str> = all.iter().filter(|name| !named.contains(**name)).collect();
    ensure!(absent.is_empty(), "not in metrics.md: {absent:?}");
    agent.finish()
}

/// The names below `Commands:` of a help text.
fn listed(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

fn commands() -> Result<()> {
    let agent = Agent::prepare("docs-commands")?;
    let page = page("commands.md")?;
    let all = listed(&agent.ok(&["--help"])?);
    ensure!(all.len() > 15, "only {all:?}");
    let mut absent = Vec::new();
    for command in all {
        let mut names = vec![format!("`berth {command}")];
        if command != "oci" {
            let help = agent.ok(&[&command, "--help"])?;
            names.extend(listed(&help).iter().map(|sub| format!("`berth {command} {sub}")));
        }
        absent.extend(names.into_iter().filter(|name| !page.contains(name.as_str())));
    }
    ensure!(absent.is_empty(), "not in commands.md: {absent:?}");
    agent.finish()
}

fn profiles() -> Result<()> {
    let agent = Agent::prepare("docs-profiles")?;
    let page = page("profiles.md")?;
    let names = agent.json(&["profile", "show"])?;
    for name in names.as_array().context("a list of names")? {
        let name = name.as_str().context("a name")?;
        ensure!(
            page.contains(&format!("`{name}`")),
            "{name} is not in profiles.md"
        );
    }
    agent.finish()
}

/// Everything in the Rust files below `folder`, one after the other.
fn sources(folder: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// `native NAME`, `vm GUEST::NAME` (each also `BEGINNING…*`) and `unit CRATE FUNCTION`, in backticks.
fn specification() -> Result<()> {
    let path = workspace().join("docs/SPECIFICATION.md");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let code = |folder: &str| {
        let mut text = String::new();
        sources(&workspace().join(folder), &mut text).map(|()| text)
    };
    let (native, vm) = (code("tests/native")?, code("tests/vm")?);
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let (mut count, mut absent) = (0, Vec::new());
    for name in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        let (kind, test) = name.split_once(' ').unwrap_or((name, ""));
        let begins = |test: &str| test.strip_suffix("…*").map(|start| format!("\"{start}"));
        let there = match kind {
            "native" => native.contains(&begins(test).unwrap_or_else(|| format!("\"{test}\""))),
            "vm" => {
                let (guest, test) = test.split_once("::").unwrap_or((test, ""));
                let test = begins(test).unwrap_or_else(|| format!("\"{test}\""));
                // A boot by its name, or tests without a boot of their own.
                let guest =
                    vm.contains(&format!("name: \"{guest}\"")) || vm.contains(&format!("\"{guest}::"));
                (guest && vm.contains(&test))
                    || vm.contains(&format!("\"{name}\"", name = name.trim_start_matches("vm ")))
            }
            "unit" => {
                let (folder, function) = test.split_once(' ').unwrap_or((test, ""));
                let code = code(folder)?;
                // A function, or a test that is given its name.
                code.contains(&format!("fn {function}(")) || code.contains(&format!("\"{function}\""))
            }
            _ => continue,
        };
        count += 1;
        if !there {
            absent.push(name);
        }
    }
    ensure!(count > 100, "SPECIFICATION names {count} tests only");
    ensure!(absent.is_empty(), "not there: {absent:#?}");
    Ok(())
}
