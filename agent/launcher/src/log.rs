//! A container's log file: `ID.log` and, once it was full, `ID.log.1`; each at most half of what may be kept.
//!
//! Invariants: only whole entries are in the file (a write that a full disk cut short is taken back), a file is
//! rotated between entries only, and no write is waited for twice: what the disk does not take is dropped and
//! counted by the caller. A link in place of the file is refused (O_NOFOLLOW).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A write that takes longer means that the disk is slower than the container: the caller drops what has
/// gathered meanwhile instead of letting the container wait for the disk.
pub const SLOW: Duration = Duration::from_millis(250);

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// As it should.
    Well,
    /// It is in the file, after more than [`SLOW`].
    Slowly,
}

/// The file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    most: u64,
}

impl LogFile {
    /// Opens or creates `path`; what is there already stays. `max_bytes` is shared by both files.
    ///
    /// # Errors
    /// The kernel's: no folder, a link, a full disk.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<LogFile> {
        let mut log = LogFile {
            path: path.to_owned(),
            file: None,
            size: 0,
            most: (max_bytes / 2).max(1),
        };
        log.reopen()?;
        Ok(log)
    }

    /// The file written now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes whole entries, rotating before where they would not fit.
    ///
    /// # Errors
    /// The kernel's; nothing of `entries` is in the file then.
    pub fn write(&mut self, entries: &[u8]) -> io::Result<Written> {
        let begun = Instant::now();
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.size > 0 && self.size + entries.len() as u64 > self.most {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        if let Err(e) = file.write_all(entries) {
            if file.set_len(self.size).is_err() {
                self.file = None;
            }
            return Err(e);
        }
        self.size += entries.len() as u64;
        Ok(if begun.elapsed() > SLOW {
            Written::Slowly
        } else {
            Written::Well
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        match std::fs::rename(&self.path, &old) {
            // Somebody took the file away: there is nothing to keep, and a new one is due.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.file = None;
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&self.path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the log is not a regular file",
            ));
        }
        self.size = meta.len();
        if self.size > 0 {
            // A writer that was killed may have left half an entry.
            let mut last = [0];
            file.seek(SeekFrom::Start(self.size - 1))?;
            file.read_exact(&mut last)?;
            if last[0] != b'\n' {
                file.write_all(b"\n")?;
                self.size += 1;
            }
        }
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn rotates_between_entries_and_keeps_two_files() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        let old = temp.path().join("a.log.1");
        let mut log = LogFile::open(&path, 40).unwrap();
        for text in ["1234567890\n", "abcdefg\n"] {
            log.write(text.as_bytes()).unwrap();
        }
        assert_eq!(read(&path), "1234567890\nabcdefg\n");
        assert!(!old.exists());
        log.write(b"xy\n").unwrap();
        assert_eq!(
            (read(&old).as_str(), read(&path).as_str()),
            ("1234567890\nabcdefg\n", "xy\n")
        );
        log.write("long ".repeat(10).as_bytes()).unwrap();
        assert_eq!(read(&old), "xy\n");
        assert_eq!(read(&path).len(), 50, "an entry longer than a file is kept whole");
    }

    #[test]
    fn goes_on_after_another_writer_and_mends_half_an_entry() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        std::fs::write(&path, "whole\nhal").unwrap();
        let mut log = LogFile::open(&path, 1000).unwrap();
        log.write(b"next\n").unwrap();
        assert_eq!(read(&path), "whole\nhal\nnext\n");
    }

    #[test]
    fn a_link_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        std::fs::write(temp.path().join("target"), "").unwrap();
        std::os::unix::fs::symlink("target", &path).unwrap();
        assert_eq!(
            LogFile::open(&path, 100).unwrap_err().raw_os_error(),
            Some(libc::ELOOP)
        );
    }

    #[test]
    fn a_file_taken_away_is_made_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        let mut log = LogFile::open(&path, 20).unwrap();
        log.write(b"12345678\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        log.write(b"abcdefg\n").unwrap();
        assert_eq!(read(&path), "abcdefg\n");
    }
}
