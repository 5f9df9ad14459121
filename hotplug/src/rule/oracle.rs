//! The matcher against systemd's own: generated rules over this machine's devices, `udevadm test` as the oracle.
//!
//! In a mount namespace of its own (a thread that has left the process's): /run, /dev and the folders of
//! udev's rules are empty there, so that nothing outside is read or changed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::*;
use crate::device::Device;
use crate::event::Action;

/// A small generator of its own, so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// What a clause could be about: key and actual value, of the device or of one above it.
fn facts(device: &Device) -> Vec<(Key, String)> {
    let mut facts = Vec::new();
    let mut chain = device.parents();
    chain.insert(0, device.clone());
    for (level, one) in chain.iter().enumerate() {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        facts.push((Key::Kernels, one.sysname()));
        facts.push((Key::Subsystems, text(one.subsystem())));
        facts.push((Key::Drivers, one.driver().unwrap_or_default()));
        let names = crate::sysfs::attribute_names(one.sys_root(), one.devpath());
        let mut attributes = Vec::new();
        for name in names
            .into_iter()
            .chain(["power/control", "subsystem", "absent"].map(str::to_owned))
        {
            let value = one.attribute(&name).unwrap_or_default();
            // Values that move between two looks.
            let counts = value.len() > 3 && value.bytes().all(|b| b.is_ascii_digit());
            if value.len() < 60 && !counts && !["stat", "inflight"].contains(&name.as_str()) {
                attributes.push((name, value));
            }
        }
        for (name, value) in attributes {
            facts.push((Key::Attrs(name.clone()), value.clone()));
            if level == 0 {
                facts.push((Key::Attr(name), value));
            }
        }
    }
    facts.push((Key::Name, device.interface().unwrap_or_default().to_owned()));
    for link in device.links().iter().take(1) {
        facts.push((Key::Symlink, (*link).to_owned()));
    }
    for name in [
        "kernel/ostype",
        "kernel.ostype",
        "net/ipv4/conf/lo/forwarding",
        "absent/at/all",
    ] {
        let value = outside::sysctl(&View::new(device), name);
        facts.push((
            Key::Sysctl(name.to_owned()),
            value.ok().flatten().unwrap_or_default(),
        ));
    }
    facts.extend(
        ["arch", "virt"].map(|name| (Key::Const(name.to_owned()), constants::value(name).to_owned())),
    );
    for (mode, path) in [
        (None, "uevent"),
        (None, "power/*/x"),
        (None, "power"),
        (None, "absent"),
        (Some(0o444), "uevent"),
        (Some(0o111), "uevent"),
        (Some(0o111), "power"),
        (None, "/sys/class"),
        (None, "$sys/class/$env{SUBSYSTEM}"),
        (None, "[net/lo]/mtu"),
        (None, "../%k"),
    ] {
        facts.push((Key::Test(mode), path.to_owned()));
    }
    for name in [
        "[net/lo]ifindex",
        "[net/lo]absent",
        "[net/absent]ifindex",
        "../%k/power/control",
    ] {
        let value = outside::attribute(&View::new(device), device.devpath(), name).unwrap_or_default();
        if value.len() < 60 && !value.contains('\n') {
            facts.push((Key::Attr(name.to_owned()), value.clone()));
            facts.push((Key::Attrs(name.to_owned()), value));
        }
    }
    facts.push((Key::Kernel, device.sysname()));
    facts.push((Key::Subsystem, device.subsystem().unwrap_or_default().to_owned()));
    facts.push((Key::Driver, device.driver().unwrap_or_default()));
    facts.push((Key::Devpath, device.devpath().to_owned()));
    facts.push((Key::Action, "add".to_owned()));
    facts.push((Key::Tag, "systemd".to_owned()));
    facts.push((Key::Env("ABSENT".to_owned()), String::new()));
    // With a name that udev gave, its `test` leaves INTERFACE and the links as they were found.
    facts.extend(
        device
            .properties()
            .iter()
            .map(|(k, v)| (Key::Env(k.clone()), v.clone())),
    );
    facts
}

