//! serde over the spanned tree: leaf crates derive `Deserialize` and get places, unknown keys and nearest
//! matches for nothing.
//!
//! A pass ends at its first error, which carries the node it arose at ([`At`]); `recover` records it, takes
//! that node out ([`Context::dead`]) or puts a stand-in in ([`Context::ghosts`]) and passes again. Unknown
//! keys of structs do not end a pass: the field names are known here, so they are collected and skipped.
//!
//! Values are typed by YAML 1.2's core schema, with three strict readings: an absent value (`key:`) is never
//! taken for a missing key, `0777` is no number, and a list is never taken for a struct. A plain number or
//! `true` where text is wanted is its own text.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected,
};
use serde::de::{VariantAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::ghost::Ghost;
use crate::tree::{Entry, Node, Value};

/// The field names of a struct, or the variants of an enum.
pub(crate) type Names = &'static [&'static str];

/// Where an error arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Node(u32),
    /// The key of the entry with this value.
    Key(u32),
    /// The stand-in for this field of this mapping.
    Ghost(u32, &'static str),
}

#[derive(Debug)]
pub(crate) enum Wrong {
    Found { found: String, expected: String },
    UnknownKey { key: String, known: Names },
    UnknownValue { value: String, known: Names },
    Missing(&'static str),
    Absent,
    Other(String),
}

#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) wrong: Wrong,
    pub(crate) at: Option<At>,
}

impl Error {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, at: None }
    }

    fn at(mut self, at: At) -> Self {
        self.at.get_or_insert(at);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.wrong)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Wrong::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Wrong::Found {
            found: describe(found),
            expected: expected.to_string(),
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(Wrong::Found {
            found: format!("{length} entries"),
            expected: expected.to_string(),
        })
    }

    fn unknown_variant(value: &str, known: Names) -> Self {
        Self::new(Wrong::UnknownValue {
            value: value.to_owned(),
            known,
        })
    }

    fn unknown_field(key: &str, known: Names) -> Self {
        Self::new(Wrong::UnknownKey {
            key: key.to_owned(),
            known,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Wrong::Missing(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(Wrong::Other(format!(
            "`{field}` is there twice, once under another name"
        )))
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Char(value) => format!("`{}`", value.escape_debug()),
        Unexpected::Str(value) => format!("`{}`", crate::document::shown(value)),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map | Unexpected::StructVariant => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

/// What the passes over one document share.
#[derive(Default)]
pub(crate) struct Context {
    /// Values that are skipped from now on.
    pub(crate) dead: HashSet<u32>,
    /// Stand-ins for fields that must be there and are not, or are dead: which of `ghost`'s candidates is tried.
    pub(crate) ghosts: HashMap<(u32, &'static str), usize>,
    /// Unknown keys of structs, by the id of their value.
    pub(crate) unknown: RefCell<BTreeMap<u32, Names>>,
}

/// One value, ready to be read.
#[derive(Clone, Copy)]
pub(crate) struct De<'a> {
    pub(crate) node: &'a Node,
    pub(crate) context: &'a Context,
}

/// What a plain scalar is.
pub(crate) enum Plain {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text,
}

/// YAML 1.2's core schema, less `.inf` and `.nan`, and less numbers with leading zeros.
pub(crate) fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        _ => {}
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            if digits.chars().all(|c| c.is_digit(radix)) {
                return u64::from_str_radix(digits, radix).map_or(Plain::Text, Plain::Unsigned);
            }
            return Plain::Text;
        }
    }
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.")) {
        return Plain::Text;
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return match (negative, digits.parse::<u64>(), text.parse::<i64>()) {
            (false, Ok(value), _) => Plain::Unsigned(value),
            (true, _, Ok(value)) => Plain::Signed(value),
            _ => Plain::Text,
        };
    }
    let number = digits
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|b| b.is_ascii_digit());
    match text.parse::<f64>() {
        Ok(value) if number && value.is_finite() => Plain::Float(value),
        _ => Plain::Text,
    }
}

