//! Is a chain what was written? Every fault with its file, line and record.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde_json::Value;

use crate::head::Head;
use crate::read::records;
use crate::record::{GAP, SEAL};

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 where it is none.
    pub line: usize,
    /// The record's number, or the number that stands there in its place.
    pub seq: u64,
    /// `changed`, `missing`, `order`, `cut`, `head`, `seal`, `gap`.
    pub fault: &'static str,
    /// In words.
    pub text: String,
}

/// What another chain says of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Which chain it is of.
    pub chain: String,
    /// Its record.
    pub seq: u64,
    /// That record's hash.
    pub hash: String,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    /// Records read.
    pub records: u64,
    /// The oldest.
    pub first: u64,
    /// The newest.
    pub last: u64,
    /// Its hash: to be compared with one that was noted elsewhere.
    pub hash: String,
    /// Seals that were compared.
    pub seals: u64,
    /// Every fault.
    pub faults: Vec<Finding>,
}

/// The seals in the chain of `folder`, of other chains.
///
/// # Errors
/// The kernel's.
pub fn seals(folder: &Path) -> io::Result<Vec<Seal>> {
    let mut found = Vec::new();
    for stored in records(folder)? {
        let Ok(record) = stored?.record else { continue };
        if record.kind != SEAL {
            continue;
        }
        let text = |key: &str| record.detail.get(key).and_then(Value::as_str).map(str::to_owned);
        let seq = record.detail.get("seq").and_then(Value::as_u64);
        if let (Some(chain), Some(seq), Some(hash)) = (text("chain"), seq, text("hash")) {
            found.push(Seal { chain, seq, hash });
        }
    }
    Ok(found)
}

/// Compares the chain of `folder` with itself, its head and the `seals` that are held of it elsewhere.
///
/// # Errors
/// The kernel's. A chain that is not there is no error: nothing was recorded, which the seals may contradict.
pub fn verify(folder: &Path, seals: &[Seal]) -> io::Result<Findings> {
    let mut found = Findings::default();
    // No writer while it is read. Who may not write reads without.
    let lock = File::open(folder.join("lock"));
    let _lock = lock
        .ok()
        .and_then(|lock| Flock::lock(lock, FlockArg::LockShared).ok());
    let head = match File::open(folder.join("head")) {
        Ok(file) => Head::read(&file)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let fault = |file: &Path, line, seq, fault, text: String| Finding {
        file: file.to_owned(),
        line,
        seq,
        fault,
        text,
    };
    let mut expected = head.as_ref().map(|head| (head.first, head.first_prev.clone()));
    let mut hashes: Vec<(u64, String)> = Vec::new();
    let lines = match records(folder) {
        Ok(lines) => Some(lines),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    for stored in lines.into_iter().flatten() {
        let stored = stored?;
        let (file, line) = (&stored.file, stored.line);
        let record = match stored.record {
            Ok(record) => record,
            Err(why) => {
                let seq = expected.as_ref().map_or(0, |(seq, _)| *seq);
                let text = format!("record {seq} {why}");
                found.faults.push(fault(file, line, seq, "changed", text));
                // What its hash was is told by the next one.
                expected = expected.map(|(seq, _)| (seq + 1, String::new()));
                continue;
            }
        };
        if let Some((seq, prev)) = &expected {
            if record.seq > *seq {
                let text = format!("records {seq} to {} are missing", record.seq - 1);
                found.faults.push(fault(file, line, *seq, "missing", text));
            } else if record.seq < *seq {
                let text = format!("record {} stands where {seq} should", record.seq);
                found.faults.push(fault(file, line, record.seq, "order", text));
            } else if !prev.is_empty() && record.prev != *prev {
                let text = format!("record {} does not continue the one before it", record.seq);
                found.faults.push(fault(file, line, record.seq, "changed", text));
            }
        }
        if record.kind == GAP {
            found
                .faults
                .push(fault(file, line, record.seq, "gap", record.text.clone()));
        }
        if found.records == 0 {
            found.first = record.seq;
        }
        found.records += 1;
        found.last = record.seq;
        found.hash.clone_from(&record.hash);
        hashes.push((record.seq, record.hash.clone()));
        expected = Some((record.seq + 1, record.hash));
    }
    let head_path = folder.join("head");
    match &head {
        None if found.records > 0 => {
            let text = "the head is not there or cannot be read".to_owned();
            found.faults.push(fault(&head_path, 0, found.last, "head", text));
        }
        Some(head) if head.seq > found.last => {
            let text = format!(
                "records {} to {} were cut off at the end",
                found.last + 1,
                head.seq
            );
            found
                .faults
                .push(fault(&head_path, 0, found.last + 1, "cut", text));
        }
        Some(head)
            if head.seq < found.last
                || (head.seq == found.last && found.records > 0 && head.hash != found.hash) =>
        {
            let text = format!(
                "the head stands at record {}, the records end at {}",
                head.seq, found.last
            );
            found.faults.push(fault(&head_path, 0, found.last, "head", text));
        }
        _ => {}
    }
    for seal in seals {
        let kept = hashes.iter().find(|(seq, _)| *seq == seal.seq);
        match kept {
            Some((_, hash)) if *hash == seal.hash => found.seals += 1,
            Some(_) => {
                let text = format!(
                    "record {} is not the one that was sealed in the other chain",
                    seal.seq
                );
                found.faults.push(fault(folder, 0, seal.seq, "seal", text));
            }
            None if seal.seq > found.last => {
                let text = format!(
                    "the other chain has a seal of record {}, this one ends at {}",
                    seal.seq, found.last
                );
                found.faults.push(fault(folder, 0, seal.seq, "seal", text));
            }
            // Rotated away since.
            None => {}
        }
    }
    Ok(found)
}
