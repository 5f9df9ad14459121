//! Where things lie, and the record of how a container ended.
//!
//! ```text
//! RUN/launcher.sock             the launcher
//! RUN/monitors/ID.sock          a monitor
//! RUN/containers/ID/exit.json   Record, written by one rename
//! RUN/verified/HEX              a preloaded image that was hashed in this boot
//! STATE/logs/ID.log, ID.log.1   output, CRI format
//! STATE/containers/ID/          upper and work folder of a writable root; gone once the container ended
//! STATE/audit/launcher/         what was asked for, launched, refused, drifted (berth-audit)
//! STATE/ranges/N                the container that has range N of user ids
//! ETC/profiles/NAME.json        profiles of the node's own
//! ETC/launcher/policy.yaml      what may be asked for
//! ```

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
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

    /// RUN/secrets/ID: where secrets are put together, for the moment a container is made.
    pub fn secrets(&self, id: &str) -> PathBuf {
        self.run.join("secrets").join(id)
    }

    /// RUN/udev/ID: what is /run/udev in a container that hears events of its devices.
    pub fn udev(&self, id: &str) -> PathBuf {
        self.run.join("udev").join(id)
    }

    /// RUN/vfio/ID: PCI functions that are bound to vfio-pci for a container.
    pub fn vfio(&self, id: &str) -> PathBuf {
        self.run.join("vfio").join(id)
    }

    /// STATE/audit/WHOSE: the audit log of `agent` or `launcher`.
    pub fn audit(&self, whose: &str) -> PathBuf {
        self.state.join("audit").join(whose)
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
            (self.run.join("secrets"), 0o700),
            (self.run.join("udev"), 0o700),
            (self.run.join("vfio"), 0o700),
            (self.verified(), 0o700),
            (self.state.clone(), 0o755),
            (self.state.join("logs"), 0o750),
            (self.state.join("containers"), 0o700),
            (self.state.join("audit"), 0o700),
        ];
        for (folder, mode) in folders {
            make_dir(&folder, mode)?;
            owned(&folder)?;
        }
        Ok(())
    }

    /// Moves STATE/containers/ID out of the way, so that its name is free at once however much is in it; gives the
    /// folder to be removed. `None`: there is none.
    ///
    /// # Errors
    /// The kernel's, with the path: then the storage must not be used again.
    pub fn set_aside(&self, id: &str) -> io::Result<Option<PathBuf>> {
        let from = self.storage(id);
        for n in 0..1000 {
            // No id begins with a dot.
            let to = self.state.join("containers").join(format!("{ASIDE}{id}.{n}"));
            match renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => return Ok(Some(to)),
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(named(&from, errno.into())),
            }
        }
        let e = io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a thousand of its like wait to be removed",
        );
        Err(named(&from, e))
    }

    /// What was set aside and is not removed yet.
    pub fn aside(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state.join("containers"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter(|e| e.file_name().to_string_lossy().starts_with(ASIDE))
            .map(|e| e.path())
            .collect()
    }
}

/// Begins the name of storage that is to be removed.
const ASIDE: &str = ".gone.";

/// A folder that is there already is trusted only where nobody but its owner can write it, and that is this user.
fn owned(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(folder).map_err(|e| named(folder, e))?;
    let own = nix::unistd::geteuid().as_raw();
    let what = if !meta.is_dir() {
        "is no folder".to_owned()
    } else if meta.uid() != own {
        format!(
            "belongs to uid {}, not to uid {own}: chown it, or name another folder",
            meta.uid()
        )
    } else if meta.mode() & 0o022 != 0 {
        format!(
            "can be written by others (mode {:o}): chmod go-w it",
            meta.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(named(
        folder,
        io::Error::new(io::ErrorKind::PermissionDenied, what),
    ))
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
    fn a_folder_that_others_can_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let paths = |name: &str| Paths {
            run: temp.path().join(name).join("run"),
            state: temp.path().join(name).join("state"),
            config: temp.path().join(name).join("etc"),
        };
        paths("good").make().unwrap();
        paths("good").make().unwrap();
        for (sub, mode) in [
            ("run/monitors", 0o770),
            ("run", 0o777),
            ("state/containers", 0o702),
        ] {
            let folder = temp.path().join("good").join(sub);
            let before = std::fs::metadata(&folder).unwrap().permissions();
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = paths("good").make().unwrap_err().to_string();
            assert!(
                refused.contains(sub) && refused.contains("can be written by others"),
                "{refused}"
            );
            std::fs::set_permissions(&folder, before).unwrap();
        }
        let link = paths("link");
        std::fs::create_dir_all(&link.run).unwrap();
        std::os::unix::fs::symlink(paths("good").monitors(), link.monitors()).unwrap();
        assert!(link.make().unwrap_err().to_string().contains("is no folder"));
        if nix::unistd::geteuid().is_root() {
            let folder = paths("good").monitors();
            std::os::unix::fs::chown(&folder, Some(4242), None).unwrap();
            assert!(
                paths("good")
                    .make()
                    .unwrap_err()
                    .to_string()
                    .contains("belongs to uid 4242")
            );
        }
    }

    #[test]
    fn storage_that_is_set_aside_frees_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let paths = Paths {
            run: temp.path().join("run"),
            state: temp.path().join("state"),
            config: temp.path().join("etc"),
        };
        assert_eq!(paths.set_aside("a").unwrap(), None);
        for n in 1..=3 {
            std::fs::create_dir_all(paths.storage("a").join("upper/deep")).unwrap();
            assert!(paths.set_aside("a").unwrap().unwrap().join("upper/deep").is_dir());
            assert!(!paths.storage("a").exists());
            assert_eq!(paths.aside().len(), n);
        }
        for folder in paths.aside() {
            remove_tree(&folder).unwrap();
        }
        assert!(paths.aside().is_empty());
    }

    #[test]
    fn own_start_time_is_there() {
        assert!(start_time(std::process::id() as i32).unwrap() > 0);
        assert!(start_time(i32::MAX).is_err());
    }
}
