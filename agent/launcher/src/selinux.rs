//! SELinux labels of containers (/sys/fs/selinux): a context for the processes, one for the mounts, and a pair of
//! categories that no other container of this node has.
//!
//! ```text
//! RUN/selinux/cA,cB -> ID      the pair is ID's; a symbolic link, made or not made by one system call
//! ```
//! Invariants: on a node with SELinux no container is launched without a context; a pair is taken before the plan
//! is made and freed after everything of its container is gone; the folder alone says which pairs are taken, so a
//! launcher that starts anew knows them; whether the policy has a context is the kernel's word. On a node without
//! SELinux nothing is done here, and a profile that names a label is refused by the runtime.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::paths;
use crate::wire::Refusal;

/// User and role of everything here.
const PROCESS: &str = "system_u:system_r:berth_container_t";
const FILES: &str = "system_u:object_r:berth_container_file_t";
/// Categories that policies have.
const CATEGORIES: u32 = 1024;
/// Pairs of two different ones.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The labels of this node's containers.
#[derive(Debug)]
pub(crate) struct Labels {
    /// /sys/fs/selinux; none on a node without SELinux.
    kernel: Option<PathBuf>,
    /// RUN/selinux.
    folder: PathBuf,
}

/// The pair of this number: (0,1), (0,2), (1,2), (0,3), … as the kernel writes it, the lower one first.
fn pair(number: u32) -> (u32, u32) {
    let mut high = 1;
    let mut rest = number % PAIRS;
    while rest >= high {
        rest -= high;
        high += 1;
    }
    (rest, high)
}

/// Where the search for a pair begins: spread over all of them, so that one just freed is not the next given.
fn begin(id: &str) -> u32 {
    spread(id) % PAIRS
}

/// A number of an id, spread evenly.
pub(crate) fn spread(id: &str) -> u32 {
    // FNV-1a
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (hash ^ hash >> 32) as u32
}

/// The level of a context, where it has one: `user:role:type:level`.
fn level(context: &str) -> Option<&str> {
    context.splitn(4, ':').nth(3)
}

fn with_level(context: &str, pair: &str) -> String {
    match level(context) {
        Some(_) => context.to_owned(),
        None => format!("{context}:{pair}"),
    }
}

fn refusal(message: String, hint: Option<&str>) -> Refusal {
    Refusal {
        stage: "selinux".into(),
        message,
        hint: hint.map(str::to_owned),
    }
}

impl Labels {
    /// Looks whether SELinux is in force or permissive, below `sys` (`/sys`).
    pub(crate) fn find(sys: &Path, run: &Path) -> Labels {
        let kernel = sys.join("fs/selinux");
        Labels {
            kernel: kernel.join("enforce").exists().then_some(kernel),
            folder: run.join("selinux"),
        }
    }

