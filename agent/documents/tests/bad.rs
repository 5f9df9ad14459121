//! Bad documents beside the faults they must give, word for word: `bad/NAME.yaml` and `bad/NAME.expected`.
//!
//! `BERTH_BLESS=1 cargo test -p berth-documents --test bad` writes the expected files anew; read the
//! difference before it is committed.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure is the answer

use std::fs;
use std::path::{Path, PathBuf};

use berth_documents::{Report, Set, check};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

fn lines(report: &Report, folder: &Path) -> String {
    let prefix = format!("{}/", folder.display());
    let all = report.faults.iter().chain(&report.warnings);
    all.map(|fault| format!("{}\n", fault.to_string().replace(&prefix, "")))
        .collect()
}

#[test]
fn every_fault_is_told_at_its_place() {
    let folder = folder("tests/bad");
    let files = yaml_files(&folder);
    assert!(files.len() >= 6, "{} files", files.len());
    let mut wrong = Vec::new();
    let mut told = 0;
    for file in &files {
        let report = check(std::slice::from_ref(file), &Set::default());
        assert!(!report.faults.is_empty(), "{}", file.display());
        told += report.faults.len();
        let found = lines(&report, &folder);
        let expected = file.with_extension("expected");
        if std::env::var_os("BERTH_BLESS").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        let want = fs::read_to_string(&expected).unwrap_or_default();
        if found != want {
            wrong.push(format!(
                "{}\n--- expected\n{want}--- found\n{found}",
                file.display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(told >= 100, "only {told} faults");
}

#[test]
fn many_files_give_what_each_gives_alone() {
    let folder = folder("tests/bad");
    let all = check(std::slice::from_ref(&folder), &Set::default());
    let found = lines(&all, &folder);
    // Faults between documents of different files come in beside those of each file: names are unique per
    // kind over all files, there is one Node, and a document that cannot be read may be the one that is missed.
    for file in yaml_files(&folder) {
        let want = fs::read_to_string(file.with_extension("expected")).unwrap();
        for line in want.lines().filter(|line| {
            !line.contains("there is no")
                && !line.contains("warning:")
                && !line.contains("kind: a second Node")
        }) {
            assert!(found.contains(line), "{line}");
        }
    }
}

#[test]
fn examples_are_clean() {
    let folder = folder("examples");
    for file in yaml_files(&folder) {
        let report = check(std::slice::from_ref(&file), &Set::default());
        assert_eq!(lines(&report, &folder), "", "{}", file.display());
        assert!(!report.set.is_empty());
    }
    let report = check(std::slice::from_ref(&folder), &Set::default());
    assert_eq!(lines(&report, &folder), "");
}
