//! User and group ids of containers with a user namespace of their own (user_namespaces(7)): 65536 of them for each
//! container, that no other container of this node has.
//!
//! ```text
//! STATE/ranges/N -> ID      range N is ID's; a symbolic link, made or not made by one system call
//! ```
//! Range N is the host's ids BASE + N × 65536 and on, for users and groups alike. Invariants: a range is taken before
//! the plan is made and freed after everything of its container is gone, its writable layer too; the folder alone
//! says which are taken, so that a launcher that starts anew, and the next boot, know them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Spec};

use crate::paths;
use crate::wire::Refusal;

/// Ids of one range: every id of 16 bits.
pub const SIZE: u32 = 1 << 16;
/// First id of the first range where the launcher is not told another.
pub const BASE: u32 = 0x1000_0000;
/// Most ranges.
const MOST: u32 = 16384;

/// The ranges of this node.
#[derive(Debug)]
pub(crate) struct Ranges {
    folder: PathBuf,
    base: u32,
}

/// How many ranges lie above a base. `Err`: it cannot be one.
pub(crate) fn count(base: u32) -> Result<u32, String> {
    if base < SIZE || !base.is_multiple_of(SIZE) {
        return Err(format!("{base} is not a multiple of {SIZE} above 0"));
    }
    // The last id of all means none.
    let room = (u32::MAX - base) / SIZE;
    match room.min(MOST) {
        0 => Err(format!("above {base} there is no room for {SIZE} ids")),
        n => Ok(n),
    }
}

fn refusal(message: String, hint: &str) -> Refusal {
    Refusal {
        stage: "users".into(),
        message,
        hint: Some(hint.to_owned()),
    }
}

impl Ranges {
    pub(crate) fn new(state: &Path, base: u32) -> Ranges {
        Ranges {
            folder: state.join("ranges"),
            base,
        }
    }

    /// Gives a document with a user namespace of its own its maps; any other is not touched.
    ///
    /// # Errors
    /// A refusal of the stage `users`: all are taken, or the folder cannot be written.
    pub(crate) fn apply(&self, id: &str, spec: &mut Spec) -> Result<(), Refusal> {
        let Some(linux) = spec.linux_mut() else {
            return Ok(());
        };
        let own = |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::User;
        if !linux.namespaces().iter().flatten().any(own) {
            return Ok(());
        }
        let first = self.take(id)?;
        let map = LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(first)
            .size(SIZE)
            .build();
        let map: LinuxIdMapping = map.map_err(|e| refusal(e.to_string(), "report this"))?;
        linux.set_uid_mappings(Some(vec![map]));
        linux.set_gid_mappings(Some(vec![map]));
        Ok(())
    }

