//! meta-berth against the sources it builds: the list of crates, versions, files that recipes name, kernel options.
//! No bitbake here: that is yocto/check-layer.sh, for whoever has a checkout.

#![allow(clippy::unwrap_used)] // A test says what it expects by failing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_tests::agent::workspace;

fn layer() -> PathBuf {
    workspace().join("yocto/meta-berth")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `name-version` -> checksum of every package of Cargo.lock that comes from the registry.
fn locked(lock: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = block
                .lines()
                .find_map(|l| l.strip_prefix(&format!("{name} = \"")))?;
            Some(line.trim_end_matches('"').to_string())
        };
        if field("source").is_some() {
            let crate_name = format!("{}-{}", field("name").unwrap(), field("version").unwrap());
            all.insert(crate_name, field("checksum").unwrap());
        }
    }
    all
}

/// The crates and the checksums of a list, and the lock it says it was made from.
fn listed(list: &str) -> (BTreeSet<String>, BTreeMap<String, String>, String) {
    let mut fetched = BTreeSet::new();
    let mut sums = BTreeMap::new();
    let mut lock = String::new();
    for line in list.lines() {
        if let Some(url) = line.trim().strip_prefix("crate://${BERTH_CRATE_REGISTRY}/") {
            let (name, version) = url.trim_end_matches(" \\").split_once('/').unwrap();
            assert!(fetched.insert(format!("{name}-{version}")), "twice: {line}");
        } else if let Some(rest) = line.strip_prefix("SRC_URI[") {
            let (name, sum) = rest.split_once(".sha256sum] = \"").unwrap();
            sums.insert(name.to_string(), sum.trim_end_matches('"').to_string());
        } else if let Some(rest) = line.strip_prefix("BERTH_CARGO_LOCK_SHA256 = \"") {
            lock = rest.trim_end_matches('"').to_string();
        }
    }
    (fetched, sums, lock)
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_string()
}

/// What is wrong with a list of crates for a lock, in the words of who must mend it.
fn disagreement(lock: &Path, list: &Path) -> Option<String> {
    let (wanted, (fetched, sums, made_from)) = (locked(&read(lock)), listed(&read(list)));
    let names: BTreeSet<String> = wanted.keys().cloned().collect();
    if fetched != names || sums != wanted || made_from != sha256(lock) {
        let missing: Vec<_> = names.difference(&fetched).collect();
        let gone: Vec<_> = fetched.difference(&names).collect();
        return Some(format!(
            "run `make yocto-crates`: missing {missing:?}, no longer there {gone:?}"
        ));
    }
    None
}

#[test]
fn the_list_of_crates_is_the_locks() {
    let list = layer().join("recipes-berth/berth/berth-crates.inc");
    assert_eq!(disagreement(&workspace().join("Cargo.lock"), &list), None);
}

#[test]
fn a_lock_that_changed_without_its_list_is_found_and_the_generator_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let (lock, list) = (dir.path().join("Cargo.lock"), dir.path().join("crates.inc"));
    fs::copy(layer().join("recipes-berth/berth/berth-crates.inc"), &list).unwrap();
    let added = "\n[[package]]\nname = \"new-crate\"\nversion = \"1.2.3\"\nsource = \"registry+https://localhost/r-index\"\nchecksum = \"ab\"\n";
    fs::write(&lock, read(&workspace().join("Cargo.lock")) + added).unwrap();
    let told = disagreement(&lock, &list).expect("not found");
    assert!(
        told.contains("new-crate-1.2.3") && told.contains("make yocto-crates"),
        "{told}"
    );
    let generate = |lock: &Path| {
        Command::new(workspace().join("yocto/crates.sh"))
            .arg(lock)
            .arg(&list)
            .output()
            .unwrap()
    };
    let made = generate(&lock);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(disagreement(&lock, &list), None);
    // A package that no registry has cannot be in the list: refused, and the list stays as it was.
    let before = read(&list);
    fs::write(
        &lock,
        read(&lock).replace("registry+https://localhost/r-index", "git+https://localhost/r"),
    )
    .unwrap();
    let refused = generate(&lock);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("no registry"));
    assert_eq!(read(&list), before);
}

#[test]
fn recipes_have_the_workspaces_version_and_licence() {
    let manifest = read(&workspace().join("Cargo.toml"));
    let version = manifest
        .lines()
        .find_map(|l| l.strip_prefix("version = \""))
        .unwrap()
        .trim_end_matches('"');
    let digest = Command::new("md5sum")
        .arg(workspace().join("LICENSE"))
        .output()
        .unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    let licence = format!("file://LICENSE;md5={}\"", digest.split(' ').next().unwrap());
    for name in ["berth", "berth-preload"] {
        let recipe = layer().join(format!("recipes-berth/{name}/{name}_{version}.bb"));
        assert!(
            read(&recipe).contains(&licence),
            "{}: LIC_FILES_CHKSUM",
            recipe.display()
        );
    }
}

