//! Matches that no device can ever satisfy, found by looking at the text alone.
//!
//! Invariant: nothing is refused that some device could satisfy. Only what belongs to the device itself counts (the
//! keys ending in S may hold for one parent in one line and for another in the next), and only literal values are
//! reasoned about.

use super::eval::ANY_SUBSYSTEM;
use super::{Key, Match, ParseError, Test, Tree};
use crate::safe;

impl Match {
    /// Why this match can never hold.
    pub fn contradiction(&self) -> Option<ParseError> {
        let own: Vec<&Test> = self.own().collect();
        let wrong = own.iter().find_map(|test| alone(test));
        wrong.or_else(|| together(&own))
    }

    /// What it asks of the device itself.
    fn own(&self) -> impl Iterator<Item = &Test> {
        let tests = self.lines.iter().flat_map(|line| &line.tests);
        tests.filter(|test| !test.key.of_parents())
    }
}

impl Tree {
    /// Why what stands in one `all` can never hold together.
    pub(super) fn contradiction(&self) -> Option<ParseError> {
        let mut own = Vec::new();
        self.required(&mut own);
        together(&own.iter().collect::<Vec<_>>())
    }

    /// What must hold of the device itself if this is to.
    fn required(&self, out: &mut Vec<Test>) {
        match self {
            Tree::Leaf(leaf) => out.extend(leaf.own().cloned()),
            Tree::All(of) => of.iter().for_each(|tree| tree.required(out)),
            Tree::Any(of) if of.len() == 1 => of.iter().for_each(|tree| tree.required(out)),
            Tree::Any(_) => {}
            // One clause alone, and one that asks for a value: what is not there satisfies neither `==` nor `!=`.
            Tree::Not(of) => {
                if let Tree::Leaf(leaf) = &**of
                    && let [line] = &leaf.lines[..]
                    && let [test] = &line.tests[..]
                    && test.equal
                    && !test.key.of_parents()
                {
                    out.push(Test {
                        equal: false,
                        ..test.clone()
                    });
                }
            }
        }
    }
}

/// Two of these that no device satisfies both.
fn together(own: &[&Test]) -> Option<ParseError> {
    let own: Vec<&Test> = own.iter().copied().filter(|test| single_valued(test)).collect();
    for test in &own {
        let Some(literals) = test.equal.then(|| test.pattern.literals()).flatten() else {
            continue;
        };
        let others: Vec<&&Test> = own.iter().filter(|other| other.key == test.key).collect();
        let hex = test.compares_hex();
        let possible = literals.iter().any(|value| {
            others
                .iter()
                .all(|other| other.pattern.matches(value, hex) == other.equal)
        });
        if !possible
            && let Some(other) = others
                .into_iter()
                .find(|other| !std::ptr::eq::<Test>(**other, *test))
        {
            let text = format!("{test} and {other} never hold together");
            return Some(refuse(
                other,
                &text,
                "give the cases rules of their own, or `any:`",
            ));
        }
    }
    None
}

/// Keys that have one value for a device.
fn single_valued(test: &Test) -> bool {
    // SUBSYSTEM=="bus" stands for three.
    let three = test.key == Key::Subsystem && ANY_SUBSYSTEM.contains(&test.pattern.text.as_str());
    !three && !matches!(test.key, Key::Tag | Key::Symlink | Key::Test(_))
}

fn alone(test: &Test) -> Option<ParseError> {
    if !test.equal {
        return None;
    }
    let all = |wrong: fn(&str) -> bool| {
        let mut parts = test.pattern.alternatives();
        !test.pattern.text.is_empty() && parts.all(wrong)
    };
    match test.key {
        Key::Devpath if all(|part| !part.starts_with(['/', '*', '?', '['])) => Some(refuse(
            test,
            "a DEVPATH begins with /devices/ (without /sys)",
            "write DEVPATH==\"/devices/…\" or DEVPATH==\"*/usb1/*\"",
        )),
        Key::Devpath if all(|part| part.starts_with("/sys/")) => Some(refuse(
            test,
            "a DEVPATH begins with /devices/ (without /sys)",
            "leave out /sys",
        )),
        Key::Kernel if all(|part| part.starts_with("/dev/")) => Some(refuse(
            test,
            "KERNEL is the name alone, without /dev/",
            "leave out /dev/",
        )),
        Key::Symlink if all(|part| part.starts_with("/dev/")) => Some(refuse(
            test,
            "SYMLINK is compared without /dev/",
            "leave out /dev/",
        )),
        _ => None,
    }
}

