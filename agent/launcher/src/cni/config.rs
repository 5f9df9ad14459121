//! Networks of the node: `NAME.conflist` files of /etc/berth/cni and /etc/cni/net.d, in the order of their names.
//!
//! Invariants: a file is read only where it and its folder are root's and nobody else can write them; the type of a
//! plug-in is a bare file name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest file that is read.
const LONGEST: u64 = 1 << 20;
/// Versions of the specification that are spoken.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// No file has it.
    #[error("there is no network `{name}` in {folders}{others}")]
    NotFound {
        /// The network.
        name: String,
        /// Where it was looked for.
        folders: String,
        /// What is wrong with the files there are.
        others: String,
    },
    /// The file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Ports are asked for, and nobody takes them.
    #[error("network `{network}` has no plug-in that takes port mappings")]
    NoPorts {
        /// The network.
        network: String,
    },
    /// No trusted plug-in of that name.
    #[error("plug-in `{kind}`: {reason}")]
    Plugin {
        /// Its type.
        kind: String,
        /// Why not.
        reason: String,
    },
    /// A plug-in refused.
    #[error("plug-in `{plugin}`, {command}: {message}")]
    Said {
        /// Its type.
        plugin: String,
        /// ADD, CHECK or DEL.
        command: &'static str,
        /// Its words.
        message: String,
    },
}

impl CniError {
    /// What to change.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            CniError::NotFound { .. } => "write a .conflist with that name into /etc/cni/net.d".into(),
            CniError::NoPorts { .. } => {
                "add {\"type\": \"portmap\", \"capabilities\": {\"portMappings\": true}} to its plugins"
                    .into()
            }
            CniError::Plugin { .. } => {
                "apt-get install containernetworking-plugins; folder and file root's alone".into()
            }
            CniError::Bad { .. } | CniError::Said { .. } => return None,
        })
    }
}

/// One network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Network {
    /// `cniVersion`.
    pub(super) version: String,
    /// `name`.
    pub(super) name: String,
    /// `plugins`, in order, each with a `type` that is a bare name.
    pub(super) plugins: Vec<Value>,
    /// `disableCheck`.
    #[serde(default)]
    pub(super) unchecked: bool,
}

impl Network {
    /// CHECK came with 0.4.0, and a network may say that it is not to be asked for.
    pub(super) fn can_check(&self) -> bool {
        !self.unchecked && !self.version.starts_with("0.3")
    }
}

/// The type of a plug-in that [`find`] let through.
pub(super) fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 64 bytes: neither a path nor an option.
pub(crate) fn bare(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    first && rest && name.len() <= 64
}

/// Root's, and nobody else may write it.
pub(super) fn trusted(path: &Path) -> Result<fs::Metadata, String> {
    let meta = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if meta.uid() != 0 {
        return Err(format!(
            "{} belongs to uid {}, not to root",
            path.display(),
            meta.uid()
        ));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!("{} can be written by others than root", path.display()));
    }
    Ok(meta)
}

/// The first network of that name.
pub(super) fn find(folders: &[PathBuf], name: &str) -> Result<Network, CniError> {
    let mut wrong = Vec::new();
    for folder in folders {
        let mut files: Vec<PathBuf> = match fs::read_dir(folder) {
            Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => {
                wrong.push(format!("{}: {e}", folder.display()));
                continue;
            }
        };
        if let Err(reason) = trusted(folder) {
            wrong.push(reason);
            continue;
        }
        files.retain(|f| f.extension().is_some_and(|e| e == "conflist" || e == "conf"));
        files.sort();
        for file in files {
            match read(&file) {
                Ok(network) if network.name == name => return Ok(network),
                Ok(_) => {}
                Err(e) if named(&file, name) => return Err(e),
                Err(e) => wrong.push(e.to_string()),
            }
        }
    }
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Err(CniError::NotFound {
        name: name.to_owned(),
        folders: folders.join(", "),
        others: wrong.iter().map(|w| format!("; {w}")).collect(),
    })
}

/// Does a file that cannot be used speak of this network?
fn named(file: &Path, name: &str) -> bool {
    let text = fs::read(file).unwrap_or_default();
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    value["name"] == name
}

