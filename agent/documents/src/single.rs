//! A file that is one YAML mapping and no document with a kind: read as strictly as documents are, with every
//! fault at its place.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::fault::{Fault, Severity};
use crate::recover::{self, Outcome};
use crate::tree::{self, Parsed};

/// Reads `text` as a `T`; `file` is what faults call it. An empty text is an empty mapping.
///
/// # Errors
/// Every fault, with line and column.
pub fn read_single<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, Vec<Fault>> {
    let fault = |line, column, path: String, message: String, expected, hint| Fault {
        file: file.to_owned(),
        line,
        column,
        path,
        message,
        expected,
        hint,
        severity: Severity::Error,
    };
    // What holds comments alone is a mapping without a key.
    let empty = text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    let Parsed {
        documents, faults, ..
    } = tree::parse(if empty { "{}" } else { text });
    let mut all: Vec<Fault> = faults
        .into_iter()
        .map(|f| {
            fault(
                f.pos.line,
                f.pos.column,
                String::new(),
                f.message,
                f.expected,
                f.hint,
            )
        })
        .collect();
    let [root] = documents.as_slice() else {
        if all.is_empty() {
            let message = format!("{} documents in one file", documents.len());
            all.push(fault(1, 1, String::new(), message, Some("one".into()), None));
        }
        return Err(all);
    };
    let Outcome { value, faults, .. } = recover::read::<T>(root);
    all.extend(faults.into_iter().map(|placed| {
        let (pos, problem) = (placed.pos, placed.problem);
        fault(
            pos.line,
            pos.column,
            problem.path,
            problem.message,
            problem.expected,
            problem.hint,
        )
    }));
    match value {
        Some(value) if all.is_empty() => Ok(value),
        _ => Err(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        on: bool,
        list: Vec<u32>,
    }

    fn read(text: &str) -> Result<Settings, Vec<String>> {
        read_single(Path::new("f.yaml"), text).map_err(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn one_mapping_with_every_fault_at_its_place() {
        let both = Settings {
            on: true,
            list: vec![1, 2],
        };
        assert_eq!(read("on: true\nlist: [1, 2]\n"), Ok(both));
        assert_eq!(read("# nothing is set\n"), Ok(Settings::default()));
        assert_eq!(read(""), Ok(Settings::default()));
        let faults = read("on: maybe\nlsit: [1]\n").unwrap_err();
        assert!(
            faults.len() == 2 && faults[0].starts_with("f.yaml:1:5:") && faults[1].contains("list"),
            "{faults:?}"
        );
        assert!(read("on: true\n---\non: false\n").is_err());
        assert!(read("on: true\non: false\n").is_err());
    }
}
