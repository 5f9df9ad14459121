//! Evaluation and explanation of a match: one function for both.
//!
//! Semantics of systemd's `udev-rules.c`: a missing property, driver or subsystem compares as the empty
//! string; a missing attribute holds for neither `==` nor `!=`; trailing white space of an attribute is
//! ignored unless the pattern ends in it; the keys ending in S are tried together on the device itself, then
//! on each device above it, nearest first. `TAG!="x"` holds where no tag matches and `TAG=="?*"` where there
//! is one (systemd answers the opposite to the second), and so with SYMLINK. CONST is of the machine that asks.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;

use serde::Serialize;

use super::{HEX_NAMES, Key, Line, Match, Test, constants, outside};
use crate::device::{self, Device};
use crate::event::Action;
use crate::{safe, sysfs};

/// `SUBSYSTEM=="subsystem"`, `"bus"` and `"class"` each mean all three.
pub(super) const ANY_SUBSYSTEM: [&str; 3] = ["subsystem", "class", "bus"];

/// A device while rules look at it: what was read once (attributes, parents) is not read again. Keep it for
/// one decision only.
pub struct View<'d> {
    device: &'d Device,
    chain: OnceCell<Vec<Link>>,
    own: Link,
}

/// The device (level 0) or one above it.
struct Link {
    devpath: String,
    sysname: String,
    subsystem: OnceCell<Option<String>>,
    driver: OnceCell<Option<String>>,
    tags: OnceCell<BTreeSet<String>>,
    attributes: RefCell<HashMap<String, Option<Rc<str>>>>,
}

impl Link {
    fn new(devpath: String) -> Link {
        Link {
            sysname: device::sysname(&devpath),
            devpath,
            subsystem: OnceCell::new(),
            driver: OnceCell::new(),
            tags: OnceCell::new(),
            attributes: RefCell::new(HashMap::new()),
        }
    }
}

impl<'d> View<'d> {
    /// A view of `device`; reads nothing yet.
    pub fn new(device: &'d Device) -> View<'d> {
        View {
            device,
            chain: OnceCell::new(),
            own: Link::new(device.devpath().to_owned()),
        }
    }

    /// The device.
    pub fn device(&self) -> &'d Device {
        self.device
    }

    /// The links above the device, nearest first.
    fn above(&self) -> &[Link] {
        self.chain.get_or_init(|| {
            let mut found: Vec<Link> = Vec::new();
            let mut path = self.device.devpath().to_owned();
            while let Some(above) = sysfs::parent(self.device.sys_root(), &path) {
                found.push(Link::new(above.clone()));
                path = above;
            }
            found
        })
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        std::iter::once(&self.own).chain(self.chain.get().map(Vec::as_slice).unwrap_or_default())
    }

    /// Like [`View::links`], but reads the parents first.
    fn all_links(&self) -> impl Iterator<Item = &Link> {
        self.above();
        self.links()
    }

    fn is_own(&self, link: &Link) -> bool {
        std::ptr::eq(link, &self.own)
    }

    fn subsystem<'v>(&'v self, link: &'v Link) -> Option<&'v str> {
        if self.is_own(link) {
            return self.device.subsystem();
        }
        let read = || sysfs::link_name(self.device.sys_root(), &link.devpath, "subsystem");
        link.subsystem.get_or_init(read).as_deref()
    }

    fn driver<'v>(&'v self, link: &'v Link) -> Option<&'v str> {
        let read = || match self.is_own(link) {
            true => self.device.driver(),
            false => sysfs::link_name(self.device.sys_root(), &link.devpath, "driver"),
        };
        link.driver.get_or_init(read).as_deref()
    }

    fn tags<'v>(&'v self, link: &'v Link) -> &'v BTreeSet<String> {
        if self.is_own(link) {
            return self.device.tags();
        }
        link.tags
            .get_or_init(|| crate::enumerate::tags_of(self.device, &link.devpath))
    }

    fn attribute_of(&self, link: &Link, name: &str) -> Option<Rc<str>> {
        if let Some(known) = link.attributes.borrow().get(name) {
            return known.clone();
        }
        let value: Option<Rc<str>> = outside::attribute(self, &link.devpath, name).map(Rc::from);
        link.attributes
            .borrow_mut()
            .insert(name.to_owned(), value.clone());
        value
    }

    /// The device's own attribute, else that of the matched parent, as `$attr{…}` has it.
    pub(crate) fn attribute(&self, name: &str, matched: &Matched) -> Option<Rc<str>> {
        self.attribute_of(&self.own, name).or_else(|| {
            self.matched_link(matched)
                .and_then(|link| self.attribute_of(link, name))
        })
    }

    fn matched_link(&self, matched: &Matched) -> Option<&Link> {
        let devpath = matched.parent.as_ref()?;
        self.all_links().find(|link| link.devpath == *devpath)
    }

