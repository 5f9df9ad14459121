//! berth-fields: what each field of the OCI runtime specification does, seen on the real kernel.
//!
//! ```text
//! berth-fields all RUNTIME...    every case with every runtime; 0: all hold
//! berth-fields one FIELD RUNTIME the cases of one field, with what was seen
//! berth-fields table             field, applied or refused, the case that shows it: the table of docs/conformance.md
//! ```
//! RUNTIME is `berth` (the built binary), `crun`, `runc` or a path. Invariants: a case holds for `berth` only when its
//! assertions hold with its fields and fail as soon as one of them is left out (or has another value, where it
//! cannot be left out), so that a field that is ignored fails; every field of the schema has a case or is refused by
//! name; where the machine lacks what a field needs, the field must be refused by name. The others are asked for the
//! assertions alone: they show that a case is right. Where a peer is said not to hold one, it must not.

mod case;
mod lab;
mod linux;
mod process;
mod resources;
mod seccomp;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use berth_runtime::fields::{FIELDS, Field};
use berth_tests::runtime::Runtime;
use serde_json::json;

use case::{Case, Change};
use lab::{Cgroups, Lab, Seen};

/// Cases at once: most of their time they wait.
const AT_ONCE: usize = 8;

fn cases() -> Vec<Case> {
    let mut all = process::cases();
    all.extend(linux::cases());
    all.extend(resources::cases());
    all.extend(seccomp::cases());
    all.extend(refused());
    all
}

/// Every field that is refused, with some value.
fn refused() -> Vec<Case> {
    let list = FIELDS
        .iter()
        .filter(|(_, what)| matches!(what, Field::Refused(_)));
    let top = list.filter(|(path, _)| {
        let above = path
            .rsplit_once('.')
            .map_or("", |(a, _)| a.trim_end_matches("[]"));
        !FIELDS
            .iter()
            .any(|(p, what)| *p == above && matches!(what, Field::Refused(_)))
    });
    top.map(|(path, _)| {
        let pointer = format!("/{}", path.replace('.', "/"));
        let parent_missing = pointer == "/linux/personality/flags";
        let case = case::case("a field that is refused", &[path]);
        let case = match parent_missing {
            true => case.set("/linux/personality", json!({"domain": "LINUX", "flags": ["X"]})),
            false if pointer.starts_with("/process") => case.set(&pointer, json!("x")),
            false => case.set(&pointer, json!({})),
        };
        case.refused().want(path).no_peer("it does not refuse the field")
    })
    .collect()
}

/// Do the assertions hold?
fn holds(case: &Case, seen: &Seen) -> Result<()> {
    ensure!(
        seen.good != case.refused,
        "{}:\n{}",
        if seen.good {
            "it was not refused"
        } else {
            "it failed"
        },
        seen.text
    );
    for want in &case.wants {
        ensure!(
            seen.text.contains(want.as_str()),
            "{want:?} is not in:\n{}",
            seen.text
        );
    }
    for lack in &case.lacks {
        ensure!(
            !seen.text.contains(lack.as_str()),
            "{lack:?} is in:\n{}",
            seen.text
        );
    }
    Ok(())
}

