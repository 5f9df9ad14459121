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
}

/// Names that exist although their documents are not in the set, because they are faulty.
pub(crate) type Faulty = BTreeSet<(Kind, String)>;

/// The workload a rule starts.
pub(crate) fn workload_of(rule: &RuleSpec) -> &str {
    rule["workload"].as_str().unwrap_or_default()
}

/// The profile a profile builds on.
pub(crate) fn base_of(profile: &ProfileSpec) -> Option<&str> {
    profile["extends"].as_str()
}

/// Whether berth itself brings a profile of that name.
pub(crate) fn is_shipped(name: &str) -> bool {
    name == "strict"
}

const SHIPPED: &[&str] = &["strict"];

/// Every problem between the documents of a set. `faulty` are there too, but nothing else is known of them.
pub(crate) fn problems(set: &Set, faulty: &Faulty) -> Vec<Cross> {
    let mut out = Vec::new();
    let profiles: Vec<&str> = SHIPPED
        .iter()
        .copied()
        .chain(names(set, faulty, Kind::SecurityProfile))
        .collect();
    for (name, workload) in &set.workloads {
        let profile = &*workload.spec.profile;
        if !profiles.contains(&profile) {
            let problem = no_such("spec.profile", Kind::SecurityProfile, profile, &profiles);
            out.push(Cross {
                kind: Kind::Workload,
                name: name.clone(),
                problem,
                warning: false,
            });
        }
    }
    for (name, profile) in &set.profiles {
        if let Some(base) = base_of(&profile.spec).filter(|base| !profiles.contains(base)) {
            let problem = no_such("spec.extends", Kind::SecurityProfile, base, &profiles);
            out.push(Cross {
                kind: Kind::SecurityProfile,
                name: name.clone(),
                problem,
                warning: false,
            });
        }
    }
    let workloads: Vec<&str> = names(set, faulty, Kind::Workload).collect();
    let mut used = BTreeSet::new();
    for (name, rule) in &set.rules {
        let wanted = workload_of(&rule.spec);
        used.insert(wanted);
        let problem = match set.workloads.get(wanted) {
            Some(workload) => rule_fits(&rule.spec, wanted, &workload.spec),
            None if workloads.contains(&wanted) => None,
            None => Some(no_such("spec.workload", Kind::Workload, wanted, &workloads)),
        };
        out.extend(problem.map(|problem| Cross {
            kind: Kind::HotplugRule,
            name: name.clone(),
            problem,
            warning: false,
        }));
    }
    if !faulty.iter().any(|(kind, _)| *kind == Kind::HotplugRule) {
        for (name, workload) in &set.workloads {
            if workload.spec.run == Run::OnDevice && !used.contains(name.as_str()) {
                let problem = Problem::new("spec.run", "`onDevice`, but no HotplugRule uses this workload")
                    .hint("it will never run: add a rule with `workload:` set to its name");
                out.push(Cross {
                    kind: Kind::Workload,
                    name: name.clone(),
                    problem,
                    warning: true,
                });
            }
        }
    }
    out
}

fn rule_fits(rule: &RuleSpec, name: &str, workload: &WorkloadSpec) -> Option<Problem> {
    if workload.run != Run::OnDevice {
        return Some(
            Problem::new("spec.workload", format!("workload `{name}` has `run: always`"))
                .expected("a workload with `run: onDevice`")
                .hint(
                    "set spec.run of the workload to onDevice, or write a workload of its own for the rule",
                ),
        );
    }
    (!rule["interface"].is_null() && !workload.takes_interfaces()).then(|| {
        Problem::new("spec.interface", format!("workload `{name}` has `network: host`"))
            .expected("a workload with a network of its own")
            .hint("set spec.network of the workload to none: an interface cannot be moved to where it is")
    })
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
