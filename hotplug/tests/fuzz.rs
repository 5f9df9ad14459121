//! Mutated rules, events, templates, documents and recordings against their parsers: none may panic, hang or grow, and
//! what is taken must survive being printed and read again.
//!
//! Seeds are mutated by a generator with a fixed start, so that a failure comes again; each target runs for
//! `BERTH_FUZZ_MS` milliseconds (default 1500).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_hotplug::device::{Action, Device};
use berth_hotplug::event::Event;
use berth_hotplug::inventory::Inventory;
use berth_hotplug::recording::Reader;
use berth_hotplug::rule::{Match, RuleSpec, View, explain};
use berth_hotplug::safe;
use berth_hotplug::template::Template;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }

    /// A seed with some bytes changed, cut out, repeated, or joined with another's.
    fn mutate(&mut self, seeds: &[&[u8]]) -> Vec<u8> {
        let mut bytes = seeds[self.roll(seeds.len())].to_vec();
        for _ in 0..1 + self.roll(6) {
            let at = self.roll(bytes.len() + 1);
            match self.roll(7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.roll(8),
                1 if at < bytes.len() => bytes[at] = b"\0\n\r\"\\{}[]|*?=!$%#,/ \xff\x1b"[self.roll(22)],
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + self.roll(20)).min(bytes.len());
                    let part = bytes[at.min(end)..end].to_vec();
                    let times = self.roll(40);
                    bytes.extend(part.repeat(times));
                }
                4 => {
                    let end = (at + self.roll(10)).min(bytes.len());
                    bytes.drain(at.min(end)..end);
                }
                5 => {
                    let other = seeds[self.roll(seeds.len())];
                    let from = self.roll(other.len());
                    bytes.splice(at..at, other[from..].iter().copied());
                }
                _ => bytes.insert(at, self.roll(256) as u8),
            }
        }
        bytes
    }
}

fn fuzz(name: &str, seeds: &[&[u8]], mut target: impl FnMut(&[u8])) {
    let millis = std::env::var("BERTH_FUZZ_MS").ok().and_then(|ms| ms.parse().ok());
    let end = Instant::now() + Duration::from_millis(millis.unwrap_or(1500));
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    seeds.iter().for_each(|seed| target(seed));
    let (mut runs, mut longest) = (0u64, Duration::ZERO);
    while Instant::now() < end {
        let bytes = dice.mutate(seeds);
        let begin = Instant::now();
        target(&bytes);
        longest = longest.max(begin.elapsed());
        runs += 1;
    }
    println!("{name}: {runs} inputs, the slowest took {longest:?}");
    assert!(runs > 100, "{name}: {runs} inputs only");
}

const RULES: &[&[u8]] = &[
    br#"SUBSYSTEM=="tty", KERNEL=="ttyUSB*", ATTRS{idVendor}=="0403", ENV{ID_SERIAL}!="x|y""#,
    b"KERNEL==\"a\"\nSUBSYSTEMS==i\"USB\", \\\nATTR{[dmi/id]sys_vendor}==e\"\\x41\\u00e4\"\n# comment",
    br#"TEST{0444}=="power/*/x", SYSCTL{kernel.ostype}=="Linux", CONST{arch}=="x86*", TAG=="[[:alnum:]]*""#,
    br#"NAME=="[!a-z]?\*", SYMLINK=="disk/by-id/*", ACTION=="add|change", DEVPATH=="*/usb1/*""#,
];

#[test]
fn rules() {
    let device: Device = serde_json::from_value(serde_json::json!({
        "sysRoot": "/nonexistent", "devpath": "/devices/a", "properties": {"SUBSYSTEM": "tty", "ID_SERIAL": "x"}
    }))
    .unwrap();
    fuzz("rules", RULES, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(rule) = Match::parse(&text) {
            let again = rule.to_string();
            assert_eq!(Match::parse(&again).as_ref(), Ok(&rule), "{again:?}");
            let holds = rule.matches(&View::new(&device), Action::Add).is_some();
            assert_eq!(explain(&rule, &device, Action::Add).holds, holds, "{again:?}");
            // What can never hold does not.
            assert!(rule.contradiction().is_none() || !holds, "{again:?}");
        }
    });
}

