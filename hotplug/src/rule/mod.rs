//! Rules: udev's match grammar, its evaluation and explanation, and the `HotplugRule` document.
//!
//! Interface: udev(7), "Rules files"; the grammar's match half only. A rule may have several lines and all
//! of them must hold. Within one line the keys ending in S (KERNELS, SUBSYSTEMS, DRIVERS, ATTRS, TAGS) must
//! all hold for one and the same device, the device itself or one above it, as in udev. Invariants: parsing
//! takes any text without panicking; `parse(print(m)) == m`; a clause is evaluated by one function, whether
//! the answer is used or shown.

mod checks;
mod compiled;
mod constants;
mod eval;
mod identity;
mod never;
mod order;
mod outside;
mod parse;
mod spec;
mod tree;

use std::fmt;

use thiserror::Error;

pub use compiled::{Member, Offer, Rendered, Rule};
pub use eval::{Clause, Explanation, Matched, View, explain};
pub use identity::Identity;
pub use order::{Chosen, Rules, Tie};
pub use spec::{
    BundleSpec, DeviceSpec, EnvSpec, FILESYSTEMS, FilesystemSpec, InterfaceSpec, MemberSpec, Need, Problem,
    RuleMount, RuleSpec, Settle, Unplug, UnplugPolicy, VfioSpec, parse_address,
};
pub use tree::{MatchSpec, Tree};

use crate::glob::{Glob, is_glob};

/// A match in udev's grammar: one or more lines, each of one or more clauses; all must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub(crate) lines: Vec<Line>,
}

/// Why a text is no match.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{line}:{column}: {message}{}", hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) tests: Vec<Test>,
    /// Indices of `tests`, cheapest first.
    pub(crate) order: Vec<usize>,
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        self.tests == other.tests
    }
}

impl Eq for Line {}

/// One clause: `KEY{argument}==value`.
#[derive(Debug, Clone)]
pub(crate) struct Test {
    pub(crate) key: Key,
    pub(crate) equal: bool,
    pub(crate) pattern: Pattern,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl PartialEq for Test {
    /// Where it stood in the text does not count.
    fn eq(&self, other: &Test) -> bool {
        self.key == other.key && self.equal == other.equal && self.pattern == other.pattern
    }
}

impl Eq for Test {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Action,
    Devpath,
    Kernel,
    Kernels,
    Subsystem,
    Subsystems,
    Driver,
    Drivers,
    Attr(String),
    Attrs(String),
    Env(String),
    /// Name of a network interface.
    Name,
    /// Links to the node, without /dev/.
    Symlink,
    /// A file below /proc/sys.
    Sysctl(String),
    /// `arch` or `virt`: of the machine, not of the device.
    Const(String),
    /// Is there such a file, with one of these mode bits?
    Test(Option<u32>),
    Tag,
    Tags,
}

impl Key {
    /// Is it looked for on the device and everything above it?
    pub(crate) fn of_parents(&self) -> bool {
        matches!(
            self,
            Key::Kernels | Key::Subsystems | Key::Drivers | Key::Attrs(_) | Key::Tags
        )
    }

    /// Rank by cost: names first, then memory, then sysfs, then the parents.
    pub(crate) fn cost(&self) -> u8 {
        match self {
            Key::Action | Key::Subsystem | Key::Kernel | Key::Devpath | Key::Name => 0,
            Key::Env(_) | Key::Tag | Key::Symlink => 1,
            Key::Driver => 2,
            Key::Attr(_) | Key::Sysctl(_) | Key::Const(_) | Key::Test(_) => 3,
            Key::Kernels => 4,
            Key::Subsystems | Key::Tags => 5,
            Key::Drivers => 6,
            Key::Attrs(_) => 7,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Action => f.write_str("ACTION"),
            Key::Devpath => f.write_str("DEVPATH"),
            Key::Kernel => f.write_str("KERNEL"),
            Key::Kernels => f.write_str("KERNELS"),
            Key::Subsystem => f.write_str("SUBSYSTEM"),
            Key::Subsystems => f.write_str("SUBSYSTEMS"),
            Key::Driver => f.write_str("DRIVER"),
            Key::Drivers => f.write_str("DRIVERS"),
            Key::Attr(name) => write!(f, "ATTR{{{name}}}"),
            Key::Attrs(name) => write!(f, "ATTRS{{{name}}}"),
            Key::Env(name) => write!(f, "ENV{{{name}}}"),
            Key::Name => f.write_str("NAME"),
            Key::Symlink => f.write_str("SYMLINK"),
            Key::Sysctl(name) => write!(f, "SYSCTL{{{name}}}"),
            Key::Const(name) => write!(f, "CONST{{{name}}}"),
            Key::Test(None) => f.write_str("TEST"),
            Key::Test(Some(mode)) => write!(f, "TEST{{{mode:o}}}"),
            Key::Tag => f.write_str("TAG"),
            Key::Tags => f.write_str("TAGS"),
        }
    }
}

/// What of a device a rule is looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Anchor {
    Kernel,
    Env(String),
}

/// The right side of a clause.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    pub(crate) text: String,
    pub(crate) fold: bool,
    alternatives: Vec<Alternative>,
    /// Does trailing white space of an attribute count (only where the pattern ends in it)?
    pub(crate) keep_trailing: bool,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text && self.fold == other.fold
    }
}

impl Eq for Pattern {}

#[derive(Debug, Clone)]
enum Alternative {
    Text(String),
    Glob(Glob),
}