/// A pattern that has something to do with the value.
fn pattern(dice: &mut Dice, value: &str) -> String {
    let value = if dice.roll(8) == 0 {
        dice.pick(&["", "x", "lo", "pci", "0"])
    } else {
        value
    };
    let value: String = value.chars().filter(|c| !"|[]".contains(*c)).collect();
    let mut chars: Vec<char> = value.chars().collect();
    match dice.roll(9) {
        0 if !chars.is_empty() => {
            let at = dice.roll(chars.len());
            chars[at] = '?';
        }
        1 if !chars.is_empty() => {
            let at = dice.roll(chars.len());
            chars.truncate(at);
            chars.push('*');
        }
        2 => return format!("?*{}", chars.last().map(char::to_string).unwrap_or_default()),
        3 => return format!("nothing|{value}"),
        4 => return format!("{value}|"),
        5 => return "?*".to_owned(),
        6 if !chars.is_empty() => {
            let last = chars.pop().unwrap_or('x');
            let set = if last.is_ascii_alphanumeric() {
                format!("[!{last}]")
            } else {
                "[[:alnum:]]".to_owned()
            };
            return chars.into_iter().collect::<String>() + &set;
        }
        7 => chars.push('x'),
        _ => {}
    }
    chars.into_iter().collect()
}

fn generate(dice: &mut Dice, facts: &[(Key, String)]) -> Line {
    let count = 1 + dice.roll(3);
    let tests: Vec<Test> = (0..count)
        .map(|_| {
            let (key, value) = dice.pick(facts).clone();
            let pattern = match key {
                // Paths, not patterns.
                Key::Test(_) => value,
                Key::Action => "add|change".to_owned(),
                // systemd turns "?*" into "is not empty" and then asks no tag at all: with TAG it means the
                // opposite of what is written. berth means what is written.
                Key::Tag => "systemd|x*".to_owned(),
                _ => pattern(dice, &value),
            };
            // Of many links or tags systemd's `!=` asks whether *every* one of them is the value; berth's, whether
            // none of them is.
            let equal = dice.roll(4) > 0 || matches!(key, Key::Symlink);
            Test {
                key,
                equal,
                pattern: Pattern::new(pattern, false),
                line: 1,
                column: 1,
            }
        })
        .collect();
    Line {
        order: (0..tests.len()).collect(),
        tests,
    }
}

/// Rules that give a device what NAME and SYMLINK are compared with.
const GIVEN: &str =
    "SUBSYSTEM==\"net\", NAME=\"$kernel\"\nSUBSYSTEM!=\"net\", SYMLINK+=\"berth/by-name/%k\"\n";

/// The device as it is after [`GIVEN`].
fn given(device: Device) -> Device {
    let mut record = crate::device::Record::from(device);
    let net = record.properties.get("SUBSYSTEM").is_some_and(|s| s == "net");
    let name = crate::device::sysname(&record.devpath);
    if net {
        record.properties.insert("INTERFACE".to_owned(), name);
    } else if record.properties.contains_key("MAJOR") {
        record
            .properties
            .insert("DEVLINKS".to_owned(), format!("/dev/berth/by-name/{name}"));
    }
    record.into()
}

/// How many rules for each device.
const RULES: usize = 500;

#[derive(Default)]
struct Tally {
    pairs: usize,
    held: usize,
    wrong: BTreeSet<String>,
}

