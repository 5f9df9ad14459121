//! Text → trees whose every value knows its line and column.
//!
//! saphyr-parser (YAML 1.2) gives events with places; this builds one tree for each document of a file and
//! finds what only the text shows: syntax errors, duplicate keys, keys that are not text, tags, merge keys,
//! aliases that loop. After a syntax error reading goes on at the next `---`, so that the documents behind it
//! are checked too.
//!
//! Invariants: every loop is bounded by [`MAX_BYTES`], [`MAX_NODES`] (copies made by aliases count) and
//! [`MAX_DEPTH`]; nothing here recurses deeper than that.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// Largest file, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most values in a file, copies made by aliases included.
pub const MAX_NODES: usize = 50_000;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 32;
/// Most control characters that are told of one file.
const MAX_CONTROL: usize = 20;

/// A place in a text, both from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pos {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Unlike any other of the same file.
    pub(crate) id: u32,
    pub(crate) pos: Pos,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar { text: String, plain: bool, block: bool },
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key, its place, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_pos: Pos,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// YAML's null: an empty plain scalar, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true, .. }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The values directly below.
    pub(crate) fn children(&self) -> Box<dyn Iterator<Item = &Node> + '_> {
        match &self.value {
            Value::Scalar { .. } => Box::new(std::iter::empty()),
            Value::Seq(items) => Box::new(items.iter()),
            Value::Map(entries) => Box::new(entries.iter().map(|entry| &entry.value)),
        }
    }

    /// Whether this or any value below it satisfies `test`.
    pub(crate) fn any(&self, test: &dyn Fn(&Node) -> bool) -> bool {
        test(self) || self.children().any(|child| child.any(test))
    }
}

/// A fault of the text itself.
#[derive(Debug, Clone)]
pub(crate) struct TextFault {
    pub(crate) pos: Pos,
    pub(crate) message: String,
    pub(crate) expected: Option<String>,
    pub(crate) hint: Option<String>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// Documents in their order, empty ones left out.
    pub(crate) documents: Vec<Node>,
    pub(crate) faults: Vec<TextFault>,
    /// Whether some document could not be read, so that what it declares is not known.
    pub(crate) lost: bool,
}

/// Reads all documents of a text.
pub(crate) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    if text.len() > MAX_BYTES {
        let size = text.len();
        parsed.faults.push(TextFault {
            pos: Pos { line: 0, column: 0 },
            message: format!("the file is {size} bytes long"),
            expected: Some(format!("at most {MAX_BYTES} bytes")),
            hint: Some("split it into several files".to_owned()),
        });
        parsed.lost = true;
        return parsed;
    }
    control_characters(text, &mut parsed);
    if parsed.lost {
        return parsed;
    }
    let mut builder = Builder {
        parsed,
        nodes: 0,
        next_id: 0,
        stack: Vec::new(),
        anchors: HashMap::new(),
        shift: 0,
    };
    let (mut rest, mut shift) = (text, 0);
    loop {
        builder.shift = shift;
        let Err(stop) = builder.run(rest) else { break };
        builder.parsed.lost = true;
        builder.stack.clear();
        builder.anchors.clear();
        let line = stop.fault.pos.line;
        builder.parsed.faults.push(stop.fault);
        if stop.final_one {
            break;
        }
        let Some((bytes, lines)) = document_after(rest, line.saturating_sub(shift)) else {
            break;
        };
        rest = &rest[bytes..];
        shift += lines;
    }
    builder.parsed
}

/// The first line from line `line` on (from 1; never the first) that begins a document: its byte offset, and the lines before it.
fn document_after(text: &str, line: usize) -> Option<(usize, usize)> {
    let mut offset = 0;
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let begins = content
            .strip_prefix("---")
            .is_some_and(|tail| tail.is_empty() || tail.starts_with([' ', '\t', '\r', '\n']));
        // The very first line began the document that has just failed.
        if index + 1 >= line.max(2) && begins {
            return Some((offset, index));
        }
        offset += content.len();
    }
    None
}

