//! SELinux labels of the host's files that a workload mounts (xattr(7) `security.selinux`): `relabel: private` gives them the
//! context and the pair of the container's own files, `shared` that of files which several containers write.
//!
//! Invariants: only what has one of berth's own types changes its label, so that a mistaken path never takes a file of the
//! node's from the programs that need it; the policy holds the launcher to the same. No symbolic link is followed and no
//! file system below is entered. Everything is looked at before the first label changes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use crate::wire::{BindMount, Refusal, Relabel};

const ATTRIBUTE: &str = "security.selinux";
/// What several containers read and write.
const SHARED: &str = "system_u:object_r:berth_shared_file_t:s0";
/// The types whose files are berth's to label.
const OURS: [&str; 2] = ["berth_shared_file_t", "berth_container_file_t"];
/// Most files below one source.
const MOST: usize = 1_000_000;

fn refusal(message: String, hint: Option<&str>) -> Refusal {
    Refusal {
        stage: "relabel".into(),
        message,
        hint: hint.map(str::to_owned),
    }
}

/// The context that each source is to have; `private`: that of the container's files, none on a node without SELinux.
///
/// # Errors
/// A refusal of the stage `relabel`: there is no SELinux, or a source is asked for in two ways.
pub(crate) fn wanted(mounts: &[BindMount], private: Option<&str>) -> Result<Vec<(PathBuf, String)>, Refusal> {
    let mut all: Vec<(PathBuf, String)> = Vec::new();
    for mount in mounts {
        let Some(relabel) = mount.relabel else { continue };
        let source = mount.source.display();
        let Some(private) = private else {
            let hint = "take `relabel` out of the mount: this node has no labels";
            return Err(refusal(
                format!("{source}: SELinux is not enabled on this node"),
                Some(hint),
            ));
        };
        let context = match relabel {
            Relabel::Private => private,
            Relabel::Shared => SHARED,
        };
        if let Some((other, _)) = all.iter().find(|(path, label)| {
            label != context && (path.starts_with(&mount.source) || mount.source.starts_with(path))
        }) {
            return Err(refusal(
                format!("{source} and {} are to be private and shared", other.display()),
                Some("relabel them alike"),
            ));
        }
        all.push((mount.source.clone(), context.to_owned()));
    }
    Ok(all)
}

/// Labels them.
///
/// # Errors
/// A refusal of the stage `relabel`: a file of another type, a mount below, a symbolic link on the way, or what the kernel says.
pub(crate) fn all(wanted: &[(PathBuf, String)]) -> Result<(), Refusal> {
    for (source, context) in wanted {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let root = openat2(AT_FDCWD, source, how).map_err(|e| failed(source, &e.into()))?;
        let tree = Tree { source, root };
        for (path, label) in tree.look()? {
            if label != *context {
                tree.set(&path, context)?;
            }
        }
    }
    Ok(())
}

fn failed(path: &Path, e: &io::Error) -> Refusal {
    refusal(format!("{}: {e}", path.display()), None)
}

/// A source, opened: whoever exchanges its folders meanwhile leads nobody out of it.
struct Tree<'a> {
    source: &'a Path,
    root: OwnedFd,
}

impl Tree<'_> {
    fn shown(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() {
            self.source.to_owned()
        } else {
            self.source.join(path)
        }
    }

    /// The thing itself at a path below, a symbolic link too.
    fn open(&self, path: &Path) -> Result<File, Refusal> {
        if path.as_os_str().is_empty() {
            return self
                .root
                .try_clone()
                .map(File::from)
                .map_err(|e| failed(self.source, &e));
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        let opened = openat2(&self.root, path, how);
        opened
            .map(File::from)
            .map_err(|e| failed(&self.shown(path), &e.into()))
    }

    /// Everything in it with its context, or why it cannot be labelled.
    fn look(&self) -> Result<Vec<(PathBuf, String)>, Refusal> {
        let mut found: Vec<(PathBuf, String)> = Vec::new();
        let mut open = vec![PathBuf::new()];
        let mut device = None;
        while let Some(path) = open.pop() {
            let shown = self.shown(&path);
            let file = self.open(&path)?;
            let meta = file.metadata().map_err(|e| failed(&shown, &e))?;
            if *device.get_or_insert(meta.dev()) != meta.dev() {
                let message = format!("{}: another file system is mounted there", shown.display());
                return Err(refusal(message, Some("unmount it, or mount it by itself")));
            }
            let label = read(&file).map_err(|e| failed(&shown, &e))?;
            ours(&shown, &label)?;
            if found.len() >= MOST {
                let message = format!("{}: more than {MOST} files", self.source.display());
                return Err(refusal(message, Some("label them beforehand")));
            }
            if meta.is_dir() {
                for entry in fs::read_dir(name(&file)).map_err(|e| failed(&shown, &e))? {
                    open.push(path.join(entry.map_err(|e| failed(&shown, &e))?.file_name()));
                }
            }
            found.push((path, label));
        }
        Ok(found)
    }

    /// Give what lies there now its context, and read it back.
    fn set(&self, path: &Path, context: &str) -> Result<(), Refusal> {
        let (shown, file) = (self.shown(path), self.open(path)?);
        let words = |e: io::Error| failed(&shown, &e);
        ours(&shown, &read(&file).map_err(words)?)?;
        xattr::set_deref(name(&file), ATTRIBUTE, context.as_bytes()).map_err(words)?;
        let now = read(&file).map_err(words)?;
        if now == context {
            Ok(())
        } else {
            Err(refusal(
                format!("{} is {now}, not {context}", shown.display()),
                None,
            ))
        }
    }
}

