//! The sample images: built from two programs alone, the same bytes each time, and loaded by the store.
//!
//! busybox stands for both programs here: what is tested is the builder.

#![allow(clippy::unwrap_used)] // A test says what it expects by failing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use berth_images::{LoadOptions, Mode, Source, Store};

const BUSYBOX: &str = "/bin/busybox";

fn build(out: &Path, extra: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth-sample-images"))
        .arg(out)
        .args(["--busybox", BUSYBOX, "--worker", BUSYBOX])
        .args(extra)
        .output()
        .unwrap()
}

#[test]
fn the_sample_images_are_reproducible_and_load() {
    let dir = tempfile::tempdir().unwrap();
    for out in ["one", "two"] {
        let output = build(&dir.path().join(out), &[]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let store = Store::open(dir.path().join("images"), Mode::Write).unwrap();
    let mut layers = Vec::new();
    for name in ["berth-sample-busybox", "berth-sample-worker"] {
        let file = format!("{name}.tar");
        let first = dir.path().join("one").join(&file);
        assert_eq!(
            fs::read(&first).unwrap(),
            fs::read(dir.path().join("two").join(&file)).unwrap()
        );
        let loaded = store.load(&first, None).unwrap();
        assert_eq!(loaded.reference.to_string(), format!("{name}:latest"));
        let image = store.image(&loaded.digest).unwrap();
        let config = image.config.config().clone().unwrap();
        assert_eq!(config.working_dir().as_deref(), Some("/"));
        assert!(
            config
                .labels()
                .as_ref()
                .unwrap()
                .contains_key("org.opencontainers.image.title")
        );
        layers.push((config, image.layers));
    }
    let ((shell, base), (worker, both)) = (&layers[0], &layers[1]);
    assert_eq!(shell.cmd().as_ref().unwrap(), &["/bin/sh"]);
    assert_eq!(worker.entrypoint().as_ref().unwrap(), &["/bin/device-worker"]);
    assert_eq!(both[1..], base[..], "the base layer is shared");
    assert!(both[0].join("bin/device-worker").exists());
    for folder in ["dev", "proc", "sys", "tmp", "etc"] {
        assert!(base[0].join(folder).is_dir());
    }
    assert_eq!(
        fs::read_link(base[0].join("bin/sh")).unwrap(),
        Path::new("busybox")
    );
    // The links run: busybox has every applet that is named.
    let listed = Command::new(BUSYBOX).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for entry in fs::read_dir(base[0].join("bin")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(listed.lines().any(|one| one == name), "busybox has no {name}");
    }
    assert!(store.verify().unwrap().is_empty());
}

#[test]
fn a_program_that_would_not_run_in_the_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let machine = if cfg!(target_arch = "x86_64") {
        "arm64"
    } else {
        "amd64"
    };
    let output = build(dir.path(), &["--arch", machine]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("expected {machine}")));
    // This test is a dynamic program.
    let me = std::env::current_exe().unwrap();
    let output = build(dir.path(), &["--worker", me.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("crt-static"));
    assert_eq!(build(dir.path(), &["--frob"]).status.code(), Some(2));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("images"), Mode::Write).unwrap();
    let error = store
        .load_from(Source::Path(Path::new("/no/such.tar")), &LoadOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("/no/such.tar"), "{error}");
}
