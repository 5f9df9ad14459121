//! The files behind the paths that were named, and their text.
//!
//! Only regular files are read, never more than [`MAX_BYTES`] of one, so that a pipe or a device named by
//! mistake neither blocks nor fills the memory.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Reading;
use crate::fault::{Fault, Severity};
use crate::tree::MAX_BYTES;

impl Reading<'_> {
    pub(super) fn whole(&mut self, file: &Path, message: impl Into<String>, hint: Option<&str>) {
        self.lost = true;
        self.faults.push((
            self.file_index,
            Fault {
                file: file.to_owned(),
                line: 0,
                column: 0,
                path: String::new(),
                message: message.into(),
                expected: None,
                hint: hint.map(str::to_owned),
                severity: Severity::Error,
            },
        ));
    }

    /// The files that `path` stands for.
    pub(super) fn collect(&mut self, path: &Path, files: &mut Vec<PathBuf>) {
        if !path.is_dir() {
            files.push(path.to_owned());
            return;
        }
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => {
                self.whole(path, format!("the folder cannot be read: {error}"), None);
                return;
            }
        };
        let mut found: Vec<PathBuf> = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"))
            .filter(|path| {
                !path
                    .file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            })
            .filter(|path| !path.is_dir())
            .collect();
        found.sort();
        files.append(&mut found);
    }

    pub(super) fn read(&mut self, file: &Path) -> Option<String> {
        match fs::metadata(file) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => {
                self.whole(
                    file,
                    "not a regular file",
                    Some("name a file or a folder of *.yaml and *.yml files"),
                );
                return None;
            }
            Err(error) => {
                self.whole(file, format!("cannot be read: {error}"), None);
                return None;
            }
        }
        let mut bytes = Vec::new();
        let limit = MAX_BYTES as u64 + 1;
        if let Err(error) = File::open(file).and_then(|open| open.take(limit).read_to_end(&mut bytes)) {
            self.whole(file, format!("cannot be read: {error}"), None);
            return None;
        }
        if bytes.len() > MAX_BYTES {
            self.whole(
                file,
                format!("longer than {MAX_BYTES} bytes"),
                Some("split it into several files"),
            );
            return None;
        }
        match String::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let good = String::from_utf8_lossy(good);
                let line = good.matches('\n').count() + 1;
                let column = good.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
                self.whole(file, "not UTF-8 text", Some("save the file as UTF-8"));
                if let Some((_, fault)) = self.faults.last_mut() {
                    (fault.line, fault.column) = (line, column);
                }
                None
            }
        }
    }
}
