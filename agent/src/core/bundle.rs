//! Which of the devices that are there fill which places of a rule. Pure.
//!
//! A rule has one place for a device, a bundle several. Invariants: a device fills one place at most; a device that a
//! container has keeps its place as long as it is there; the others follow in the order of their keys, so that the
//! same devices give the same answer in any order of events.

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_hotplug::rule::Offer;

use super::desired::Rule;
use super::device::{Facts, Present, RuleMatch};
use super::instance::Given;

/// One device in its place.
#[derive(Debug, Clone)]
pub(crate) struct Used {
    pub facts: Arc<Facts>,
    pub offer: Offer,
}

/// Fills the places of `rule` from `present`; `given` says who had them.
pub(super) fn assign(rule: &Rule, present: &[(&Present, &RuleMatch)], given: &[Given]) -> Vec<Used> {
    let mut used: Vec<Used> = Vec::new();
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut filled: BTreeSet<usize> = BTreeSet::new();
    for had in given.iter().filter(|had| !had.taken) {
        let again = present.iter().find(|(there, _)| {
            there.facts.key == had.facts.key && there.facts.incarnation == had.facts.incarnation
        });
        let offer = again.and_then(|(_, m)| m.offers().into_iter().find(|o| o.member == had.member));
        if let (Some((there, _)), Some(offer)) = (again, offer)
            && filled.insert(had.member)
        {
            taken.insert(&there.facts.key);
            used.push(Used {
                facts: there.facts.clone(),
                offer,
            });
        }
    }
    for (there, matched) in present {
        if taken.contains(there.facts.key.as_str()) {
            continue;
        }
        let free = matched
            .offers()
            .into_iter()
            .find(|o| o.member < rule.members.len() && !filled.contains(&o.member));
        if let Some(offer) = free {
            filled.insert(offer.member);
            taken.insert(&there.facts.key);
            used.push(Used {
                facts: there.facts.clone(),
                offer,
            });
        }
    }
    used.sort_by_key(|one| one.offer.member);
    used
}

/// What of a bundle is there and what is not; `None`: enough.
pub(super) fn partial(rule: &Rule, used: &[Used]) -> Option<String> {
    if used.len() >= rule.need {
        return None;
    }
    let there = |n: usize| used.iter().any(|one| one.offer.member == n);
    let names = |wanted: bool| {
        let of = rule
            .members
            .iter()
            .enumerate()
            .filter(|(n, _)| there(*n) == wanted);
        let names: Vec<&str> = of.map(|(_, member)| member.name.as_str()).collect();
        names.join(", ")
    };
    Some(format!(
        "{} of {} devices, {} needed: has {}; lacks {}",
        used.len(),
        rule.members.len(),
        rule.need,
        names(true),
        names(false)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::desired::Member;

    fn present(key: &str, offers: &[usize]) -> Present {
        let facts = Facts {
            incarnation: "1".into(),
            ..crate::core::tests::facts(key, "1")
        };
        let offer = |member: &usize| Offer {
            member: *member,
            ..Offer::default()
        };
        Present {
            facts: Arc::new(facts),
            matches: vec![RuleMatch {
                rule: "r".into(),
                slot: "bundle".into(),
                offers: offers.iter().map(offer).collect(),
                ..RuleMatch::default()
            }],
            heard: 0,
        }
    }

    fn rule(names: &[&str], need: usize) -> Rule {
        let member = |name: &&str| Member {
            name: (*name).to_owned(),
            ..Member::default()
        };
        Rule {
            members: names.iter().map(member).collect(),
            need,
            ..Rule::default()
        }
    }

    #[test]
    fn places_are_filled_and_kept() {
        let rule = rule(&["a", "b", "c"], 2);
        let (one, two, three) = (
            present("/1", &[0, 1]),
            present("/2", &[0]),
            present("/3", &[0, 1]),
        );
        let look = |all: &[&Present], given: &[Given]| {
            let all: Vec<(&Present, &RuleMatch)> = all.iter().map(|p| (*p, &p.matches[0])).collect();
            let used = assign(&rule, &all, given);
            let words: Vec<String> = (used.iter())
                .map(|u| format!("{}={}", u.offer.member, u.facts.key))
                .collect();
            (words.join(" "), partial(&rule, &used))
        };
        assert_eq!(look(&[&one, &two, &three], &[]).0, "0=/1 1=/3");
        let (words, why) = look(&[&two], &[]);
        assert_eq!(words, "0=/2");
        assert_eq!(why.unwrap(), "1 of 3 devices, 2 needed: has a; lacks b, c");
        // /2 has the first place: it keeps it, although /1 comes before it.
        let had = Given {
            member: 0,
            facts: two.facts.clone(),
            devices: Vec::new(),
            interfaces: Vec::new(),
            functions: Vec::new(),
            taken: false,
        };
        assert_eq!(
            look(&[&one, &two], std::slice::from_ref(&had)),
            ("0=/2 1=/1".into(), None)
        );
        let taken = Given { taken: true, ..had };
        assert_eq!(look(&[&one, &two], &[taken]).0, "0=/1");
    }
}
