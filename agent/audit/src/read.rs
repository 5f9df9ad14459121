//! Reading a chain's files.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::record::{Record, parse};

/// The file with the newest records.
pub(crate) const CURRENT: &str = "current.log";
/// Longest line that is read, bytes; a record is shorter.
const LINE_MAX: u64 = 512 * 1024;

/// Name of a full file whose first record has number `first`.
pub(crate) fn numbered(first: u64) -> String {
    format!("{first:012}.log")
}

/// The files of a chain, oldest first.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let full = name
            .strip_suffix(".log")
            .is_some_and(|n| n.len() == 12 && n.bytes().all(|b| b.is_ascii_digit()));
        if full || name == CURRENT {
            found.push(path);
        }
    }
    // Digits sort before letters: `current.log` is the last.
    found.sort();
    Ok(found)
}

/// One line of a chain.
#[derive(Debug)]
pub struct Stored {
    /// In which file.
    pub file: PathBuf,
    /// Its number there, from 1.
    pub line: usize,
    /// The record, or why it is none.
    pub record: Result<Record, String>,
    pub(crate) bytes: u64,
}

/// Every line of the chain in `folder`, oldest first.
///
/// # Errors
/// The kernel's.
pub fn records(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<Stored>>> {
    let files = files(folder)?;
    Ok(files.into_iter().flat_map(|path| match lines(&path) {
        Ok(lines) => Box::new(lines) as Box<dyn Iterator<Item = io::Result<Stored>>>,
        Err(e) => Box::new(std::iter::once(Err(e))),
    }))
}

fn lines(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Stored>> + use<>> {
    let mut reader = BufReader::new(File::open(path)?);
    let path = path.to_owned();
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        let mut bytes = Vec::new();
        line += 1;
        let read = io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut bytes);
        match read {
            Err(e) => Some(Err(e)),
            Ok(0) => None,
            Ok(n) => {
                let record = match bytes.strip_suffix(b"\n") {
                    Some(whole) => parse(whole),
                    None => Err("has no end".to_owned()),
                };
                Some(Ok(Stored {
                    file: path.clone(),
                    line,
                    record,
                    bytes: n as u64,
                }))
            }
        }
    }))
}

/// The first record of a file, where it has one.
pub(crate) fn first_of(path: &Path) -> io::Result<Option<Record>> {
    let first = match lines(path) {
        Ok(mut lines) => lines.next().transpose()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    Ok(first.and_then(|stored| stored.record.ok()))
}

/// The longest whole beginning of current.log.
pub(crate) struct Whole {
    pub(crate) first: Option<(u64, String)>,
    pub(crate) last: Option<(u64, String)>,
    pub(crate) bytes: u64,
    pub(crate) length: u64,
}

/// Reads current.log up to the first line that does not continue the one before it; where it has none, the last record
/// of the newest full file counts.
pub(crate) fn longest(folder: &Path) -> io::Result<Whole> {
    let current = folder.join(CURRENT);
    let mut whole = Whole {
        first: None,
        last: None,
        bytes: 0,
        length: 0,
    };
    match std::fs::metadata(&current) {
        Ok(meta) => whole.length = meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    if whole.length > 0 {
        for stored in lines(&current)? {
            let stored = stored?;
            let Ok(record) = stored.record else { break };
            if whole
                .last
                .as_ref()
                .is_some_and(|(seq, hash)| record.seq != seq + 1 || record.prev != *hash)
            {
                break;
            }
            whole.first.get_or_insert((record.seq, record.prev.clone()));
            whole.bytes += stored.bytes;
            whole.last = Some((record.seq, record.hash));
        }
    }
    if whole.last.is_none() {
        let full = files(folder)?
            .into_iter()
            .rev()
            .find(|path| path.file_name().is_some_and(|n| n != CURRENT));
        if let Some(full) = full {
            for stored in lines(&full)? {
                if let Ok(record) = stored?.record {
                    whole.last = Some((record.seq, record.hash));
                }
            }
        }
    }
    Ok(whole)
}
