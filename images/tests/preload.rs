//! The program that a firmware's build runs.

#![allow(clippy::unwrap_used)] // A test says what it expects by failing.

use std::path::Path;
use std::process::{Command, Output};

use berth_images::{Mode, Stores};

fn berth_preload(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth-preload"))
        .args(args)
        .output()
        .unwrap()
}

/// The project's own sample image for arm64; its two programs are an ELF header and nothing else.
fn sample(dir: &Path) -> String {
    let mut program = [0u8; 64];
    program[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    (program[16], program[18], program[32], program[54]) = (2, 183, 64, 56);
    for name in ["busybox", "worker"] {
        std::fs::write(dir.join(name), program).unwrap();
    }
    let made = Command::new(env!("CARGO_BIN_EXE_berth-sample-images"))
        .arg(dir)
        .args(["--arch", "arm64", "--busybox"])
        .arg(dir.join("busybox"))
        .arg("--worker")
        .arg(dir.join("worker"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    dir.join("berth-sample-busybox.tar").display().to_string()
}

#[test]
fn a_firmware_build_makes_a_store_that_a_node_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, store) = (sample(dir.path()), dir.path().join("images"));
    let store_name = store.display().to_string();
    let made = berth_preload(&[
        "--architecture",
        "arm64",
        &store_name,
        &format!("pump:1={archive}"),
    ]);
    assert!(made.status.success(), "{made:?}");
    let marks = dir.path().join("marks");
    std::fs::create_dir(&marks).unwrap();
    let stores = Stores::open(
        dir.path().join("own"),
        Mode::Read,
        &store,
        Some((marks, "boot".into())),
    )
    .unwrap();
    let image = stores.image(&stores.resolve("pump:1").unwrap()).unwrap();
    assert!(image.layers[0].join("bin/busybox").is_file());

    let again = berth_preload(&[
        "--architecture",
        "arm64",
        &store_name,
        &format!("pump:1={archive}"),
    ]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        !again.status.success() && said.contains("is there already"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_preloaded_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, store) = (sample(dir.path()), dir.path().join("images"));
    let store_name = store.display().to_string();
    let good = format!("pump:1={archive}");
    let cases: [(&[&str], &str); 5] = [
        (&["--architecture", "amd64", &store_name, &good], "linux/amd64"),
        (
            &[
                "--architecture",
                "arm64",
                &store_name,
                &good,
                "valve:1=/nonexistent.tar",
            ],
            "/nonexistent.tar",
        ),
        (&["--architecture", "mips", &store_name, &good], "amd64 or arm64"),
        (&[&store_name, "pump"], "NAME[:TAG]=ARCHIVE"),
        (&[&store_name], "no image"),
    ];
    for (args, expected) in cases {
        let refused = berth_preload(args);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(expected),
            "{args:?}: {said}"
        );
        assert!(!store.exists(), "{args:?} left half a store");
    }
}