#[test]
fn every_file_a_recipe_names_is_there() {
    let recipe = layer().join("recipes-berth/berth/berth_0.1.0.bb");
    let text = read(&recipe);
    let named = |prefix: &'static str| {
        text.split_whitespace()
            .filter_map(move |word| word.trim_matches('"').strip_prefix(prefix).map(str::to_owned))
    };
    let files: Vec<String> = named("file://").filter(|f| !f.contains(';')).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert!(
            recipe.with_file_name("files").join(&file).is_file(),
            "files/{file}"
        );
    }
    for source in named("${S}/").chain([
        "agent/dist/berth.service".into(),
        "agent/dist/berth-launcher.service".into(),
    ]) {
        if !source.contains('$') {
            assert!(workspace().join(&source).exists(), "{source}");
        }
    }
}

#[test]
fn the_configuration_is_the_packages_own() {
    let ours = layer().join("recipes-berth/berth/files/node.yaml");
    assert_eq!(read(&ours), read(&workspace().join("agent/dist/node.yaml")));
}

#[test]
fn every_kernel_option_has_its_reason_and_is_asked_for_once() {
    let folder = layer().join("recipes-kernel/linux/files/berth");
    let mut seen = BTreeMap::new();
    let mut described = BTreeSet::new();
    for entry in fs::read_dir(&folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        let text = read(&path);
        if name.ends_with(".scc") {
            assert!(text.contains("KFEATURE_DESCRIPTION"), "{name}");
            for line in text.lines().filter(|l| l.starts_with("kconf ")) {
                let file = line.split_whitespace().nth(2).unwrap();
                assert!(folder.join(file).is_file(), "{name}: {file}");
                described.insert(file.to_string());
            }
            continue;
        }
        let mut reason = false;
        for line in text.lines() {
            let off = line
                .strip_prefix("# CONFIG_")
                .and_then(|l| l.strip_suffix(" is not set"));
            let option = off.or_else(|| {
                line.strip_prefix("CONFIG_")
                    .and_then(|l| l.split_once('='))
                    .map(|(o, _)| o)
            });
            match option {
                Some(option) => {
                    assert!(reason, "{name}: CONFIG_{option} has no reason above it");
                    let first = seen.insert(option.to_string(), name.clone());
                    assert_eq!(first, None, "CONFIG_{option} is in {name} too");
                }
                None => {
                    assert!(line.starts_with("# ") && line.len() > 20, "{name}: {line:?}");
                    reason = true;
                }
            }
        }
    }
    assert!(seen.len() > 80, "{} options", seen.len());
    let files: BTreeSet<String> = seen.into_values().collect();
    assert_eq!(files, described, "a fragment that no description takes in");
}

#[test]
fn ptest_builds_crates_that_there_are_and_says_their_tests() {
    let recipe = read(&layer().join("recipes-berth/berth/berth_0.1.0.bb"));
    let named = recipe
        .lines()
        .find_map(|line| line.strip_prefix("BERTH_PTEST_CRATES = \""))
        .unwrap();
    let folders = ["rt", "hotplug", "policies", "images", "agent/runtime"];
    let manifests: Vec<String> = folders
        .iter()
        .map(|folder| read(&workspace().join(folder).join("Cargo.toml")))
        .collect();
    for name in named.trim_end_matches('"').split(' ') {
        let line = format!("name = \"{name}\"");
        assert!(
            manifests.iter().any(|text| text.contains(&line)),
            "no crate {name}"
        );
    }
    // What it leaves out is a test that there is.
    assert!(read(&workspace().join("rt/src/knob/mod.rs")).contains("fn page_and_table_agree()"));
    let folder = tempfile::tempdir().unwrap();
    let script = "recipes-berth/berth/files/run-ptest";
    fs::copy(layer().join(script), folder.path().join("run-ptest")).unwrap();
    fs::create_dir(folder.path().join("tests")).unwrap();
    for (name, text) in [
        (
            "berth-rt",
            "echo 'test a::b ... ok'; echo 'test c ... FAILED'; echo 'test result: FAILED'; exit 1",
        ),
        ("berth-images", "echo no such library; exit 127"),
    ] {
        let path = folder.path().join("tests").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        assert!(
            Command::new("chmod")
                .arg("755")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
    }
    let ran = Command::new(folder.path().join("run-ptest")).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(
        said,
        "FAIL: berth-images\nno such library\nPASS: berth-rt a::b\nFAIL: berth-rt c\n"
    );
    assert_eq!(ran.status.code(), Some(1));
}

#[test]
fn what_a_layer_check_asks_of_the_papers() {
    let text = read(&layer().join("README.md")).to_lowercase();
    for word in ["maintainer", "patch", "@"] {
        assert!(text.contains(word), "README.md: {word}");
    }
    assert!(read(&layer().join("SECURITY.md")).contains('@'));
    assert!(read(&layer().join("conf/layer.conf")).contains("LAYERSERIES_COMPAT_berth = \"wrynose\""));
}

#[test]
fn another_layer_is_changed_only_with_the_distro_feature() {
    // yocto-check-layer's signatures hold this for the recipes it sees; this holds it for every append.
    let mut left = vec![layer()];
    let mut appends = 0;
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|e| e == "bbappend")
                && !path.to_string_lossy().contains("berth.bbappend")
            {
                let text = read(&path);
                let own = path.file_name().unwrap().to_string_lossy().starts_with("berth_");
                assert!(
                    own || text.contains("'DISTRO_FEATURES', 'berth'"),
                    "{}",
                    path.display()
                );
                appends += 1;
            }
        }
    }
    assert!(appends >= 3);
}
