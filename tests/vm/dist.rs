//! What ships: the binaries for both architectures (`make cross`) and their packages (agent/dist/deb.sh).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Failed;

use crate::boots::shipped;
use crate::lanes::Trial;

/// Bytes.
const LARGEST: u64 = 10_000_000;
const FILES: &[&str] = &[
    "./usr/bin/berth",
    "./lib/systemd/system/berth.service",
    "./lib/systemd/system/berth-launcher.service",
    "./usr/lib/sysusers.d/berth.conf",
    "./usr/lib/tmpfiles.d/berth.conf",
    "./etc/berth/node.yaml",
    "./usr/share/bash-completion/completions/berth",
    "./usr/share/zsh/vendor-completions/_berth",
    "./usr/share/fish/vendor_completions.d/berth.fish",
    "./usr/share/man/man1/berth.1.gz",
    "./usr/share/man/man1/berth-agent.1.gz",
    "./usr/share/man/man1/berth-apply.1.gz",
    "./usr/share/man/man8/berth.service.8.gz",
    "./usr/share/man/man8/berth-launcher.service.8.gz",
    "./usr/share/doc/berth/copyright",
    "./usr/share/doc/berth/changelog.gz",
];

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, arch: &'static str, body: fn(&str) -> Result<()>| {
        Trial::test(format!("dist::{name}, {arch}"), move || {
            body(arch).map_err(|e| Failed::from(format!("{e:#}")))
        })
    };
    vec![
        test("the binary", "amd64", binary),
        test("the binary", "arm64", binary),
        test("the package", "amd64", package),
        test("the package", "arm64", package),
    ]
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(String::from_utf8(done.stdout)?)
}

fn binary(arch: &str) -> Result<()> {
    let path = shipped(arch);
    let size = std::fs::metadata(&path)
        .with_context(|| format!("{}: run make cross", path.display()))?
        .len();
    println!("{}: {size} bytes", path.display());
    ensure!(
        size <= LARGEST,
        "{size} bytes, {LARGEST} are the most (a debug binary is none that ships)"
    );
    let text = output(Command::new("readelf").args(["-hdSW"]).arg(&path))?;
    let machine = if arch == "arm64" { "AArch64" } else { "X86-64" };
    ensure!(text.contains(machine), "not {machine}:\n{text}");
    ensure!(
        !text.contains(".symtab") && !text.contains(".debug_"),
        "not stripped"
    );
    let libraries: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split(['[', ']']).nth(1))
        // The dynamic linker by its name is no library.
        .filter(|name| !name.starts_with("ld-linux"))
        .collect();
    let wanted: &[&str] = if arch == "arm64" { &["libc.so.6"] } else { &[] };
    ensure!(libraries == wanted, "shared libraries are {libraries:?}");
    ensure!(
        arch == "arm64" || !text.contains(".interp"),
        "it needs a dynamic linker:\n{text}"
    );
    ensure!(
        text.contains("DYN (Position-Independent Executable file)"),
        "it has the same address in every run:\n{text}"
    );
    Ok(())
}

fn deb(arch: &str, out: &Path) -> Result<std::path::PathBuf> {
    let script = berth_tests::agent::workspace().join("agent/dist/deb.sh");
    let made = output(
        Command::new(script)
            .arg(arch)
            .arg(shipped(arch))
            .arg(out)
            .env("HOST_BERTH", shipped("amd64")),
    )?;
    Ok(made.trim().into())
}

fn package(arch: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = deb(arch, &dir.path().join("one"))?;
    let again = deb(arch, &dir.path().join("two"))?;
    ensure!(
        std::fs::read(&path)? == std::fs::read(&again)?,
        "made twice, {} differs",
        path.display()
    );
    let list = output(Command::new("dpkg-deb").arg("-c").arg(&path))?;
    for file in FILES {
        ensure!(
            list.lines()
                .any(|line| line.split_whitespace().nth(5) == Some(*file) && line.contains("root/root")),
            "no {file} of root's in\n{list}"
        );
    }
    let control = output(Command::new("dpkg-deb").arg("-I").arg(&path))?;
    for line in [
        format!("Architecture: {arch}"),
        "postinst".into(),
        "prerm".into(),
        "postrm".into(),
        "conffiles".into(),
    ] {
        ensure!(control.contains(&line), "no {line:?} in\n{control}");
    }
    ensure!(
        control.contains("\n Depends: libc6 (>= ") == (arch == "arm64"),
        "the static file needs nothing, the other one the C library:\n{control}"
    );
    Ok(())
}
