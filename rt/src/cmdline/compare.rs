//! Wanted arguments beside those of a command line.
//!
//! As the kernel reads them: `-` and `_` in names are the same, of an argument given several times the last counts, CPU
//! lists mean sets, `hugepages=` belongs to the `hugepagesz=` before it, and quotes may stand around a value or around
//! the whole.

use serde::Serialize;

use super::Argument;
use crate::cpu::CpuSet;

/// Whether the running kernel was booted with an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum InForce {
    /// It was.
    Yes,
    /// It was not.
    Pending,
    /// It was booted with another value, which has to go.
    Other,
}

/// A wanted argument and what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// The argument.
    #[serde(flatten)]
    pub argument: Argument,
    /// Whether it is there.
    pub in_force: InForce,
    /// What stands there in its place.
    pub now: Option<String>,
}

/// The arguments of a command line: parted at blanks that are not quoted.
#[must_use]
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.trim_end_matches('\0').chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.push(c);
            }
            c if c.is_ascii_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Name and value; the name with `_` for `-`.
fn parts(word: &str) -> (String, Option<String>) {
    let plain: String = word.chars().filter(|c| *c != '"').collect();
    match plain.split_once('=') {
        Some((name, value)) => (name.replace('-', "_"), Some(value.to_owned())),
        None => (plain.replace('-', "_"), None),
    }
}

/// Whether two values of `name` mean the same.
fn same(name: &str, one: Option<&str>, other: Option<&str>) -> bool {
    if one == other {
        return true;
    }
    let (Some(one), Some(other)) = (one, other) else {
        return false;
    };
    let set = |list: &str| list.parse::<CpuSet>().ok();
    match name {
        "rcu_nocbs" | "nohz_full" | "irqaffinity" | "systemd.cpu_affinity" => {
            set(one).is_some() && set(one) == set(other)
        }
        "isolcpus" => isolcpus(one).is_some() && isolcpus(one) == isolcpus(other),
        "hugepagesz" | "default_hugepagesz" => one.eq_ignore_ascii_case(other),
        _ => false,
    }
}

/// The flags of `isolcpus=`, sorted, and its CPUs. Without a flag `domain` is meant.
fn isolcpus(value: &str) -> Option<(Vec<&str>, CpuSet)> {
    let mut flags = Vec::new();
    let mut rest = value;
    while rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
        let (flag, behind) = rest.split_once(',')?;
        flags.push(flag);
        rest = behind;
    }
    if flags.is_empty() {
        flags.push("domain");
    }
    flags.sort_unstable();
    Some((flags, rest.parse().ok()?))
}

/// Each wanted argument beside `line`, the command line the kernel was booted with.
#[must_use]
pub fn compare(wanted: &[Argument], line: &str) -> Vec<Compared> {
    let there: Vec<(String, Option<String>, String)> = split(line)
        .into_iter()
        .map(|word| {
            let (name, value) = parts(&word);
            (name, value, word)
        })
        .collect();
    let mut size: Option<String> = None;
    wanted
        .iter()
        .map(|argument| {
            let (name, value) = parts(&argument.text);
            let found = match name.as_str() {
                "hugepagesz" => {
                    size.clone_from(&value);
                    let is = |value: &Option<String>| same("hugepagesz", value.as_deref(), size.as_deref());
                    there
                        .iter()
                        .find(|(name, value, _)| name == "hugepagesz" && is(value))
                }
                "hugepages" => behind(&there, size.as_deref()),
                // These two may stand there several times, each with a meaning of its own.
                "console" | "module_blacklist" => {
                    let exact = there
                        .iter()
                        .find(|(found, there, _)| *found == name && *there == value);
                    exact.or(None)
                }
                _ => there.iter().rev().find(|(found, _, _)| *found == name),
            };
            let (in_force, now) = match found {
                None => (InForce::Pending, None),
                Some((_, actual, _)) if same(&name, value.as_deref(), actual.as_deref()) => {
                    (InForce::Yes, None)
                }
                Some((_, _, word)) => (InForce::Other, Some(word.clone())),
            };
            Compared {
                argument: argument.clone(),
                in_force,
                now,
            }
        })
        .collect()
}

type Word = (String, Option<String>, String);

/// The `hugepages=` of this size: the one that follows its `hugepagesz=`, or stands before any for the default size.
fn behind<'a>(there: &'a [Word], size: Option<&str>) -> Option<&'a Word> {
    let mut current: Option<&str> = None;
    let mut found = None;
    for word in there {
        match word.0.as_str() {
            "hugepagesz" => current = word.1.as_deref(),
            "hugepages" if size.is_some() && same("hugepagesz", current, size) => found = Some(word),
            _ => {}
        }
    }
    found
}