    /// `$id`: name of the matched parent.
    pub(crate) fn matched_name(&self, matched: &Matched) -> Option<&str> {
        self.matched_link(matched).map(|link| link.sysname.as_str())
    }

    /// `$driver`: driver of the matched parent.
    pub(crate) fn matched_driver(&self, matched: &Matched) -> Option<&str> {
        self.matched_link(matched).and_then(|link| self.driver(link))
    }

    /// Name of the device.
    pub(crate) fn sysname(&self) -> &str {
        &self.own.sysname
    }
}

/// What a match found out beside "yes".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Matched {
    /// devpath of the device that the keys ending in S matched (the last line that has such keys counts):
    /// where `$id`, `$driver` and `$attr` look.
    pub parent: Option<String>,
}

/// One clause of a rule beside what the device says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Clause {
    /// Line in the rule's match, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// The clause as berth understood it.
    pub text: String,
    /// Which of the matches that a tree combines (`any[1].all[0]`); empty where there is one only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// Does it hold?
    pub holds: bool,
    /// The actual value, made safe to print; `None`: there is no such property, attribute, driver ….
    pub actual: Option<String>,
    /// devpath of the device where it was looked for. For the keys ending in S: the one that holds all of
    /// them, else the one that holds most.
    #[serde(rename = "where")]
    pub found_at: String,
}

/// Why a match holds or does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Does the whole match hold?
    pub holds: bool,
    /// Every clause, in the order written.
    pub clauses: Vec<Clause>,
    /// The matched parent.
    pub matched: Matched,
}

impl fmt::Display for Explanation {
    /// One line for each clause: `yes  SUBSYSTEM=="tty"  tty  /devices/…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for clause in &self.clauses {
            let holds = if clause.holds { "yes" } else { "no " };
            let actual = clause
                .actual
                .as_ref()
                .map_or("(none)".to_owned(), |a| format!("\"{a}\""));
            let of = match clause.of.as_str() {
                "" => String::new(),
                of => format!("{of}: "),
            };
            writeln!(
                f,
                "{holds}  {of}{}  is {actual}  at {}",
                clause.text,
                safe::show(&clause.found_at, 256)
            )?;
        }
        Ok(())
    }
}

/// Why `rule` matches `device` or not, clause by clause. Matching is this with the answers thrown away: see
/// [`Match::matches`].
pub fn explain(rule: &Match, device: &Device, action: Action) -> Explanation {
    let view = View::new(device);
    let mut clauses = Vec::new();
    let matched = rule.evaluate(&view, action, Some(&mut clauses));
    Explanation {
        holds: matched.is_some(),
        clauses,
        matched: matched.unwrap_or_default(),
    }
}

impl Match {
    /// Does it hold for the device under `view`? A device found by enumeration has the action `add`.
    pub fn matches(&self, view: &View<'_>, action: Action) -> Option<Matched> {
        self.evaluate(view, action, None)
    }

    /// Evaluates every line. Without a report it stops at the first clause that fails.
    pub(super) fn evaluate(
        &self,
        view: &View<'_>,
        action: Action,
        mut report: Option<&mut Vec<Clause>>,
    ) -> Option<Matched> {
        let mut matched = Some(Matched::default());
        for line in &self.lines {
            match line.evaluate(view, action, report.as_deref_mut()) {
                None if report.is_none() => return None,
                None => matched = None,
                Some(None) => {}
                Some(Some(parent)) => {
                    if let Some(matched) = &mut matched {
                        matched.parent = Some(parent.to_owned());
                    }
                }
            }
        }
        matched
    }
}

impl Line {
    /// `None`: does not hold; else the devpath of the device the S keys matched, where there are any.
    fn evaluate<'v>(
        &self,
        view: &'v View<'_>,
        action: Action,
        report: Option<&mut Vec<Clause>>,
    ) -> Option<Option<&'v str>> {
        let own = |test: &&Test| !test.key.of_parents();
        let in_order = || self.order.iter().map(|n| &self.tests[*n]);
        let mut holds = true;
        for test in in_order().filter(own) {
            holds &= test.holds_at(view, &view.own, action).0;
            if !holds && report.is_none() {
                return None;
            }
        }
        let mut parent = None;
        let parents = || in_order().filter(|test| test.key.of_parents());
        if parents().next().is_some() {
            let holds_all = |link: &&Link| parents().all(|test| test.holds_at(view, link, action).0);
            // The device itself first: the parents are only read where it does not answer.
            let found = Some(&view.own)
                .filter(holds_all)
                .or_else(|| view.above().iter().find(holds_all));
            holds &= found.is_some();
            parent = found;
        }
        if let Some(report) = report {
            let shown = parent.or_else(|| {
                let score = |link: &&Link| parents().filter(|t| t.holds_at(view, link, action).0).count();
                // `max_by_key` takes the last of equals; the nearest is wanted.
                view.all_links()
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .max_by_key(score)
            });
            for test in &self.tests {
                let link = if test.key.of_parents() {
                    shown.unwrap_or(&view.own)
                } else {
                    &view.own
                };
                let (holds, actual) = test.holds_at(view, link, action);
                report.push(Clause {
                    line: test.line,
                    column: test.column,
                    text: safe::show(&test.to_string(), 512),
                    of: String::new(),
                    holds,
                    actual: actual.text().map(|value| safe::show(&value, 256)),
                    found_at: link.devpath.clone(),
                });
            }
        }
        holds.then_some(parent.map(|link| link.devpath.as_str()))
    }
}

