//! The small values of documents: durations, sizes, signals, names, paths.
//!
//! Each type holds one invariant and can only be made by parsing a text that keeps it; each is written back
//! in one canonical text, so that a value survives YAML, JSON and the state file unchanged. A refusal says
//! what was found and what the grammar is (serde's `invalid_value`, which the reader turns into a fault with
//! file, line and column).

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that a value's grammar refuses: what was expected instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct ValueError {
    /// The grammar or range, with an example.
    pub expected: String,
}

impl ValueError {
    fn new(expected: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
        }
    }
}

/// Reads any `FromStr` value of this module from a serde string.
struct TextVisitor<T> {
    expected: &'static str,
    value: std::marker::PhantomData<T>,
}

impl<T: FromStr<Err = ValueError>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse()
            .map_err(|error: ValueError| E::invalid_value(Unexpected::Str(text), &error.expected.as_str()))
    }
}

/// `Deserialize` and `Serialize` through `FromStr` and `Display`.
macro_rules! as_text {
    ($type:ty, $expected:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(TextVisitor {
                    expected: $expected,
                    value: std::marker::PhantomData,
                })
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// A length of time in whole nanoseconds, 0 to 2^63 - 1 (292 years).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(u64);

const DURATION: &str =
    "a duration: whole numbers with a unit of ns, us, ms, s, m or h, such as `100ms` or `1m30s`";
const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Duration {
    /// From nanoseconds; more than 2^63 - 1 is cut to that.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(if nanos > i64::MAX as u64 {
            i64::MAX as u64
        } else {
            nanos
        })
    }

    /// From milliseconds.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis as u64 * 1_000_000)
    }

    /// From seconds.
    pub const fn from_secs(secs: u32) -> Self {
        Self(secs as u64 * 1_000_000_000)
    }

    /// Nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole microseconds, rounded down.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// As the standard library's type.
    pub const fn std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0)
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.std()
    }
}

impl FromStr for Duration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::new(DURATION);
        let mut rest = text;
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(refused());
        }
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let (unit, tail) = tail.split_at(letters);
            let number: u64 = number.parse().map_err(|_| refused())?;
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
            total = number
                .checked_mul(*scale)
                .and_then(|nanos| total.checked_add(nanos))
                .filter(|nanos| *nanos <= i64::MAX as u64)
                .ok_or_else(|| ValueError::new("a duration of at most 2562047h (292 years)"))?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let (unit, scale) = UNITS
            .iter()
            .find(|(_, scale)| self.0.is_multiple_of(*scale))
            .unwrap_or(&UNITS[5]);
        write!(f, "{}{unit}", self.0 / scale)
    }
}

as_text!(Duration, DURATION);

/// An amount of memory in bytes, 1 to 2^63 - 1, written as a Kubernetes quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

const SIZE: &str = "a size: a number of bytes, or one with a suffix of Ki, Mi, Gi, Ti, k, M, G or T, such as `64Mi` or `1.5Gi`";
const SUFFIXES: [(&str, u64); 9] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
    ("", 1),
];

