//! The head of a chain: its last record, kept apart from the records.
//!
//! One line of at most [`SIZE`] bytes, overwritten in place by one pwrite(2): it fits into one sector, so a power
//! cut leaves the old or the new one (or, on a disk that tears sectors, none: then it is made anew from the
//! records, and the gap is recorded).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::record::beginning;

/// Bytes of the file.
pub(crate) const SIZE: usize = 512;

/// Where a chain stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Format, 1.
    pub version: u32,
    /// Number of the last record; 0: none yet.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// Bytes of current.log.
    pub bytes: u64,
    /// Number of the oldest record that is kept.
    pub first: u64,
    /// What that one must continue.
    #[serde(rename = "firstPrev")]
    pub first_prev: String,
    /// The boot in which the last record was written.
    pub boot: String,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            version: 1,
            seq: 0,
            hash: beginning(),
            bytes: 0,
            first: 1,
            first_prev: beginning(),
            boot: String::new(),
        }
    }
}

impl Head {
    /// The head of the chain in `folder`; `None` where nothing was recorded there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(folder: &std::path::Path) -> io::Result<Option<Head>> {
        // The folder is another process's: nothing there may make this one wait, or lead it elsewhere.
        let open = std::os::unix::fs::OpenOptionsExt::custom_flags(
            std::fs::File::options().read(true),
            nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK,
        )
        .open(folder.join("head"));
        match open {
            Ok(file) => Head::read(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads it; `None` where there is none, or none that can be read.
    pub(crate) fn read(file: &File) -> io::Result<Option<Head>> {
        let mut bytes = [0; SIZE];
        let n = file.read_at(&mut bytes, 0)?;
        let text = bytes[..n].split(|b| *b == b'\n').next().unwrap_or_default();
        let head: Option<Head> = serde_json::from_slice(text).ok();
        Ok(head.filter(|head| head.version == 1 && head.hash.len() == 64 && head.first_prev.len() == 64))
    }

    pub(crate) fn write(&self, file: &File) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        if line.len() >= SIZE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the head is too long",
            ));
        }
        line.resize(SIZE - 1, b' ');
        line.push(b'\n');
        // The line ends with its blanks, so that reading finds the newline behind them.
        file.write_all_at(&line, 0)
    }
}
