//! Documents: plan, apply, delete, reload.
//!
//! Invariants: all of it is checked before any of it counts; what is refused changes nothing; a plan is the same
//! `step` on a copy of the state; the state file is written before the first effect.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use berth_documents::{Change, Kind, Set, SetError, check};

use crate::api::{Changes, Fault, Outcome, Step};
use crate::core::desired::Desired as CoreDesired;
use crate::core::{Effect, Event, Node, NoticeKind};

use super::{Agent, Found, start, store};

/// A request's outcome before it counts.
struct Candidate {
    desired: store::Desired,
    effective: Set,
    node: Node,
    outcome: Outcome,
}

impl Agent {
    /// What `changes` would change.
    pub(super) fn plan(&self, changes: &Changes) -> Result<Outcome, Fault> {
        self.candidate(changes).map(|candidate| candidate.outcome)
    }

    /// Changes it.
    pub(super) fn apply(&mut self, changes: &Changes) -> Result<Outcome, Fault> {
        let candidate = self.candidate(changes)?;
        let before = std::mem::replace(&mut self.desired, candidate.desired);
        if let Err(error) = self
            .desired
            .save(&self.settings.folders.desired(), &self.metrics.store)
        {
            self.desired = before;
            let hint = Some("documents count only once they are on the disk".to_owned());
            return Err(Fault {
                message: error.to_string(),
                hint,
            });
        }
        self.begin(candidate.effective, candidate.node);
        Ok(candidate.outcome)
    }

    fn candidate(&self, changes: &Changes) -> Result<Candidate, Fault> {
        let refuse = |message: String, hint: Option<String>| Fault { message, hint };
        let files = self.desired.file_keys();
        let named = changes
            .set
            .keys()
            .into_iter()
            .chain(changes.delete.iter().cloned());
        if let Some((kind, name)) = named.into_iter().find(|key| files.contains(key)) {
            let hint = format!(
                "change it in {}, then send SIGHUP",
                self.settings.folders.config.display()
            );
            return Err(refuse(
                format!("{kind} `{name}` stands in the configuration folder"),
                Some(hint),
            ));
        }
        let mut desired = self.desired.clone();
        desired.applied = desired.applied.apply(&changes.set).0;
        if !changes.delete.is_empty() {
            // Whether something still uses it is seen by looking at all documents.
            let all = desired.effective();
            all.delete(&changes.delete)
                .map_err(|errors| set_faults(&errors))?;
            desired.applied = without(&desired.applied, &changes.delete);
        }
        let effective = desired.effective();
        let problems = effective.validate();
        if !problems.is_empty() {
            let lines: Vec<String> = problems
                .iter()
                .map(|(what, p)| format!("{what}: {}: {}", p.path, p.message))
                .collect();
            return Err(refuse(
                lines.join("\n"),
                problems.iter().find_map(|(_, p)| p.hint.clone()),
            ));
        }
        let node =
            start::node(&effective, &self.topology, &self.support).map_err(|text| refuse(text, None))?;
        let outcome = self.simulate(&effective, &node);
        Ok(Candidate {
            desired,
            effective,
            node,
            outcome,
        })
    }

    /// `step` on a copy.
    fn simulate(&self, effective: &Set, node: &Node) -> Outcome {
        let mut copy = self.state.clone();
        let event = Event::Desired {
            desired: CoreDesired::of(effective),
            node: node.clone(),
        };
        let effects = copy.step(self.now(), event);
        let name = |id: &str| {
            let found = copy.instances.get(id).or_else(|| self.state.instances.get(id));
            found.map_or_else(|| id.to_owned(), |i| i.name.clone())
        };
        let mut steps: BTreeMap<String, Step> = BTreeMap::new();
        let mut put = |action: &str, name: String, text: String| {
            let step = Step {
                action: action.to_owned(),
                name: name.clone(),
                text,
            };
            steps.entry(format!("{name} {action}")).or_insert(step);
        };
        for effect in &effects {
            match effect {
                Effect::Launch { request, .. } => {
                    let place = &request.placement;
                    let kind = if place.shared { "shared cores" } else { "cores" };
                    let mut text = format!("{kind} {}", place.cpus);
                    if let Some(budget) = request.rt_budget {
                        text += &format!(
                            ", real-time budget {} us in {} us",
                            budget.runtime_us, budget.period_us
                        );
                    }
                    put("launch", name(&request.id), text);
                }
                Effect::Start { id, .. } => put("start", name(id), "armed".to_owned()),
                Effect::Stop(id) => put("stop", name(id), String::new()),
                Effect::Note(notice) if notice.kind == NoticeKind::Waiting => {
                    put("wait", notice.subject.clone(), notice.text.clone());
                }
                Effect::Note(notice) if notice.kind == NoticeKind::LaunchFailed => {
                    put("refuse", notice.subject.clone(), notice.text.clone());
                }
                _ => {}
            }
        }
        // A replaced container is launched when the old one has gone.
        for (id, instance) in &copy.instances {
            if instance.phase.as_str() == "stopping" && !instance.phase.is_live() {
                let before = self.state.instances.get(id);
                if before.is_some_and(|b| b.phase.is_live()) && wanted(&copy, instance) {
                    put(
                        "launch",
                        instance.name.clone(),
                        "in the place of the one that stops".to_owned(),
                    );
                }
            }
        }
        let now = self.desired.effective();
        Outcome {
            documents: berth_documents::diff(&now, effective),
            containers: steps.into_values().collect(),
        }
    }

