//! The policy's file: read when it has changed, refused when anybody but root could have written it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Policy;

/// Makes a policy of a file's text; the message has the place (`FILE:LINE:COLUMN: …`).
pub type Parse = fn(&Path, &str) -> Result<Policy, String>;

/// The policy as JSON, for those that have no reader of YAML.
///
/// # Errors
/// Line, column and what is wrong.
pub fn from_json(file: &Path, text: &str) -> Result<Policy, String> {
    serde_json::from_str(text).map_err(|e| format!("{}: {e}", file.display()))
}

/// Why there is no policy, and so no launch.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Others than root can write it.
    #[error("{path} can be written by others than root (owner {uid}, mode {mode:o})")]
    Open {
        /// Which file or folder.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// It says what cannot be.
    #[error("{0}")]
    Wrong(String),
}

impl PolicyError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            PolicyError::Open { path, .. } => Some(format!("chown root {0}; chmod go-w {0}", path.display())),
            PolicyError::Wrong(_) => {
                Some("mend the launcher's policy, or move it away for the defaults".into())
            }
            PolicyError::Read { .. } => None,
        }
    }
}

/// Inode, size, times.
type Stamp = (u64, u64, i64, i64);

/// The file and what it said last.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    parse: Parse,
    stamp: Option<Stamp>,
    policy: Arc<Policy>,
}

impl PolicyFile {
    /// ETC/launcher/policy.yaml below `config`. Nothing is read yet.
    pub fn new(config: &Path, parse: Parse) -> PolicyFile {
        PolicyFile {
            path: config.join("launcher").join("policy.yaml"),
            parse,
            stamp: None,
            policy: Arc::default(),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The policy as the file is now.
    ///
    /// # Errors
    /// [`PolicyError`]: the file is there and cannot be believed.
    pub fn read(&mut self) -> Result<Arc<Policy>, PolicyError> {
        let meta = match std::fs::symlink_metadata(&self.path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                (self.stamp, self.policy) = (None, Arc::default());
                return Ok(self.policy.clone());
            }
            Err(source) => return Err(self.unread(source)),
        };
        for path in [Some(self.path.as_path()), self.path.parent()]
            .into_iter()
            .flatten()
        {
            of_root(path)?;
        }
        let stamp = (
            meta.ino(),
            meta.size(),
            meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            meta.ctime() * 1_000_000_000 + meta.ctime_nsec(),
        );
        if self.stamp != Some(stamp) {
            let text = std::fs::read_to_string(&self.path).map_err(|source| self.unread(source))?;
            let policy = (self.parse)(&self.path, &text).map_err(PolicyError::Wrong)?;
            policy
                .validate()
                .map_err(|why| PolicyError::Wrong(format!("{}: {why}", self.path.display())))?;
            (self.stamp, self.policy) = (Some(stamp), Arc::new(policy));
        }
        Ok(self.policy.clone())
    }

    fn unread(&self, source: io::Error) -> PolicyError {
        PolicyError::Read {
            path: self.path.clone(),
            source,
        }
    }
}

fn of_root(path: &Path) -> Result<(), PolicyError> {
    let meta = std::fs::metadata(path).map_err(|source| PolicyError::Read {
        path: path.to_owned(),
        source,
    })?;
    if meta.uid() == 0 && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(PolicyError::Open {
        path: path.to_owned(),
        uid: meta.uid(),
        mode: meta.mode() & 0o7777,
    })
}
