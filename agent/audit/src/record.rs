//! One record: what is handed in, what is stored, and the bytes that are hashed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::clean::{clean, clean_value};
use crate::head::Head;

/// Kind of the record that says that records before it were lost (a power cut, a disk that lied).
pub const GAP: &str = "gap";
/// Kind of the record that holds the head of another chain.
pub const SEAL: &str = "seal";
/// Longest record, bytes; the detail of a longer one gives way.
const RECORD_MAX: usize = 64 * 1024;
/// What stands between a record's own bytes and its hash.
const HASH_KEY: &str = ",\"hash\":\"";

/// Who asked, as the kernel says (SO_PEERCRED, SO_PEERGROUPS), and the role that gave the right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process.
    pub pid: i32,
    /// `admin`, `operate`, `read`, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// What is to be recorded.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What sort of thing: `request`, `launch`, `refused`, `drift`, `configuration`, ….
    pub kind: String,
    /// Of whom: a container, a workload, a document.
    pub subject: String,
    /// `ok`, `refused`, `failed`.
    pub result: String,
    /// In words.
    pub text: String,
    /// Who asked.
    pub who: Option<Who>,
    /// Whatever else, as JSON.
    pub detail: Value,
}

impl Entry {
    /// An entry that went well.
    pub fn new(kind: &str, subject: &str, text: impl Into<String>) -> Entry {
        Entry {
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            result: "ok".to_owned(),
            text: text.into(),
            who: None,
            detail: Value::Null,
        }
    }

    /// With another result.
    pub fn result(mut self, result: &str) -> Entry {
        self.result = result.to_owned();
        self
    }

    /// With who asked.
    pub fn who(mut self, who: Option<Who>) -> Entry {
        self.who = who;
        self
    }

    /// With more, as JSON.
    pub fn detail(mut self, detail: Value) -> Entry {
        self.detail = detail;
        self
    }

    /// The head of the chain `name`, to be kept in another one.
    pub fn seal(name: &str, head: &Head) -> Entry {
        Entry::new(SEAL, name, format!("{name} stood at record {}", head.seq))
            .detail(json!({"chain": name, "seq": head.seq, "hash": head.hash}))
    }

    /// The record's line, newline and all, and its hash.
    pub(crate) fn line(mut self, seq: u64, prev: &str, boot: &str, at: u64) -> (String, String) {
        clean_value(&mut self.detail);
        let detail = self.detail.to_string();
        if detail.len() > RECORD_MAX {
            self.detail = json!({"leftOut": format!("{} bytes", detail.len())});
        }
        let mut body = Map::new();
        let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
        put("seq", json!(seq));
        put("at", json!(at));
        put("boot", json!(boot));
        put("by", json!(std::process::id()));
        put("kind", json!(clean(&self.kind)));
        put("subject", json!(clean(&self.subject)));
        put("result", json!(clean(&self.result)));
        put("text", json!(clean(&self.text)));
        if let Some(who) = self.who {
            put("who", serde_json::to_value(who).unwrap_or_default());
        }
        if !self.detail.is_null() {
            put("detail", self.detail);
        }
        put("prev", json!(prev));
        let body = Value::Object(body).to_string();
        let hash = hash(prev, body.as_bytes());
        let open = &body[..body.len() - 1];
        (format!("{open}{HASH_KEY}{hash}\"}}\n"), hash)
    }
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counted from 1 in its chain.
    pub seq: u64,
    /// Nanoseconds since the epoch, by the node's clock.
    pub at: u64,
    /// The boot it was written in (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The process that wrote it.
    pub by: u32,
    /// As [`Entry::kind`].
    pub kind: String,
    /// As [`Entry::subject`].
    pub subject: String,
    /// As [`Entry::result`].
    pub result: String,
    /// As [`Entry::text`].
    pub text: String,
    /// As [`Entry::who`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<Who>,
    /// As [`Entry::detail`].
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// Hash of the record before it.
    pub prev: String,
    /// Its own.
    pub hash: String,
}

/// SHA-256 of the former hash's digits and the record's bytes, in hex.
pub(crate) fn hash(prev: &str, body: &[u8]) -> String {
    let mut sha = Sha256::new();
    sha.update(prev.as_bytes());
    sha.update(body);
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash that stands before the first record ever.
pub(crate) fn beginning() -> String {
    "0".repeat(64)
}

/// Reads one line (without its newline): the record, where its hash is that of its own bytes.
pub(crate) fn parse(line: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(line).map_err(|e| format!("is no record: {e}"))?;
    let tail = format!("{HASH_KEY}{}\"}}", record.hash);
    let Some(open) = line.strip_suffix(tail.as_bytes()) else {
        return Err("does not end with its hash".to_owned());
    };
    let body = [open, b"}"].concat();
    if hash(&record.prev, &body) == record.hash {
        Ok(record)
    } else {
        Err("was changed: its hash is not that of what stands there".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_and_any_changed_byte_is_seen() {
        let who = Who {
            uid: 5,
            gid: 6,
            pid: 7,
            role: Some("read".into()),
        };
        let entry = Entry::new("request", "web\n", "stop")
            .who(Some(who))
            .detail(json!({"x": "\u{1}"}));
        let (line, hash) = entry.line(9, &beginning(), "boot", 1);
        let line = line.trim_end().as_bytes();
        let record = parse(line).unwrap();
        assert_eq!(
            (record.seq, &record.hash, record.subject.as_str()),
            (9, &hash, "web\\u{a}")
        );
        for at in 0..line.len() {
            let mut other = line.to_vec();
            other[at] ^= 1;
            assert!(parse(&other).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_detail_without_end_gives_way() {
        let entry = Entry::new("x", "y", "z").detail(json!(vec!["0123456789"; 20_000]));
        let (line, _) = entry.line(1, &beginning(), "b", 1);
        assert!(line.len() < 2000 && line.contains("leftOut"), "{}", line.len());
    }
}
