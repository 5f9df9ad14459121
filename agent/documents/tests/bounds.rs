//! Hostile and huge input: refused in bounded time and memory, with a fault that says why.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure is the answer

use std::fs;
use std::path::PathBuf;

use berth_documents::{MAX_BYTES, MAX_DEPTH, Report, Set, Source, check, check_sources};

fn one(text: impl Into<String>) -> Report {
    check_sources(
        &[Source {
            name: PathBuf::from("x.yaml"),
            text: text.into(),
        }],
        &Set::default(),
    )
}

fn faults(report: &Report) -> String {
    report.faults.iter().map(|fault| format!("{fault}\n")).collect()
}

#[test]
fn deep_nesting_is_refused() {
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("- ", "")] {
        let text = format!("{}x{}", open.repeat(100_000), close.repeat(100_000));
        let report = one(text);
        assert!(
            faults(&report).contains(&format!("nested more than {MAX_DEPTH} deep")),
            "{open}"
        );
    }
    let text = format!("{}x{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(!faults(&one(text)).contains("nested"));
}

#[test]
fn a_document_behind_one_that_is_too_deep_is_still_read() {
    let text = format!("{}\n---\nkind: Nod\n", "[".repeat(200));
    let found = faults(&one(text));
    assert!(
        found.contains("nested") && found.contains("x.yaml:3:7: kind: found `Nod`"),
        "{found}"
    );
}

#[test]
fn alias_bombs_are_refused() {
    // Every level repeats the one before ten times: 10^9 values.
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let before = level - 1;
        let list = vec![format!("*a{before}"); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    assert!(faults(&one(text)).contains("more than 50000 values"));
}

#[test]
fn aliases_cannot_nest_deeper_than_lists() {
    let mut text = String::from("a0: &a0 [x]\n");
    for level in 1..60 {
        text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(faults(&one(text)).contains("nested more than"));
}

#[test]
fn big_files_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big.yaml");
    fs::write(&file, "a: b\n".repeat(2 * 1024 * 1024)).unwrap();
    let report = check(&[file], &Set::default());
    assert_eq!(report.faults.len(), 1);
    assert!(faults(&report).contains(&format!("longer than {MAX_BYTES} bytes")));
    assert!(faults(&one("a: b\n".repeat(MAX_BYTES))).contains("bytes long"));
}

#[test]
fn many_values_many_keys_many_faults_end() {
    assert!(faults(&one(format!("a: [{}]", "1,".repeat(400_000)))).contains("more than 50000 values"));
    let keys: String = (0..20_000).map(|n| format!("k{n}: 1\n")).collect();
    assert!(faults(&one(keys)).contains("too many faults"));
    let env: String = (0..10_000).map(|_| "    - {nam: A}\n").collect();
    let text = format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: a}}\nspec:\n  image: a\n  env:\n{env}"
    );
    assert!(faults(&one(text)).contains("too many faults"));
}

#[test]
fn what_is_no_text_is_refused_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, b"a: b\nc: \xff\n").unwrap();
    assert!(
        faults(&check(std::slice::from_ref(&file), &Set::default())).contains("a.yaml:2:4: not UTF-8 text")
    );
    let found = faults(&one("a: b\nc: d\0e\nf: \u{7}"));
    assert!(
        found.contains("x.yaml:2:5: the control character U+0000"),
        "{found}"
    );
    assert!(
        found.contains("x.yaml:3:4: the control character U+0007"),
        "{found}"
    );
}

#[test]
fn only_regular_files_are_read() {
    for path in ["/dev/zero", "/nowhere/at/all.yaml"] {
        let report = check(&[PathBuf::from(path)], &Set::default());
        assert_eq!(report.faults.len(), 1, "{path}");
        assert_eq!(report.faults[0].line, 0);
    }
}

#[test]
fn folders_give_their_yaml_files_once() {
    let folder = tempfile::tempdir().unwrap();
    let workload = |name: &str| {
        format!("apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {{image: a}}\n")
    };
    for (file, name) in [("b.yml", "b"), ("a.yaml", "a"), ("c.txt", "c"), (".d.yaml", "d")] {
        fs::write(folder.path().join(file), workload(name)).unwrap();
    }
    fs::create_dir(folder.path().join("e.yaml")).unwrap();
    let paths = [
        folder.path().to_owned(),
        folder.path().join("a.yaml"),
        folder.path().join("c.txt"),
    ];
    let set = check(&paths, &Set::default()).into_result().unwrap();
    assert_eq!(set.workloads.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let origin = set.workloads["b"].origin.as_ref().unwrap();
    assert_eq!(
        (origin.file.file_name().unwrap().to_str(), origin.line),
        (Some("b.yml"), 1)
    );
}
