//! A cgroup below the container's own, for a process that joins: `--cgroup [CONTROLLERS:]PATH` of the command line.
//!
//! Invariants: it lies below the container's group, so what is promised of that holds for it; it is there already, and
//! is not made; the proof looks for the process in it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Where a process goes: for each hierarchy its directory. `wanted` are the words, `paths` the container's directories
/// by the names of their controllers (joined by commas; `unified`), `promise` the same as /proc/PID/cgroup has it, which
/// is changed to what is wanted.
pub(super) fn of(
    wanted: &[String],
    mut paths: Vec<(String, PathBuf)>,
    promise: &mut BTreeMap<String, String>,
) -> Result<Vec<(String, PathBuf)>, String> {
    for text in wanted {
        let (names, path) = match text.split_once(':') {
            Some((names, path)) => (Some(names), path),
            None => (None, text.as_str()),
        };
        let refuse = |why: &str| format!("cgroup `{text}`: {why}");
        let mut below = PathBuf::new();
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => below.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => return Err(refuse("it leads out of the container's own")),
            }
        }
        let mut met = false;
        for (tree, dir) in &mut paths {
            let named = |name: &str| {
                tree.split(',')
                    .any(|t| t == name || t.strip_prefix("name=") == Some(name))
            };
            if names.is_some_and(|names| !names.split(',').any(named)) {
                continue;
            }
            let there = dir.join(&below);
            if !there.join("cgroup.procs").is_file() {
                match names {
                    // Without a name it is meant wherever it is.
                    None => continue,
                    Some(_) => return Err(refuse("there is no such group in the container's own")),
                }
            }
            met = true;
            *dir = there;
            let held = |name: &str| tree.split(',').any(|t| t == name);
            for (_, promised) in promise.iter_mut().filter(|(name, _)| held(name)) {
                if !below.as_os_str().is_empty() {
                    *promised = format!("{}/{}", promised.trim_end_matches('/'), below.display());
                }
            }
        }
        if !met {
            return Err(refuse("there is no such group in the container's own"));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_process_goes() {
        let root = std::env::temp_dir().join(format!("berth-test-group-{}", std::process::id()));
        for dir in ["pids/c", "pids/c/sub", "cpu/c"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
            std::fs::write(root.join(dir).join("cgroup.procs"), "").unwrap();
        }
        let paths = vec![
            ("pids".to_owned(), root.join("pids/c")),
            ("cpu,cpuacct".to_owned(), root.join("cpu/c")),
        ];
        let promise: BTreeMap<String, String> =
            [("pids".into(), "/c".into()), ("cpu".into(), "/c".into())].into();
        let place = |word: &str| {
            let mut promise = promise.clone();
            of(&[word.to_owned()], paths.clone(), &mut promise)
                .map(|dirs| (dirs[0].1.clone(), promise["pids"].clone(), promise["cpu"].clone()))
        };
        for word in ["sub", "/sub", "pids:sub"] {
            let wanted = (root.join("pids/c/sub"), "/c/sub".to_owned(), "/c".to_owned());
            assert_eq!(place(word), Ok(wanted), "{word}");
        }
        assert_eq!(place("/").unwrap().1, "/c");
        for (word, why) in [
            ("..", "leads out"),
            ("sub/../..", "leads out"),
            ("none", "no such group"),
            ("cpu:sub", "no such group"),
            ("wat:/", "no such group"),
        ] {
            assert!(place(word).unwrap_err().contains(why), "{word}");
        }
        std::fs::remove_dir_all(root).unwrap();
    }
}
