//! Recording a real run, and the smallest profile with which the same run succeeds.
//!
//! ```text
//! run under the base profile, no system call filter, traced  → calls, files, devices, refusals
//! the same without one capability, one after the other       → a capability without which nothing changes is not needed
//! the same under the whole recorded profile                  → it must still be the same run
//! ```
//! A run is the same when it ends the same way and the kernel refuses it nothing (EPERM, EACCES of a call by name) that
//! it did not refuse before. That is the method's limit: a capability whose lack shows in no errno and not in the end
//! of the program is not found to be needed, and a call that this one run did not make is not in the profile.
//!
//! Invariants: the caller has one thread and no other children; nothing of a run is left, whatever happens in it; no
//! launcher and no agent take part.

mod run;
mod sort;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_policies::{Profile, ProfileSpec};
use berth_runtime::trace::Ended;
use serde_json::{Value, json};

use crate::paths::Paths;
use crate::wire::{LaunchRequest, Refusal};

pub use run::Recorder;

/// What is recorded, and where.
#[derive(Debug)]
pub struct Settings {
    /// Folders; its own work lies in RUN and STATE.
    pub paths: Paths,
    /// The read-only store of images.
    pub preloaded: std::path::PathBuf,
    /// The run.
    pub request: LaunchRequest,
    /// It is told to end after so long.
    pub limit: Duration,
    /// First id of the ranges of user ids.
    pub id_base: u32,
}

/// What one run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// How it ended.
    pub ended: Ended,
    /// Calls by name.
    pub calls: BTreeSet<&'static str>,
    /// Values of the argument that decides (socket's family, ioctl's request, personality's persona).
    pub values: BTreeMap<&'static str, BTreeSet<u64>>,
    /// Calls that the kernel refused: name and errno, each with one example of what it was about.
    pub refused: BTreeMap<(&'static str, i32), String>,
    /// Calls that the filter in force answered, with the answer.
    pub filtered: BTreeMap<&'static str, String>,
    /// Files by path inside, and how they were used: some of `r`, `w`, `x`, `c` (made).
    pub files: BTreeMap<String, BTreeSet<char>>,
    /// Devices as in devices.allow.
    pub devices: BTreeSet<String>,
    /// Calls of another architecture than the node's.
    pub foreign: bool,
}

impl Trace {
    /// Is it the run that `other` is, as far as one can see from outside?
    pub fn same_as(&self, other: &Trace) -> bool {
        let new = self.refused.keys().find(|key| !other.refused.contains_key(*key));
        self.ended == other.ended && new.is_none() && self.filtered.is_empty()
    }

    /// What was refused here and not in `other`, one line each.
    pub fn beyond(&self, other: &Trace) -> Vec<String> {
        let filtered = self
            .filtered
            .iter()
            .map(|(name, answer)| format!("system call {name}: the filter answers {answer}"));
        let refused = self
            .refused
            .iter()
            .filter(|(key, _)| !other.refused.contains_key(*key));
        let refused = refused.map(|((name, errno), about)| {
            let word = nix::errno::Errno::from_raw(*errno);
            let about = if about.is_empty() {
                String::new()
            } else {
                format!(" ({about})")
            };
            let hint = sort::capability_of(name).map(|cap| format!("; it may need {cap}"));
            format!("{name}{about}: {word:?}{}", hint.unwrap_or_default())
        });
        let mut all: Vec<String> = filtered.chain(refused).collect();
        if self.ended != other.ended {
            all.push(format!(
                "it ended with {}, before with {}",
                ended(self.ended),
                ended(other.ended)
            ));
        }
        all
    }
}

fn ended(how: Ended) -> String {
    match how {
        Ended::Code(code) => format!("code {code}"),
        Ended::Signal(signal) => format!("signal {signal}"),
    }
}