/// YAML allows none of these, and the scanner would take a NUL for the end of the text.
fn control_characters(text: &str, parsed: &mut Parsed) {
    let (mut line, mut column) = (1, 0);
    for (index, character) in text.char_indices() {
        column += 1;
        match character {
            '\n' => (line, column) = (line + 1, 0),
            '\t' | '\r' => {}
            '\u{feff}' if index == 0 => column = 0,
            character if character.is_control() && character != '\u{85}' || character == '\u{feff}' => {
                parsed.lost = true;
                parsed.faults.push(TextFault {
                    pos: Pos { line, column },
                    message: format!("the control character U+{:04X}", character as u32),
                    expected: Some("text".to_owned()),
                    hint: Some("write it as an escape in double quotes, or take it away".to_owned()),
                });
                if parsed.faults.len() >= MAX_CONTROL {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Why a document could not be read to its end.
struct Stop {
    fault: TextFault,
    /// Reading must not go on behind it.
    final_one: bool,
}

enum Frame {
    Seq {
        items: Vec<Node>,
        pos: Pos,
        anchor: usize,
    },
    Map {
        entries: Vec<Entry>,
        /// The keys so far and their places.
        seen: HashMap<String, Pos>,
        pos: Pos,
        anchor: usize,
        key: PendingKey,
    },
}

enum PendingKey {
    /// The next value is a key.
    None,
    Text(String, Pos),
    /// The key was refused: its value is read and dropped.
    Refused,
}

/// A finished anchored value, how many values it is made of, and how deep.
struct Anchored {
    node: Node,
    size: usize,
    depth: usize,
}

struct Builder {
    parsed: Parsed,
    nodes: usize,
    next_id: u32,
    stack: Vec<Frame>,
    /// `None` while the value is still open.
    anchors: HashMap<usize, Option<Anchored>>,
    /// Lines before the text that is being read.
    shift: usize,
}

impl Builder {
    fn pos(&self, marker: Marker) -> Pos {
        Pos {
            line: marker.line() + self.shift,
            column: marker.col() + 1,
        }
    }

    fn fault(&mut self, pos: Pos, message: &str, expected: &str, hint: Option<&str>) {
        self.parsed.faults.push(TextFault {
            pos,
            message: message.to_owned(),
            expected: Some(expected.to_owned()),
            hint: hint.map(str::to_owned),
        });
    }

    fn run(&mut self, text: &str) -> Result<(), Stop> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                // The scanner's own bound on lists within lists; it looks ahead of the events.
                if error.info().contains("recursion limit") {
                    return Self::too_deep(self.pos(*error.marker()));
                }
                Stop {
                    fault: TextFault {
                        pos: self.pos(*error.marker()),
                        message: format!("not YAML: {}", error.info()),
                        expected: None,
                        hint: None,
                    },
                    final_one: false,
                }
            })?;
            let pos = self.pos(span.start);
            match event {
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(()),
                Event::DocumentStart(_) => self.anchors.clear(),
                Event::Scalar(text, style, anchor, tag) => {
                    self.tag(pos, tag.is_some());
                    let plain = style == ScalarStyle::Plain;
                    let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                    let node = self.node(
                        pos,
                        Value::Scalar {
                            text: text.into_owned(),
                            plain,
                            block,
                        },
                    )?;
                    self.finish(node, anchor)?;
                }
                Event::SequenceStart(anchor, tag) => {
                    self.tag(pos, tag.is_some());
                    self.open(
                        anchor,
                        pos,
                        Frame::Seq {
                            items: Vec::new(),
                            pos,
                            anchor,
                        },
                    )?;
                }
                Event::MappingStart(anchor, tag) => {
                    self.tag(pos, tag.is_some());
                    let key = PendingKey::None;
                    self.open(
                        anchor,
                        pos,
                        Frame::Map {
                            entries: Vec::new(),
                            seen: HashMap::new(),
                            pos,
                            anchor,
                            key,
                        },
                    )?;
                }
                Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                    Some(Frame::Seq { items, pos, anchor }) => {
                        let node = self.node(pos, Value::Seq(items))?;
                        self.finish(node, anchor)?;
                    }
                    Some(Frame::Map {
                        entries, pos, anchor, ..
                    }) => {
                        let node = self.node(pos, Value::Map(entries))?;
                        self.finish(node, anchor)?;
                    }
                    None => {}
                },
                Event::Alias(anchor) => self.alias(anchor, pos)?,
            }
        }
        Ok(())
    }

    fn tag(&mut self, pos: Pos, there: bool) {
        if there {
            self.fault(
                pos,
                "a value with a tag (`!…`)",
                "a value without one",
                Some("take the tag away"),
            );
        }
    }

    fn count(&mut self, more: usize, pos: Pos) -> Result<(), Stop> {
        self.nodes += more;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(Stop {
            fault: TextFault {
                pos,
                message: format!("the file holds more than {MAX_NODES} values"),
                expected: Some(format!("at most {MAX_NODES}, what aliases repeat included")),
                hint: Some("split it into several files, or write out what the aliases repeat".to_owned()),
            },
            final_one: true,
        })
    }

    fn too_deep(pos: Pos) -> Stop {
        Stop {
            fault: TextFault {
                pos,
                message: format!("nested more than {MAX_DEPTH} deep"),
                expected: Some(format!(
                    "at most {MAX_DEPTH} levels; no document needs more than 8"
                )),
                hint: None,
            },
            final_one: false,
        }
    }

    fn node(&mut self, pos: Pos, value: Value) -> Result<Node, Stop> {
        self.count(1, pos)?;
        self.next_id += 1;
        Ok(Node {
            id: self.next_id,
            pos,
            value,
        })
    }

    fn open(&mut self, anchor: usize, pos: Pos, frame: Frame) -> Result<(), Stop> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Self::too_deep(pos));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, None);
        }
        self.stack.push(frame);
        Ok(())
    }

    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        if anchor > 0 {
            let (size, depth) = measure(&node);
            self.count(size, node.pos)?;
            self.anchors.insert(
                anchor,
                Some(Anchored {
                    node: node.clone(),
                    size,
                    depth,
                }),
            );
        }
        self.place(node);
        Ok(())
    }

    fn alias(&mut self, anchor: usize, pos: Pos) -> Result<(), Stop> {
        let Some(Some(anchored)) = self.anchors.get(&anchor) else {
            self.fault(
                pos,
                "an alias (`*…`) inside the value that it stands for",
                "an alias behind that value",
                None,
            );
            let node = self.node(
                pos,
                Value::Scalar {
                    text: String::new(),
                    plain: false,
                    block: false,
                },
            )?;
            self.place(node);
            return Ok(());
        };
        let (size, depth) = (anchored.size, anchored.depth);
        if self.stack.len() + depth > MAX_DEPTH {
            return Err(Self::too_deep(pos));
        }
        self.count(size, pos)?;
        let Some(Some(anchored)) = self.anchors.get(&anchor) else {
            return Ok(());
        };
        let mut node = anchored.node.clone();
        renumber(&mut node, &mut self.next_id);
        self.place(node);
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, mut node: Node) {
        let (mut refused_key, mut duplicate) = (None, None);
        match self.stack.last_mut() {
            None => {
                if !node.is_null() {
                    self.parsed.documents.push(node);
                }
            }
            Some(Frame::Seq { items, .. }) => items.push(node),
            Some(Frame::Map {
                entries, key, seen, ..
            }) => match std::mem::replace(key, PendingKey::None) {
                PendingKey::None => match &node.value {
                    Value::Scalar { text, .. } if !node.is_null() && text != "<<" => {
                        *key = PendingKey::Text(text.clone(), node.pos);
                    }
                    _ => {
                        refused_key = Some((node.pos, node.text() == Some("<<")));
                        *key = PendingKey::Refused;
                    }
                },
                PendingKey::Refused => {}
                PendingKey::Text(text, key_pos) => {
                    if node.is_null() {
                        // An absent value has no place of its own.
                        node.pos = key_pos;
                    }
                    match seen.get(&text).copied() {
                        Some(first) => duplicate = Some((key_pos, text, first)),
                        None => {
                            seen.insert(text.clone(), key_pos);
                            entries.push(Entry {
                                key: text,
                                key_pos,
                                value: node,
                            });
                        }
                    }
                }
            },
        }
        match refused_key {
            Some((pos, true)) => {
                self.fault(
                    pos,
                    "a merge key (`<<`)",
                    "the keys themselves",
                    Some("YAML 1.2 has no merge keys"),
                );
            }
            Some((pos, false)) => self.fault(pos, "a key that is not text", "text before the `:`", None),
            None => {}
        }
        if let Some((pos, key, first)) = duplicate {
            let message = format!("duplicate key `{}`", crate::document::shown(&key));
            let expected = format!(
                "each key once; line {}, column {} has it first",
                first.line, first.column
            );
            self.fault(pos, &message, &expected, Some("take one of the two away"));
        }
    }
}

/// How many values, and how many levels of lists and mappings.
fn measure(node: &Node) -> (usize, usize) {
    let (mut size, mut depth) = (1, 0);
    for child in node.children() {
        let (below, levels) = measure(child);
        size += below;
        depth = depth.max(levels);
    }
    (size, if node.text().is_some() { depth } else { depth + 1 })
}

fn renumber(node: &mut Node, next_id: &mut u32) {
    *next_id += 1;
    node.id = *next_id;
    match &mut node.value {
        Value::Scalar { .. } => {}
        Value::Seq(items) => items.iter_mut().for_each(|item| renumber(item, next_id)),
        Value::Map(entries) => entries
            .iter_mut()
            .for_each(|entry| renumber(&mut entry.value, next_id)),
    }
}
