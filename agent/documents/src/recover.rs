//! Every fault of one document in one run.
//!
//! serde stops at its first error. So the document is passed over again and again: each pass ends at one
//! error; it is recorded with its place, the node at fault is taken out (or a stand-in put in, where the key
//! must be there), and the next pass finds the next one. What only follows from an earlier fault (a missing
//! key that is there but faulty) is not told. Each turn takes out a node or tries another stand-in, and
//! [`MAX_PASSES`] bounds the turns.

use std::collections::{BTreeSet, HashSet};

use serde::de::DeserializeOwned;

use crate::de::{At, Context, De, Error, Names, Wrong};
use crate::document::shown;
use crate::fault::{Problem, nearest};
use crate::ghost::ATTEMPTS;
use crate::tree::{Node, Pos, Value};

/// Most faults that are told of one document.
const MAX_FAULTS: usize = 100;
/// Most passes over one document.
const MAX_PASSES: usize = 500;
/// Longest list of names that is told in full.
const MAX_NAMES: usize = 20;

/// A fault with its place in the text.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) pos: Pos,
    pub(crate) problem: Problem,
}

/// What came of a document.
pub(crate) struct Outcome<T> {
    /// There unless the document as a whole is lost. Where there are faults, parts of it are made up.
    pub(crate) value: Option<T>,
    pub(crate) faults: Vec<Placed>,
    /// Paths of which the value says nothing true.
    pub(crate) poisoned: Vec<String>,
    /// List entries that are not in the value: those behind them stand at lower indices there.
    pub(crate) dead: HashSet<u32>,
}

/// Reads a `T` and collects every fault.
pub(crate) fn read<T: DeserializeOwned>(root: &Node) -> Outcome<T> {
    let mut reader = Reader {
        root,
        context: Context::default(),
        faults: Vec::new(),
        told: BTreeSet::new(),
        strangers: BTreeSet::new(),
        poisoned: Vec::new(),
    };
    let mut passes = 0;
    let value = loop {
        passes += 1;
        let result = T::deserialize(De {
            node: root,
            context: &reader.context,
        });
        reader.unknown_keys();
        match result {
            Ok(value) => break Some(value),
            Err(error) => {
                if !reader.take(error) {
                    break None;
                }
            }
        }
        if reader.faults.len() >= MAX_FAULTS || passes >= MAX_PASSES {
            let problem = Problem::new("", "too many faults: only the first are told");
            reader.faults.push(Placed {
                pos: root.pos,
                problem,
            });
            break None;
        }
    };
    Outcome {
        value,
        faults: reader.faults,
        poisoned: reader.poisoned,
        dead: reader.context.dead,
    }
}

struct Reader<'a> {
    root: &'a Node,
    context: Context,
    faults: Vec<Placed>,
    /// Unknown keys that are recorded already, by the id of their value.
    told: BTreeSet<u32>,
    /// Those of them that were meant to be no other key: nothing follows from them.
    strangers: BTreeSet<u32>,
    poisoned: Vec<String>,
}

/// A node found again in the tree.
struct Found<'a> {
    node: &'a Node,
    path: String,
    /// Place of its key, or its own where it has none.
    key_pos: Pos,
    key: &'a str,
    parent: Option<&'a Node>,
}

impl<'a> Reader<'a> {
    fn unknown_keys(&mut self) {
        let unknown = std::mem::take(self.context.unknown.get_mut());
        for (id, known) in unknown {
            if self.faults.len() < MAX_FAULTS && self.told.insert(id) {
                self.unknown_key(id, known);
            }
        }
    }

    fn unknown_key(&mut self, id: u32, known: Names) {
        let Some(found) = find(self.root, id) else { return };
        let key = found.key;
        let parent = found
            .path
            .strip_suffix(&*shown(key))
            .unwrap_or_default()
            .to_owned();
        let mut problem =
            Problem::new(&found.path, format!("unknown key `{}`", shown(key))).expected(names(known));
        // A key that is there already cannot be the one that was meant.
        let free = known
            .iter()
            .copied()
            .filter(|name| found.parent.is_none_or(|map| map.entry(name).is_none()));
        if let Some(near) = nearest(key, free) {
            problem = problem.hint(format!("did you mean `{near}`?"));
            self.poisoned.push(format!("{parent}{near}"));
        } else {
            self.strangers.insert(id);
        }
        self.context.dead.insert(id);
        self.faults.push(Placed {
            pos: found.key_pos,
            problem,
        });
    }

