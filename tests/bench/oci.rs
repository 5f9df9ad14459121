//! `berth oci run` beside crun and runc: the same bundle bytes, whole process, create + start + wait + delete.
//!
//! Everything happens in a mount namespace in which the empty v2 hierarchy of a hybrid node is not mounted: crun refuses
//! hybrid nodes. State roots lie on a tmpfs, as /run does. Each runtime's effect is read from inside the container before
//! anything is timed. Each run begins after a pause, and each round with another runtime: the kernel takes a network
//! namespace down long after its container has gone, and whoever makes the next one waits for that.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::agent::binary;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::bundles::{self, Bundle};
use crate::stats::{Sample, Table};

/// A competitor: name and the words before the OCI command.
struct Runtime {
    name: &'static str,
    program: String,
    /// A state root that is new for each run: nothing kept from one run helps the next.
    cold: bool,
}

/// Before each run.
const PAUSE: Duration = Duration::from_millis(20);

/// A mount namespace of our own, without the empty v2 hierarchy.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    if Path::new("/sys/fs/cgroup/unified").exists() {
        let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
    }
    Ok(())
}

pub(crate) fn run(table: &mut Table, rounds: usize) -> Result<()> {
    own_mounts()?;
    let dir = tempfile::Builder::new().prefix("berth-bench-").tempdir()?;
    fs::create_dir(dir.path().join("state"))?;
    mount(
        Some("tmpfs"),
        &dir.path().join("state"),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let outcome = compare(table, rounds, dir.path());
    umount2(&dir.path().join("state"), MntFlags::MNT_DETACH)?;
    outcome
}

/// All runtimes, both bundles, below `dir`.
fn compare(table: &mut Table, rounds: usize, dir: &Path) -> Result<()> {
    let berth = binary().display().to_string();
    let mut runtimes = vec![
        Runtime {
            name: "berth cold",
            program: berth.clone(),
            cold: true,
        },
        Runtime {
            name: "berth warm",
            program: berth,
            cold: false,
        },
    ];
    for peer in ["crun", "runc"] {
        match Command::new(peer).arg("--version").output() {
            Ok(version) => {
                println!(
                    "peer: {}",
                    String::from_utf8_lossy(&version.stdout)
                        .lines()
                        .next()
                        .unwrap_or(peer)
                );
                runtimes.push(Runtime {
                    name: peer,
                    program: peer.into(),
                    cold: false,
                });
            }
            Err(e) => println!("SKIP peer {peer}: {e} (apt-get install {peer})"),
        }
    }
    let native = if cfg!(target_arch = "x86_64") {
        "SCMP_ARCH_X86_64"
    } else {
        "SCMP_ARCH_AARCH64"
    };
    let three: &[&str] = if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    for (name, architectures) in [("hard", three), ("hard-1arch", &[native])] {
        let check = bundles::write(
            dir,
            &format!("{name}-check"),
            architectures,
            &["/bin/sh", "-c", CHECK],
        )?;
        let timed = bundles::write(dir, name, architectures, &["/bin/true"])?;
        for runtime in &runtimes {
            effect(runtime, &check, dir)?;
        }
        let mut samples = vec![Sample::default(); runtimes.len()];
        for round in 0..rounds + 3 {
            for turn in 0..runtimes.len() {
                let which = (round + turn) % runtimes.len();
                std::thread::sleep(PAUSE);
                let millis = once(&runtimes[which], &timed, dir, round)?;
                if round >= 3 {
                    samples[which].push(millis);
                }
            }
        }
        let find = |name: &str| runtimes.iter().position(|r| r.name == name);
        for (berth, peer, bound) in [
            ("berth cold", "crun", 0.35),
            ("berth warm", "crun", 0.25),
            ("berth warm", "runc", 0.15),
            ("berth cold", "runc", f64::NAN),
        ] {
            if let (Some(b), Some(p)) = (find(berth), find(peer)) {
                let bound = (!bound.is_nan()).then_some(bound);
                table.beside(
                    format!("{name}: {berth}, oci run"),
                    "ms",
                    &samples[b],
                    (peer, &samples[p]),
                    bound,
                );
            }
        }
    }
    Ok(())
}

const CHECK: &str = "grep -E '^(CapEff|NoNewPrivs|Seccomp|Cpus_allowed_list):' /proc/self/status; \
    touch /x 2>/dev/null || echo root-is-read-only; cat /proc/kcore 2>/dev/null | grep -q . || echo kcore-is-masked; \
    ls /sys/class/net | grep -v lo || echo own-network; echo pid $$";

/// Is the container what the bundle says? A runtime that leaves a step out would only look fast.
fn effect(runtime: &Runtime, bundle: &Bundle, dir: &Path) -> Result<()> {
    let output = command(runtime, bundle, dir, "check", 0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.success(),
        "{}: {}\n{text}",
        runtime.name,
        output.status
    );
    for expected in [
        "CapEff:\t00000000000004e0",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Cpus_allowed_list:\t1\n",
        "root-is-read-only",
        "kcore-is-masked",
        "own-network",
        "pid 1\n",
    ] {
        ensure!(
            text.contains(expected),
            "{}: {expected:?} is not in its effect:\n{text}",
            runtime.name
        );
    }
    Ok(())
}

fn command(runtime: &Runtime, bundle: &Bundle, dir: &Path, tag: &str, round: usize) -> Command {
    let root = dir.join(format!(
        "state/root-{}-{}",
        runtime.name.replace(' ', "-"),
        if runtime.cold {
            format!("{tag}{round}")
        } else {
            String::new()
        }
    ));
    let mut command = Command::new(&runtime.program);
    if runtime.name.starts_with("berth") {
        command.arg("oci");
    }
    command
        .arg("--root")
        .arg(root)
        .args(["run", "--bundle"])
        .arg(&bundle.dir);
    command.arg(format!("bench-{}-{tag}-{round}", runtime.name.replace(' ', "-")));
    command.stdin(Stdio::null());
    command
}

fn once(runtime: &Runtime, bundle: &Bundle, dir: &Path, round: usize) -> Result<f64> {
    let tag = bundle
        .dir
        .file_name()
        .and_then(|n| n.to_str())
        .context("bundle name")?
        .to_string();
    let mut command = command(runtime, bundle, dir, &tag, round);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        bail!("{} of {tag}: {status}", runtime.name);
    }
    if runtime.cold {
        let _ = fs::remove_dir_all(dir.join(format!(
            "state/root-{}-{tag}{round}",
            runtime.name.replace(' ', "-")
        )));
    }
    Ok(millis)
}
