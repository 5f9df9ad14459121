//! Appending to a chain, from any number of processes, through power cuts.
//!
//! Invariants: all writing is under flock(2) on FOLDER/lock; the head is written behind the record, so that it
//! never names one that is not there (but by a power cut, which [`Chain::append`] mends and records).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use crate::head::Head;
use crate::read::{self, CURRENT};
use crate::record::{Entry, GAP, Record};
use crate::sink::Sink;

/// Name of the file the newest records are in; see the crate's head.
const HEAD: &str = "head";
const LOCK: &str = "lock";

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of a chain, at least 64 KiB; an eighth of it in each file.
    pub bytes: u64,
}

impl Default for Limits {
    /// 16 MiB.
    fn default() -> Limits {
        Limits { bytes: 16 << 20 }
    }
}

impl Limits {
    fn file(self) -> u64 {
        self.bytes.max(64 << 10) / 8
    }
}

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("audit: {what} {}: {source}", path.display())]
pub struct AuditError {
    /// What was done.
    pub what: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// The kernel's word.
    pub source: io::Error,
}

impl AuditError {
    /// The setting to change, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self.source.raw_os_error() {
            Some(nix::libc::ENOSPC | nix::libc::EDQUOT | nix::libc::EROFS) => {
                Some("--state-dir must be on a disk with room that can be written".into())
            }
            _ => None,
        }
    }
}

/// A chain open for writing.
#[derive(Debug)]
pub struct Chain {
    folder: PathBuf,
    name: String,
    limits: Limits,
    sink: Sink,
    boot: String,
}

impl Chain {
    /// Opens the chain in `folder` (made, 0700, where absent); its name is the folder's.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn open(folder: &Path, limits: Limits, sink: Sink) -> Result<Chain, AuditError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| AuditError { what, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(fail("making", folder))?;
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(boot).map_err(fail("reading", boot))?;
        let chain = Chain {
            name: folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            folder: folder.to_owned(),
            limits,
            sink,
            boot: boot.trim().to_owned(),
        };
        // Both files are there from the beginning: who may not make files in the folder can still append.
        chain.file(LOCK)?;
        chain.file(HEAD)?;
        Ok(chain)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where records go besides.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Where the chain stands, as its head says.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn head(&self) -> Result<Head, AuditError> {
        let file = self.file(HEAD)?;
        let head = Head::read(&file).map_err(|source| self.error("reading", HEAD, source))?;
        Ok(head.unwrap_or_default())
    }

    /// Appends one record; where the chain stands then.
    ///
    /// # Errors
    /// The kernel's, with the path: nothing of the record is in the chain then.
    pub fn append(&self, entry: Entry) -> Result<Head, AuditError> {
        let _lock = self.lock()?;
        let head_file = self.file(HEAD)?;
        let known = Head::read(&head_file).map_err(|source| self.error("reading", HEAD, source))?;
        let (mut head, lost) = self.settle(known)?;
        if let Some(lost) = lost {
            self.put(&mut head, lost, &head_file)?;
        }
        self.put(&mut head, entry, &head_file)?;
        Ok(head)
    }

    /// Waits until every record so far is on the disk.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn sync(&self) -> Result<(), AuditError> {
        for name in [CURRENT, HEAD] {
            match File::open(self.folder.join(name)).and_then(|file| file.sync_data()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.error("syncing", name, e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn error(&self, what: &'static str, name: &str, source: io::Error) -> AuditError {
        let path = self.folder.join(name);
        AuditError { what, path, source }
    }

    fn file(&self, name: &str) -> Result<File, AuditError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(self.folder.join(name))
            .map_err(|e| self.error("opening", name, e))
    }

    fn lock(&self) -> Result<Flock<File>, AuditError> {
        let file = self.file(LOCK)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| self.error("locking", LOCK, e.into()))
    }

    /// The head as the records have it, and what is to be said of records that are not there any more.
    fn settle(&self, known: Option<Head>) -> Result<(Head, Option<Entry>), AuditError> {
        let length = match std::fs::metadata(self.folder.join(CURRENT)) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(self.error("reading", CURRENT, e)),
        };
        match &known {
            Some(head) if head.bytes == length => return Ok((head.clone(), None)),
            None if length == 0
                && read::files(&self.folder)
                    .map_err(|e| self.error("reading", "", e))?
                    .is_empty() =>
            {
                return Ok((Head::default(), None));
            }
            _ => {}
        }
        self.mend(known)
    }

