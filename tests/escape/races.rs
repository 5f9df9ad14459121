//! A volume that somebody else changes while the container is set up: two names are exchanged for ever, and
//! containers are started one after the other.
#![allow(unsafe_code)] // renameat2(2) has no wrapper in nix's features used here

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::Row;
use crate::lab::{Lab, Verdict, at_least, race_time};
use berth_tests::runtime::Runtime;

pub(crate) const ATTACKS: &[Row] = &[
    ("race-null", "CVE-2025-31133", null),
    ("race-mount-target", "CVE-2021-30465", |r| target(r, "tmpfs")),
    ("race-bind-target", "CVE-2021-30465", |r| target(r, "bind")),
];

/// Exchange two names of a folder until killed.
pub(crate) fn exchange(folder: &str, a: &str, b: &str) -> Result<()> {
    let path = |name: &str| CString::new(format!("{folder}/{name}"));
    let (a, b) = (path(a)?, path(b)?);
    loop {
        // SAFETY: both paths outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                a.as_ptr(),
                libc::AT_FDCWD,
                b.as_ptr(),
                libc::RENAME_EXCHANGE,
            );
        }
        if std::os::unix::process::parent_id() == 1 {
            return Ok(());
        }
    }
}

/// The helper; it ends with this value.
struct Racer(Child);

impl Racer {
    fn start(folder: &Path, a: &str, b: &str) -> Result<Racer> {
        let child = Command::new(std::env::current_exe()?)
            .args(["race", &folder.display().to_string(), a, b])
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Racer(child))
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Containers one after the other while the helper races; the first that gains something ends it.
fn rounds(lab: &Lab, folder: &Path, a: &str, b: &str) -> Result<Verdict> {
    let _racer = Racer::start(folder, a, b)?;
    let begun = Instant::now();
    let (mut held, mut refused, mut last) = (0, 0, Verdict::Failed("nothing was tried".into()));
    while begun.elapsed() < race_time() || held + refused < at_least(10) {
        let _ = fs::remove_file(lab.path("result/out"));
        let done = lab.run()?;
        match lab.judge(&done)? {
            Verdict::Held => held += 1,
            Verdict::Refused(_) => refused += 1,
            other => return Ok(other),
        }
        if held + refused == at_least(10) {
            last = Verdict::Held;
        }
    }
    eprintln!("{}: {held} ran, {refused} were refused", lab.id);
    Ok(last)
}

/// `null` on a volume at /dev is now the null device, now a link.
fn null(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "masked", &["/etc/masked"])?;
    let dev = lab.volume("devices", "/dev")?;
    fs::create_dir(dev.join("pts"))?;
    lab.volume("result", "/result")?;
    fs::write(lab.root("etc/lure"), "what the attacker shows")?;
    symlink("/etc/lure", dev.join("other"))?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let device = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&dev.join("null"), nix::sys::stat::SFlag::S_IFCHR, mode, device)
        .context("a null device in the temporary folder")?;
    rounds(&lab, &dev, "null", "other")
}

/// The place of a mount is now a folder, now a link to a folder of the host.
fn target(runtime: &Runtime, kind: &str) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "mounted", &["/vol/at", "escape-tag"])?;
    let volume = lab.volume("volume", "/vol")?;
    fs::create_dir(volume.join("at"))?;
    symlink(lab.path("canary"), volume.join("other"))?;
    let source = lab.path("marked");
    fs::create_dir(&source)?;
    fs::write(source.join("escape-tag"), "")?;
    let mount = if kind == "bind" {
        json!({"destination": "/vol/at", "type": "bind", "source": source, "options": ["rbind"]})
    } else {
        json!({"destination": "/vol/at", "type": "tmpfs", "source": "escape-tag", "options": ["size=64k"]})
    };
    lab.config["mounts"].as_array_mut().context("mounts")?.push(mount);
    rounds(&lab, &volume, "at", "other")
}