/// A finished recording.
#[derive(Debug)]
pub struct Recording {
    /// The profile.
    pub spec: ProfileSpec,
    /// The first run.
    pub trace: Trace,
    /// How often the program ran.
    pub runs: usize,
}

fn refuse(message: impl Into<String>, hint: &str) -> Refusal {
    Refusal {
        stage: "record".into(),
        message: message.into(),
        hint: Some(hint.to_owned()),
    }
}

impl Recorder {
    /// Records a run under `base` and makes the smallest profile; `landlock`: with a domain of the files that were
    /// used.
    ///
    /// # Errors
    /// A refusal of the launch, or of the stage `record`: the runs differ, so nothing can be said.
    pub fn record(&mut self, base: &Profile, landlock: bool) -> Result<Recording, Refusal> {
        let mut open = base.clone();
        open.seccomp = berth_policies::Seccomp::Unconfined;
        open.landlock = None;
        let first = self.run(&open)?;
        if first.foreign {
            let hint = "record a program of the node's own architecture";
            return Err(refuse("it makes system calls of another architecture", hint));
        }
        let again = self.run(&open)?;
        if !again.same_as(&first) {
            let what = again.beyond(&first).join("; ");
            let hint = "record a run that ends by itself the same way each time, with files of its own";
            return Err(refuse(
                format!("two runs under the same profile differ: {what}"),
                hint,
            ));
        }
        let mut trace = first.clone();
        trace.join(again);
        let kept = self.capabilities(&open, &first)?;
        let spec = spec(&base.name, &kept, &trace, landlock);
        let spec: ProfileSpec =
            serde_json::from_value(spec).map_err(|e| refuse(e.to_string(), "report this"))?;
        // The whole of it, in force.
        let mut custom = self.custom.clone();
        custom.insert("recorded".into(), spec.clone());
        let resolved = berth_policies::resolve("recorded", &custom)
            .map_err(|e| refuse(e.to_string(), "record under another profile"))?;
        let under = self.run(&resolved)?;
        if !under.same_as(&first) {
            let what = under.beyond(&first).join("; ");
            let hint = "the run does not always make the same calls: record a longer one";
            return Err(refuse(
                format!("under the recorded profile the run is another: {what}"),
                hint,
            ));
        }
        Ok(Recording {
            spec,
            trace,
            runs: self.runs,
        })
    }

    /// The capabilities without any one of which the run is another.
    fn capabilities(&mut self, open: &Profile, first: &Trace) -> Result<BTreeSet<&'static str>, Refusal> {
        let with = |set: &BTreeSet<&'static str>| {
            let mut profile = open.clone();
            profile.ambient.retain(|name| set.contains(name));
            profile.sets = berth_policies::Sets::default();
            profile.capabilities.clone_from(set);
            profile
        };
        let none = BTreeSet::new();
        if self.run(&with(&none))?.same_as(first) {
            return Ok(none);
        }
        let mut kept = open.capabilities.clone();
        for name in open.capabilities.clone() {
            kept.remove(name);
            if !self.run(&with(&kept))?.same_as(first) {
                kept.insert(name);
            }
        }
        Ok(kept)
    }
}

impl Trace {
    /// What another run of the same did, too.
    fn join(&mut self, other: Trace) {
        self.calls.extend(other.calls);
        for (name, values) in other.values {
            self.values.entry(name).or_default().extend(values);
        }
        for (path, how) in other.files {
            self.files.entry(path).or_default().extend(how);
        }
        self.devices.extend(other.devices);
    }
}

/// The `spec` of the recorded profile.
fn spec(base: &str, capabilities: &BTreeSet<&'static str>, trace: &Trace, landlock: bool) -> Value {
    let mut spec = json!({
        "extends": base,
        "capabilities": {"set": capabilities},
        "devices": {"set": trace.devices},
        "seccomp": sort::filter(trace),
    });
    if landlock {
        spec["landlock"] = sort::landlock(trace);
    }
    spec
}
