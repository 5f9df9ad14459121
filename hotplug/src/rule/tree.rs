//! Matches combined: `all`, `any`, `not` of texts in udev's grammar, at most 16 deep.
//!
//! Invariants: a text alone is a tree of one leaf; explaining evaluates every leaf, matching stops as soon as the
//! answer is known, and both give the same answer; the matched parent (`$id`, `$attr`) is that of the last leaf that
//! holds and has one, leaves below `not` left out.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::spec::Problem;
use super::{Anchor, Clause, Explanation, Match, Matched, View};
use crate::device::Device;
use crate::event::Action;
use crate::safe;

/// Deepest nesting.
const DEPTH_MAX: usize = 16;
/// Most leaves of one rule.
const LEAVES_MAX: usize = 256;

/// `match` of a rule: lines of udev's grammar, or `all:`, `any:`, `not:` of such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatchSpec {
    /// Lines of udev's match grammar; all must hold.
    Text(String),
    /// Every one must hold.
    All(Vec<MatchSpec>),
    /// At least one must hold.
    Any(Vec<MatchSpec>),
    /// It must not hold.
    Not(Box<MatchSpec>),
}

impl From<&str> for MatchSpec {
    fn from(text: &str) -> MatchSpec {
        MatchSpec::Text(text.to_owned())
    }
}

impl Serialize for MatchSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let MatchSpec::Text(text) = self {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            MatchSpec::All(of) => map.serialize_entry("all", of)?,
            MatchSpec::Any(of) => map.serialize_entry("any", of)?,
            MatchSpec::Not(of) => map.serialize_entry("not", of)?,
            MatchSpec::Text(_) => {}
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for MatchSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpecVisitor;
        impl<'de> Visitor<'de> for SpecVisitor {
            type Value = MatchSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a match in udev's grammar, or one of `all`, `any` (lists) and `not`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MatchSpec, E> {
                Ok(MatchSpec::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MatchSpec, A::Error> {
                const FIELDS: &[&str] = &["all", "any", "not"];
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::custom("expected one of `all`, `any`, `not`"));
                };
                let found = match key.as_str() {
                    "all" => MatchSpec::All(map.next_value()?),
                    "any" => MatchSpec::Any(map.next_value()?),
                    "not" => MatchSpec::Not(Box::new(map.next_value()?)),
                    other => return Err(de::Error::unknown_field(other, FIELDS)),
                };
                match map.next_key::<String>()? {
                    None => Ok(found),
                    Some(other) => Err(de::Error::custom(format!(
                        "`{}` beside `{key}`: one of them only; put one inside the other",
                        safe::show(&other, 32)
                    ))),
                }
            }
        }
        deserializer.deserialize_any(SpecVisitor)
    }
}

/// A compiled [`MatchSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// Lines of udev's match grammar.
    Leaf(Match),
    /// Every one must hold.
    All(Vec<Tree>),
    /// At least one must hold.
    Any(Vec<Tree>),
    /// It must not hold.
    Not(Box<Tree>),
}

impl From<Match> for Tree {
    fn from(leaf: Match) -> Tree {
        Tree::Leaf(leaf)
    }
}

impl MatchSpec {
    /// Compiles it; `path` is where it stands in the document.
    ///
    /// # Errors
    /// Every fault: of the grammar, empty lists, nesting that is too deep, what can never hold.
    pub fn compile(&self, path: &str) -> Result<Tree, Vec<Problem>> {
        let (mut faults, mut leaves) = (Vec::new(), 0);
        let tree = self.build(path, 0, &mut leaves, &mut faults);
        if leaves > LEAVES_MAX {
            let text = format!("has {leaves} matches, {LEAVES_MAX} are allowed");
            faults.push(Problem::new(path, text, Some("write several rules")));
        }
        match tree {
            Some(tree) if faults.is_empty() => Ok(tree),
            _ => Err(faults),
        }
    }

    fn build(&self, path: &str, depth: usize, leaves: &mut usize, faults: &mut Vec<Problem>) -> Option<Tree> {
        if depth > DEPTH_MAX {
            let text = format!("is nested deeper than {DEPTH_MAX}");
            faults.push(Problem::new(path, text, Some("write several rules")));
            return None;
        }
        let mut list = |of: &[MatchSpec], word: &str| {
            let path = format!("{path}.{word}");
            if of.is_empty() {
                faults.push(Problem::new(&path, "is empty", Some("name at least one match")));
            }
            let all: Vec<Option<Tree>> = of
                .iter()
                .enumerate()
                .map(|(n, one)| one.build(&format!("{path}[{n}]"), depth + 1, leaves, faults))
                .collect();
            all.into_iter().collect::<Option<Vec<Tree>>>()
        };
        match self {
            MatchSpec::All(of) => {
                let tree = Tree::All(list(of, "all")?);
                let Some(error) = tree.contradiction() else {
                    return Some(tree);
                };
                let path = format!("{path}.all");
                faults.push(Problem::new(&path, error.message, error.hint.as_deref()));
                None
            }
            MatchSpec::Any(of) => list(of, "any").map(Tree::Any),
            MatchSpec::Not(of) => of
                .build(&format!("{path}.not"), depth + 1, leaves, faults)
                .map(|tree| Tree::Not(Box::new(tree))),
            MatchSpec::Text(text) => {
                *leaves += 1;
                let parsed = Match::parse(text).and_then(|leaf| match leaf.contradiction() {
                    Some(error) => Err(error),
                    None => Ok(leaf),
                });
                match parsed {
                    Ok(leaf) => Some(Tree::Leaf(leaf)),
                    Err(error) => {
                        faults.push(Problem {
                            path: path.to_owned(),
                            at: Some((error.line, error.column)),
                            message: error.message,
                            hint: error.hint,
                        });
                        None
                    }
                }
            }
        }
    }
}

