//! Validation of a rule's document, field by field.
//!
//! Invariant: every fault is found in one run, each with its place in the document.

use std::collections::BTreeSet;
use std::time::Duration;

use super::spec::{ADDRESSES_MAX, ARMED_MAX, GRACE_MAX, LIST_MAX, SETTLE_MAX};
use super::{
    BundleSpec, DeviceSpec, EnvSpec, FILESYSTEMS, FilesystemSpec, InterfaceSpec, Need, Problem, RuleSpec,
    Unplug, UnplugPolicy, parse_address,
};
use crate::event::Action;
use crate::safe;

impl RuleSpec {
    /// Every fault of the spec; empty: it is good.
    pub fn validate(&self) -> Vec<Problem> {
        self.compile("").err().unwrap_or_default()
    }

    /// The nodes and interfaces it gives, with their places in the spec.
    fn given(&self) -> Vec<(String, Option<&DeviceSpec>, Option<&InterfaceSpec>)> {
        let members = self
            .bundle
            .iter()
            .flat_map(|bundle| bundle.devices.iter().enumerate());
        let of_bundle = members.map(|(n, member)| {
            let path = format!("bundle.devices[{n}].");
            (path, member.device.as_ref(), member.interface.as_ref())
        });
        let own = (String::new(), self.device.as_ref(), self.interface.as_ref());
        std::iter::once(own).chain(of_bundle).collect()
    }

    /// The file systems it mounts, with their places in the spec, and whether an interface is beside each.
    fn mounted(&self) -> Vec<(String, &FilesystemSpec, bool)> {
        let members = self
            .bundle
            .iter()
            .flat_map(|bundle| bundle.devices.iter().enumerate());
        let of_bundle = members.filter_map(|(n, member)| {
            let path = format!("bundle.devices[{n}].");
            Some((path, member.filesystem.as_ref()?, member.interface.is_some()))
        });
        let own = self
            .filesystem
            .as_ref()
            .map(|f| (String::new(), f, self.interface.is_some()));
        own.into_iter().chain(of_bundle).collect()
    }

    /// Does it move an interface?
    pub fn moves_interface(&self) -> bool {
        self.given().iter().any(|(_, _, interface)| interface.is_some())
    }

    /// Does it pass events of its devices on?
    pub fn passes_events(&self) -> bool {
        let passes = |device: &DeviceSpec| device.uevents;
        self.given()
            .iter()
            .any(|(_, device, _)| device.is_some_and(passes))
    }

    /// What stands beside `vfio` and cannot.
    fn check_vfio(&self, faults: &mut Vec<Problem>) {
        let members = self.bundle.iter().flat_map(|bundle| &bundle.devices);
        let of_bundle = members.enumerate().map(|(n, member)| {
            let beside = [
                member.device.is_some(),
                member.interface.is_some(),
                member.filesystem.is_some(),
            ];
            let path = format!("bundle.devices[{n}].");
            (path, member.vfio.is_some(), beside, Some(&member.matches))
        });
        let beside = [
            self.device.is_some(),
            self.interface.is_some(),
            self.filesystem.is_some(),
        ];
        let own = (String::new(), self.vfio.is_some(), beside, self.matches.as_ref());
        let all = std::iter::once(own).chain(of_bundle);
        let with: Vec<_> = all.filter(|(_, vfio, ..)| *vfio).collect();
        if with.is_empty() {
            return;
        }
        let leave_out = Some("leave one of them out");
        for (path, _, beside, matches) in with {
            let whys = [
                ("device", "a function has no node"),
                (
                    "interface",
                    "the function is given, not what a driver makes of it",
                ),
                (
                    "filesystem",
                    "the function is given, not what a driver makes of it",
                ),
            ];
            for ((field, why), _) in whys.iter().zip(beside).filter(|(_, there)| *there) {
                let text = format!("stands beside `vfio`: {why}");
                faults.push(Problem::new(format!("{path}{field}"), text, leave_out));
            }
            let tree = matches.and_then(|matches| matches.compile("match").ok());
            if tree.is_some_and(|tree| tree.asks_driver()) {
                let text = "asks for the driver, which is vfio-pci as soon as the rule has its device";
                let hint = "match by class, vendor, device or KERNEL (the address)";
                faults.push(Problem::new(format!("{path}match"), text, Some(hint)));
            }
        }
        let some = |bundle: &BundleSpec| bundle.need.of(bundle.devices.len()) < bundle.devices.len();
        for (path, there, why) in [
            (
                "bundle",
                self.vfio.is_some() && self.bundle.is_some(),
                "say it of the devices of the bundle",
            ),
            (
                "bundle.need",
                self.bundle.as_ref().is_some_and(some),
                "a function is bound at launch alone, so all devices must be there",
            ),
            (
                "armed",
                self.vfio.is_some() && self.armed > 0,
                "a function is bound at launch alone",
            ),
            (
                "unplug",
                self.unplug != Unplug::default(),
                "while its container runs nothing can be taken from it or given to it",
            ),
        ] {
            if there {
                let text = format!("stands beside `vfio`: {why}");
                faults.push(Problem::new(path, text, leave_out));
            }
        }
    }