impl<'a> De<'a> {
    fn here<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(At::Node(self.node.id)))
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar {
                text, plain: true, ..
            } => match resolve(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Unsigned(value) => visitor.visit_u64(value),
                Plain::Signed(value) => visitor.visit_i64(value),
                Plain::Float(value) => visitor.visit_f64(value),
                Plain::Text => visitor.visit_str(text),
            },
            Value::Scalar {
                text, plain: false, ..
            } => visitor.visit_str(text),
            Value::Seq(items) => visitor.visit_seq(Seq {
                items: items.iter(),
                context: self.context,
            }),
            Value::Map(entries) => visitor.visit_map(self.map(entries, None)),
        }
    }

    fn map(self, entries: &'a [Entry], known: Option<Names>) -> Map<'a> {
        let mut ghosts: Vec<(&'static str, usize)> = self
            .context
            .ghosts
            .iter()
            .filter(|((owner, _), _)| *owner == self.node.id)
            .map(|((_, field), attempt)| (*field, *attempt))
            .collect();
        ghosts.sort_unstable();
        Map {
            owner: self.node.id,
            entries: entries.iter(),
            ghosts,
            known,
            context: self.context,
            value: Next::None,
        }
    }
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(self.any(visitor))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => self.here(visitor.visit_str(text)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() {
            return self.here(Err(Error::new(Wrong::Absent)));
        }
        self.here(visitor.visit_some(self))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.here(visitor.visit_newtype_struct(self))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.here(match &self.node.value {
            Value::Map(entries) => visitor.visit_map(self.map(entries, Some(fields))),
            Value::Seq(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            Value::Scalar { .. } => self.any(visitor),
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.here(match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => visitor.visit_enum(Variant {
                name: text,
                value: None,
            }),
            Value::Map(entries) if entries.len() == 1 => {
                let entry = &entries[0];
                let value = Some(De {
                    node: &entry.value,
                    context: self.context,
                });
                visitor.visit_enum(Variant {
                    name: &entry.key,
                    value,
                })
            }
            Value::Map(_) => Err(de::Error::invalid_type(
                Unexpected::Map,
                &"a name, or a mapping with one key",
            )),
            _ => self.any(visitor),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(visitor.visit_unit())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 bytes byte_buf unit unit_struct seq tuple
        tuple_struct map
    }
}

struct Seq<'a> {
    items: std::slice::Iter<'a, Node>,
    context: &'a Context,
}

impl<'de> SeqAccess<'de> for Seq<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let context = self.context;
        match self.items.find(|item| !context.dead.contains(&item.id)) {
            Some(node) => {
                let de = De { node, context };
                de.here(seed.deserialize(de)).map(Some)
            }
            None => Ok(None),
        }
    }
}

enum Next<'a> {
    None,
    Node(&'a Node),
    Ghost(&'static str, usize),
}

struct Map<'a> {
    owner: u32,
    entries: std::slice::Iter<'a, Entry>,
    ghosts: Vec<(&'static str, usize)>,
    /// The field names, where a struct is read.
    known: Option<Names>,
    context: &'a Context,
    value: Next<'a>,
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            let id = entry.value.id;
            if let Some(known) = self.known.filter(|known| !known.contains(&entry.key.as_str())) {
                self.context.unknown.borrow_mut().insert(id, known);
                continue;
            }
            if self.context.dead.contains(&id) {
                continue;
            }
            self.value = Next::Node(&entry.value);
            let key = StrDeserializer::<Error>::new(&entry.key);
            return seed
                .deserialize(key)
                .map(Some)
                .map_err(|error| error.at(At::Key(id)));
        }
        if let Some((field, attempt)) = self.ghosts.pop() {
            self.value = Next::Ghost(field, attempt);
            return seed.deserialize(StrDeserializer::<Error>::new(field)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match std::mem::replace(&mut self.value, Next::None) {
            Next::Node(node) => {
                let de = De {
                    node,
                    context: self.context,
                };
                de.here(seed.deserialize(de))
            }
            Next::Ghost(field, attempt) => seed.deserialize(Ghost(attempt)).map_err(|mut error| {
                error.at = Some(At::Ghost(self.owner, field));
                error
            }),
            Next::None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}

pub(crate) struct Variant<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: Option<De<'a>>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Payload<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Payload<'a>), Error> {
        let name = seed.deserialize(StrDeserializer::<Error>::new(self.name));
        let name = name.map_err(|error| match self.value {
            Some(De { node, .. }) => error.at(At::Key(node.id)),
            None => error,
        })?;
        Ok((name, Payload(self.value)))
    }
}

pub(crate) struct Payload<'a>(Option<De<'a>>);

impl<'a> Payload<'a> {
    fn value(self, expected: &str) -> Result<De<'a>, Error> {
        self.0
            .ok_or_else(|| de::Error::invalid_type(Unexpected::Other("a name alone"), &expected))
    }
}

impl<'de> VariantAccess<'de> for Payload<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(value) => value.here(Err(de::Error::invalid_type(
                Unexpected::Other("a value"),
                &"the name alone",
            ))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let de = self.value("`name: value`")?;
        de.here(seed.deserialize(de))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.value("`name: [values]`")?.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: Names, visitor: V) -> Result<V::Value, Error> {
        self.value("`name: {fields}`")?
            .deserialize_struct("", fields, visitor)
    }
}