    /// Records an error and prepares the next pass; `false` where there is nothing left to read.
    fn take(&mut self, error: Error) -> bool {
        let (id, on_key) = match error.at.unwrap_or(At::Node(self.root.id)) {
            At::Node(id) => (id, false),
            At::Key(id) => (id, true),
            At::Ghost(owner, field) => {
                let attempt = self.context.ghosts.entry((owner, field)).or_insert(0);
                *attempt += 1;
                return *attempt < ATTEMPTS || self.kill(owner);
            }
        };
        let Some(found) = find(self.root, id) else {
            return false;
        };
        match error.wrong {
            Wrong::Missing(field) => self.missing(&found, field),
            Wrong::UnknownKey { key, known } => {
                match refine(found.node, &|entry_key, _| entry_key == Some(&key)) {
                    Some(inner) => {
                        if self.told.insert(inner.id) {
                            self.unknown_key(inner.id, known);
                        }
                        true
                    }
                    None => {
                        let problem = Problem::new(&found.path, format!("unknown key `{}`", shown(&key)));
                        self.record(&found, on_key, problem.expected(names(known)));
                        self.kill(id)
                    }
                }
            }
            wrong => {
                let scalar = !matches!(&wrong, Wrong::Found { found, .. }
                    if matches!(found.as_str(), "a list" | "a mapping" | "nothing"));
                let problem = problem(&found, wrong);
                // A buffered value (a tagged enum's) lost its places: find the one that was meant.
                let inner = if found.node.text().is_none() && !on_key {
                    let text = problem.message.strip_prefix("found ");
                    let text = text.map(|text| text.trim_matches('`')).filter(|_| scalar);
                    text.and_then(|text| refine(found.node, &|_, node| node.text() == Some(text)))
                } else {
                    None
                };
                match inner.and_then(|inner| find(self.root, inner.id)) {
                    Some(inner) => {
                        let problem = Problem {
                            path: inner.path.clone(),
                            ..problem
                        };
                        self.record(&inner, false, problem);
                        self.kill(inner.node.id)
                    }
                    None => {
                        let follows = found.node.any(&|node| {
                            node.id != id
                                && self.context.dead.contains(&node.id)
                                && !self.strangers.contains(&node.id)
                                || self.context.ghosts.keys().any(|(owner, _)| *owner == node.id)
                        });
                        if !follows {
                            self.record(&found, on_key, problem);
                        }
                        self.kill(id)
                    }
                }
            }
        }
    }

    fn missing(&mut self, found: &Found<'_>, field: &'static str) -> bool {
        let owner = found.node.id;
        if self.context.ghosts.contains_key(&(owner, field)) {
            return self.kill(owner);
        }
        let path = join(&found.path, field);
        if found.node.entry(field).is_none() && !self.poisoned.contains(&path) {
            let problem =
                Problem::new(&path, format!("the key `{field}` is missing")).hint("it has no default");
            self.record(found, true, problem);
        }
        self.poisoned.push(path);
        self.context.ghosts.insert((owner, field), 0);
        true
    }

    fn record(&mut self, found: &Found<'_>, on_key: bool, problem: Problem) {
        let pos = if on_key { found.key_pos } else { found.node.pos };
        self.faults.push(Placed { pos, problem });
    }

    /// Takes a node out; `false` where that was the last.
    fn kill(&mut self, id: u32) -> bool {
        if let Some(found) = find(self.root, id) {
            self.poisoned.push(found.path);
        }
        self.context.dead.insert(id) && id != self.root.id
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn find(root: &Node, id: u32) -> Option<Found<'_>> {
    // The path is made on the way back, for the one value that is found.
    fn below<'a>(parent: &'a Node, id: u32) -> Option<Found<'a>> {
        let found = |node: &'a Node, key_pos, key: &'a str| {
            if node.id == id {
                return Some(Found {
                    node,
                    path: String::new(),
                    key_pos,
                    key,
                    parent: Some(parent),
                });
            }
            below(node, id)
        };
        let prefixed = |mut found: Found<'a>, step: String| {
            if !found.path.is_empty() && !found.path.starts_with('[') {
                found.path.insert(0, '.');
            }
            found.path.insert_str(0, &step);
            found
        };
        match &parent.value {
            Value::Scalar { .. } => None,
            Value::Seq(items) => items.iter().enumerate().find_map(|(index, node)| {
                found(node, node.pos, "").map(|found| prefixed(found, format!("[{index}]")))
            }),
            Value::Map(entries) => entries.iter().find_map(|entry| {
                let found = found(&entry.value, entry.key_pos, &entry.key);
                found.map(|found| prefixed(found, shown(&entry.key)))
            }),
        }
    }
    if root.id == id {
        return Some(Found {
            node: root,
            path: String::new(),
            key_pos: root.pos,
            key: "",
            parent: None,
        });
    }
    below(root, id)
}