    /// Gives the spec its labels. What the profile named stays: a context of three parts gets the pair for its
    /// level, one of four is complete. Without SELinux the spec is not touched.
    ///
    /// # Errors
    /// A refusal of the stage `selinux`: the policy has no such context, or no pair can be taken.
    pub(crate) fn apply(&self, id: &str, spec: &mut Spec) -> Result<(), Refusal> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        let named = spec.process().as_ref().and_then(|p| p.selinux_label().clone());
        let named = named.unwrap_or_else(|| PROCESS.to_owned());
        let files = spec.linux().as_ref().and_then(|l| l.mount_label().clone());
        let files = files.unwrap_or_else(|| FILES.to_owned());
        let level = match level(&named) {
            Some(level) => level.to_owned(),
            None => self.take(id)?,
        };
        let (process, mounts) = (with_level(&named, &level), with_level(&files, &level));
        let known = [&process, &mounts]
            .into_iter()
            .try_for_each(|context| valid(kernel, context));
        if let Err(refused) = known {
            self.free(id);
            return Err(refused);
        }
        if let Some(p) = spec.process_mut() {
            p.set_selinux_label(Some(process));
        }
        if let Some(l) = spec.linux_mut() {
            l.set_mount_label(Some(mounts));
        }
        Ok(())
    }

    /// A pair of the container's own, as a level.
    fn take(&self, id: &str) -> Result<String, Refusal> {
        let failed = |e: io::Error| refusal(format!("{}: {e}", self.folder.display()), None);
        paths::make_dir(&self.folder, 0o700).map_err(failed)?;
        let start = begin(id);
        for step in 0..PAIRS {
            let (low, high) = pair(start + step);
            let name = format!("c{low},c{high}");
            let link = self.folder.join(&name);
            match std::os::unix::fs::symlink(id, &link) {
                Ok(()) => return Ok(format!("s0:{name}")),
                // Left over from an earlier container of this id, which is gone: its id was free.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && owner(&link).as_deref() == Some(id) => {
                    return Ok(format!("s0:{name}"));
                }
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Err(refusal(
            format!("all {PAIRS} pairs of categories are taken"),
            Some("sweep containers that are gone"),
        ))
    }

    /// The container is gone: its pair is anybody's.
    pub(crate) fn free(&self, id: &str) {
        self.retain(|owner| owner != id);
    }

    /// Frees the pairs of all containers that are not `kept`.
    pub(crate) fn retain(&self, kept: impl Fn(&str) -> bool) {
        if self.kernel.is_none() {
            return;
        }
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

/// Asks the kernel whether its policy has this context.
fn valid(kernel: &Path, context: &str) -> Result<(), Refusal> {
    let file = kernel.join("context");
    let asked = std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut f| f.write_all(context.as_bytes()));
    match asked {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::InvalidInput => Err(refusal(
            format!("the policy of this node has no context {context}"),
            Some(
                "load berth's policy (policies/selinux), or name a context that the policy has: selinuxLabel, mountLabel of the profile",
            ),
        )),
        Err(e) => Err(refusal(
            format!("{}: {e}", file.display()),
            Some("the launcher's domain needs check_context: run it as berth_launcher_t"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A folder that stands for /sys: its `context` takes whatever is written.
    fn node(selinux: bool) -> (tempfile::TempDir, Labels) {
        let temp = tempfile::tempdir().unwrap();
        if selinux {
            let kernel = temp.path().join("fs/selinux");
            std::fs::create_dir_all(&kernel).unwrap();
            std::fs::write(kernel.join("enforce"), "1").unwrap();
            std::fs::write(kernel.join("context"), "").unwrap();
        }
        let labels = Labels::find(temp.path(), temp.path());
        (temp, labels)
    }

    fn spec(process: Option<&str>, mounts: Option<&str>) -> Spec {
        let mut spec = Spec::default();
        let own = |s: Option<&str>| s.map(str::to_owned);
        spec.process_mut()
            .as_mut()
            .unwrap()
            .set_selinux_label(own(process));
        spec.linux_mut().as_mut().unwrap().set_mount_label(own(mounts));
        spec
    }

    fn labels_of(spec: &Spec) -> (Option<String>, Option<String>) {
        (
            spec.process().as_ref().unwrap().selinux_label().clone(),
            spec.linux().as_ref().unwrap().mount_label().clone(),
        )
    }

    #[test]
    fn every_number_is_another_pair_in_the_kernels_order() {
        assert_eq!([0, 1, 2, 3].map(pair), [(0, 1), (0, 2), (1, 2), (0, 3)]);
        assert_eq!(pair(PAIRS - 1), (1022, 1023));
        let all: BTreeSet<(u32, u32)> = (0..PAIRS).map(pair).collect();
        assert_eq!(all.len(), PAIRS as usize);
        assert!(all.iter().all(|(low, high)| low < high && *high < CATEGORIES));
    }

    #[test]
    fn a_pair_is_one_containers_until_it_is_freed() {
        let (_temp, labels) = node(true);
        let mut seen = BTreeSet::new();
        for n in 0..200 {
            assert!(seen.insert(labels.take(&format!("c-{n}")).unwrap()));
        }
        // The same id, the same pair: a search that begins where another's pair lies goes on behind it.
        let (low, high) = pair(begin("x"));
        std::os::unix::fs::symlink("another", labels.folder.join(format!("c{low},c{high}"))).unwrap();
        let second = labels.take("x").unwrap();
        let (low, high) = pair(begin("x") + 1);
        assert_eq!(second, format!("s0:c{low},c{high}"));
        assert_eq!(labels.take("x").unwrap(), second);
        labels.free("another");
        labels.free("x");
        assert_ne!(labels.take("x").unwrap(), second, "what was freed is free");
        labels.retain(|id| id == "x");
        assert_eq!(std::fs::read_dir(&labels.folder).unwrap().count(), 1);
    }

    #[test]
    fn what_a_profile_names_stays() {
        let (_temp, labels) = node(true);
        let pair = labels.take("a").unwrap();
        let ours = (Some(format!("{PROCESS}:{pair}")), Some(format!("{FILES}:{pair}")));
        let own = "u:r:own_t";
        for (process, mounts, expected) in [
            (None, None, ours.clone()),
            (Some(own), None, (Some(format!("{own}:{pair}")), ours.1.clone())),
            (
                Some(own),
                Some("u:r:f_t"),
                (Some(format!("{own}:{pair}")), Some(format!("u:r:f_t:{pair}"))),
            ),
            (
                Some("u:r:own_t:s0:c7"),
                None,
                (Some("u:r:own_t:s0:c7".into()), Some(format!("{FILES}:s0:c7"))),
            ),
        ] {
            let mut spec = spec(process, mounts);
            labels.apply("a", &mut spec).unwrap();
            assert_eq!(labels_of(&spec), expected, "{process:?} {mounts:?}");
        }
    }

    #[test]
    fn without_selinux_nothing_happens() {
        let (temp, labels) = node(false);
        let mut plain = spec(None, None);
        labels.apply("a", &mut plain).unwrap();
        assert_eq!(labels_of(&plain), (None, None));
        assert!(!temp.path().join("selinux").exists());
    }

    #[test]
    fn a_kernel_that_cannot_be_asked_refuses_and_frees() {
        let (temp, labels) = node(true);
        std::fs::remove_file(temp.path().join("fs/selinux/context")).unwrap();
        let refused = labels.apply("a", &mut spec(None, None)).unwrap_err();
        assert_eq!(refused.stage, "selinux");
        assert_eq!(std::fs::read_dir(&labels.folder).unwrap().count(), 0);
    }
}