    /// The first id of a range of the container's own.
    fn take(&self, id: &str) -> Result<u32, Refusal> {
        let hint = "make STATE/ranges writable for root";
        let failed = |e: io::Error| refusal(format!("{}: {e}", self.folder.display()), hint);
        paths::make_dir(&self.folder, 0o700).map_err(failed)?;
        let all = count(self.base).map_err(|e| refusal(format!("--id-base: {e}"), "set it anew"))?;
        let start = crate::selinux::spread(id) % all;
        for step in 0..all {
            let number = (start + step) % all;
            let link = self.folder.join(number.to_string());
            match std::os::unix::fs::symlink(id, &link) {
                Ok(()) => return Ok(self.base + number * SIZE),
                // Left over from an earlier container of this id, which is gone: its id was free.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && owner(&link).as_deref() == Some(id) => {
                    return Ok(self.base + number * SIZE);
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Err(refusal(
            format!("all {all} ranges of ids are taken"),
            "sweep containers that are gone, or give the launcher a lower --id-base",
        ))
    }

    /// The container is gone with all its files: its range is anybody's.
    pub(crate) fn free(&self, id: &str) {
        self.retain(|owner| owner != id);
    }

    /// Frees the ranges of all containers that are not `kept`.
    pub(crate) fn retain(&self, kept: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let link = entry.path();
            if owner(&link).is_none_or(|owner| kept(&owner)) {
                continue;
            }
            if let Err(e) = paths::remove_file(&link) {
                // It stays taken, which harms nobody but the count.
                eprintln!("berth launcher: {e}");
            }
        }
    }
}

fn owner(link: &Path) -> Option<String> {
    std::fs::read_link(link).ok()?.into_os_string().into_string().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn spec(own: bool) -> Spec {
        let mut kinds = vec![json!({"type": "mount"})];
        kinds.extend(own.then(|| json!({"type": "user"})));
        serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": {"namespaces": kinds}})).unwrap()
    }

    fn first(ranges: &Ranges, id: &str) -> u32 {
        let mut spec = spec(true);
        ranges.apply(id, &mut spec).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let maps = linux.uid_mappings().clone().unwrap();
        assert_eq!(Some(&maps), linux.gid_mappings().as_ref());
        let [map] = &maps[..] else { panic!("{maps:?}") };
        assert_eq!((map.container_id(), map.size()), (0, SIZE));
        map.host_id()
    }

    #[test]
    fn a_range_is_one_containers_until_it_is_freed() {
        let temp = tempfile::tempdir().unwrap();
        let ranges = Ranges::new(temp.path(), BASE);
        let all: BTreeSet<u32> = (0..100).map(|n| first(&ranges, &format!("c-{n}"))).collect();
        assert_eq!(all.len(), 100);
        assert!(all.iter().all(|f| *f >= BASE && (f - BASE).is_multiple_of(SIZE)));
        let one = first(&ranges, "c-7");
        // Another launcher, another boot: the folder says who has what.
        assert_eq!(first(&Ranges::new(temp.path(), BASE), "c-7"), one);
        std::fs::remove_file(temp.path().join("ranges").join(((one - BASE) / SIZE).to_string())).unwrap();
        std::os::unix::fs::symlink(
            "thief",
            temp.path().join("ranges").join(((one - BASE) / SIZE).to_string()),
        )
        .unwrap();
        assert_ne!(first(&ranges, "c-7"), one);
        ranges.free("thief");
        ranges.free("c-7");
        assert_eq!(first(&ranges, "c-7"), one);
        ranges.retain(|id| id == "c-7");
        assert_eq!(std::fs::read_dir(temp.path().join("ranges")).unwrap().count(), 1);
    }

    #[test]
    fn when_all_are_taken_it_is_said() {
        let temp = tempfile::tempdir().unwrap();
        let base = (u32::MAX / SIZE - 2) * SIZE;
        assert_eq!(count(base), Ok(2));
        let ranges = Ranges::new(temp.path(), base);
        let two = [first(&ranges, "a"), first(&ranges, "b")];
        assert_ne!(two[0], two[1]);
        let refused = ranges.apply("c", &mut spec(true)).unwrap_err();
        assert!(
            refused.message.contains("all 2 ranges") && refused.hint.is_some(),
            "{refused:?}"
        );
        ranges.free("a");
        assert_eq!(first(&ranges, "c"), two[0]);
    }

    #[test]
    fn without_a_user_namespace_nothing_happens() {
        let temp = tempfile::tempdir().unwrap();
        let ranges = Ranges::new(temp.path(), BASE);
        let mut plain = spec(false);
        ranges.apply("a", &mut plain).unwrap();
        assert_eq!(plain.linux().as_ref().unwrap().uid_mappings(), &None);
        assert!(!temp.path().join("ranges").exists());
        for (base, good) in [
            (BASE, true),
            (SIZE, true),
            (0, false),
            (SIZE + 1, false),
            (u32::MAX - SIZE + 1, false),
        ] {
            assert_eq!(count(base).is_ok(), good, "{base}");
        }
    }
}
