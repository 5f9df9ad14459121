//! What a hostile image or a shared volume at /dev can do to the runtime that sets it up.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use anyhow::Result;
use serde_json::json;

use crate::Row;
use crate::lab::{Lab, Verdict};
use berth_tests::runtime::Runtime;

pub(crate) const ATTACKS: &[Row] = &[
    ("dev-link", "CVE-2026-41579, CVE-2026-47766", |r| linked(r, "dev")),
    ("proc-link", "CVE-2019-19921, CVE-2023-27561", |r| {
        linked(r, "proc")
    }),
    ("sys-link", "CVE-2023-27561", |r| linked(r, "sys")),
    ("null-link", "CVE-2026-88265", null_link),
    ("console-link", "CVE-2026-88264, CVE-2025-52565", console_link),
    ("mask-through-link", "CVE-2025-31133", |r| mask(r, Null::Link)),
    ("mask-through-file", "CVE-2025-31133", |r| mask(r, Null::File)),
    ("mask-without-null", "CVE-2025-31133", |r| mask(r, Null::None)),
    ("fake-proc", "CVE-2025-52881, CVE-2019-16884", fake_proc),
];

/// /dev, /proc or /sys of the image leads to a folder of the host, absolutely and by climbing.
fn linked(runtime: &Runtime, name: &str) -> Result<Verdict> {
    let mut worst = Verdict::Held;
    for absolute in [true, false] {
        let lab = Lab::new(runtime, "nothing", &[])?;
        fs::remove_dir(lab.root(name))?;
        let target = if absolute {
            lab.path("canary")
        } else {
            "../canary".into()
        };
        symlink(target, lab.root(name))?;
        let done = lab.run()?;
        match lab.judge(&done)? {
            broken @ Verdict::Broken(_) => return Ok(broken),
            other => worst = other,
        }
    }
    Ok(worst)
}

/// Nothing is mounted over the image's /dev, and its /dev/null is a link to a file of the host.
fn null_link(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "nothing", &[])?;
    lab.without_mount("/dev");
    lab.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    symlink(lab.canary(), lab.root("dev/null"))?;
    let done = lab.run()?;
    lab.judge(&done)
}

/// A terminal is asked for, and /dev/console is a link: to a file of the host that is not there yet, and (on a
/// volume at /dev) to a file inside that would be covered by the terminal.
fn console_link(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "consoles", &[])?;
    lab.without_mount("/dev");
    let outside = lab.path("canary/console");
    symlink(&outside, lab.root("dev/console"))?;
    match with_terminal(&mut lab)? {
        broken @ Verdict::Broken(_) => return Ok(broken),
        _ => drop(lab),
    }
    let mut lab = Lab::new(runtime, "consoles", &[])?;
    let dev = lab.volume("devices", "/dev")?;
    fs::create_dir(dev.join("pts"))?;
    symlink("/etc/masked", dev.join("console"))?;
    with_terminal(&mut lab)
}

fn with_terminal(lab: &mut Lab) -> Result<Verdict> {
    lab.volume("result", "/result")?;
    lab.config["process"]["terminal"] = true.into();
    let socket = lab.path("console.sock");
    let listener = UnixListener::bind(&socket)?;
    let bundle = lab.path("").display().to_string();
    let words = [
        "create",
        "--bundle",
        &bundle,
        "--console-socket",
        &socket.display().to_string(),
        &lab.id,
    ];
    let created = lab.call(&words)?;
    if created.good {
        let _started = lab.call(&["start", &lab.id])?;
        // The attacker has little to say; it says so in a file.
        for _ in 0..200 {
            if fs::read_to_string(lab.path("result/out")).is_ok_and(|t| t.contains("DONE")) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    let _ = lab.call(&["delete", "--force", &lab.id]);
    drop(listener);
    lab.judge(&created)
}

enum Null {
    Link,
    File,
    None,
}

/// /dev is a volume that somebody else writes; its `null`, with which files are masked, is something else.
fn mask(runtime: &Runtime, null: Null) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "masked", &["/etc/masked"])?;
    let dev = lab.volume("devices", "/dev")?;
    fs::create_dir(dev.join("pts"))?;
    lab.volume("result", "/result")?;
    fs::write(lab.root("etc/lure"), "what the attacker shows")?;
    match null {
        Null::Link => symlink("/etc/lure", dev.join("null"))?,
        Null::File => fs::File::create(dev.join("null"))?.write_all(b"what the attacker shows")?,
        Null::None => {}
    }
    let done = lab.run()?;
    lab.judge(&done)
}

/// A folder stands where procfs should be: what the runtime writes there (sysctl, label) never applies, or goes
/// where a link in it leads.
fn fake_proc(runtime: &Runtime) -> Result<Verdict> {
    let mut lab = Lab::new(runtime, "nothing", &[])?;
    let proc = lab.volume("fake", "/proc")?;
    for sub in ["sys/net/ipv4", "self/attr", "self/fd", "thread-self/attr", "1"] {
        fs::create_dir_all(proc.join(sub))?;
    }
    symlink(lab.canary(), proc.join("sys/net/ipv4/ip_forward"))?;
    for file in ["self/attr/exec", "thread-self/attr/exec"] {
        fs::write(proc.join(file), "")?;
    }
    lab.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    let done = lab.run()?;
    Ok(match lab.judge(&done)? {
        Verdict::Held => Verdict::Broken("it runs on a /proc that is none".into()),
        other => other,
    })
}
