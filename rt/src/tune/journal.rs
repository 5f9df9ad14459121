//! The journal of a tuning: JSON lines in one file, each on its disk (fsync) before what it tells of is done.
//!
//! The first line names version and boot. `begin` and `done` enclose a run; a run without `done` was interrupted. A last
//! line without its newline was never finished, and what it tells of was never done. One process at a time (flock).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::survey::Change;

/// The form of the file.
const VERSION: u32 = 1;

/// The journal could not be read or written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A system call failed.
    #[error("cannot {action} the journal {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process tunes.
    #[error("the journal {} is held by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// It is not berth's, or of a newer form.
    #[error("{}:{line}: not a line of a tuning journal: {what}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Its line.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

impl JournalError {
    /// What helps.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            JournalError::File { .. } => "run as root; --run-dir chooses another folder".into(),
            JournalError::Busy { .. } => "wait until the other berth node tune has ended".into(),
            JournalError::Form { .. } => {
                "it was changed by hand or is of a newer berth: a reboot resets what was tuned; \
                                          remove the file then"
                    .into()
            }
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Line {
    Header {
        version: u32,
        #[serde(rename = "bootId")]
        boot_id: String,
    },
    Begin,
    Change(Change),
    Kept(u32),
    Done,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<Flock<File>>,
    boot_id: String,
    /// Each line with the offset of its first byte.
    lines: Vec<(u64, Line)>,
    end: u64,
    other_boot: bool,
}

impl Journal {
    /// Opens the journal, which need not be there. One of another boot is removed.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, boot_id: &str) -> Result<Journal, JournalError> {
        let mut journal = Journal {
            path: path.into(),
            file: None,
            boot_id: boot_id.into(),
            lines: Vec::new(),
            end: 0,
            other_boot: false,
        };
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(journal),
            other => other.map_err(journal.fail("open"))?,
        };
        journal.hold(file)?;
        journal.read()?;
        if journal.other_boot {
            journal.remove()?;
        }
        Ok(journal)
    }

    /// What interrupts kept their affinity when somebody tried, without taking the journal from whoever holds it.
    #[must_use]
    pub fn kept(path: &Path, boot_id: &str) -> Vec<u32> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Line>(line).ok());
        match lines.next() {
            Some(Line::Header { boot_id: of, .. }) if of == boot_id => {}
            _ => return Vec::new(),
        }
        lines
            .filter_map(|line| match line {
                Line::Kept(irq) => Some(irq),
                _ => None,
            })
            .collect()
    }

    /// How many changes are in force, and whether a run was interrupted, without taking the journal from whoever holds it.
    #[must_use]
    pub fn status(path: &Path, boot_id: &str) -> Option<(usize, bool)> {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Line>(line).ok());
        match lines.next() {
            Some(Line::Header { boot_id: of, .. }) if of == boot_id => {}
            _ => return None,
        }
        let (mut count, mut open) = (0, false);
        for line in lines {
            match line {
                Line::Begin => open = true,
                Line::Done => open = false,
                Line::Change(_) => count += 1,
                _ => {}
            }
        }
        Some((count, open))
    }

    /// Whether the last run was interrupted.
    #[must_use]
    pub fn unfinished(&self) -> bool {
        let last = self
            .lines
            .iter()
            .rev()
            .find(|(_, line)| matches!(line, Line::Begin | Line::Done));
        last.is_some_and(|(_, line)| matches!(line, Line::Begin))
    }

    /// Whether there was a journal of another boot.
    #[must_use]
    pub fn other_boot(&self) -> bool {
        self.other_boot
    }

    /// Where the last run begins: a number for [`changes`](Journal::changes).
    pub(super) fn begin_of_last(&self) -> usize {
        self.lines
            .iter()
            .rposition(|(_, line)| matches!(line, Line::Begin))
            .unwrap_or(0)
    }

    /// The changes from this line on.
    pub(super) fn changes(&self, since: usize) -> Vec<Change> {
        let lines = self.lines.iter().skip(since);
        lines
            .filter_map(|(_, line)| match line {
                Line::Change(change) => Some(change.clone()),
                _ => None,
            })
            .collect()
    }

    /// Begins a run; where it begins.
    pub(super) fn begin(&mut self) -> Result<usize, JournalError> {
        if self.file.is_none() {
            self.create()?;
        }
        let since = self.lines.len();
        self.append(Line::Begin)?;
        Ok(since)
    }

    pub(super) fn add(&mut self, change: &Change) -> Result<(), JournalError> {
        self.append(Line::Change(change.clone()))
    }

    pub(super) fn keep(&mut self, irq: u32) -> Result<(), JournalError> {
        self.append(Line::Kept(irq))
    }

    pub(super) fn finish(&mut self) -> Result<(), JournalError> {
        self.append(Line::Done)
    }

    /// Takes out everything from line `since` on; the whole file where no change is left before it.
    pub(super) fn truncate(&mut self, since: usize) -> Result<(), JournalError> {
        let before = self.lines.iter().take(since);
        if !before
            .clone()
            .any(|(_, line)| matches!(line, Line::Change(_) | Line::Kept(_)))
        {
            return self.remove();
        }
        let Some((offset, _)) = self.lines.get(since) else {
            return Ok(());
        };
        self.end = *offset;
        self.lines.truncate(since);
        let fail = self.fail("shorten");
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(self.end)
            .and_then(|()| file.sync_all())
            .map_err(fail)
    }

    fn fail(&self, action: &'static str) -> impl Fn(io::Error) -> JournalError + use<> {
        let path = self.path.clone();
        move |source| JournalError::File {
            action,
            path: path.clone(),
            source,
        }
    }

    fn hold(&mut self, file: File) -> Result<(), JournalError> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => {
                self.file = Some(held);
                Ok(())
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(JournalError::Busy {
                path: self.path.clone(),
            }),
            Err((_, errno)) => Err(self.fail("lock")(errno.into())),
        }
    }

    fn create(&mut self) -> Result<(), JournalError> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(self.fail("make the folder of"))?;
        }
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path);
        let file = file.map_err(self.fail("create"))?;
        self.hold(file)?;
        let version = VERSION;
        let boot_id = self.boot_id.clone();
        self.append(Line::Header { version, boot_id })?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), JournalError> {
        let Some(folder) = self.path.parent() else {
            return Ok(());
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(self.fail("sync the folder of"))
    }

    fn append(&mut self, line: Line) -> Result<(), JournalError> {
        let fail = self.fail("write");
        let mut text = serde_json::to_string(&line)
            .map_err(io::Error::other)
            .map_err(&fail)?;
        text.push('\n');
        let Some(file) = &mut self.file else {
            return Err(fail(io::Error::other("it is not open")));
        };
        file.seek(SeekFrom::Start(self.end)).map_err(&fail)?;
        file.write_all(text.as_bytes()).map_err(&fail)?;
        file.sync_all().map_err(&fail)?;
        self.lines.push((self.end, line));
        self.end += text.len() as u64;
        Ok(())
    }

    fn remove(&mut self) -> Result<(), JournalError> {
        if self.file.is_some() {
            fs::remove_file(&self.path).map_err(self.fail("remove"))?;
            self.sync_folder()?;
        }
        self.file = None;
        self.lines.clear();
        self.end = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<(), JournalError> {
        let fail = self.fail("read");
        let mut text = String::new();
        if let Some(file) = &mut self.file {
            file.read_to_string(&mut text).map_err(fail)?;
        }
        for (index, whole) in text.split_inclusive('\n').enumerate() {
            // Killed while it was written: nothing was done for it.
            let Some(line) = whole.strip_suffix('\n') else {
                break;
            };
            let form = |what: String| JournalError::Form {
                path: self.path.clone(),
                line: index + 1,
                what,
            };
            let line: Line = serde_json::from_str(line).map_err(|error| form(error.to_string()))?;
            match (&line, index) {
                (Line::Header { version, .. }, 0) if *version != VERSION => {
                    return Err(form(format!("version {version}, expected {VERSION}")));
                }
                (Line::Header { boot_id, .. }, 0) => self.other_boot = *boot_id != self.boot_id,
                (Line::Header { .. }, _) | (_, 0) => {
                    return Err(form("a header, and that once, comes first".into()));
                }
                _ => {}
            }
            self.lines.push((self.end, line));
            self.end += whole.len() as u64;
        }
        if self.lines.is_empty() {
            // Created, and killed before its first line was whole.
            self.remove()?;
        }
        Ok(())
    }
}
