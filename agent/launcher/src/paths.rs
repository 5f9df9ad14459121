//! Where things lie, and the record of how a container ended.
//!
//! ```text
//! RUN/launcher.sock             the launcher
//! RUN/monitors/ID.sock          a monitor
//! RUN/containers/ID/exit.json   Record, written by one rename
//! RUN/verified/HEX              a preloaded image that was hashed in this boot
//! STATE/logs/ID.log, ID.log.1   output, CRI format
//! STATE/containers/ID/          upper and work folder of a writable root; gone once the container ended
//! ETC/profiles/NAME.json        profiles of the node's own
//! ```

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::MONITORS;
use crate::wire::{Exit, Refusal};

/// The three folders.
#[derive(Debug, Clone)]
pub struct Paths {
    /// RUN: sockets and what does not outlive a boot.
    pub run: PathBuf,
    /// STATE: images, logs, writable layers.
    pub state: PathBuf,
    /// ETC: configuration.
    pub config: PathBuf,
}

impl Paths {
    /// RUN/monitors.
    pub fn monitors(&self) -> PathBuf {
        self.run.join(MONITORS)
    }

    /// RUN/containers/ID.
    pub fn container(&self, id: &str) -> PathBuf {
        self.run.join("containers").join(id)
    }

    /// RUN/verified.
    pub fn verified(&self) -> PathBuf {
        self.run.join("verified")
    }

    /// STATE/logs/ID.log.
    pub fn log(&self, id: &str) -> PathBuf {
        self.state.join("logs").join(format!("{id}.log"))
    }

    /// STATE/containers/ID.
    pub fn storage(&self, id: &str) -> PathBuf {
        self.state.join("containers").join(id)
    }

    /// Makes the folders that the launcher and its monitors need.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub fn make(&self) -> io::Result<()> {
        let folders = [
            (self.run.clone(), 0o755),
            (self.monitors(), 0o700),
            (self.run.join("containers"), 0o700),
            (self.verified(), 0o700),
            (self.state.clone(), 0o755),
            (self.state.join("logs"), 0o750),
            (self.state.join("containers"), 0o700),
        ];
        for (folder, mode) in folders {
            make_dir(&folder, mode)?;
        }
        Ok(())
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// The kernel's, with the path.
pub fn make_dir(folder: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
        .map_err(|e| named(folder, e))
}

/// Removes a folder with all in it, however deep a container made it; one that is not there is no error.
///
/// # Errors
/// The kernel's, with the path.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    match berth_images::remove_tree(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(folder, e)),
        _ => Ok(()),
    }
}

/// Removes a file; one that is not there is no error.
///
/// # Errors
/// The kernel's, with the path.
pub fn remove_file(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(file, e)),
        _ => Ok(()),
    }
}

fn named(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// What RUN/containers/ID/exit.json says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`crate::wire::VERSION`].
    pub version: u32,
    /// The container.
    pub id: String,
    /// The workload it was an instance of, where known.
    #[serde(default)]
    pub workload: Option<String>,
    /// Boot it lived in.
    pub boot_id: String,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// Why it never ran.
    #[serde(default)]
    pub failure: Option<Refusal>,
    /// Written for a monitor that was killed: nobody saw how the container ended.
    #[serde(default)]
    pub unwitnessed: bool,
}

impl Record {
    /// Writes `folder/exit.json`: the whole record or none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        make_dir(folder, 0o700)?;
        let (new, path) = (folder.join("exit.json.new"), folder.join("exit.json"));
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut file = std::fs::OpenOptions::new();
        let mut file = file
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        drop(file);
        std::fs::rename(&new, &path)
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// The kernel's, or `InvalidData`.
    pub fn read(folder: &Path) -> io::Result<Option<Record>> {
        match std::fs::read(folder.join("exit.json")) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// `/proc/sys/kernel/random/boot_id`.
///
/// # Errors
/// The kernel's.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Nanoseconds since the epoch.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Field 22 of /proc/PID/stat: clock ticks from boot to the start of the process.
///
/// # Errors
/// `NotFound` where it is gone.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold blanks and brackets: count from its end.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|f| f.parse().ok());
    field.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has no field 22"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_later_fields_do_no_harm() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(temp.path()).unwrap(), None);
        let record = Record {
            version: 1,
            id: "a".into(),
            workload: Some("w".into()),
            boot_id: boot_id().unwrap(),
            exit: Some(Exit {
                code: Some(3),
                signal: None,
                oom: false,
                at: now(),
            }),
            failure: None,
            unwitnessed: false,
        };
        record.write(temp.path()).unwrap();
        assert_eq!(Record::read(temp.path()).unwrap().unwrap(), record);
        assert!(!temp.path().join("exit.json.new").exists());
        let later = r#"{"version":1,"id":"a","boot_id":"b","new":{"x":1}}"#;
        std::fs::write(temp.path().join("exit.json"), later).unwrap();
        assert_eq!(Record::read(temp.path()).unwrap().unwrap().exit, None);
    }

    #[test]
    fn own_start_time_is_there() {
        assert!(start_time(std::process::id() as i32).unwrap() > 0);
        assert!(start_time(i32::MAX).is_err());
    }
}