    pub(super) fn check_fields(&self) -> Vec<Problem> {
        let mut faults = Vec::new();
        self.check_kind(&mut faults);
        self.check_bundle(&mut faults);
        self.check_vfio(&mut faults);
        for (path, device, interface) in self.given() {
            check_given(&path, device, interface, self.armed > 0, &mut faults);
        }
        for (path, filesystem, interface) in self.mounted() {
            check_filesystem(&path, filesystem, interface, &mut faults);
        }
        let mut fault = |path: &str, message: String, hint: &str| {
            faults.push(Problem::new(path, message, Some(hint).filter(|h| !h.is_empty())));
        };
        if self.settle.0 > SETTLE_MAX {
            fault("settle", format!("{} is too long", self.settle), "at most 10m");
        }
        if self.unplug.grace.0 > GRACE_MAX {
            fault(
                "unplug.grace",
                format!("{} is too long", self.unplug.grace),
                "at most 60m",
            );
        }
        if self.unplug.then == UnplugPolicy::Keep && self.unplug.grace.0 > Duration::ZERO {
            fault(
                "unplug.grace",
                "is there with `then: keep`, which never stops it".to_owned(),
                "leave one of them out",
            );
        }
        if self.unplug.then == UnplugPolicy::HandOver && (self.identity.is_some() || self.bundle.is_some()) {
            fault(
                "unplug.then",
                "handOver makes one workload of the whole rule, so neither identity nor bundle has a meaning"
                    .to_owned(),
                "leave one of them out",
            );
        }
        let hot = self.unplug != Unplug::default();
        let known =
            self.identity.is_some() || self.bundle.is_some() || self.unplug.then == UnplugPolicy::HandOver;
        if hot && self.moves_interface() && !known {
            fault(
                "unplug",
                "an interface that comes back is made anew by the kernel: nothing says that it is the same"
                    .to_owned(),
                "say by what it is: `identity: mac`, `path`, `slot` or `serial`",
            );
        }
        let gives = self.device.is_some() || self.filesystem.is_some() || self.bundle.is_some();
        if hot && !gives && !self.moves_interface() {
            fault(
                "unplug",
                "needs `device` or `filesystem`: there is nothing to take back or to give".to_owned(),
                "",
            );
        }
        if self.armed > ARMED_MAX {
            fault("armed", format!("{} is too many", self.armed), "0 to 64");
        }
        if self.armed > 0 && !self.mounts.is_empty() {
            fault(
                "mounts",
                "an armed container is made before its device comes".to_owned(),
                "leave `armed` or `mounts` out; templates may stand in env, args and labels only",
            );
        }
        if self.mounts.len() > LIST_MAX {
            fault(
                "mounts",
                format!("{} are too many", self.mounts.len()),
                "at most 32",
            );
        }
        check_env("", &self.env, &mut faults);
        for key in self.labels.keys() {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            if key.is_empty() || key.len() > 253 || !key.chars().all(fits) {
                faults.push(Problem::new(
                    "labels",
                    format!("{:?} is no label name", safe::show(key, 64)),
                    Some("letters, digits and . _ - /"),
                ));
            }
        }
        faults
    }

    /// What kind of rule it is: one that starts, one that forbids, one for removals.
    fn check_kind(&self, faults: &mut Vec<Problem>) {
        let mut fault = |path: &str, message: &str, hint: &str| {
            faults.push(Problem::new(path, message, Some(hint)));
        };
        match (&self.matches, &self.bundle) {
            (None, None) => fault(
                "match",
                "is missing",
                "e.g. SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB*\"",
            ),
            (Some(_), Some(_)) => fault(
                "match",
                "stands beside `bundle`",
                "each device of a bundle has a match",
            ),
            _ => {}
        }
        if self.forbid {
            let idle = RuleSpec {
                forbid: true,
                matches: self.matches.clone(),
                priority: self.priority,
                ..RuleSpec::default()
            };
            if *self != idle {
                fault(
                    "forbid",
                    "stands beside what only a rule that starts something has",
                    "keep match and priority",
                );
            }
            return;
        }
        if self.workload.is_empty() {
            fault("workload", "is empty", "name a Workload with `run: onDevice`");
        }
        let actions: BTreeSet<Action> = self.trigger.iter().copied().collect();
        if actions.len() != self.trigger.len() {
            fault("trigger", "names an action twice", "each once");
        }
        if actions.contains(&Action::Remove) {
            if actions.len() > 1 {
                fault(
                    "trigger",
                    "remove stands beside others",
                    "write a rule of its own for removals",
                );
            }
            let alone = RuleSpec {
                trigger: vec![Action::Remove],
                matches: self.matches.clone(),
                workload: self.workload.clone(),
                env: self.env.clone(),
                args: self.args.clone(),
                labels: self.labels.clone(),
                name: self.name.clone(),
                priority: self.priority,
                ..RuleSpec::default()
            };
            if *self != alone && actions.len() == 1 {
                fault(
                    "trigger",
                    "remove starts the workload when the device has gone: there is nothing to give it or to wait for",
                    "keep match, workload, name, env, args, labels and priority",
                );
            }
        }
    }