    /// Takes the configuration folder in: at start and on SIGHUP. A folder with any fault changes nothing.
    pub(super) fn load_files(&mut self) -> bool {
        let folder = self.settings.folders.config.clone();
        let report = match fs::metadata(&folder) {
            Ok(_) => check(std::slice::from_ref(&folder), &self.desired.applied),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            Err(error) => {
                self.note(
                    NoticeKind::DocumentsRefused,
                    &folder.display().to_string(),
                    error.to_string(),
                );
                return false;
            }
        };
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        let mut faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
        let mut desired = store::Desired {
            files: report.set,
            ..self.desired.clone()
        };
        if faults.is_empty() {
            let effective = desired.effective();
            faults.extend(
                effective
                    .validate()
                    .iter()
                    .map(|(what, p)| format!("{what}: {}: {}", p.path, p.message)),
            );
            faults.extend(start::node(&effective, &self.topology, &self.support).err());
        }
        let result = if faults.is_empty() { "ok" } else { "refused" };
        self.metrics.store.loads.with_label_values(&[result]).inc();
        if !faults.is_empty() {
            for fault in faults {
                self.note(NoticeKind::DocumentsRefused, &folder.display().to_string(), fault);
            }
            return false;
        }
        std::mem::swap(&mut self.desired, &mut desired);
        let changes = berth_documents::diff(&desired.files, &self.desired.files);
        if changes.is_empty() {
            return true;
        }
        let words: Vec<String> = changes.iter().map(change_words).collect();
        let (subject, text) = (folder.display().to_string(), words.join("; "));
        self.audit
            .configuration(&subject, text, "ok", &self.metrics.audit);
        self.save();
        true
    }

    /// SIGHUP.
    pub(super) fn reload(&mut self) {
        if self.load_files() {
            self.take_over();
            self.resync("reload");
        }
    }

    /// What is desired goes to the core and to the device rules.
    pub(super) fn take_over(&mut self) {
        let effective = self.desired.effective();
        match start::node(&effective, &self.topology, &self.support) {
            Ok(node) => self.begin(effective, node),
            // The node has changed since the document was taken: the cores it still names count.
            Err(text) => {
                self.note(NoticeKind::DocumentsRefused, "node", text);
                let node = self.state.node.clone();
                self.begin(effective, node);
            }
        }
    }

    fn begin(&mut self, effective: Set, node: Node) {
        if let Err(error) = write_profiles(&self.settings.folders.config.join("profiles"), &effective) {
            self.note(NoticeKind::DocumentsRefused, "profiles", error.to_string());
        }
        if self.sandbox.is_some()
            && let Err(error) = super::harden::keep_to(&node.pool.housekeeping)
        {
            let text = format!(
                "the agent stays on other CPUs than {}: {error}",
                node.pool.housekeeping
            );
            self.note(NoticeKind::Refused, "agent", text);
        }
        // Rules first: a new rule without the devices that are there already would only be half the truth.
        for notice in self.devices.matcher().set_rules(&effective) {
            self.notice(notice);
        }
        let mut found = Found::default();
        self.devices.resync(&self.metrics.devices, &mut found);
        self.devices.matcher().rematch(&mut found);
        self.feed(Event::Desired {
            desired: CoreDesired::of(&effective),
            node,
        });
        self.take_found(found);
        self.state.tidy_stopped();
    }

    /// Writes the state file; a failure is told and tried again with the next change.
    pub(super) fn save(&mut self) {
        self.desired.stopped.clone_from(&self.state.stopped);
        if let Err(error) = self
            .desired
            .save(&self.settings.folders.desired(), &self.metrics.store)
        {
            self.note(NoticeKind::Refused, "state", error.to_string());
        }
    }
}

fn wanted(state: &crate::core::State, instance: &crate::core::instance::Instance) -> bool {
    use crate::core::instance::Slot;
    match &instance.slot {
        Slot::Workload(name) => state.desired.workloads.contains_key(name),
        Slot::Device { rule, key } => {
            state.desired.rules.contains_key(rule) && state.devices.contains_key(key)
        }
        Slot::Pool { rule, n } => state.desired.rules.get(rule).is_some_and(|r| r.armed > *n),
        Slot::Once(_) | Slot::Adopted(_) => false,
    }
}

/// What changed of one document: no value.
fn change_words(change: &Change) -> String {
    let fields: Vec<&str> = change.fields.iter().map(|field| field.path.as_str()).collect();
    let action = change.action;
    format!("{action} {}/{} {}", change.kind, change.name, fields.join(" "))
        .trim_end()
        .to_owned()
}

fn without(set: &Set, which: &[(Kind, String)]) -> Set {
    let mut rest = set.clone();
    for (kind, name) in which {
        match kind {
            Kind::Node => drop(rest.nodes.remove(name)),
            Kind::Workload => drop(rest.workloads.remove(name)),
            Kind::HotplugRule => drop(rest.rules.remove(name)),
            Kind::SecurityProfile => drop(rest.profiles.remove(name)),
        }
    }
    rest
}

fn set_faults(errors: &[SetError]) -> Fault {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Fault {
        message: lines.join("\n"),
        hint: None,
    }
}

/// The node's own profiles, where the launcher reads them: `profiles/NAME.json`, each by one rename. One whose
/// document is gone is removed.
fn write_profiles(folder: &Path, set: &Set) -> io::Result<()> {
    if set.profiles.is_empty() && !folder.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    for (name, document) in &set.profiles {
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_vec_pretty(&document.spec)?;
        if fs::read(&path).is_ok_and(|there| there == text) {
            continue;
        }
        let new = folder.join(format!("{name}.json.new"));
        fs::write(&new, &text)?;
        fs::rename(&new, &path)?;
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_suffix(".json"));
        if of.is_some_and(|name| !set.profiles.contains_key(name)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