fn refuse(test: &Test, message: &str, hint: &str) -> ParseError {
    ParseError {
        line: test.line,
        column: test.column,
        message: format!("this can never hold: {}", safe::show(message, 400)),
        hint: Some(hint.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_holds() {
        for (text, never) in [
            (r#"SUBSYSTEM=="tty", SUBSYSTEM=="net""#, true),
            ("SUBSYSTEM==\"tty\"\nSUBSYSTEM==\"net\"", true),
            (r#"SUBSYSTEM=="tty|net", SUBSYSTEM=="net""#, false),
            (r#"SUBSYSTEM=="tty", SUBSYSTEM!="tty""#, true),
            (r#"KERNEL=="ttyUSB0", KERNEL=="ttyACM*""#, true),
            (r#"KERNEL=="ttyUSB0", KERNEL=="ttyUSB*""#, false),
            (r#"KERNEL=="ttyUSB*", KERNEL=="ttyACM*""#, false),
            (r#"KERNEL=="ttyUSB0", KERNEL!="*0""#, true),
            (r#"KERNELS=="1-1", KERNELS=="1-2""#, false),
            ("KERNELS==\"1-1\"\nKERNELS==\"usb1\"", false),
            (r#"ATTR{idVendor}=="0x0403", ATTR{idVendor}=="0403""#, false),
            (r#"ATTR{a}=="1", ATTR{b}=="2""#, false),
            (r#"TAG=="a", TAG=="b""#, false),
            (r#"SYMLINK=="a", SYMLINK=="b""#, false),
            (r#"SYMLINK=="/dev/disk/by-id/x""#, true),
            (r#"KERNEL=="/dev/ttyUSB0""#, true),
            (r#"DEVPATH=="/sys/devices/x""#, true),
            (r#"DEVPATH=="devices/x""#, true),
            (r#"DEVPATH=="*/usb1/*""#, false),
            (r#"ENV{X}=="", ENV{X}=="?*""#, true),
        ] {
            let found = Match::parse(text).unwrap().contradiction();
            assert_eq!(found.is_some(), never, "{text}: {found:?}");
        }
    }

    /// The same over several texts in one `all`, and over `not`.
    #[test]
    fn what_never_holds_together() {
        let (tty, net) = (r#"SUBSYSTEM=="tty""#, r#"SUBSYSTEM=="net""#);
        for (tree, never) in [
            (serde_json::json!({"all": [tty, net]}), true),
            (
                serde_json::json!({"all": [tty, {"all": [net, "KERNEL==\"x\""]}]}),
                true,
            ),
            (serde_json::json!({"all": [tty, {"not": tty}]}), true),
            (
                serde_json::json!({"all": [tty, {"not": "SUBSYSTEM==\"t*\""}]}),
                true,
            ),
            (serde_json::json!({"all": [tty, {"any": [net]}]}), true),
            (serde_json::json!({"all": [tty, {"not": net}]}), false),
            (serde_json::json!({"any": [tty, net]}), false),
            (serde_json::json!({"all": [tty, {"any": [net, tty]}]}), false),
            // More than one clause: either may be what does not hold.
            (
                serde_json::json!({"all": [tty, {"not": format!("{tty}, KERNEL==\"x\"")}]}),
                false,
            ),
            (
                serde_json::json!({"all": ["KERNELS==\"a\"", {"not": "KERNELS==\"a\""}]}),
                false,
            ),
            // An attribute that is not there.
            (
                serde_json::json!({"all": [{"not": "ATTR{a}!=\"1\""}, {"not": "ATTR{a}!=\"2\""}]}),
                false,
            ),
        ] {
            let spec: super::super::MatchSpec = serde_json::from_value(tree.clone()).unwrap();
            let faults = spec.compile("match").err().unwrap_or_default();
            assert_eq!(!faults.is_empty(), never, "{tree}: {faults:?}");
            assert!(
                faults
                    .iter()
                    .all(|f| f.path.ends_with(".all") && f.message.contains("never hold together"))
            );
        }
    }
}