    fn check_bundle(&self, faults: &mut Vec<Problem>) {
        let Some(bundle) = &self.bundle else { return };
        let mut fault = |path: &str, message: String, hint: &str| {
            faults.push(Problem::new(path, message, Some(hint)));
        };
        let count = bundle.devices.len();
        if count == 0 || count > LIST_MAX {
            fault("bundle.devices", format!("{count} devices"), "1 to 32");
        }
        if bundle.need == Need::Count(0) || bundle.need.of(count) > count {
            fault(
                "bundle.need",
                format!("{} of {count} devices", bundle.need.of(count)),
                "all, any, or 1 to that many",
            );
        }
        for (path, there) in [
            ("device", self.device.is_some()),
            ("interface", self.interface.is_some()),
            ("filesystem", self.filesystem.is_some()),
            ("identity", self.identity.is_some()),
        ] {
            if there {
                fault(
                    path,
                    "stands beside `bundle`".to_owned(),
                    "say it of the devices of the bundle",
                );
            }
        }
        if self.armed > 0 {
            fault("armed", "a bundle cannot be armed".to_owned(), "leave it out");
        }
        let mut inside = BTreeSet::new();
        for (n, member) in bundle.devices.iter().enumerate() {
            let name = member.interface.as_ref().and_then(|i| i.name.as_ref());
            if let Some(name) = name.filter(|name| !is_template(name) && !inside.insert(*name)) {
                fault(
                    &format!("bundle.devices[{n}].interface.name"),
                    format!("{} is the name of another interface inside", safe::show(name, 32)),
                    "each its own",
                );
            }
        }
        let mut names = BTreeSet::new();
        for (n, member) in bundle.devices.iter().enumerate() {
            let path = format!("bundle.devices[{n}].name");
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if member.name.is_empty() || member.name.len() > 32 || !member.name.bytes().all(fits) {
                let found = safe::show(&member.name, 32);
                fault(
                    &path,
                    format!("{found:?} is no name"),
                    "1 to 32 of a-z, 0-9 and -",
                );
            } else if !names.insert(&member.name) {
                fault(&path, format!("{} is there twice", member.name), "each its own");
            }
        }
        for (n, member) in bundle.devices.iter().enumerate() {
            check_env(&format!("bundle.devices[{n}]."), &member.env, faults);
        }
    }
}

/// Is it a template?
pub(super) fn is_template(text: &str) -> bool {
    text.contains(['$', '%'])
}

fn check_given(
    path: &str,
    device: Option<&DeviceSpec>,
    interface: Option<&InterfaceSpec>,
    armed: bool,
    faults: &mut Vec<Problem>,
) {
    let mut fault = |field: &str, message: String, hint: &str| {
        faults.push(Problem::new(format!("{path}{field}"), message, Some(hint)));
    };
    if device.is_some() && interface.is_some() {
        fault(
            "interface",
            "a device is either a node or an interface".to_owned(),
            "write two rules",
        );
    }
    // Both go in when it starts, but what waits was proved with its paths and names.
    let fixed = |text: &str| armed && is_template(text);
    const FIXED: &str =
        "leave `armed` out: before its device comes, templates may stand in env, args and labels only";
    if let Some(device) = device {
        let letters: BTreeSet<char> = device.access.chars().collect();
        if letters.is_empty()
            || letters.len() != device.access.chars().count()
            || letters.iter().any(|c| !"rwm".contains(*c))
        {
            let found = safe::show(&device.access, 16);
            fault(
                "device.access",
                format!("{found:?} is no access"),
                "of r, w and m, each once",
            );
        }
        if device.mode_bits().is_none() {
            let found = safe::show(&device.mode, 16);
            fault(
                "device.mode",
                format!("{found:?} is no mode"),
                "octal, \"0000\" to \"0777\", quoted",
            );
        }
        if device.uevents && device.path.is_some() {
            fault(
                "device.uevents",
                "stands beside `device.path`: libudev knows the node by the host's name for it".to_owned(),
                "leave one of them out",
            );
        }
        if let Some(path) = &device.path {
            let found = safe::show(path, 64);
            if fixed(path) {
                fault("device.path", format!("is a template: `{found}`"), FIXED);
            } else if !(path.starts_with("/dev/") && (is_template(path) || safe::is_plain_path(path))) {
                fault(
                    "device.path",
                    format!("{found:?} is no path below /dev"),
                    "e.g. /dev/port",
                );
            }
        }
    }
    if let Some(interface) = interface {
        check_interface(interface, &mut fault);
    }
    if let Some(name) = interface.and_then(|i| i.name.as_ref()) {
        let found = safe::show(name, 32);
        let plain = safe::is_interface_name(name) && name != "lo" && !name.contains('%');
        if fixed(name) {
            fault("interface.name", format!("is a template: `{found}`"), FIXED);
        } else if !(plain || name.contains('$') && name.len() < 256) {
            fault(
                "interface.name",
                format!("{found:?} is no name for it"),
                "1 to 15 characters, no / : %, not lo",
            );
        }
    }
}