/// What a clause was compared with.
enum Actual<'v> {
    Text(Option<&'v str>),
    Attribute(Option<Rc<str>>),
    Tags(&'v BTreeSet<String>),
    Links(Vec<&'v str>),
    /// `Err`: it cannot be asked for, and neither `==` nor `!=` holds.
    Owned(Result<Option<String>, ()>),
    There(bool),
}

impl Actual<'_> {
    fn text(&self) -> Option<String> {
        match self {
            Actual::Text(value) => value.map(str::to_owned),
            Actual::Attribute(value) => value.as_deref().map(str::to_owned),
            Actual::Tags(tags) if tags.is_empty() => None,
            Actual::Links(links) if links.is_empty() => None,
            Actual::Links(links) => Some(links.join(" ")),
            Actual::Owned(value) => value.clone().ok().flatten(),
            Actual::There(there) => Some(if *there { "there" } else { "not there" }.to_owned()),
            Actual::Tags(tags) => Some(tags.iter().map(String::as_str).collect::<Vec<_>>().join(":")),
        }
    }
}

impl Test {
    /// Does this clause hold for the device at `link`, and what was found there?
    fn holds_at<'v>(&self, view: &'v View<'_>, link: &'v Link, action: Action) -> (bool, Actual<'v>) {
        let actual = match &self.key {
            Key::Action => Actual::Text(Some(action.as_str())),
            Key::Devpath => Actual::Text(Some(&link.devpath)),
            Key::Kernel | Key::Kernels => Actual::Text(Some(&link.sysname)),
            Key::Subsystem | Key::Subsystems => Actual::Text(view.subsystem(link)),
            Key::Driver | Key::Drivers => Actual::Text(view.driver(link)),
            Key::Attr(name) | Key::Attrs(name) => Actual::Attribute(view.attribute_of(link, name)),
            Key::Env(name) if name == "ACTION" => Actual::Text(Some(action.as_str())),
            Key::Env(name) => Actual::Text(view.device.property(name)),
            // What udev calls NAME is what the interface is called when udev is done.
            Key::Name => Actual::Text(view.device.interface()),
            Key::Symlink => Actual::Links(view.device.links()),
            Key::Sysctl(name) => Actual::Owned(outside::sysctl(view, name)),
            Key::Const(name) => Actual::Text(Some(constants::value(name))),
            Key::Test(mode) => Actual::There(outside::there(view, &self.pattern.text, *mode)),
            Key::Tag | Key::Tags => Actual::Tags(view.tags(link)),
        };
        (self.decide(&actual), actual)
    }

    /// Are both sides hexadecimal identifiers?
    pub(super) fn compares_hex(&self) -> bool {
        match &self.key {
            Key::Attr(name) | Key::Attrs(name) | Key::Env(name) => {
                HEX_NAMES.contains(&name.rsplit(['/', ']']).next().unwrap_or(name))
            }
            _ => false,
        }
    }

    fn decide(&self, actual: &Actual<'_>) -> bool {
        let hex = self.compares_hex();
        let found = match actual {
            Actual::Attribute(None) | Actual::Owned(Err(())) => return false,
            Actual::There(there) => *there,
            Actual::Links(links) => links.iter().any(|link| self.pattern.matches(link, false)),
            Actual::Owned(Ok(value)) => self.pattern.matches(value.as_deref().unwrap_or_default(), false),
            Actual::Attribute(Some(value)) if self.pattern.keep_trailing => self.pattern.matches(value, hex),
            Actual::Attribute(Some(value)) => self
                .pattern
                .matches(value.trim_end_matches(|c: char| c.is_ascii_whitespace()), hex),
            Actual::Tags(tags) => tags.iter().any(|tag| self.pattern.matches(tag, false)),
            Actual::Text(value) => {
                let value = value.unwrap_or_default();
                match &self.key {
                    Key::Subsystem | Key::Subsystems
                        if !self.pattern.fold && ANY_SUBSYSTEM.contains(&self.pattern.text.as_str()) =>
                    {
                        ANY_SUBSYSTEM.contains(&value)
                    }
                    _ => self.pattern.matches(value, hex),
                }
            }
        };
        found == self.equal
    }
}