/// How a case went.
enum Outcome {
    Held,
    /// A peer does not hold it, for this reason.
    Skipped(&'static str),
    /// What the field needs is not here; the runtime refused it by name (or was not asked).
    NotHere(String),
}

fn judge(case: &Case, runtime: &Runtime, name: &str) -> Result<Outcome> {
    if let Some(need) = &case.need {
        let here = |path: &String| Path::new(&Cgroups::path(path)).exists();
        if !need.any.iter().any(here) {
            if name == "berth" {
                let seen = Lab::new(runtime)?.see(case, &Change::Nothing)?;
                let named = seen.text.to_lowercase().contains(&need.word.to_lowercase());
                ensure!(
                    !seen.good && named,
                    "what it needs is not here, and it is not refused by name:\n{}",
                    seen.text
                );
            }
            return Ok(Outcome::NotHere(need.any.join(", ").replace("{probe}/", "")));
        }
    }
    let seen = Lab::new(runtime)?.see(case, &Change::Nothing)?;
    if let Some(why) = case.skipped(name).filter(|why| !why.is_empty()) {
        ensure!(holds(case, &seen).is_err(), "it holds, and is said not to: {why}");
        return Ok(Outcome::Skipped(why));
    }
    holds(case, &seen)?;
    if name != "berth" {
        return Ok(Outcome::Held);
    }
    for field in &case.fields {
        let given = case.instead.iter().find(|(f, _)| f == field);
        let change = match given {
            Some((field, value)) => Change::Instead((*field).to_owned(), value.clone()),
            None => Change::Without((*field).to_owned()),
        };
        let seen = Lab::new(runtime)?.see(case, &change)?;
        ensure!(
            holds(case, &seen).is_err(),
            "it holds as well with {change:?}: {field} shows nothing:\n{}",
            seen.text
        );
    }
    Ok(Outcome::Held)
}

/// Every case with one runtime; the lines of those that do not hold.
fn all(name: &str, only: Option<&str>) -> Result<Vec<String>> {
    let runtime = Runtime::named(name)?;
    let cases: Vec<Case> = cases()
        .into_iter()
        .filter(|c| only.is_none_or(|f| c.fields.contains(&f)))
        .collect();
    ensure!(!cases.is_empty(), "no case has this field");
    let next = AtomicUsize::new(0);
    let lines = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { return };
                    let outcome = judge(case, &runtime, name);
                    if let Ok(mut lines) = lines.lock() {
                        lines.insert(number, outcome);
                    }
                }
            });
        }
    });
    let lines = lines.into_inner().unwrap_or_default();
    let (mut held, mut not_here, mut skipped, mut wrong) = (0, 0, 0, Vec::new());
    for (number, outcome) in lines {
        let case = &cases[number];
        let title = format!("{} ({})", case.name, case.fields.join(", "));
        match outcome {
            Ok(Outcome::Held) => held += 1,
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                println!("{name}: not held: {title}: {why}");
            }
            Ok(Outcome::NotHere(what)) => {
                not_here += 1;
                println!("{name}: this machine has no {what}: {title}");
            }
            Err(e) => wrong.push(format!("{name}: {title}: {e:#}")),
        }
    }
    println!(
        "{name}: {held} cases hold, {} do not, {not_here} need what is not here, {skipped} cannot, as listed",
        wrong.len()
    );
    Ok(wrong)
}

/// Every field of the schema is shown by a case, or stands below one that is refused whole.
fn table() -> Result<String> {
    let cases = cases();
    let mut text = String::from("| field | what happens | shown by |\n|---|---|---|\n");
    for (path, what) in FIELDS {
        let shown: Vec<&str> = cases
            .iter()
            .filter(|c| c.fields.contains(path))
            .map(|c| c.name)
            .collect();
        let (word, by) = match what {
            Field::Applied => {
                ensure!(!shown.is_empty(), "{path} has no case");
                ("applied".to_owned(), shown.join(", "))
            }
            Field::Refused(why) => (format!("refused: {why}"), "a field that is refused".to_owned()),
        };
        text += &format!("| `{path}` | {word} | {by} |\n");
    }
    let known = |field: &str| FIELDS.iter().any(|(path, _)| *path == field);
    let strange: Vec<&str> = cases
        .iter()
        .flat_map(|c| c.fields.clone())
        .filter(|f| !known(f))
        .collect();
    ensure!(strange.is_empty(), "no fields of the schema: {strange:?}");
    Ok(text)
}

fn carry_out(words: &[&str]) -> Result<bool> {
    let (runtimes, only) = match words {
        ["table"] => {
            print!("{}", table()?);
            return Ok(true);
        }
        ["one", field, runtime] => (vec![*runtime], Some(*field)),
        ["all", runtimes @ ..] if !runtimes.is_empty() => (runtimes.to_vec(), None),
        _ => bail!("berth-fields all RUNTIME... | one FIELD RUNTIME | table"),
    };
    table()?;
    let _shared = lab::shared()?;
    let _cgroups = Cgroups::make().context("the cgroups of the cases")?;
    let mut good = true;
    for name in runtimes {
        for line in all(name, only)? {
            good = false;
            println!("{line}");
        }
    }
    Ok(good)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match carry_out(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("berth-fields: {e:#}");
            ExitCode::from(2)
        }
    }
}