/// The only value below `node` that satisfies `test`; `None` where there are several.
fn refine<'a>(node: &'a Node, test: &dyn Fn(Option<&String>, &Node) -> bool) -> Option<&'a Node> {
    fn collect<'a>(node: &'a Node, test: &dyn Fn(Option<&String>, &Node) -> bool, out: &mut Vec<&'a Node>) {
        let mut each = |key: Option<&String>, child: &'a Node| {
            if test(key, child) {
                out.push(child);
            }
            collect(child, test, out);
        };
        match &node.value {
            Value::Scalar { .. } => {}
            Value::Seq(items) => items.iter().for_each(|item| each(None, item)),
            Value::Map(entries) => entries
                .iter()
                .for_each(|entry| each(Some(&entry.key), &entry.value)),
        }
    }
    let mut all = Vec::new();
    collect(node, test, &mut all);
    if all.len() == 1 { all.pop() } else { None }
}

fn problem(found: &Found<'_>, wrong: Wrong) -> Problem {
    let path = &found.path;
    match wrong {
        Wrong::Found {
            found: what,
            expected,
        } => {
            let hint = value_hint(found.node, &expected);
            let problem = Problem::new(path, format!("found {what}")).expected(in_words(&expected));
            match hint {
                Some(hint) => problem.hint(hint),
                None => problem,
            }
        }
        Wrong::UnknownValue { value, known } => {
            let problem = Problem::new(path, format!("found `{}`", shown(&value))).expected(names(known));
            match nearest(&value, known.iter().copied()) {
                // With one name expected there is nothing to guess.
                Some(near) if known.len() > 1 => problem.hint(format!("did you mean `{near}`?")),
                _ => problem,
            }
        }
        Wrong::Absent => Problem::new(path, "the key has no value")
            .expected("a value")
            .hint("for the default take the key away"),
        Wrong::Other(message) => Problem::new(path, message),
        Wrong::Missing(name) => Problem::new(path, format!("the key `{name}` is missing")),
        Wrong::UnknownKey { key, .. } => Problem::new(path, format!("unknown key `{}`", shown(&key))),
    }
}

/// What serde says it wants, in the words of documents.
fn in_words(expected: &str) -> String {
    let range = |low: &str, high: &str| format!("a whole number from {low} to {high}");
    match expected {
        "u8" => range("0", "255"),
        "u16" => range("0", "65535"),
        "u32" => range("0", "4294967295"),
        "u64" | "usize" => range("0", "2^64 - 1"),
        "i32" => range("-2147483648", "2147483647"),
        "i64" => range("-2^63", "2^63 - 1"),
        "a string" => "text".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        text if text.starts_with("struct ") || text.starts_with("internally tagged enum ") => {
            "a mapping".to_owned()
        }
        text if text.starts_with("enum ") || text == "variant identifier" => "a name".to_owned(),
        text => text.to_owned(),
    }
}

fn value_hint(node: &Node, expected: &str) -> Option<String> {
    if node.is_null() {
        return Some("for the default take the key away".to_owned());
    }
    let Value::Scalar { text, plain, .. } = &node.value else {
        return None;
    };
    match expected {
        "a boolean" if matches!(text.to_ascii_lowercase().as_str(), "yes" | "on" | "y") => {
            Some("write `true`".to_owned())
        }
        "a boolean" if matches!(text.to_ascii_lowercase().as_str(), "no" | "off" | "n") => {
            Some("write `false`".to_owned())
        }
        "a string" | "a map" => None,
        "a sequence" => Some(format!("write `[{}]`", shown(text))),
        _ if !plain && text.parse::<i64>().is_ok() => Some("take the quotes away".to_owned()),
        _ if *plain
            && text.len() > 1
            && text.starts_with('0')
            && text.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Some("a number has no leading zeros; octal is written 0o…".to_owned())
        }
        _ => None,
    }
}

