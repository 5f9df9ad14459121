//! The knobs of a node: a table of data ([`TABLE`]) and the page that is made from it.

mod table;

use std::fmt::Write;

use serde::Serialize;

pub use table::{NEEDED, TABLE};

/// When a knob can be turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum When {
    /// Now.
    RunTime,
    /// By the kernel's command line at the next boot.
    Boot,
    /// By another kernel.
    Image,
}

impl When {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            When::RunTime => "run time",
            When::Boot => "boot",
            When::Image => "kernel",
        }
    }
}

/// How much a knob that is not as wanted disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Weight {
    /// Some microseconds, seldom.
    Low,
    /// Tens of microseconds, or often.
    Medium,
    /// It breaks what real time promises.
    High,
}

impl Weight {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Weight::Low => "low",
            Weight::Medium => "medium",
            Weight::High => "high",
        }
    }
}

/// One knob. Texts are for people; empty means that there is nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Knob {
    /// What `berth node check` calls it.
    pub name: &'static str,
    /// The fields of a `Node` document that mean it, divided by `, `.
    pub field: &'static str,
    /// The kernel's interfaces; N, NAME and SIZE stand for numbers and names.
    pub interface: &'static str,
    /// When it can be turned.
    pub when: When,
    /// How to see that it is in force.
    pub verify: &'static str,
    /// What the kernel needs for it.
    pub needs: &'static str,
    /// The boot argument that does the same, or the only way.
    pub boot: &'static str,
    /// How much it matters.
    pub weight: Weight,
    /// What it costs when it is not as wanted, or is absent.
    pub cost: &'static str,
}

/// The knob of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Knob> {
    TABLE.iter().find(|knob| knob.name == name)
}

/// docs/operate/knobs.md.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Knobs\n\nEvery knob that `berth node check` reads and `berth node tune` or `berth node cmdline` turns. This page is made from the table in\n\
         rt/src/knob/table.rs (`berth node knobs` prints it); a test compares the two. *When*: **run time** by `tune`, now, put back by `tune --undo`;\n\
         **boot** by the kernel's command line; **kernel** by another kernel. *Weight*: how much it disturbs when it is not as wanted.\n\n\
         | knob | field | interface | when | verify | needs | boot argument | weight | otherwise |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for knob in TABLE {
        let code = |text: &str| match text {
            "" => String::new(),
            text => format!("`{text}`"),
        };
        let fields = knob.field.split(", ").map(code).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            knob.name,
            fields,
            knob.interface,
            knob.when.as_str(),
            knob.verify,
            knob.needs,
            code(knob.boot),
            knob.weight.as_str(),
            knob.cost
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn page_and_table_agree() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operate/knobs.md");
        let there = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            there,
            page(),
            "write the page anew: berth node knobs >docs/operate/knobs.md"
        );
    }

    #[test]
    fn names_are_unique_and_every_entry_says_what_it_must() {
        let mut names = BTreeSet::new();
        for knob in TABLE {
            assert!(names.insert(knob.name), "{} is there twice", knob.name);
            for text in [knob.field, knob.interface, knob.verify, knob.cost] {
                assert!(!text.is_empty() && !text.contains('|'), "{}", knob.name);
            }
            assert!(knob.when != When::Boot || !knob.boot.is_empty(), "{}", knob.name);
        }
    }
}
