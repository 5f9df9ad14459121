//! The grammar, matching and explanation over a recorded tree of a USB serial adapter, a PCI card and a loop
//! device, and the choice between rules.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::rules_tests::rule;
use super::*;
use crate::device::Device;
use crate::event::Action;

const TTY: &str = "/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/ttyUSB0/tty/ttyUSB0";
const NIC: &str = "/devices/pci0000:00/0000:00:03.0/net/eth7";

/// Every device of the tree that has a subsystem.
pub(super) const DEVICES: &[&str] = &[
    TTY,
    NIC,
    "/devices/pci0000:00/0000:00:14.0/usb1/1-1",
    "/devices/pci0000:00/0000:00:03.0",
];

fn put(root: &Path, devpath: &str, subsystem: &str, driver: &str, files: &[(&str, &str)]) {
    let dir = root.join(&devpath[1..]);
    fs::create_dir_all(dir.join("power")).unwrap();
    fs::write(dir.join("uevent"), "").unwrap();
    for (name, value) in files {
        fs::write(dir.join(name), format!("{value}\n")).unwrap();
    }
    // As the kernel has them: relative, to folders that are there.
    let up = "../".repeat(devpath.matches('/').count());
    let kind = if matches!(subsystem, "tty" | "net") {
        "class"
    } else {
        "bus"
    };
    let of = format!("{kind}/{subsystem}");
    fs::create_dir_all(root.join(&of)).unwrap();
    symlink(format!("{up}{of}"), dir.join("subsystem")).unwrap();
    if !driver.is_empty() {
        let of = format!("{of}/drivers/{driver}");
        fs::create_dir_all(root.join(&of)).unwrap();
        symlink(format!("{up}{of}"), dir.join("driver")).unwrap();
    }
}

pub(super) fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tree_at(dir.path(), false);
    dir
}

/// Makes the tree; `plain` leaves out what no `uevent` file of udev's own could be compared with.
pub(super) fn tree_at(root: &Path, plain: bool) {
    fs::create_dir_all(root).unwrap();
    let ids = [("vendor", "0x8086"), ("device", "0x100e"), ("class", "0x020000")];
    put(
        root,
        "/devices/pci0000:00/0000:00:14.0",
        "pci",
        "xhci_hcd",
        &[("vendor", "0x8086")],
    );
    let hub = [("idVendor", "1d6b"), ("idProduct", "0002"), ("serial", "hub")];
    put(root, "/devices/pci0000:00/0000:00:14.0/usb1", "usb", "usb", &hub);
    let adapter = [
        ("idVendor", "0403"),
        ("idProduct", "6001"),
        ("serial", "A1|B \"2\" "),
        ("bcdDevice", "0600"),
    ];
    put(
        root,
        "/devices/pci0000:00/0000:00:14.0/usb1/1-1",
        "usb",
        "usb",
        &adapter,
    );
    let hostile = if plain { "a (b)" } else { "hostile\nvalue\u{1b}[2J" };
    let interface = [("bInterfaceNumber", "00"), ("interface", hostile)];
    put(
        root,
        "/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0",
        "usb",
        "ftdi_sio",
        &interface,
    );
    put(
        root,
        "/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/ttyUSB0",
        "usb-serial",
        "ftdi_sio",
        &[],
    );
    put(root, TTY, "tty", "", &[("dev", "188:0")]);
    fs::write(
        root.join(&TTY[1..]).join("uevent"),
        "MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0\n",
    )
    .unwrap();
    put(root, "/devices/pci0000:00/0000:00:03.0", "pci", "e1000", &ids);
    put(
        root,
        NIC,
        "net",
        "",
        &[("address", "02:fc:00:00:00:01"), ("addr_assign_type", "0")],
    );
    fs::write(root.join(&NIC[1..]).join("uevent"), "INTERFACE=eth7\nIFINDEX=7\n").unwrap();
}