    /// Something was torn, by a power cut or a hand: the longest whole chain is taken, the rest is cut off and told.
    fn mend(&self, known: Option<Head>) -> Result<(Head, Option<Entry>), AuditError> {
        let told = known.clone().unwrap_or_default();
        let whole = read::longest(&self.folder).map_err(|e| self.error("reading", CURRENT, e))?;
        let torn = whole.length - whole.bytes;
        if torn > 0 {
            let file = self.file(CURRENT)?;
            file.set_len(whole.bytes)
                .map_err(|e| self.error("cutting", CURRENT, e))?;
        }
        let mut head = Head {
            bytes: whole.bytes,
            first: told.first,
            first_prev: told.first_prev.clone(),
            boot: told.boot.clone(),
            ..Head::default()
        };
        match &whole.last {
            Some((seq, hash)) => {
                head.seq = *seq;
                head.hash.clone_from(hash);
                if known.is_none()
                    && let Some((first, prev)) = whole.first
                {
                    (head.first, head.first_prev) = (first, prev);
                }
            }
            // Not one record is left: the chain goes on from what the head says.
            None => {
                head.seq = told.first.saturating_sub(1);
                head.hash.clone_from(&told.first_prev);
            }
        }
        if head.seq >= told.seq && torn == 0 && known.is_some() {
            // The records are ahead of the head: only that one was late.
            return Ok((head, None));
        }
        let lost = told.seq.saturating_sub(head.seq);
        let text = format!(
            "{lost} records after {} are not there any more, {torn} bytes of a torn one were cut off; the head was of boot {}",
            head.seq,
            if told.boot.is_empty() {
                "unknown"
            } else {
                &told.boot
            }
        );
        let entry = Entry::new(GAP, &self.name, text).result("failed").detail(json!({
            "after": head.seq, "lost": lost, "tornBytes": torn, "headSeq": told.seq, "headHash": told.hash,
            "headBoot": told.boot, "sameBoot": told.boot == self.boot,
        }));
        Ok((head, Some(entry)))
    }

    /// Writes one record and the head.
    fn put(&self, head: &mut Head, entry: Entry, head_file: &File) -> Result<(), AuditError> {
        if head.bytes >= self.limits.file() {
            self.rotate(head)?;
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let seq = head.seq + 1;
        let (line, hash) = entry.line(seq, &head.hash, &self.boot, at);
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(self.folder.join(CURRENT))
            .map_err(|e| self.error("opening", CURRENT, e))?;
        if let Err(e) = file.write_all(line.as_bytes()) {
            // What is behind the last whole record is taken back; where even that fails the next append does it.
            let _ = file.set_len(head.bytes);
            return Err(self.error("writing", CURRENT, e));
        }
        head.seq = seq;
        head.hash = hash;
        head.bytes += line.len() as u64;
        head.boot.clone_from(&self.boot);
        head.write(head_file)
            .map_err(|e| self.error("writing", HEAD, e))?;
        if let Ok(record) = serde_json::from_str::<Record>(line.trim_end()) {
            self.sink.send(&self.name, &record);
        }
        Ok(())
    }

    /// The full file gets its number, and the oldest ones go.
    fn rotate(&self, head: &mut Head) -> Result<(), AuditError> {
        let first =
            read::first_of(&self.folder.join(CURRENT)).map_err(|e| self.error("reading", CURRENT, e))?;
        let first = first.map_or(head.seq, |record| record.seq);
        // The disk must have it before it is only found by its new name.
        self.sync()?;
        let name = read::numbered(first);
        std::fs::rename(self.folder.join(CURRENT), self.folder.join(&name))
            .map_err(|e| self.error("renaming", CURRENT, e))?;
        head.bytes = 0;
        let mut old = read::files(&self.folder).map_err(|e| self.error("reading", "", e))?;
        old.retain(|path| path.file_name().is_some_and(|n| n != CURRENT));
        while old.len() > 7 {
            let oldest = old.remove(0);
            if let Ok(Some(next)) = read::first_of(&old[0]) {
                (head.first, head.first_prev) = (next.seq, next.prev);
            }
            std::fs::remove_file(&oldest).map_err(|source| AuditError {
                what: "removing",
                path: oldest,
                source,
            })?;
        }
        Ok(())
    }
}