fn check_filesystem(path: &str, filesystem: &FilesystemSpec, interface: bool, faults: &mut Vec<Problem>) {
    let mut fault = |field: &str, message: String, hint: &str| {
        faults.push(Problem::new(
            format!("{path}filesystem{field}"),
            message,
            Some(hint),
        ));
    };
    if interface {
        fault(
            "",
            "a device is either a disk or an interface".to_owned(),
            "write two rules",
        );
    }
    let own = ["/proc", "/sys", "/dev"];
    let inside = &filesystem.path;
    let kept = own
        .iter()
        .any(|own| std::path::Path::new(inside).starts_with(own));
    if !safe::is_plain_path(inside) || inside == "/" || kept {
        let found = safe::show(inside, 64);
        fault(
            ".path",
            format!("{found:?} is no folder for it"),
            "absolute, e.g. /data; not /, /proc, /sys, /dev or below",
        );
    }
    let mut seen = BTreeSet::new();
    let known = |t: &String| FILESYSTEMS.contains(&t.as_str());
    if filesystem.types.is_empty() || !filesystem.types.iter().all(|t| known(t) && seen.insert(t)) {
        let found = safe::show(&filesystem.types.join(", "), 64);
        let hint = format!("some of {}, each once", FILESYSTEMS.join(", "));
        fault(".types", format!("{found:?} are no types"), &hint);
    }
    if let Some(label) = &filesystem.label
        && (label.is_empty() || label.len() > 255 || label.chars().any(char::is_control))
    {
        let found = safe::show(label, 64);
        fault(
            ".label",
            format!("{found:?} is no label"),
            "1 to 255 bytes, no control characters",
        );
    }
}

/// MTU, addresses and VLAN; the name is looked at where templates are known.
fn check_interface(interface: &InterfaceSpec, fault: &mut impl FnMut(&str, String, &str)) {
    let six = interface
        .addresses
        .iter()
        .filter_map(|text| parse_address(text))
        .any(|(a, _)| a.is_ipv6());
    if let Some(mtu) = interface.mtu {
        let least = if six { 1280 } else { 68 };
        if !(least..=65_535).contains(&mtu) {
            fault(
                "interface.mtu",
                format!("{mtu} is no MTU"),
                "68 to 65535; 1280 at least with an IPv6 address",
            );
        }
    }
    if interface.vlan.is_some_and(|id| !(1..=4094).contains(&id)) {
        fault(
            "interface.vlan",
            format!("{} is no VLAN", interface.vlan.unwrap_or(0)),
            "1 to 4094",
        );
    }
    if interface.addresses.len() > ADDRESSES_MAX {
        fault(
            "interface.addresses",
            format!("{} are too many", interface.addresses.len()),
            "at most 16",
        );
    }
    let mut seen = BTreeSet::new();
    for (n, text) in interface.addresses.iter().enumerate() {
        let (field, found) = (format!("interface.addresses[{n}]"), safe::show(text, 64));
        match parse_address(text) {
            None => fault(
                &field,
                format!("{found:?} is no address of a host with the length of its network"),
                "e.g. 10.0.0.2/24 or fd00::2/64",
            ),
            Some((address, _)) if !seen.insert(address) => {
                fault(&field, format!("{found} is there twice"), "each once")
            }
            Some(_) => {}
        }
    }
}

fn check_env(path: &str, env: &[EnvSpec], faults: &mut Vec<Problem>) {
    let mut names = BTreeSet::new();
    for (n, env) in env.iter().enumerate() {
        let path = format!("{path}env[{n}].name");
        let shown = safe::show(&env.name, 64);
        let first = env
            .name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !first || env.name.len() > 255 || !env.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            faults.push(Problem::new(
                &path,
                format!("{shown:?} is no variable name"),
                Some("letters, digits and _, not a digit first"),
            ));
        } else if !names.insert(&env.name) {
            faults.push(Problem::new(&path, format!("{shown} is there twice"), None));
        }
    }
}