fn names(known: Names) -> String {
    let quoted: Vec<String> = known
        .iter()
        .take(MAX_NAMES)
        .map(|name| format!("`{name}`"))
        .collect();
    match (known.len(), quoted.as_slice()) {
        (0, _) => "no key at all".to_owned(),
        (1, [only]) => only.clone(),
        (2, [one, other]) => format!("{one} or {other}"),
        (count, _) if count > MAX_NAMES => format!("one of {}, … ({count} in all)", quoted.join(", ")),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// The place of the field at `path`: of the value where it is a scalar, else of its key; where it is not
/// there, of the nearest thing above it.
pub(crate) fn place(root: &Node, path: &str) -> Pos {
    follow(root, path).1
}

/// A path of the typed value as one of the text: list entries that were taken out count again.
pub(crate) fn real_path(root: &Node, path: &str, dead: &HashSet<u32>) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, tail)) = rest.split_once('[') {
        let Some((index, tail)) = tail.split_once(']') else {
            break;
        };
        out.push_str(before);
        let items = match node_at(root, &out).map(|node| &node.value) {
            Some(Value::Seq(items)) => items.as_slice(),
            _ => &[],
        };
        let alive = items
            .iter()
            .enumerate()
            .filter(|(_, item)| !dead.contains(&item.id));
        match index
            .parse()
            .ok()
            .and_then(|index| alive.map(|(at, _)| at).nth(index))
        {
            Some(at) => out.push_str(&format!("[{at}]")),
            None => out.push_str(&format!("[{index}]")),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// The value of the field at `path`.
pub(crate) fn node_at<'a>(root: &'a Node, path: &str) -> Option<&'a Node> {
    Some(follow(root, path))
        .filter(|(_, _, rest)| rest.is_empty())
        .map(|(node, _, _)| node)
}

/// As far as `path` leads: the value there, its place, and the rest of the path.
fn follow<'a, 'p>(root: &'a Node, path: &'p str) -> (&'a Node, Pos, &'p str) {
    let (mut node, mut pos, mut rest) = (root, root.pos, path);
    loop {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return (node, pos, rest);
        }
        let next = match &node.value {
            Value::Seq(items) => rest.strip_prefix('[').and_then(|tail| {
                let (index, tail) = tail.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((item, item.pos, tail))
            }),
            // Keys may hold dots (labels do): the longest key that fits is meant.
            Value::Map(entries) => entries
                .iter()
                .filter_map(|entry| {
                    let tail = rest.strip_prefix(entry.key.as_str())?;
                    (tail.is_empty() || tail.starts_with(['.', '['])).then_some((entry, tail))
                })
                .max_by_key(|(entry, _)| entry.key.len())
                .map(|(entry, tail)| {
                    let scalar = entry.value.text().is_some();
                    (
                        &entry.value,
                        if scalar { entry.value.pos } else { entry.key_pos },
                        tail,
                    )
                }),
            Value::Scalar { .. } => None,
        };
        // An empty key would not lead on.
        match next.filter(|(_, _, tail)| tail.len() < rest.len()) {
            Some((below, at, tail)) => (node, pos, rest) = (below, at, tail),
            None => return (node, pos, rest),
        }
    }
}

/// The place inside a text that has a grammar of its own: `inside` is its line and column.
pub(crate) fn place_inside(node: &Node, inside: (u32, u32)) -> Pos {
    let (line, column) = (inside.0.max(1) as usize, inside.1.max(1) as usize);
    let start = node.pos;
    match &node.value {
        // The place of a block text is that of its first line that is not empty; all are indented alike.
        Value::Scalar {
            text, block: true, ..
        } => {
            let empty = text.chars().take_while(|c| *c == '\n').count();
            Pos {
                line: (start.line + line).saturating_sub(1 + empty),
                column: start.column + column - 1,
            }
        }
        // One line: a quote may stand before it. (An escape in it shifts what follows.)
        Value::Scalar { plain, .. } if line == 1 => Pos {
            line: start.line,
            column: start.column + column - usize::from(*plain),
        },
        _ => start,
    }
}

/// Whether one path is the other or lies below it.
pub(crate) fn related(a: &str, b: &str) -> bool {
    let below = |long: &str, short: &str| {
        short.is_empty()
            || long
                .strip_prefix(short)
                .is_some_and(|tail| tail.is_empty() || tail.starts_with(['.', '[']))
    };
    below(a, b) || below(b, a)
}
