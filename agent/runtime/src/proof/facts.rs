//! A list of facts under way, and the words in which values are shown.

use std::fmt::Display;

use super::{CapabilitySets, Fact, IdMap};

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) list: Vec<Fact>,
}

impl Facts {
    pub(super) fn add(
        &mut self,
        name: impl Into<String>,
        promised: impl Into<String>,
        actual: impl Into<String>,
        source: impl Into<String>,
        holds: bool,
    ) {
        let (name, promised) = (name.into(), promised.into());
        self.list.push(Fact {
            name,
            promised,
            actual: actual.into(),
            source: source.into(),
            holds,
        });
    }

    /// What cannot be read does not hold.
    pub(super) fn unreadable(
        &mut self,
        name: impl Into<String>,
        promised: impl Into<String>,
        source: impl Into<String>,
        error: &dyn Display,
    ) {
        self.add(name, promised, format!("unreadable: {error}"), source, false);
    }

    /// Equal or not, shown by `Display`.
    pub(super) fn equal<T: PartialEq + Display>(
        &mut self,
        name: &str,
        promised: &T,
        actual: &T,
        source: &str,
    ) {
        self.add(
            name,
            promised.to_string(),
            actual.to_string(),
            source,
            promised == actual,
        );
    }
}

/// The sets of a promise beside those of the kernel, with the field of status each stands in.
pub(super) fn capability_rows(
    promised: &CapabilitySets,
    actual: &CapabilitySets,
) -> [(&'static str, &'static str, u64, u64); 5] {
    [
        ("caps.effective", "CapEff", promised.effective, actual.effective),
        ("caps.permitted", "CapPrm", promised.permitted, actual.permitted),
        (
            "caps.inheritable",
            "CapInh",
            promised.inheritable,
            actual.inheritable,
        ),
        ("caps.bounding", "CapBnd", promised.bounding, actual.bounding),
        ("caps.ambient", "CapAmb", promised.ambient, actual.ambient),
    ]
}

pub(super) fn maps(list: &[IdMap]) -> String {
    let words: Vec<String> = list
        .iter()
        .map(|m| format!("{}:{}:{}", m.inside, m.outside, m.count))
        .collect();
    words.join(",")
}

pub(super) fn numbers(list: &[u32]) -> String {
    let words: Vec<String> = list.iter().map(u32::to_string).collect();
    if words.is_empty() {
        "none".into()
    } else {
        words.join(",")
    }
}

pub(super) fn limit(value: u64) -> String {
    if value == u64::MAX {
        "unlimited".into()
    } else {
        value.to_string()
    }
}
