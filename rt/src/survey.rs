//! What a node document wants beside what the machine has, knob by knob: the reading half of `berth node check` and
//! `berth node tune`. Nothing here writes; each finding that can be mended now carries the [`Change`] that does it.
//!
//! Files: those of [`crate::knob::TABLE`]. Sources as there.

mod boot;
pub(crate) mod cpusets;
mod devices;
mod files;
mod image;
#[cfg(test)]
mod machines;
mod power;
#[cfg(test)]
mod tests;
mod threads;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cmdline::Parts;
use crate::cpu::CpuSet;
use crate::knob::{self, TABLE, Weight, When};
use crate::machine::Machine;
use crate::node::{CpuChoice, NodeSpec};
use crate::topology::Topology;

pub use boot::{boot, parts};

/// How an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As wanted.
    Ok,
    /// Not as wanted; `tune` mends it now.
    Differs,
    /// Not as wanted; the next boot mends it, with the argument that `mend` names.
    PendingBoot,
    /// In force now; the next boot starts without it unless it gets the argument, or berth tunes again.
    UntilBoot,
    /// This kernel or machine does not have it, and that does no harm: there is nothing to restrain.
    Absent,
    /// This kernel or machine does not have it, and what was wanted cannot be.
    Missing,
    /// It is there and cannot be changed.
    Refused,
    /// The kernel keeps it where it is, and says so.
    Kept,
}

impl State {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Differs => "differs",
            State::PendingBoot => "pending boot",
            State::UntilBoot => "until boot",
            State::Absent => "absent",
            State::Missing => "missing",
            State::Refused => "refused",
            State::Kept => "kept",
        }
    }

    /// Whether the node is not as wanted.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(self, State::Ok | State::UntilBoot | State::Absent | State::Kept)
    }
}

/// One item of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The knob's name.
    pub knob: &'static str,
    /// The very file, thread or argument.
    pub interface: String,
    /// What the document wants.
    pub wanted: String,
    /// What is there; `None` where nothing is.
    pub actual: Option<String>,
    /// How it stands.
    pub state: State,
    /// When it can be turned.
    pub when: When,
    /// How much it matters.
    pub weight: Weight,
    /// Why it is absent, refused or kept.
    pub reason: Option<String>,
    /// How to mend it.
    pub mend: Option<String>,
    /// The fields of the document.
    pub field: &'static str,
    /// What `tune` would do.
    #[serde(skip)]
    pub change: Option<Change>,
}

/// One write of `tune`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The knob's name.
    pub knob: String,
    /// What is written.
    pub target: Target,
    /// The new value.
    pub value: String,
    /// What puts the old state back, in this order.
    pub restore: Vec<(Target, String)>,
}

/// Something that can be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Target {
    /// A file of the kernel's.
    File {
        /// Its absolute path.
        path: String,
    },
    /// Policy and priority of a thread: the value is as [`crate::sched::Scheduler`] in JSON.
    Scheduler {
        /// Its id.
        pid: i32,
        /// When it began, so that no other thread of the same id is meant.
        start: u64,
        /// Its name.
        name: String,
    },
    /// CPUs of a thread: the value is a list.
    Affinity {
        /// Its id.
        pid: i32,
        /// When it began.
        start: u64,
        /// Its name.
        name: String,
    },
    /// A cpuset of cgroup v1: the value is `cpus LIST mems LIST`, or `absent`.
    Cpuset {
        /// Its folder.
        path: String,
    },
    /// The cpuset of a thread: the value is `/`, or the name of one below the root. Of its CPUs it keeps what the other
    /// cpuset has.
    Member {
        /// Its id.
        pid: i32,
        /// When it began.
        start: u64,
        /// Its name.
        name: String,
        /// The root cpuset.
        root: String,
    },
    /// Combined channels of a network interface: the value is a number.
    Channels {
        /// Its name.
        interface: String,
    },
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::File { path } => f.write_str(path),
            Target::Scheduler { pid, name, .. } => write!(f, "policy of {name} (pid {pid})"),
            Target::Affinity { pid, name, .. } => write!(f, "CPUs of {name} (pid {pid})"),
            Target::Cpuset { path } => write!(f, "cpuset {path}"),
            Target::Member { pid, name, .. } => write!(f, "cpuset of {name} (pid {pid})"),
            Target::Channels { interface } => write!(f, "channels of {interface}"),
        }
    }
}

/// What is known of the node besides its files.
pub struct Context<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Its topology.
    pub topology: &'a Topology,
    /// What is wanted, hints filled in.
    pub spec: &'a NodeSpec,
    /// Interrupts whose affinity the kernel refused to change, by number: an earlier `tune` found out.
    pub kept: &'a [u32],
    /// What stands for the root cpuset of cgroup v1; the hierarchy's own where absent.
    pub cpuset: Option<PathBuf>,
}

