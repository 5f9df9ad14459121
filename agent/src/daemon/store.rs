//! The desired state: documents of the configuration folder, documents applied, what was stopped by hand; and
//! the file that keeps them, STATE/state/desired.json.
//!
//! Invariants: the file is replaced by one rename, written through to the disk before and after; an unreadable
//! one is reported and kept aside as `desired.json.corrupt-N`; a folder with any fault changes nothing (its last
//! good documents are in the state file too, so that this holds over a restart).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berth_documents::{Kind, Set};
use prometheus::{IntCounterVec, Opts, Registry};
use serde::{Deserialize, Serialize};

use super::metrics::register;

/// Version of the file.
const VERSION: u32 = 1;

/// Counters of the state file.
pub(crate) struct Metrics {
    pub writes: IntCounterVec,
    pub loads: IntCounterVec,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let writes = Opts::new("berth_state_writes_total", "Writes of the state file, by result.");
        let loads = Opts::new(
            "berth_document_loads_total",
            "Readings of the configuration folder, by result.",
        );
        Ok(Metrics {
            writes: register(registry, IntCounterVec::new(writes, &["result"]))?,
            loads: register(registry, IntCounterVec::new(loads, &["result"]))?,
        })
    }
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desired {
    /// From the configuration folder.
    pub files: Set,
    /// From `berth apply`.
    pub applied: Set,
    /// Stopped by hand.
    pub stopped: BTreeSet<String>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    files: &'a Set,
    applied: &'a Set,
    stopped: &'a BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    version: u32,
    #[serde(default)]
    files: Set,
    #[serde(default)]
    applied: Set,
    #[serde(default)]
    stopped: BTreeSet<String>,
}

/// Why the state file gives nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path}: {problem}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Desired {
    /// Both together; the folder's documents go before those applied.
    pub(crate) fn effective(&self) -> Set {
        self.applied.apply(&self.files).0
    }

    /// Kind and name of every document of the folder.
    pub(crate) fn file_keys(&self) -> Vec<(Kind, String)> {
        self.files.keys()
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    /// [`LoadError`].
    pub(crate) fn load(path: &Path) -> Result<Option<Desired>, LoadError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                return Err(LoadError::Corrupt {
                    path: path.to_owned(),
                    problem: "not UTF-8".to_owned(),
                });
            }
            Err(source) => {
                return Err(LoadError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let corrupt = |problem: String| LoadError::Corrupt {
            path: path.to_owned(),
            problem,
        };
        let read: Read = serde_json::from_str(&text).map_err(|e| corrupt(e.to_string()))?;
        if read.version != VERSION {
            return Err(corrupt(format!(
                "version {}, this berth reads {VERSION}",
                read.version
            )));
        }
        let desired = Desired {
            files: read.files,
            applied: read.applied,
            stopped: read.stopped,
        };
        let problems = desired.effective().validate();
        if let Some((what, problem)) = problems.first() {
            return Err(corrupt(format!("{what}: {}: {}", problem.path, problem.message)));
        }
        Ok(Some(desired))
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub(crate) fn save(&self, path: &Path, metrics: &Metrics) -> io::Result<()> {
        let done = self
            .write(path)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())));
        metrics
            .writes
            .with_label_values(&[if done.is_ok() { "ok" } else { "failed" }])
            .inc();
        done
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(&Written {
            version: VERSION,
            files: &self.files,
            applied: &self.applied,
            stopped: &self.stopped,
        })?;
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    }
}

/// Puts an unreadable file out of the way; where it lies now.
///
/// # Errors
/// The kernel's.
pub(crate) fn keep_aside(path: &Path) -> io::Result<PathBuf> {
    for n in 1..1000 {
        let aside = path.with_extension(format!("json.corrupt-{n}"));
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!(
        "{}: 999 unreadable state files are kept already",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&Registry::new()).unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/desired.json");
        assert!(Desired::load(&path).unwrap().is_none());
        let text = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: a}\nspec: {image: x}\n";
        let source = berth_documents::Source {
            name: "a.yaml".into(),
            text: text.into(),
        };
        let report = berth_documents::check_sources(&[source], &Set::default());
        assert!(report.faults.is_empty(), "{:?}", report.faults);
        let desired = Desired {
            applied: report.set,
            stopped: ["a".to_owned()].into(),
            ..Desired::default()
        };
        desired.save(&path, &metrics()).unwrap();
        let back = Desired::load(&path).unwrap().unwrap();
        assert_eq!(back.stopped, desired.stopped);
        assert_eq!(back.effective().keys(), desired.effective().keys());
    }

    #[test]
    fn an_unreadable_file_is_told_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desired.json");
        for text in [
            &b"{\"version\":1"[..],
            b"{\"version\":99}",
            b"\xff\xff",
            b"{\"version\":1,\"more\":1}",
        ] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(Desired::load(&path), Err(LoadError::Corrupt { .. })),
                "{text:?}"
            );
            let aside = keep_aside(&path).unwrap();
            assert_eq!(fs::read(aside).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