/// Reads one file.
pub(super) fn read(path: &Path) -> Result<Network, CniError> {
    let bad = |reason: String| CniError::Bad {
        path: path.to_owned(),
        reason,
    };
    let meta = trusted(path).map_err(bad)?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(bad(format!("a file of at most {LONGEST} bytes is read")));
    }
    let text = fs::read(path).map_err(|e| bad(e.to_string()))?;
    parse(&text).map_err(bad)
}

/// The JSON of a network list.
pub(super) fn parse(text: &[u8]) -> Result<Network, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if value["plugins"].is_null() {
        return Err(
            "`plugins` is missing: a .conflist is a list of plug-ins; a single plug-in (.conf) is not taken"
                .into(),
        );
    }
    let text_of = |key: &str| {
        value[key]
            .as_str()
            .map(str::to_owned)
            .ok_or(format!("`{key}` is missing"))
    };
    let (version, name) = (text_of("cniVersion")?, text_of("name")?);
    if !VERSIONS.contains(&version.as_str()) {
        return Err(format!(
            "`cniVersion` {version}: {} are spoken",
            VERSIONS.join(", ")
        ));
    }
    if !bare(&name) {
        return Err(format!(
            "`name` {name:?}: letters, digits, `.`, `_`, `-`, at most 64"
        ));
    }
    let plugins = value["plugins"].as_array().cloned().unwrap_or_default();
    if plugins.is_empty() || plugins.len() > 32 {
        return Err("`plugins`: 1 to 32".into());
    }
    for (n, plugin) in plugins.iter().enumerate() {
        if !bare(kind(plugin)) {
            return Err(format!(
                "`plugins[{n}].type` {}: the name of a plug-in, not a path",
                plugin["type"]
            ));
        }
        // The plug-in looks for this one itself, in the folders it is given.
        let ipam = &plugin["ipam"]["type"];
        if !ipam.is_null() && !ipam.as_str().is_some_and(bare) {
            return Err(format!(
                "`plugins[{n}].ipam.type` {ipam}: the name of a plug-in, not a path"
            ));
        }
    }
    Ok(Network {
        version,
        name,
        plugins,
        unchecked: value["disableCheck"] == Value::Bool(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"cniVersion": "1.0.0", "name": "edge", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}"#;

    #[test]
    fn lists() {
        let network = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((network.name.as_str(), network.plugins.len()), ("edge", 2));
        for (from, to, why) in [
            ("\"bridge\"", "\"../bridge\"", "not a path"),
            ("\"bridge\"", "\"/bin/sh\"", "not a path"),
            ("\"bridge\"", "7", "not a path"),
            ("\"bridge\"", "\"-x\"", "not a path"),
            ("\"host-local\"", "\"a/b\"", "ipam.type"),
            ("1.0.0", "2.0.0", "are spoken"),
            ("\"edge\"", "\"a/b\"", "`name`"),
            ("\"plugins\"", "\"plugin\"", "single plug-in"),
            ("1.0.0\"", "1.0.0\" x", "line 1"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn only_roots_own_files_are_read() {
        use std::os::unix::fs::PermissionsExt;
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let folders = [temp.path().join("none"), temp.path().to_owned()];
        let file = temp.path().join("10-edge.conflist");
        fs::write(&file, GOOD).unwrap();
        fs::write(temp.path().join("00-broken.conflist"), "{").unwrap();
        assert_eq!(find(&folders, "edge").unwrap().name, "edge");
        let missing = find(&folders, "other").unwrap_err();
        assert!(
            missing.to_string().contains("00-broken") && missing.hint().is_some(),
            "{missing}"
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(
            find(&folders, "edge")
                .unwrap_err()
                .to_string()
                .contains("written by others")
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file, Some(4242), None).unwrap();
        assert!(
            find(&folders, "edge")
                .unwrap_err()
                .to_string()
                .contains("uid 4242")
        );
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            find(&folders, "edge")
                .unwrap_err()
                .to_string()
                .contains("written by others")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&text);
        }

        #[test]
        fn any_type_that_is_taken_is_bare(kind in ".{0,20}") {
            let text = serde_json::json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": kind}]}).to_string();
            if let Ok(network) = parse(text.as_bytes()) {
                let kind = super::kind(&network.plugins[0]);
                prop_assert!(!kind.contains('/') && !kind.starts_with('.') && !kind.starts_with('-'));
            }
        }
    }
}