impl Tree {
    /// Does it hold for the device under `view`?
    pub fn matches(&self, view: &View<'_>, action: Action) -> Option<Matched> {
        match self {
            Tree::Leaf(leaf) => leaf.matches(view, action),
            Tree::All(of) => {
                let mut all = Matched::default();
                for tree in of {
                    all = all.then(tree.matches(view, action)?);
                }
                Some(all)
            }
            Tree::Any(of) => of.iter().find_map(|tree| tree.matches(view, action)),
            Tree::Not(of) => of.matches(view, action).is_none().then(Matched::default),
        }
    }

    /// Why it holds or does not: every clause of every leaf, each with the leaf's place in the tree.
    pub fn explain(&self, device: &Device, action: Action) -> Explanation {
        let view = View::new(device);
        let mut clauses = Vec::new();
        let matched = self.tell(&view, action, "", &mut clauses);
        Explanation {
            holds: matched.is_some(),
            clauses,
            matched: matched.unwrap_or_default(),
        }
    }

    fn tell(&self, view: &View<'_>, action: Action, path: &str, out: &mut Vec<Clause>) -> Option<Matched> {
        let below = |word: &str, n: usize| match path {
            "" => format!("{word}[{n}]"),
            path => format!("{path}.{word}[{n}]"),
        };
        match self {
            Tree::Leaf(leaf) => {
                let from = out.len();
                let matched = leaf.evaluate(view, action, Some(out));
                out[from..]
                    .iter_mut()
                    .for_each(|clause| clause.of = path.to_owned());
                matched
            }
            Tree::All(of) => {
                let told: Vec<_> = (of.iter().enumerate())
                    .map(|(n, tree)| tree.tell(view, action, &below("all", n), out))
                    .collect();
                told.into_iter()
                    .try_fold(Matched::default(), |all, one| Some(all.then(one?)))
            }
            Tree::Any(of) => {
                let told: Vec<_> = (of.iter().enumerate())
                    .map(|(n, tree)| tree.tell(view, action, &below("any", n), out))
                    .collect();
                told.into_iter().flatten().next()
            }
            Tree::Not(of) => {
                let path = match path {
                    "" => "not".to_owned(),
                    path => format!("{path}.not"),
                };
                let told = of.tell(view, action, &path, out);
                told.is_none().then(Matched::default)
            }
        }
    }

    /// Does it ask for the driver, which changes when a function is bound to another?
    pub(super) fn asks_driver(&self) -> bool {
        match self {
            Tree::Leaf(leaf) => leaf.asks_driver(),
            Tree::All(of) | Tree::Any(of) => of.iter().any(Tree::asks_driver),
            Tree::Not(of) => of.asks_driver(),
        }
    }

    /// Clauses that must hold if this is to: see [`Match::anchors`].
    pub(super) fn anchors(&self) -> Vec<(Anchor, Vec<&str>)> {
        match self {
            Tree::Leaf(leaf) => leaf.anchors().collect(),
            Tree::All(of) => of.iter().flat_map(Tree::anchors).collect(),
            Tree::Any(_) | Tree::Not(_) => Vec::new(),
        }
    }

    /// The subsystems a device can be of if this is to hold, where that is certain.
    pub fn subsystems(&self) -> Option<Vec<&str>> {
        match self {
            Tree::Leaf(leaf) => leaf.subsystems(),
            Tree::All(of) => of.iter().find_map(Tree::subsystems),
            Tree::Any(of) => {
                let all: Option<Vec<Vec<&str>>> = of.iter().map(Tree::subsystems).collect();
                let mut names: Vec<&str> = all?.into_iter().flatten().collect();
                names.sort_unstable();
                names.dedup();
                Some(names)
            }
            Tree::Not(_) => None,
        }
    }
}

impl Matched {
    fn then(self, next: Matched) -> Matched {
        Matched {
            parent: next.parent.or(self.parent),
        }
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, word: &str, of: &[Tree]| {
            write!(f, "{word}(")?;
            for (n, tree) in of.iter().enumerate() {
                write!(f, "{}{tree}", if n > 0 { "; " } else { "" })?;
            }
            f.write_str(")")
        };
        match self {
            Tree::Leaf(leaf) => leaf.fmt(f),
            Tree::All(of) => list(f, "all", of),
            Tree::Any(of) => list(f, "any", of),
            Tree::Not(of) => write!(f, "not({of})"),
        }
    }
}