/// The name in /proc of an open file.
fn name(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn read(file: &File) -> io::Result<String> {
    let value = xattr::get_deref(name(file), ATTRIBUTE)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&value).trim_end_matches('\0').to_owned())
}

fn ours(shown: &Path, label: &str) -> Result<(), Refusal> {
    let kind = label.split(':').nth(2).unwrap_or_default();
    if OURS.contains(&kind) {
        return Ok(());
    }
    let hint = "files of the node keep their label: give this folder to berth once, with \
                `chcon -R -t berth_shared_file_t` and in the node's file_contexts";
    let message = format!("{} is {label}: not berth's to label", shown.display());
    Err(refusal(message, Some(hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &str, relabel: Option<Relabel>) -> BindMount {
        BindMount {
            source: source.into(),
            destination: "/data".into(),
            read_only: false,
            relabel,
        }
    }

    #[test]
    fn each_source_gets_one_context_or_a_refusal() {
        let label = "system_u:object_r:berth_container_file_t:s0:c1,c2";
        let own = Some(label);
        let two = [
            mount("/srv/a", Some(Relabel::Private)),
            mount("/srv/b", Some(Relabel::Shared)),
            mount("/srv/c", None),
        ];
        let all = wanted(&two, own).unwrap();
        assert_eq!(
            all,
            [
                (PathBuf::from("/srv/a"), label.to_owned()),
                (PathBuf::from("/srv/b"), SHARED.to_owned())
            ]
        );
        let refused = wanted(&two, None).unwrap_err();
        assert!(refused.message.contains("/srv/a") && refused.message.contains("SELinux is not enabled"));
        assert!(wanted(&two[2..], None).unwrap().is_empty());
        let below = [
            mount("/srv/a", Some(Relabel::Private)),
            mount("/srv/a/b", Some(Relabel::Shared)),
        ];
        assert!(
            wanted(&below, own)
                .unwrap_err()
                .message
                .contains("private and shared")
        );
    }

    /// As root: whose labels a kernel without SELinux keeps like any other attribute.
    #[test]
    fn a_tree_is_labelled_whole_or_not_at_all() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let own = "system_u:object_r:berth_container_file_t:s0:c1,c2";
        let source = dir.path().join("data");
        fs::create_dir_all(source.join("below")).unwrap();
        fs::write(source.join("below/file"), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", source.join("link")).unwrap();
        let outside = "system_u:object_r:host_file_t:s0";
        let label = |path: &Path, value: &str| xattr::set(path, ATTRIBUTE, value.as_bytes()).unwrap();
        label(&dir.path().join("outside"), outside);
        let tree = ["", "below", "below/file", "link"].map(|name| source.join(name));
        tree.iter().for_each(|path| label(path, SHARED));
        let labels = || -> Vec<String> {
            let of = |path: &PathBuf| xattr::get(path, ATTRIBUTE).unwrap().unwrap();
            tree.iter()
                .map(|path| String::from_utf8(of(path)).unwrap())
                .collect()
        };
        let wanted = [(source.clone(), own.to_owned())];
        // One file of the node's among them: nothing changes.
        label(&tree[2], outside);
        let refused = all(&wanted).unwrap_err();
        assert!(refused.message.contains("below/file"), "{}", refused.message);
        assert_eq!(labels(), [SHARED, SHARED, outside, SHARED]);
        label(&tree[2], SHARED);
        all(&wanted).unwrap();
        assert_eq!(labels(), [own; 4]);
        // A link leads nowhere, and none leads to the source.
        let there = xattr::get(dir.path().join("outside"), ATTRIBUTE)
            .unwrap()
            .unwrap();
        assert_eq!(String::from_utf8(there).unwrap(), outside);
        let by = dir.path().join("by");
        std::os::unix::fs::symlink(&source, &by).unwrap();
        assert!(all(&[(by, SHARED.to_owned())]).is_err());
        // A file by itself.
        all(&[(tree[2].clone(), SHARED.to_owned())]).unwrap();
        assert_eq!(labels()[2], SHARED);
    }

    #[test]
    fn what_is_not_berths_keeps_its_label() {
        for label in [
            "system_u:object_r:host_file_t:s0",
            "system_u:object_r:berth_config_t:s0",
            "",
        ] {
            let refused = ours(Path::new("/etc"), label).unwrap_err();
            assert!(refused.message.contains("not berth's") && refused.hint.unwrap().contains("chcon"));
        }
        assert!(ours(Path::new("/srv"), SHARED).is_ok());
        assert!(
            ours(
                Path::new("/srv"),
                "system_u:object_r:berth_container_file_t:s0:c7,c8"
            )
            .is_ok()
        );
    }
}
