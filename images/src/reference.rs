//! Image references: `[host[:port]/]name[:tag][@sha256:…]`, the grammar of the OCI distribution specification.
//!
//! A reference is a name in this node's own store. No registry host is implied: `pump` is `pump:latest` and
//! nothing else, so a name means the same on every node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// Longest name (host and path) in bytes, as registries have it.
const NAME_MAX: usize = 255;
/// Longest tag in bytes.
const TAG_MAX: usize = 128;

/// A normalised reference: a name and a tag (`latest` where none is written), and a digest where one is pinned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no image reference: {problem}")]
pub struct ReferenceError {
    /// What was given, cut to 300 characters.
    pub text: String,
    /// What is wrong with it, and where.
    pub problem: String,
}

impl Reference {
    /// The name without tag and digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag; `None` only where a digest is pinned without one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The pinned manifest digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The key in the store's index: `name:tag`, without the digest.
    pub(crate) fn key(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |problem: String| ReferenceError {
            text: text.chars().take(300).collect(),
            problem,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|error| fail(format!("{error}")))?),
            ),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to a port.
        let path_from = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[path_from..].split_once(':') {
            Some((last, tag)) => (&rest[..path_from + last.len()], Some(tag)),
            None => (rest, None),
        };
        if name.is_empty() {
            return Err(fail("the name is empty".into()));
        }
        if name.len() > NAME_MAX {
            return Err(fail(format!(
                "the name has {} bytes, the most is {NAME_MAX}",
                name.len()
            )));
        }
        let parts: Vec<&str> = name.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            let host = at == 0
                && parts.len() > 1
                && (part.contains(['.', ':', '['])
                    || *part == "localhost"
                    || part.bytes().any(|b| b.is_ascii_uppercase()));
            let checked = if host { check_host(part) } else { check_part(part) };
            checked.map_err(fail)?;
        }
        if let Some(tag) = tag {
            check_tag(tag).map_err(fail)?;
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_string()),
            (None, None) => Some("latest".to_string()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            name: name.to_string(),
            tag,
            digest,
        })
    }
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of `-`.
fn check_part(part: &str) -> Result<(), String> {
    let ends = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = part.as_bytes();
    if let Some(bad) = part
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'))
    {
        return Err(format!(
            "{bad:?} in {part:?}: a name is of a-z, 0-9, '.', '_', '-' and '/'"
        ));
    }
    if !ends(bytes.first()) || !ends(bytes.last()) {
        return Err(format!("{part:?} must begin and end with a letter or digit"));
    }
    for separators in part
        .split(|c: char| c.is_ascii_alphanumeric())
        .filter(|s| !s.is_empty())
    {
        let good = matches!(separators, "." | "_" | "__") || separators.bytes().all(|b| b == b'-');
        if !good {
            return Err(format!(
                "{separators:?} in {part:?}: one '.', '_', '__' or any number of '-' may join"
            ));
        }
    }
    Ok(())
}

fn check_host(part: &str) -> Result<(), String> {
    let (host, port) = match part.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{address:?} is no IPv6 address"));
            }
            (
                None,
                if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':').unwrap_or(""))
                },
            )
        }
        None => match part.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(part), None),
        },
    };
    if let Some(host) = host {
        for label in host.split('.') {
            let inside = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if label.is_empty() || !inside || label.starts_with('-') || label.ends_with('-') {
                return Err(format!("{host:?} is no host name"));
            }
        }
    }
    match port {
        Some(port)
            if port.bytes().any(|b| !b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|p| p > 0) =>
        {
            Err(format!("{port:?} is no port: expected 1 to 65535"))
        }
        _ => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first = tag
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = tag
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !first || !rest || tag.len() > TAG_MAX {
        let tag: String = tag.chars().take(TAG_MAX).collect();
        return Err(format!(
            "{tag:?} is no tag: 1 to {TAG_MAX} of A-Z, a-z, 0-9, '_', '.', '-', not first '.' or '-'"
        ));
    }
    Ok(())
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_are_normalised() {
        let pin = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let table = [
            ("pump", "pump:latest".to_string()),
            ("berth-sample-worker:latest", "berth-sample-worker:latest".into()),
            (
                "site.example:5000/ran/du:1.2",
                "site.example:5000/ran/du:1.2".into(),
            ),
            ("localhost/pump", "localhost/pump:latest".into()),
            ("Host/pump:V1", "Host/pump:V1".into()),
            ("[::1]:443/pump", "[::1]:443/pump:latest".into()),
            ("a__b/c--d.e", "a__b/c--d.e:latest".into()),
            (&format!("pump@{pin}"), format!("pump@{pin}")),
            (&format!("pump:1@{pin}"), format!("pump:1@{pin}")),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn bad_references_are_refused_with_a_reason() {
        let table = [
            ("", "empty"),
            (":tag", "empty"),
            ("Pump", "'P'"),
            ("../etc", "host name"),
            ("a/../b", "begin and end"),
            ("a//b", "begin and end"),
            ("pump:", "no tag"),
            ("pump:-x", "no tag"),
            ("pump:a b", "no tag"),
            ("a___b", "join"),
            ("host:99999/pump", "no port"),
            ("[zz]/pump", "IPv6"),
            ("-h.example/pump", "host"),
            ("pump@sha512:00", "sha512"),
            ("pump@", "no digest"),
        ];
        for (text, part) in table {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!("a".repeat(300).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_parsed_ones_are_stable(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn near_references_never_panic(text in "[a-zA-Z0-9@:./_\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(!reference.to_string().split('/').any(|part| part == ".." || part.is_empty()));
            }
        }
    }
}