pub(super) fn tty(root: &Path) -> Device {
    let mut record = crate::device::Record::from(Device::from_sysfs(root, Path::new(TTY)).unwrap());
    record.properties.insert("ID_VENDOR_ID".into(), "0x0403".into());
    record.properties.insert("ID_SERIAL".into(), "FTDI_A1".into());
    record.properties.insert("PCI_CLASS".into(), "20000".into());
    record
        .properties
        .insert("CURRENT_TAGS".into(), ":systemd:seat:".into());
    record.into()
}

#[test]
fn table_of_matches() {
    let dir = tree();
    let device = tty(dir.path());
    for (text, want) in [
        (r#"SUBSYSTEM=="tty""#, true),
        (r#"SUBSYSTEM!="tty""#, false),
        (r#"SUBSYSTEM=="block|tty""#, true),
        (r#"SUBSYSTEM!="block|net""#, true),
        (r#"SUBSYSTEM!="block|tty""#, false),
        (r#"SUBSYSTEM=="class""#, false),
        (r#"KERNEL=="ttyUSB*", SUBSYSTEM=="tty""#, true),
        (r#"KERNEL=="ttyUSB[1-9]""#, false),
        (r#"KERNEL=="ttyUSB[!1-9]""#, true),
        (r#"KERNEL=="ttyusb0""#, false),
        (r#"KERNEL==i"ttyusb0""#, true),
        (r#"KERNEL==i"TTYUSB?""#, true),
        (r#"DEVPATH=="*/usb1/*""#, true),
        (r#"ACTION=="add""#, true),
        (r#"ACTION!="remove|change""#, true),
        (r#"ENV{ACTION}=="add""#, true),
        (r#"DRIVER=="""#, true),
        (r#"DRIVER=="ftdi_sio""#, false),
        (r#"DRIVERS=="ftdi_sio""#, true),
        (r#"KERNELS=="1-1""#, true),
        (r#"KERNELS=="ttyUSB0""#, true),
        (r#"SUBSYSTEMS=="pci""#, true),
        (r#"SUBSYSTEMS=="block""#, false),
        (r#"ATTR{dev}=="188:0""#, true),
        (r#"ATTR{../../../idVendor}=="0403""#, false),
        (r#"ATTRS{idVendor}=="0403", ATTRS{idProduct}=="6001""#, true),
        // Each holds on some parent, no parent has both.
        (r#"ATTRS{idVendor}=="0403", ATTRS{idProduct}=="0002""#, false),
        (r#"ATTRS{idVendor}=="0403", KERNELS=="usb1""#, false),
        // On two lines each line has a parent of its own.
        ("ATTRS{idVendor}==\"0403\"\nATTRS{idProduct}==\"0002\"", true),
        (r#"ATTRS{idVendor}!="0403""#, true),
        // A missing attribute never holds, a missing property is empty.
        (r#"ATTR{idVendor}=="0403""#, false),
        (r#"ATTR{idVendor}!="0403""#, false),
        (r#"ATTR{absent}!="x""#, false),
        (r#"ENV{ABSENT}!="x""#, true),
        (r#"ENV{ABSENT}=="""#, true),
        (r#"ENV{ABSENT}=="?*""#, false),
        (r#"ENV{ID_SERIAL}=="?*""#, true),
        (r#"ENV{ABSENT}=="x|""#, true),
        (r#"ENV{ID_SERIAL}=="x|""#, false),
        // Trailing white space counts only if asked for; `|` and quotes in a value.
        (r#"ATTRS{serial}=="*\"2\"""#, true),
        (r#"ATTRS{serial}=="*\"2\" ""#, true),
        (r#"ATTRS{serial}=="*\"2\"  ""#, false),
        (r#"ATTRS{interface}==e"hostile\nvalue\x1b[2J""#, true),
        (r#"ATTRS{interface}==e"hostile\nvalue*""#, true),
        // Hexadecimal identifiers, with and without 0x; not for other names, not for globs.
        (r#"ENV{ID_VENDOR_ID}=="0403""#, true),
        (r#"ENV{ID_VENDOR_ID}=="0x403""#, true),
        (r#"ENV{ID_VENDOR_ID}!="0403""#, false),
        (r#"ENV{PCI_CLASS}=="0x020000""#, true),
        (r#"ATTRS{vendor}=="8086""#, true),
        (r#"ATTRS{vendor}=="8086|1234""#, true),
        (r#"ATTRS{vendor}=="808*""#, false),
        (r#"ATTRS{bInterfaceNumber}=="0""#, false),
        // Tags.
        (r#"TAG=="seat""#, true),
        (r#"TAG=="se*""#, true),
        (r#"TAG=="x""#, false),
        (r#"TAG!="x""#, true),
        (r#"TAG!="seat""#, false),
        (r#"TAGS=="systemd""#, true),
        (
            "# a comment\n\n  SUBSYSTEM == \"tty\" , \\\n KERNEL==\"tty*\"  \n# more",
            true,
        ),
        (r#"SUBSYSTEM=="tty" KERNEL=="sd*""#, false),
    ] {
        let rule = Match::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let explanation = explain(&rule, &device, Action::Add);
        assert_eq!(explanation.holds, want, "{text}\n{explanation}");
        let fast = rule.matches(&View::new(&device), Action::Add);
        assert_eq!(fast.is_some(), want, "explained and matched differently: {text}");
        assert_eq!(fast.unwrap_or_default(), explanation.matched);
        assert_eq!(Match::parse(&rule.to_string()).unwrap(), rule, "{rule}");
    }
}

#[test]
fn an_explanation_names_value_and_place() {
    let dir = tree();
    let device = tty(dir.path());
    let text = "SUBSYSTEM==\"tty\", ATTRS{idVendor}==\"0403\",\tATTRS{idProduct}==\"0002\"\n ATTRS{interface}==\"x\"";
    let rule = Match::parse(text).unwrap();
    let explanation = explain(&rule, &device, Action::Add);
    let usb = "/devices/pci0000:00/0000:00:14.0/usb1/1-1";
    let got: Vec<_> = (explanation.clauses.iter())
        .map(|c| {
            (
                c.line,
                c.column,
                c.holds,
                c.actual.as_deref(),
                c.found_at.as_str(),
            )
        })
        .collect();
    assert_eq!(
        got,
        [
            (1, 1, true, Some("tty"), TTY),
            (1, 19, true, Some("0403"), usb),
            (1, 44, false, Some("6001"), usb),
            (2, 2, false, None, TTY),
        ]
    );
    assert!(!explanation.holds);
    // A hostile value is shown on one line.
    let rule = Match::parse(r#"KERNELS=="1-1:1.0", ATTRS{interface}=="x""#).unwrap();
    let shown = explain(&rule, &device, Action::Add).to_string();
    assert!(
        shown.contains("hostile\\u{a}value\\u{1b}[2J") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    // The last line with S keys names the parent.
    let rule = Match::parse("KERNELS==\"usb1\"\nSUBSYSTEM==\"tty\"").unwrap();
    let parent = explain(&rule, &device, Action::Add).matched.parent;
    assert_eq!(parent.as_deref(), Some("/devices/pci0000:00/0000:00:14.0/usb1"));
}

#[test]
fn bus_class_and_subsystem_are_one() {
    let device = serde_json::json!({"devpath": "/devices/a", "properties": {"SUBSYSTEM": "class"}});
    let device: Device = serde_json::from_value(device).unwrap();
    for (text, want) in [
        (r#"SUBSYSTEM=="bus""#, true),
        (r#"SUBSYSTEM!="subsystem""#, false),
        (r#"SUBSYSTEM=="bus|tty""#, false),
        (r#"SUBSYSTEM==i"bus""#, false),
    ] {
        let rule = Match::parse(text).unwrap();
        assert_eq!(explain(&rule, &device, Action::Add).holds, want, "{text}");
        // An index by subsystem must not lose it.
        let rules = Rules::new(vec![self::rule("a", text, 0)]);
        assert_eq!(
            rules.choose(&View::new(&device), Action::Add).unwrap().is_some(),
            want,
            "{text}"
        );
    }
}

#[test]
fn what_travels_between_threads() {
    fn sent<T: Send>() {}
    sent::<crate::monitor::Monitor>();
    sent::<crate::inventory::Inventory>();
    sent::<Rules>();
    sent::<Device>();
}

#[test]
fn table_of_errors() {
    for (text, place, message, hint) in [
        ("", (1, 1), "no clause", "e.g."),
        ("\n# only\n", (3, 1), "no clause", ""),
        (
            "KERNL==\"x\"",
            (1, 1),
            "unknown key KERNL",
            "did you mean KERNEL?",
        ),
        (
            "SUBSYSTEM==\"tty\", atrs{a}==\"x\"",
            (1, 19),
            "unknown key atrs",
            "did you mean ATTRS?",
        ),
        ("WHATEVER==\"x\"", (1, 1), "unknown key", "known: ACTION ATTR"),
        ("KERNEL=\"x\"", (1, 7), "`=` assigns", "KERNEL==\"…\""),
        ("ENV{A}+=\"x\"", (1, 7), "`+=` assigns", "=="),
        ("TAG-=\"x\"", (1, 4), "`-=` assigns", "=="),
        ("KERNEL:=\"x\"", (1, 7), "`:=` assigns", "=="),
        ("RUN+=\"x\"", (1, 1), "RUN cannot be used", "workload"),
        (
            "KERNEL==\"x\", SYMLINK+=\"y\"",
            (1, 21),
            "`+=` assigns",
            "SYMLINK==",
        ),
        ("KERNEL<\"x\"", (1, 7), "expected == or !=", ""),
        ("KERNEL==x", (1, 9), "double quotes", ""),
        ("KERNEL==\"x", (1, 9), "never closed", ""),
        ("\n  KERNEL==\"x\n\"", (2, 11), "never closed", ""),
        ("ATTR==\"x\"", (1, 5), "needs a name", ""),
        ("ATTR{}==\"x\"", (1, 6), "empty", ""),
        ("ATTR{a==\"x\"", (1, 6), "without `}`", ""),
        ("KERNEL{a}==\"x\"", (1, 7), "takes no name", ""),
        ("ATTR{/etc/x}==\"x\"", (1, 6), "relative", ""),
        (
            "ATTR{[net/eth0]}==\"x\"",
            (1, 6),
            "[subsystem/name]attribute",
            "dmi",
        ),
        (
            "ATTR{[net/../eth0]address}==\"x\"",
            (1, 6),
            "[subsystem/name]attribute",
            "",
        ),
        ("ATTR{a$nope}==\"x\"", (1, 6), "unknown substitution", ""),
        ("CONST{cvm}==\"x\"", (1, 7), "no constant", "arch virt"),
        (
            "SYSCTL{../../etc/passwd}==\"x\"",
            (1, 8),
            "no name below /proc/sys",
            "",
        ),
        ("TEST{9}==\"x\"", (1, 1), "no mode", "octal"),
        ("TEST==\"\"", (1, 7), "needs a path", ""),
        ("TEST==i\"x\"", (1, 7), "not a pattern", ""),
        ("PROGRAM==\"x\"", (1, 1), "PROGRAM cannot be used", "not run"),
        ("ACTION==\"plug\"", (1, 9), "no action \"plug\"", "add remove"),
        ("ACTION==\"ADD\"", (1, 9), "no action", ""),
        ("KERNEL==\"[a|b]\"", (1, 9), "alternatives", ""),
        ("KERNEL==e\"\\q\"", (1, 11), "unknown escape", "\\xHH"),
        ("KERNEL==e\"\\x00\"", (1, 11), "unknown escape", ""),
        ("ünter==\"x\"", (1, 1), "expected a key, found `ü`", ""),
        ("KERNEL==\"ä\", ;", (1, 14), "expected a key, found `;`", ""),
        ("KERNEL==\"x\"\u{1b}", (1, 12), "found `\\u{1b}`", ""),
    ] {
        let error = Match::parse(text).expect_err(text);
        assert_eq!((error.line, error.column), place, "{text:?}: {error}");
        assert!(error.message.contains(message), "{text:?}: {error}");
        assert!(
            error.hint.as_deref().unwrap_or("").contains(hint),
            "{text:?}: {error}"
        );
    }
    assert!(Match::parse(&format!("KERNEL==\"{}\"", "x".repeat(5000))).is_err());
    assert!(Match::parse(&"x".repeat(100_000)).is_err());
}

#[test]
fn one_event_costs_well_below_a_millisecond() {
    let dir = tree();
    let rules = (0..50).map(|n| {
        let text = format!("SUBSYSTEM==\"tty\", ENV{{ID_SERIAL}}==\"?*\", ATTRS{{idVendor}}==\"{n:04x}\"");
        rule(&format!("r{n}"), &text, 0)
    });
    let rules = Rules::new(rules.collect());
    let message = format!("add@{TTY}\0ACTION=add\0DEVPATH={TTY}\0SUBSYSTEM=tty\0SEQNUM=1\0ID_SERIAL=x\0");
    let root = std::sync::Arc::from(dir.path());
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            let event = crate::event::Event::parse_kernel(message.as_bytes(), &root).unwrap();
            assert!(
                rules
                    .choose(&View::new(&event.device), event.action)
                    .unwrap()
                    .is_none()
            );
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("median {:?}, longest {:?}", times[100], times[199]);
    assert!(times[100] < Duration::from_millis(1), "{:?}", times[100]);
}

fn arb_match() -> impl Strategy<Value = Match> {
    let name = "[a-zA-Z_][a-zA-Z_/.]{0,8}";
    let key = prop_oneof![
        Just(Key::Devpath),
        Just(Key::Kernel),
        Just(Key::Kernels),
        Just(Key::Subsystem),
        Just(Key::Subsystems),
        Just(Key::Driver),
        Just(Key::Drivers),
        Just(Key::Tag),
        Just(Key::Tags),
        Just(Key::Name),
        Just(Key::Symlink),
        Just(Key::Const("arch".to_owned())),
        name.prop_map(Key::Sysctl),
        name.prop_map(Key::Attr),
        name.prop_map(Key::Attrs),
        name.prop_map(Key::Env)
    ];
    let value = "[^\0|]{0,12}|[a-z*?|]{0,12}|[\\\\\"a]{0,6}";
    let test = (key, any::<bool>(), value, any::<bool>()).prop_map(|(key, equal, text, fold)| Test {
        key,
        equal,
        pattern: Pattern::new(text, fold),
        line: 0,
        column: 0,
    });
    let line = prop::collection::vec(test, 1..4).prop_map(|tests| Line {
        order: (0..tests.len()).collect(),
        tests,
    });
    prop::collection::vec(line, 1..4).prop_map(|lines| Match { lines })
}

proptest! {
    #[test]
    fn print_and_parse(rule in arb_match()) {
        let text = rule.to_string();
        prop_assert_eq!(Match::parse(&text), Ok(rule), "{}", text);
    }

    #[test]
    fn any_text(text in "\\PC{0,80}|[A-Z{}=!\"\\\\#,\n|*e i]{0,80}") {
        if let Ok(rule) = Match::parse(&text) {
            prop_assert_eq!(Match::parse(&rule.to_string()).unwrap(), rule);
        }
    }

    #[test]
    fn any_value_is_explained_as_it_is_matched(rule in arb_match(), value in "[^\0]{0,40}") {
        let device = serde_json::json!({
            "sysRoot": "/nonexistent", "devpath": "/devices/a", "properties": {"SUBSYSTEM": value, "a": value}
        });
        let device: Device = serde_json::from_value(device).unwrap();
        let explanation = explain(&rule, &device, Action::Add);
        prop_assert_eq!(explanation.holds, rule.matches(&View::new(&device), Action::Add).is_some());
        // The verdict is what the lines say; only the S keys of one line are judged together.
        prop_assert!(!explanation.holds || explanation.clauses.iter().all(|c| c.holds));
        let shown = explanation.to_string();
        prop_assert!(!shown.chars().any(|c| c != '\n' && crate::safe::is_control(c)), "{}", shown);
    }
}
