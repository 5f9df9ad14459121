//! What documents say about each other. Pure.

use std::collections::BTreeSet;

use crate::document::Kind;
use crate::fault::{Problem, nearest};
use crate::set::Set;
use crate::specs::{ProfileSpec, RuleSpec};
use crate::workload::{Run, WorkloadSpec};

/// A problem between documents, told at one of them.
#[derive(Debug, Clone)]
pub(crate) struct Cross {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) problem: Problem,
    pub(crate) warning: bool,
    /// The field of another document that the judgement rests on.
    pub(crate) rests_on: Option<(Kind, String, &'static str)>,
}

impl Cross {
    fn error(kind: Kind, name: &str, problem: Problem) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            problem,
            warning: false,
            rests_on: None,
        }
    }
}

/// Names that exist although their documents are not in the set, because they are faulty.
pub(crate) type Faulty = BTreeSet<(Kind, String)>;

/// The workload a rule starts.
pub(crate) fn workload_of(rule: &RuleSpec) -> &str {
    &rule.workload
}

/// Why a profile that is right by itself cannot be what it says with what it builds on: a circle, a shipped name, a
/// change of something the base does not have.
fn unresolved(name: &str, set: &Set) -> Option<Problem> {
    let custom = set
        .profiles
        .iter()
        .map(|(name, profile)| (name.clone(), profile.spec.clone()))
        .collect();
    let error = berth_policies::resolve(name, &custom).err()?;
    let (path, message) = match &error {
        berth_policies::ProfileError::Field { name: owner, problem } if owner == name => {
            (problem.path.clone(), problem.message.clone())
        }
        // Said of the profile whose field it is, or where an unknown name stands.
        berth_policies::ProfileError::Field { .. } | berth_policies::ProfileError::Unknown { .. } => {
            return None;
        }
        berth_policies::ProfileError::Shipped { name: owner } if owner != name => return None,
        berth_policies::ProfileError::Shipped { .. } => ("metadata.name".to_owned(), error.to_string()),
        _ => ("spec.extends".to_owned(), error.to_string()),
    };
    Some(Problem {
        hint: error.hint(),
        ..Problem::new(path, message)
    })
}

/// The profile a profile builds on.
pub(crate) fn base_of(profile: &ProfileSpec) -> Option<&str> {
    profile.extends.as_deref()
}

/// Whether berth itself brings a profile of that name.
pub(crate) fn is_shipped(name: &str) -> bool {
    shipped().contains(&name)
}

/// Profiles that berth itself brings.
fn shipped() -> Vec<&'static str> {
    berth_policies::shipped_names().collect()
}

/// Every problem between the documents of a set. `faulty` are there too, but nothing else is known of them.
pub(crate) fn problems(set: &Set, faulty: &Faulty) -> Vec<Cross> {
    let mut out = Vec::new();
    let profiles: Vec<&str> = shipped()
        .into_iter()
        .chain(names(set, faulty, Kind::SecurityProfile))
        .collect();
    for (name, workload) in &set.workloads {
        let profile = &*workload.spec.profile;
        if !profiles.contains(&profile) {
            let problem = no_such("spec.profile", Kind::SecurityProfile, profile, &profiles);
            out.push(Cross::error(Kind::Workload, name, problem));
        }
    }
    for (name, profile) in &set.profiles {
        if let Some(base) = base_of(&profile.spec).filter(|base| !profiles.contains(base)) {
            let problem = no_such("spec.extends", Kind::SecurityProfile, base, &profiles);
            out.push(Cross::error(Kind::SecurityProfile, name, problem));
        } else if let Some(problem) = unresolved(name, set) {
            out.push(Cross::error(Kind::SecurityProfile, name, problem));
        }
    }
    let workloads: Vec<&str> = names(set, faulty, Kind::Workload).collect();
    let mut used = BTreeSet::new();
    for (name, rule) in set.rules.iter().filter(|(_, rule)| !rule.spec.forbid) {
        let wanted = workload_of(&rule.spec);
        used.insert(wanted);
        match set.workloads.get(wanted) {
            Some(workload) => rule_fits(name, &rule.spec, wanted, &workload.spec, &mut out),
            None if workloads.contains(&wanted) => {}
            None => {
                let problem = no_such("spec.workload", Kind::Workload, wanted, &workloads);
                out.push(Cross::error(Kind::HotplugRule, name, problem));
            }
        }
    }
    if !faulty.iter().any(|(kind, _)| *kind == Kind::HotplugRule) {
        for (name, workload) in &set.workloads {
            if workload.spec.run == Run::OnDevice && !used.contains(name.as_str()) {
                let problem = Problem::new("spec.run", "`onDevice`, but no HotplugRule uses this workload")
                    .hint("it will never run: add a rule with `workload:` set to its name");
                out.push(Cross {
                    warning: true,
                    ..Cross::error(Kind::Workload, name, problem)
                });
            }
        }
    }
    out
}

