//! Profiles by name: the shipped ones, and the node's own in ETC/profiles/NAME.json (the `spec` of a document of
//! kind SecurityProfile, as JSON).
//!
//! Invariants: whoever may write there decides what containers may do, so a file or folder that anybody but root
//! can write is refused, and so is everything else while one file is wrong; a resolved profile is kept only as
//! long as no file in the folder has changed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_policies::{Profile, ProfileError, ProfileSpec};

/// Why there is no such profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// The folder or a file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Somebody else can write it.
    #[error("{path} can be written by others than root (owner {uid}, mode {mode:o})")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// Not a profile.
    #[error("{path}: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: serde_json::Error,
    },
    /// It does not resolve.
    #[error(transparent)]
    Resolve(#[from] ProfileError),
}

impl ProfilesError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            ProfilesError::Resolve(e) => e.hint(),
            ProfilesError::Open { path, .. } => {
                Some(format!("chown root {0}; chmod go-w {0}", path.display()))
            }
            _ => None,
        }
    }
}

/// Name, inode, size and times of every file: another stamp, another folder.
type Stamp = Vec<(PathBuf, u64, u64, i64, i64)>;

/// The profiles of this node.
#[derive(Debug)]
pub struct Profiles {
    folder: PathBuf,
    stamp: Stamp,
    resolved: BTreeMap<String, Profile>,
}

impl Profiles {
    /// Those shipped and those in `folder`, which need not exist. Nothing is read yet.
    pub fn new(folder: PathBuf) -> Profiles {
        Profiles {
            folder,
            stamp: Stamp::new(),
            resolved: BTreeMap::new(),
        }
    }

    /// The profile `name`, as the files are now.
    ///
    /// # Errors
    /// [`ProfilesError`].
    pub fn resolve(&mut self, name: &str) -> Result<&Profile, ProfilesError> {
        let stamp = stamp(&self.folder)?;
        if stamp != self.stamp {
            self.resolved.clear();
            self.stamp = stamp;
        }
        if !self.resolved.contains_key(name) {
            let custom = self.read()?;
            self.resolved
                .insert(name.to_owned(), berth_policies::resolve(name, &custom)?);
        }
        Ok(&self.resolved[name])
    }

    fn read(&self) -> Result<BTreeMap<String, ProfileSpec>, ProfilesError> {
        let mut custom = BTreeMap::new();
        for (path, ..) in &self.stamp {
            let Some(name) = path.file_stem().and_then(|s| s.to_str()) else {
                continue;
            };
            let text = std::fs::read(path).map_err(|source| ProfilesError::Read {
                path: path.clone(),
                source,
            })?;
            let spec = serde_json::from_slice(&text).map_err(|source| ProfilesError::Parse {
                path: path.clone(),
                source,
            })?;
            custom.insert(name.to_owned(), spec);
        }
        Ok(custom)
    }
}

fn stamp(folder: &Path) -> Result<Stamp, ProfilesError> {
    let read = |path: &Path, source| ProfilesError::Read {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Stamp::new()),
        Err(e) => return Err(read(folder, e)),
    };
    let of_root = |path: &Path| {
        let meta = std::fs::metadata(path).map_err(|e| read(path, e))?;
        if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            return Err(ProfilesError::Open {
                path: path.to_owned(),
                uid: meta.uid(),
                mode: meta.mode() & 0o7777,
            });
        }
        Ok(meta)
    };
    of_root(folder)?;
    let mut stamp = Stamp::new();
    for entry in entries {
        let path = entry.map_err(|e| read(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let meta = of_root(&path)?;
            stamp.push((
                path,
                meta.ino(),
                meta.size(),
                meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
                meta.ctime_nsec(),
            ));
        }
    }
    stamp.sort();
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn shipped_and_own_profiles() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("profiles");
        let mut profiles = Profiles::new(folder.clone());
        assert!(profiles.resolve("strict").unwrap().capabilities.is_empty());
        assert!(matches!(
            profiles.resolve("net").unwrap_err(),
            ProfilesError::Resolve(_)
        ));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("net.json");
        let write =
            |caps: &str| std::fs::write(&file, format!(r#"{{"capabilities":{{"add":[{caps}]}}}}"#)).unwrap();
        write("\"CAP_NET_RAW\"");
        assert_eq!(profiles.resolve("net").unwrap().capabilities.len(), 1);
        write("\"CAP_NET_RAW\",\"CAP_NET_ADMIN\"");
        assert_eq!(
            profiles.resolve("net").unwrap().capabilities.len(),
            2,
            "a change counts at once"
        );
        write("CAP_NET_RAW");
        assert!(matches!(
            profiles.resolve("net").unwrap_err(),
            ProfilesError::Parse { .. }
        ));
        write("");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let error = profiles.resolve("strict").unwrap_err();
        assert!(
            matches!(error, ProfilesError::Open { .. }) && error.hint().is_some(),
            "{error}"
        );
    }
}