impl Pattern {
    pub(crate) fn new(text: String, fold: bool) -> Pattern {
        // As udev does: one glob character anywhere makes globs of all alternatives.
        let glob = is_glob(&text);
        let alternatives = text
            .split('|')
            .map(|part| match glob && !part.is_empty() {
                true => Alternative::Glob(Glob::new(part, fold)),
                false => Alternative::Text(part.to_owned()),
            })
            .collect();
        let keep_trailing = text.ends_with(|c: char| c.is_ascii_whitespace());
        Pattern {
            text,
            fold,
            alternatives,
            keep_trailing,
        }
    }

    pub(crate) fn alternatives(&self) -> impl Iterator<Item = &str> {
        self.text.split('|')
    }

    /// The alternatives, where all of them are plain text.
    pub(crate) fn literals(&self) -> Option<Vec<&str>> {
        (!self.fold && !is_glob(&self.text)).then(|| self.alternatives().collect())
    }

    /// Does `value` match one of the alternatives? `hex`: both sides are hexadecimal identifiers, so that
    /// `0x8086` and `8086` are the same.
    pub(crate) fn matches(&self, value: &str, hex: bool) -> bool {
        self.alternatives.iter().any(|alternative| match alternative {
            Alternative::Glob(glob) => glob.matches(value),
            Alternative::Text(text) => {
                (if self.fold {
                    text.eq_ignore_ascii_case(value)
                } else {
                    text == value
                }) || hex && hex_id(text).is_some_and(|n| hex_id(value) == Some(n))
            }
        })
    }
}

/// A hexadecimal identifier of one to eight digits, with or without `0x`.
fn hex_id(text: &str) -> Option<u32> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let all_hex = !digits.is_empty() && digits.len() <= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    all_hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// Properties and attributes that hold hexadecimal identifiers: USB writes `0403`, PCI `0x8086`, PCI_CLASS
/// drops a leading zero. This is the one place where berth is wider than udev.
pub(crate) const HEX_NAMES: &[&str] = &[
    "ID_MODEL_ID",
    "ID_USB_MODEL_ID",
    "ID_USB_VENDOR_ID",
    "ID_VENDOR_ID",
    "PCI_CLASS",
    "bDeviceClass",
    "bInterfaceClass",
    "bcdDevice",
    "class",
    "device",
    "idProduct",
    "idVendor",
    "subsystem_device",
    "subsystem_vendor",
    "vendor",
];

impl Match {
    /// Parses lines of udev's match grammar. Empty lines and lines that start with `#` are skipped, a `\` at
    /// the end of a line continues it.
    ///
    /// # Errors
    /// [`ParseError`] with line and column; assignments are refused, and so is a text without any clause.
    pub fn parse(text: &str) -> Result<Match, ParseError> {
        parse::parse(text)
    }

    /// Clauses of the device itself that ask for one of some plain texts: what rules can be looked up by.
    fn anchors(&self) -> impl Iterator<Item = (Anchor, Vec<&str>)> {
        let tests = self.lines.iter().flat_map(|l| &l.tests);
        tests.filter(|t| t.equal && !t.compares_hex()).filter_map(|t| {
            let anchor = match &t.key {
                Key::Kernel => Anchor::Kernel,
                Key::Env(name) if name != "ACTION" => Anchor::Env(name.clone()),
                _ => return None,
            };
            Some((anchor, t.pattern.literals()?))
        })
    }

    fn asks_driver(&self) -> bool {
        let of_driver = |key: &Key| match key {
            Key::Driver | Key::Drivers => true,
            Key::Env(name) => name == "DRIVER",
            _ => false,
        };
        self.lines
            .iter()
            .flat_map(|l| &l.tests)
            .any(|t| of_driver(&t.key))
    }

    /// The subsystems a device can be of if this is to hold, where that is certain (a literal
    /// `SUBSYSTEM=="a|b"`): what an enumeration can be limited to.
    pub fn subsystems(&self) -> Option<Vec<&str>> {
        self.lines
            .iter()
            .flat_map(|l| &l.tests)
            .find_map(|t| match t.key {
                Key::Subsystem if t.equal => t
                    .pattern
                    .literals()
                    .filter(|l| l.iter().all(|s| !eval::ANY_SUBSYSTEM.contains(s))),
                _ => None,
            })
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = &self.pattern.text;
        let fold = if self.pattern.fold { "i" } else { "" };
        write!(f, "{}{}", self.key, if self.equal { "==" } else { "!=" })?;
        // The plain form has no way to write a control character or a backslash at the end.
        if value.chars().any(|c| c.is_control()) || value.ends_with('\\') {
            write!(f, "e{fold}\"")?;
            for c in value.chars() {
                match c {
                    '"' => f.write_str("\\\"")?,
                    '\\' => f.write_str("\\\\")?,
                    c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                    c => write!(f, "{c}")?,
                }
            }
        } else {
            write!(f, "{fold}\"{}", value.replace('"', "\\\""))?;
        }
        f.write_str("\"")
    }
}

impl fmt::Display for Match {
    /// One line for each line, clauses separated by a comma and a space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, line) in self.lines.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            for (m, test) in line.tests.iter().enumerate() {
                write!(f, "{}{test}", if m > 0 { ", " } else { "" })?;
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Match {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Match, ParseError> {
        Match::parse(text)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod oracle;

#[cfg(test)]
mod rules_tests;

#[cfg(test)]
mod made_tests;

#[cfg(test)]
mod index_tests;