#[test]
fn documents() {
    let seeds: &[&[u8]] = &[
        br#"{"match":"SUBSYSTEM==\"tty\"","workload":"w","device":{"path":"/dev/$kernel","links":true},"identity":"serial"}"#,
        br#"{"match":{"all":["KERNEL==\"a\"",{"not":{"any":["TAG==\"x\""]}}]},"workload":"w","trigger":["bind"],"unplug":{"grace":"5s"}}"#,
        br#"{"bundle":{"need":"any","by":"$id","devices":[{"name":"a","match":"KERNEL==\"a\"","env":[{"name":"A","value":"%k"}]}]},"workload":"w"}"#,
        br#"{"match":"KERNEL==\"a\"","forbid":true,"priority":7}"#,
    ];
    fuzz("documents", seeds, |bytes| {
        if let Ok(spec) = serde_json::from_slice::<RuleSpec>(bytes) {
            let faults = spec.validate();
            assert_eq!(spec.compile("r").is_ok(), faults.is_empty());
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<RuleSpec>(&text).unwrap(), spec, "{text}");
        }
    });
}

#[test]
fn events() {
    let root: Arc<Path> = Path::new("/nonexistent").into();
    let seeds: &[&[u8]] = &[
        b"add@/devices/virtual/block/loop1\0ACTION=add\0DEVPATH=/devices/virtual/block/loop1\0SUBSYSTEM=block\0MAJOR=7\0MINOR=1\0DEVNAME=loop1\0DISKSEQ=3\0SEQNUM=7\0",
        b"move@/devices/virtual/net/b\0ACTION=move\0DEVPATH=/devices/virtual/net/b\0DEVPATH_OLD=/devices/virtual/net/a\0SUBSYSTEM=net\0INTERFACE=b\0IFINDEX=4\0SEQNUM=8\0",
        b"remove@/devices/virtual/net/b\0ACTION=remove\0DEVPATH=/devices/virtual/net/b\0SUBSYSTEM=net\0SEQNUM=9\0",
    ];
    let mut inventory = Inventory::new();
    fuzz("events", seeds, |bytes| {
        let Ok(event) = Event::parse_kernel(bytes, &root) else {
            return;
        };
        assert!(event.device.devpath().starts_with('/') && !event.device.devpath().contains("/../"));
        assert!(
            event
                .device
                .devnode()
                .is_none_or(|node| node.starts_with("/dev/") && !node.contains("/../"))
        );
        assert!(event.device.to_string().chars().all(|c| !safe::is_control(c)));
        inventory.apply(event);
        if inventory.len() > 1000 {
            inventory.resync(Vec::new(), &[]);
        }
    });
}

#[test]
fn templates() {
    let device: Device = serde_json::from_value(serde_json::json!({
        "sysRoot": "/nonexistent", "devpath": "/devices/a7", "properties": {"SUBSYSTEM": "tty", "S": "x\ny", "T": "1"}
    }))
    .unwrap();
    let seeds: &[&[u8]] = &[
        b"a$env{T}$kernel%n$$",
        b"%E{S}/$attr{x}$id$driver",
        b"$devnode%M:%m$name$sys$root",
    ];
    fuzz("templates", seeds, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(template) = Template::parse(&text) {
            let again = template.to_string();
            assert_eq!(Template::parse(&again).map(|t| t.to_string()), Ok(again.clone()));
            if let Ok(done) = template.render(&View::new(&device), &Default::default()) {
                assert!(
                    done.len() <= safe::TEXT_MAX && !done.chars().any(safe::is_control),
                    "{done:?}"
                );
            }
        }
    });
}

#[test]
fn recordings() {
    let seeds: &[&[u8]] = &[
        b"{\"berthRecording\":1,\"source\":\"udev\"}\n{\"folder\":{\"devpath\":\"/devices/a\",\"uevent\":\"A=1\",\"subsystem\":\"tty\",\"attributes\":{\"x\":\"1\",\"power/control\":\"on\"}}}\n{\"there\":{\"devpath\":\"/devices/a\",\"properties\":{\"SUBSYSTEM\":\"tty\"}}}\n",
        b"{\"berthRecording\":1,\"source\":\"kernel\"}\n{\"event\":{\"at\":5,\"action\":\"remove\",\"device\":{\"devpath\":\"/devices/a\"}}}\n",
    ];
    let top = tempfile::tempdir().unwrap();
    let root = top.path().join("in/sys");
    std::fs::create_dir_all(&root).unwrap();
    fuzz("recordings", seeds, |bytes| {
        if let Ok(mut reader) = Reader::open(bytes, &root) {
            while let Ok(Some(step)) = reader.step() {
                if let berth_hotplug::recording::Step::Event(_, event) = step {
                    reader.clear(&event).unwrap();
                }
            }
        }
    });
    // Nothing was written beside it.
    let beside: Vec<_> = std::fs::read_dir(top.path().join("in")).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
}