/// Every item of every knob that the spec turns, in the table's order.
#[must_use]
pub fn survey(context: &Context<'_>) -> Vec<Finding> {
    let mut survey = Survey {
        parts: parts(context.spec, context.topology),
        context,
        machine: context.machine,
        spec: context.spec,
        online: context.topology.online(),
        findings: Vec::new(),
    };
    survey.image();
    survey.cpusets();
    survey.files();
    survey.power();
    survey.threads();
    survey.devices();
    survey.boot();
    let place = |name: &str| TABLE.iter().position(|knob| knob.name == name);
    survey.findings.sort_by_key(|finding| place(finding.knob));
    survey.findings
}

struct Survey<'a> {
    context: &'a Context<'a>,
    machine: &'a Machine,
    spec: &'a NodeSpec,
    parts: Parts,
    online: CpuSet,
    findings: Vec<Finding>,
}

/// How a file's text is compared with a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    /// Word for word.
    Text,
    /// The selected one of several words.
    Word,
    /// A hexadecimal mask of CPUs.
    Mask,
    /// A list of CPUs.
    List,
}

impl Survey<'_> {
    /// A finding with what the table says of its knob.
    fn finding(
        &self,
        name: &'static str,
        interface: impl Into<String>,
        wanted: impl Into<String>,
    ) -> Finding {
        let knob = knob::find(name);
        Finding {
            knob: name,
            interface: interface.into(),
            wanted: wanted.into(),
            actual: None,
            state: State::Ok,
            when: knob.map_or(When::RunTime, |knob| knob.when),
            weight: knob.map_or(Weight::Medium, |knob| knob.weight),
            reason: None,
            mend: None,
            field: knob.map_or("", |knob| knob.field),
            change: None,
        }
    }

    /// The CPUs of a choice; all that are online for `all`.
    fn chosen(&self, choice: &CpuChoice) -> CpuSet {
        choice.limited(&self.parts).unwrap_or_else(|| self.online.clone())
    }

    /// What is absent: harmless, or in the way of what was wanted.
    fn absent(&mut self, name: &'static str, interface: &str, wanted: &str, why: Option<String>) {
        let mut finding = self.finding(name, interface, wanted);
        let knob = knob::find(name);
        let needs = knob.map_or("", |knob| knob.needs);
        let needed = crate::knob::NEEDED.contains(&name);
        finding.state = if needed { State::Missing } else { State::Absent };
        finding.reason = Some(why.unwrap_or_else(|| self.why(needs)));
        if needed {
            let cost = knob.map_or("", |knob| knob.cost);
            finding.mend = Some(format!("build or choose a kernel with {needs}; else {cost}"));
        }
        self.findings.push(finding);
    }

    /// Why something is not there, as far as the kernel's configuration tells.
    fn why(&self, needs: &str) -> String {
        let options = needs.split([' ', ',']).filter(|word| word.starts_with("CONFIG_"));
        let unset: Vec<&str> = options
            .filter(|option| self.machine.option(option) == Some("n"))
            .collect();
        match (unset.is_empty(), needs) {
            (false, _) => format!("this kernel is built without {}", unset.join(" and ")),
            (true, "") => "this kernel does not have it".into(),
            (true, needs) => format!("not there; it needs {needs}"),
        }
    }

    /// A file that is to hold a value.
    fn file(&mut self, name: &'static str, path: &str, value: &str, compare: As) {
        let Some(text) = self.machine.read(path) else {
            let why = self
                .machine
                .there(path)
                .then(|| "it cannot be read; are you root?".to_owned());
            return self.absent(name, path, value, why);
        };
        let finding = self.compared(name, path, value, compare, &text);
        self.findings.push(finding);
    }

    /// The finding of a file that was read.
    fn compared(&self, name: &'static str, path: &str, value: &str, compare: As, text: &str) -> Finding {
        let (actual, equal) = match compare {
            As::Text => (text.to_owned(), text == value),
            As::Word => {
                let word = crate::machine::selected(text).unwrap_or_else(|| text.to_owned());
                let equal = word == value;
                (word, equal)
            }
            As::Mask => (
                text.to_owned(),
                CpuSet::from_mask(text) == CpuSet::from_mask(value),
            ),
            As::List => (
                text.to_owned(),
                text.parse::<CpuSet>().ok() == value.parse::<CpuSet>().ok(),
            ),
        };
        let mut finding = self.finding(name, path, value);
        finding.actual = Some(actual.clone());
        if equal {
            return finding;
        }
        finding.state = State::Differs;
        let target = Target::File { path: path.into() };
        finding.change = Some(Change {
            knob: name.into(),
            target: target.clone(),
            value: value.into(),
            restore: vec![(target, actual)],
        });
        finding.mend = Some("berth node tune".into());
        finding
    }
}