fn rule_fits(name: &str, rule: &RuleSpec, wanted: &str, workload: &WorkloadSpec, out: &mut Vec<Cross>) {
    let mut push = |problem, field| {
        let rests_on = Some((Kind::Workload, wanted.to_owned(), field));
        out.push(Cross {
            rests_on,
            ..Cross::error(Kind::HotplugRule, name, problem)
        });
    };
    if workload.run != Run::OnDevice {
        let problem = Problem::new("spec.workload", format!("workload `{wanted}` has `run: always`"))
            .expected("a workload with `run: onDevice`")
            .hint("set spec.run of the workload to onDevice, or write a workload of its own for the rule");
        push(problem, "spec.run");
    }
    if rule.moves_interface() && !workload.takes_interfaces() {
        let problem = Problem::new(
            "spec.interface",
            format!("workload `{wanted}` has `network: host`"),
        )
        .expected("a workload with a network of its own")
        .hint("set spec.network of the workload to none: an interface cannot be moved to where it is");
        push(problem, "spec.network");
    }
}

fn names<'a>(set: &'a Set, faulty: &'a Faulty, kind: Kind) -> impl Iterator<Item = &'a str> {
    let faulty = faulty
        .iter()
        .filter(move |(of, _)| *of == kind)
        .map(|(_, name)| name.as_str());
    set.names(kind).chain(faulty)
}

fn no_such(path: &str, kind: Kind, name: &str, known: &[&str]) -> Problem {
    let problem = Problem::new(
        path,
        format!("there is no {kind} `{}`", crate::document::shown(name)),
    );
    let known: BTreeSet<&str> = known.iter().copied().collect();
    let problem = match known.len() {
        0 => problem.expected(format!("the name of a {kind}; there is none")),
        1..=12 => {
            let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            problem.expected(format!("the name of a {kind}: {}", quoted.join(", ")))
        }
        count => problem.expected(format!("the name of one of {count} {kind} documents")),
    };
    match nearest(name, known) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None => problem.hint("name one that is there, or give its document along"),
    }
}

impl Set {
    /// Every problem of a set, each with the document it is of (`Workload pump`): of each document by itself
    /// and between them. Warnings are left out.
    pub fn validate(&self) -> Vec<(String, Problem)> {
        let mut out = Vec::new();
        for (kind, problems) in crate::load::own_problems(self) {
            out.extend(problems.into_iter().map(|problem| (kind.clone(), problem)));
        }
        let cross = problems(self, &Faulty::new());
        out.extend(
            cross
                .into_iter()
                .filter(|c| !c.warning)
                .map(|c| (format!("{} `{}`", c.kind, c.name), c.problem)),
        );
        if self.nodes.len() > 1 {
            let names: Vec<&str> = self.names(Kind::Node).collect();
            let problem = Problem::new(
                "kind",
                format!("{} Node documents: {}", names.len(), names.join(", ")),
            )
            .expected("at most one");
            out.push(("Node".to_owned(), problem));
        }
        out
    }
}
