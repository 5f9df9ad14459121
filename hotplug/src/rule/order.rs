//! Which rule a device belongs to.
//!
//! Invariant: at most one. Of several rules that match, the one with the highest priority; two with the same
//! highest priority are an error that names both, never a silent choice.

use std::collections::{BTreeSet, HashMap, HashSet};

use thiserror::Error;

use super::{Anchor, Matched, Rule, View};
use crate::event::Action;
use crate::safe;

/// A set of rules, arranged so that a device is only held against those that may match it.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Rules with a literal KERNEL or ENV, by its value.
    by_value: Vec<(Anchor, HashMap<String, Vec<usize>>)>,
    /// Of the others those with a literal SUBSYSTEM, by subsystem.
    by_subsystem: HashMap<String, Vec<usize>>,
    /// All others.
    any: Vec<usize>,
    /// The subsystems that rules name; absent: some rule names none.
    subsystems: Option<BTreeSet<String>>,
    /// Rules that look at removals.
    removals: Vec<usize>,
}

/// The rule of a device.
#[derive(Debug)]
pub struct Chosen<'r> {
    /// The rule.
    pub rule: &'r Rule,
    /// What its match found out; needed to render its templates.
    pub matched: Matched,
}

/// Several rules of the same highest priority match one device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{device}: the rules {} all match with priority {priority}", rules.join(", "))]
pub struct Tie {
    /// The device.
    pub device: String,
    /// Names of the rules, sorted.
    pub rules: Vec<String>,
    /// Their priority.
    pub priority: i32,
}

impl Tie {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        Some("give one of them a higher `priority`, or make their matches exclude each other".to_owned())
    }
}

impl Rules {
    /// Arranges rules.
    pub fn new(rules: Vec<Rule>) -> Rules {
        let mut set = Rules {
            subsystems: Some(BTreeSet::new()),
            ..Rules::default()
        };
        let anchors: Vec<_> = rules.iter().map(|rule| rule.matches.anchors()).collect();
        // By what tells most rules apart.
        let mut values: HashMap<&Anchor, HashSet<&str>> = HashMap::new();
        for (anchor, texts) in anchors.iter().flatten() {
            values.entry(anchor).or_default().extend(texts);
        }
        let put = |of: &mut Vec<usize>, n: usize| {
            // `SUBSYSTEM=="tty|tty"` is one rule still.
            if of.last() != Some(&n) {
                of.push(n);
            }
        };
        for (n, rule) in rules.iter().enumerate() {
            let subsystems = rule.matches.subsystems();
            match (&mut set.subsystems, &subsystems) {
                (Some(all), Some(own)) => all.extend(own.iter().map(|s| (*s).to_owned())),
                (all, None) => *all = None,
                (None, _) => {}
            }
            if rule.of_removals() {
                set.removals.push(n);
                continue;
            }
            let best = anchors[n]
                .iter()
                .max_by_key(|(anchor, _)| values.get(anchor).map_or(0, HashSet::len));
            match (best, subsystems) {
                (Some((anchor, texts)), _) => {
                    let at = set.by_value.iter().position(|(known, _)| known == anchor);
                    let at = at.unwrap_or_else(|| {
                        set.by_value.push((anchor.clone(), HashMap::new()));
                        set.by_value.len() - 1
                    });
                    for text in texts {
                        put(set.by_value[at].1.entry((*text).to_owned()).or_default(), n);
                    }
                }
                (None, Some(subsystems)) => subsystems
                    .into_iter()
                    .for_each(|s| put(set.by_subsystem.entry(s.to_owned()).or_default(), n)),
                (None, None) => set.any.push(n),
            }
        }
        set.rules = rules;
        set
    }

    /// The rules, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// One rule by name.
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// The subsystems that an enumeration has to look at, sorted; `None`: all.
    pub fn subsystems(&self) -> Option<Vec<String>> {
        self.subsystems
            .as_ref()
            .map(|names| names.iter().cloned().collect())
    }

    /// The rules that may match the device under `view`.
    pub(super) fn candidates(&self, view: &View<'_>) -> impl Iterator<Item = &Rule> {
        let device = view.device();
        let by_value = self.by_value.iter().filter_map(|(anchor, rules)| match anchor {
            Anchor::Kernel => rules.get(view.sysname()),
            Anchor::Env(name) => rules.get(device.property(name).unwrap_or_default()),
        });
        by_value
            .chain(self.by_subsystem.get(device.subsystem().unwrap_or_default()))
            .flatten()
            .chain(&self.any)
            .map(|n| &self.rules[*n])
    }

    /// The rule of the device under `view`.
    ///
    /// # Errors
    /// [`Tie`] where several rules of the highest priority match.
    pub fn choose(&self, view: &View<'_>, action: Action) -> Result<Option<Chosen<'_>>, Tie> {
        self.choose_where(view, action, |_| true)
    }

    /// The rule for the removal of the device under `view`, of those with `trigger: [remove]`.
    ///
    /// # Errors
    /// [`Tie`] where several rules of the highest priority match.
    pub fn choose_removed(&self, view: &View<'_>) -> Result<Option<Chosen<'_>>, Tie> {
        let rules = self.removals.iter().map(|n| &self.rules[*n]);
        pick(view, Action::Remove, rules)
    }

    /// The rule of the device under `view`, of those that `counts` says yes to.
    ///
    /// # Errors
    /// [`Tie`] where several rules of the highest priority match.
    pub fn choose_where(
        &self,
        view: &View<'_>,
        action: Action,
        counts: impl Fn(&Rule) -> bool,
    ) -> Result<Option<Chosen<'_>>, Tie> {
        pick(view, action, self.candidates(view).filter(|rule| counts(rule)))
    }
}

/// The one that matches with the highest priority.
fn pick<'r>(
    view: &View<'_>,
    action: Action,
    candidates: impl Iterator<Item = &'r Rule>,
) -> Result<Option<Chosen<'r>>, Tie> {
    let mut best: Option<Chosen<'_>> = None;
    let mut equals: Vec<&Rule> = Vec::new();
    for rule in candidates {
        let than = best
            .as_ref()
            .map(|chosen| rule.spec.priority.cmp(&chosen.rule.spec.priority));
        if than == Some(std::cmp::Ordering::Less) {
            continue;
        }
        let Some(matched) = rule.matches.matches(view, action) else {
            continue;
        };
        if than == Some(std::cmp::Ordering::Equal) {
            equals.push(rule);
        } else {
            equals.clear();
            best = Some(Chosen { rule, matched });
        }
    }
    match best {
        Some(best) if !equals.is_empty() => {
            equals.push(best.rule);
            let mut rules: Vec<String> = equals.iter().map(|rule| safe::show(&rule.name, 64)).collect();
            rules.sort();
            Err(Tie {
                device: view.device().to_string(),
                rules,
                priority: best.rule.spec.priority,
            })
        }
        best => Ok(best),
    }
}
