//! Reading and writing kernel files below a cgroup directory.
//!
//! Invariants: a file is never created (`O_CREAT` is never given), a value goes out in one `write(2)`, and every
//! error carries the path and, for a write, the value.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A kernel file or directory that did not do what was asked.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, such as ``write `50` to``.
    pub action: String,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: impl Into<String>, path: &Path, source: io::Error) -> FileError {
        FileError {
            action: action.into(),
            path: path.into(),
            source,
        }
    }

    /// The kernel's error number.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The cgroup is not there any more.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOENT | libc::ENODEV))
    }
}

/// The whole text of `path` without the newline at its end.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    let fail = |source| FileError::new("read", path, source);
    let mut file = File::open(path).map_err(fail)?;
    // Most of them fit: two calls, where the standard library asks for size and position first.
    let mut buffer = [0; 1024];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => bytes.extend_from_slice(&buffer[..got]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The same, but `None` where the file is not there.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>, FileError> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The text of `path` as a value of type `T`.
pub(crate) fn parse<T: std::str::FromStr>(path: &Path) -> Result<T, FileError> {
    let text = read(path)?;
    text.parse().map_err(|_| {
        let source = io::Error::new(
            io::ErrorKind::InvalidData,
            format!("`{text}` was not expected there"),
        );
        FileError::new("read", path, source)
    })
}

/// Writes `value` to `path` in one call.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), FileError> {
    write_each(path, [value])
}

/// Writes each of `values` to `path` in a call of its own, the file being opened once (not at all for no value).
pub(crate) fn write_each<V: AsRef<str>>(
    path: &Path,
    values: impl IntoIterator<Item = V>,
) -> Result<(), FileError> {
    let mut opened: Option<File> = None;
    for value in values {
        let value = value.as_ref();
        let fail = |source| FileError::new(format!("write `{value}` to"), path, source);
        let mut file = match opened.take() {
            Some(file) => file,
            None => OpenOptions::new().write(true).open(path).map_err(fail)?,
        };
        match file.write(value.as_bytes()) {
            Ok(written) if written == value.len() => opened = Some(file),
            Ok(_) => {
                return Err(fail(io::Error::new(
                    io::ErrorKind::WriteZero,
                    "the value was taken only in part",
                )));
            }
            Err(source) => return Err(fail(source)),
        }
    }
    Ok(())
}

/// The value of `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(' ')?;
        if found == key {
            value.trim().parse().ok()
        } else {
            None
        }
    })
}