impl Size {
    /// From bytes; 0 becomes 1 and more than 2^63 - 1 is cut to that.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(match bytes {
            0 => 1,
            bytes if bytes > i64::MAX as u64 => i64::MAX as u64,
            bytes => bytes,
        })
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::new(SIZE);
        let digits = text.len()
            - text
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (number, suffix) = text.split_at(digits);
        let (_, scale) = SUFFIXES
            .iter()
            .find(|(name, _)| *name == suffix)
            .ok_or_else(refused)?;
        let (whole, fraction) = number
            .split_once('.')
            .map_or((number, None), |(w, f)| (w, Some(f)));
        if whole.is_empty() || fraction.is_some_and(|f| f.is_empty() || f.len() > 12 || f.contains('.')) {
            return Err(refused());
        }
        let whole: u64 = whole.parse().map_err(|_| refused())?;
        let mut bytes = u128::from(whole) * u128::from(*scale);
        if let Some(fraction) = fraction {
            let part = u128::from(fraction.parse::<u64>().map_err(|_| refused())?) * u128::from(*scale);
            let power = 10_u128.pow(fraction.len() as u32);
            if part % power != 0 {
                return Err(ValueError::new("a size that is a whole number of bytes"));
            }
            bytes += part / power;
        }
        match u64::try_from(bytes) {
            Ok(0) => Err(ValueError::new("a size of 1 byte or more")),
            Ok(bytes) if bytes <= i64::MAX as u64 => Ok(Self(bytes)),
            _ => Err(ValueError::new("a size below 8388608Ti (2^63 bytes)")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (suffix, scale) = SUFFIXES[..4]
            .iter()
            .find(|(_, scale)| self.0.is_multiple_of(*scale))
            .unwrap_or(&SUFFIXES[8]);
        write!(f, "{}{suffix}", self.0 / scale)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                match bytes {
                    1..=0x7fff_ffff_ffff_ffff => Ok(Size(bytes)),
                    _ => Err(E::invalid_value(
                        Unexpected::Unsigned(bytes),
                        &"a size from 1 to 2^63 - 1 bytes",
                    )),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                TextVisitor {
                    expected: SIZE,
                    value: std::marker::PhantomData,
                }
                .visit_str(text)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A name as of a DNS-1123 label: 1 to 63 of `a-z`, `0-9` and `-`, no `-` at either end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

const NAME: &str = "a DNS-1123 label: 1 to 63 of a-z, 0-9 and `-`, with no `-` at either end";

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl FromStr for Name {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if is_label(text) {
            return Ok(Self(text.to_owned()));
        }
        let lower = text.to_ascii_lowercase();
        let mended: String = lower
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(63)
            .collect();
        let mended = mended.trim_matches('-');
        Err(ValueError::new(if is_label(mended) {
            format!("{NAME}, such as `{mended}`")
        } else {
            NAME.to_owned()
        }))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(Name, NAME);

/// An absolute path without `.`, `..` or empty components and without NUL; a trailing `/` is dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsolutePath(String);

const PATH: &str = "an absolute path without `.`, `..` or empty parts, such as `/srv/data`";

impl AbsolutePath {
    /// As the standard library's type.
    pub fn as_path(&self) -> &std::path::Path {
        std::path::Path::new(&self.0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `base` or lies below it.
    pub fn is_within(&self, base: &str) -> bool {
        self.as_path().starts_with(base)
    }
}

impl FromStr for AbsolutePath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refused = || ValueError::new(PATH);
        let body = text.strip_prefix('/').ok_or_else(refused)?;
        let body = body.strip_suffix('/').unwrap_or(body);
        if text.contains('\0') || text.len() > 4095 {
            return Err(ValueError::new(
                "an absolute path of at most 4095 bytes without NUL",
            ));
        }
        if !body.is_empty() && body.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refused());
        }
        Ok(Self(format!("/{body}")))
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(AbsolutePath, PATH);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos, canonical) in [
            ("1ns", 1, "1ns"),
            ("100ms", 100_000_000, "100ms"),
            ("1m30s", 90_000_000_000, "90s"),
            ("60s", 60_000_000_000, "1m"),
            ("0s", 0, "0s"),
            ("24h", 86_400_000_000_000, "24h"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(
                (duration.as_nanos(), duration.to_string().as_str()),
                (nanos, canonical),
                "{text}"
            );
        }
        for bad in [
            "",
            "1",
            "s",
            "1 s",
            "-1s",
            "1.5s",
            "1S",
            "1d",
            "1s ",
            "99999999999h",
            "1s2",
            "１s",
        ] {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, canonical) in [
            ("1", 1, "1"),
            ("64Mi", 64 << 20, "64Mi"),
            ("1.5Gi", 3 << 29, "1536Mi"),
            ("1k", 1000, "1000"),
            ("2G", 2_000_000_000, "1953125Ki"),
            ("1024", 1024, "1Ki"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(
                (size.bytes(), size.to_string().as_str()),
                (bytes, canonical),
                "{text}"
            );
        }
        for bad in [
            "",
            "0",
            "Mi",
            "1MB",
            "1mi",
            "-1",
            "1.",
            ".5Gi",
            "1.0000001Ki",
            "1e3",
            "1 Mi",
            "9999999Ti",
            "100m",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_paths() {
        for (text, good) in [
            ("a", true),
            ("a-1", true),
            ("", false),
            ("-a", false),
            ("A", false),
            ("a.b", false),
        ] {
            assert_eq!(text.parse::<Name>().is_ok(), good, "{text}");
        }
        assert!("a".repeat(64).parse::<Name>().is_err());
        assert!(
            "Pump_1"
                .parse::<Name>()
                .unwrap_err()
                .expected
                .ends_with("such as `pump-1`")
        );
        for (text, want) in [("/", Some("/")), ("/a/", Some("/a")), ("/a/b", Some("/a/b"))] {
            assert_eq!(
                text.parse::<AbsolutePath>()
                    .ok()
                    .as_ref()
                    .map(AbsolutePath::as_str),
                want,
                "{text}"
            );
        }
        for bad in ["", "a", "/a/../b", "/./a", "//a", "/a//b", "/a\0", "/.."] {
            assert!(bad.parse::<AbsolutePath>().is_err(), "{bad:?}");
        }
        assert!(!"/procs".parse::<AbsolutePath>().unwrap().is_within("/proc"));
    }
}