impl Tally {
    fn device(&mut self, dice: &mut Dice, device: Device, udevadm: impl Fn(&Device) -> Command) {
        let device = given(device);
        let facts = facts(&device);
        let rules: Vec<Match> = (0..RULES)
            .map(|_| Match {
                lines: vec![generate(dice, &facts)],
            })
            .collect();
        let text: String = rules
            .iter()
            .enumerate()
            .map(|(n, rule)| format!("{rule}, ENV{{BERTH_{n}}}=\"1\"\n"))
            .collect();
        std::fs::write("/run/udev/rules.d/50-berth.rules", GIVEN.to_owned() + &text).unwrap();
        let run = udevadm(&device).output();
        let run = run.expect("udevadm (Debian package udev) is needed");
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(
            said.contains("DEVPATH="),
            "{said}{}",
            String::from_utf8_lossy(&run.stderr)
        );
        for (n, rule) in rules.iter().enumerate() {
            let systemd = said.lines().any(|line| line == format!("BERTH_{n}=1"));
            let explanation = explain(rule, &device, Action::Add);
            self.pairs += 1;
            self.held += usize::from(systemd);
            if systemd != explanation.holds {
                self.wrong
                    .insert(format!("systemd says {systemd}: {rule}\n{explanation}"));
            }
        }
    }

    fn judge(self, least: usize) {
        let all: Vec<_> = self.wrong.iter().map(String::as_str).collect();
        assert!(
            self.wrong.is_empty(),
            "{} of {} differ:\n{}",
            self.wrong.len(),
            self.pairs,
            all.join("\n")
        );
        // Rules that never hold would prove nothing.
        let (pairs, held) = (self.pairs, self.held);
        assert!(pairs >= least && held * 10 > pairs, "{held} of {pairs} hold");
        println!("{pairs} pairs, {held} hold");
    }
}

/// /run, /dev and udev's folders are empty for what runs inside.
fn alone(body: impl FnOnce() + Send + 'static) {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        for folder in ["/run", "/dev", "/etc/udev", "/usr/lib/udev"] {
            if Path::new(folder).is_dir() {
                mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            }
        }
        let (kind, mode) = (SFlag::S_IFCHR, Mode::from_bits_truncate(0o666));
        mknod("/dev/null", kind, mode, makedev(1, 3)).unwrap();
        std::fs::create_dir_all("/run/udev/rules.d").unwrap();
        body();
    };
    std::thread::spawn(body).join().unwrap();
}

#[test]
fn agrees_with_systemd() {
    alone(|| {
        let links = [
            "class/net/lo",
            "class/net/eth0",
            "class/mem/null",
            "class/block/loop0",
            "class/block/vda",
            "class/tty/tty",
        ];
        let (mut dice, mut tally) = (Dice(2026), Tally::default());
        for link in links {
            let Ok(device) = Device::from_sysfs(Path::new("/sys"), &Path::new("/sys").join(link)) else {
                continue;
            };
            tally.device(&mut dice, device, |device| {
                let mut run = Command::new("udevadm");
                run.args(["test", "--action=add"]).arg(device.syspath());
                run
            });
        }
        // At least lo, null, loop0 and tty are on every machine.
        tally.judge(4 * RULES);
    });
}

/// Hardware this machine has not: a tree of a USB serial adapter behind a hub and of a PCI card, which umockdev's
/// library shows to udevadm as /sys.
#[test]
fn agrees_with_systemd_over_umockdev() {
    let dir = tempfile::tempdir().unwrap();
    super::tests::tree_at(&dir.path().join("sys"), true);
    // /proc is not mocked for udevadm: both see this machine's settings.
    for name in ["kernel/ostype", "net/ipv4/conf/lo/forwarding"] {
        let to = dir.path().join("proc/sys").join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(Path::new("/proc/sys").join(name), to).unwrap();
    }
    let at = dir.path().to_owned();
    // The mount namespace hides /run and /dev only: the tree stays where it is.
    alone(move || {
        let (mut dice, mut tally) = (Dice(2027), Tally::default());
        let root = at.join("sys");
        for devpath in super::tests::DEVICES {
            let device = Device::from_sysfs(&root, Path::new(devpath)).unwrap();
            tally.device(&mut dice, device, |device| {
                let mut run = Command::new("udevadm");
                run.args(["test", "--action=add"])
                    .arg(Path::new("/sys").join(&device.devpath()[1..]))
                    .env("UMOCKDEV_DIR", &at)
                    .env("LD_PRELOAD", "libumockdev-preload.so.0");
                run
            });
        }
        tally.judge(super::tests::DEVICES.len() * RULES);
    });
}
