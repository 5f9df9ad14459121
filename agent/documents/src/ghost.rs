//! Values made up for keys that must be there and are missing or faulty, so that serde goes on to what stands
//! beside them.
//!
//! Invariant: a result with such a value in it always comes with faults, and is thrown away.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::de::{Error, Names, Variant};

/// Texts that are tried in turn for a value that stands in; one behind them stands for "a number".
const CANDIDATES: [&str; 5] = ["x", "1s", "1Mi", "/x", "KERNEL==\"x\""];
/// How many times a stand-in is tried.
pub(crate) const ATTEMPTS: usize = CANDIDATES.len() + 1;

/// A value made up, so that what stands beside a missing or faulty one is still read. Never in a result
/// without faults.
#[derive(Clone, Copy)]
pub(crate) struct Ghost(pub(crate) usize);

impl<'de> Deserializer<'de> for Ghost {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match CANDIDATES.get(self.0) {
            Some(text) => visitor.visit_str(text),
            None => visitor.visit_u64(1),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_none()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(de::value::SeqDeserializer::<_, Error>::new(
            std::iter::empty::<u32>(),
        ))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(GhostFields {
            fields: [].iter(),
            attempt: self.0,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(GhostFields {
            fields: fields.iter(),
            attempt: self.0,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Variant {
            name: names.get(self.0).or(names.first()).unwrap_or(&""),
            value: None,
        })
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(1)
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 f64 char str string bytes byte_buf unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct GhostFields {
    fields: std::slice::Iter<'static, &'static str>,
    attempt: usize,
}

impl<'de> MapAccess<'de> for GhostFields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.fields
            .next()
            .map(|field| seed.deserialize(StrDeserializer::<Error>::new(field)))
            .transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(Ghost(self.attempt))
    }
}
