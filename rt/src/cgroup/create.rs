//! Making a cgroup in every hierarchy that it needs, and finding one again.
//!
//! v1: one directory in each wanted hierarchy; a hierarchy that nobody wants is not touched. v2: one directory,
//! and `cgroup.subtree_control` of every parent. A directory that is there already is taken only when it is an
//! empty leftover: it is removed and made anew, so no old limit survives.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::file::{self, FileError};
use super::{Cgroup, Controller, Hierarchy, Missing, PathError, Version, Wanted, checked, cpuset, remove};

/// How often a parent may vanish under us (another process tidies up) before that is an error.
const TRIES: usize = 5;

/// Why a cgroup could not be made. Nothing of it is left.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The path cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A controller is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// There is a cgroup with processes or children under that path.
    #[error("the cgroup {} is in use: {source}", path.display())]
    InUse {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer to removing it.
        source: io::Error,
    },
    /// v2: a parent has processes of its own, so no controller can be enabled below it.
    #[error("cannot enable {controllers} below {}: it has processes of its own ({pids:?})", parent.display())]
    ParentBusy {
        /// The parent's directory.
        parent: PathBuf,
        /// What was to be enabled, as written to `cgroup.subtree_control`.
        controllers: String,
        /// The first of its processes.
        pids: Vec<i32>,
    },
    /// v2: a parent does not have the controller to hand on.
    #[error("{what}: the {controller} controller is not enabled in {}", parent.display())]
    NotDelegated {
        /// What needs it.
        what: String,
        /// The controller.
        controller: Controller,
        /// The parent's directory.
        parent: PathBuf,
    },
    /// A file or directory refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl CreateError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            CreateError::Missing(missing) => missing.hint(),
            CreateError::ParentBusy { parent, .. } => Some(format!(
                "cgroup v2 gives controllers only to children of a cgroup without processes: move them into a child of \
                 {} (under systemd: Delegate=yes and DelegateSubgroup=)",
                parent.display()
            )),
            CreateError::NotDelegated { .. } => {
                Some("under systemd set Delegate=yes for berth's unit".into())
            }
            CreateError::InUse { .. } => {
                Some("give the container another cgroup path, or end what runs there".into())
            }
            CreateError::File(error) if error.errno() == Some(libc::EROFS) => {
                Some("the hierarchy is mounted read-only here: remount it read-write".into())
            }
            CreateError::File(error) if error.errno() == Some(libc::ENOSPC) => {
                Some("raise cgroup.max.descendants or cgroup.max.depth of the parents".into())
            }
            _ => None,
        }
    }
}

/// Why a cgroup could not be found again.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The path cannot be used.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It is in no hierarchy.
    #[error("there is no cgroup `{path}` in any hierarchy")]
    NotFound {
        /// The path.
        path: String,
    },
}

impl Cgroup {
    /// Makes the cgroup `path` (such as `berth/ID`) with the controllers `wanted`, and freezer and pids where the node
    /// has them.
    ///
    /// # Errors
    /// [`CreateError`]; what was made is removed again.
    pub fn create(hierarchy: &Hierarchy, path: &str, wanted: &Wanted) -> Result<Cgroup, CreateError> {
        let path = checked(path)?;
        let mut indices = BTreeSet::new();
        for (controller, what) in &wanted.needs {
            let index = hierarchy
                .index(*controller)
                .ok_or_else(|| hierarchy.missing(what, *controller))?;
            indices.insert(index);
        }
        indices.extend(
            [Controller::Freezer, Controller::Pids]
                .into_iter()
                .filter_map(|c| hierarchy.index(c)),
        );
        if wanted.everywhere {
            let cpu = hierarchy.index(Controller::Cpu).filter(|_| wanted.not_cpu);
            indices.extend((0..hierarchy.trees().len()).filter(|n| Some(*n) != cpu));
        }
        if indices.is_empty() {
            indices.insert(0);
        }
        let mut cgroup = Cgroup {
            hierarchy: hierarchy.clone(),
            path,
            dirs: Vec::with_capacity(indices.len()),
        };
        for index in indices {
            let tree = &hierarchy.trees()[index];
            let dir = tree.mount.join(&cgroup.path);
            let made = match tree.version {
                Version::V1 => make_v1(&dir, tree.controllers.contains(&Controller::Cpuset), &tree.mount),
                Version::V2 => make_v2(&tree.mount, &cgroup.path, wanted, hierarchy, index),
            };
            // Nobody will give it CPUs, and without it takes no process.
            let unset = tree.version == Version::V1
                && tree.controllers.contains(&Controller::Cpuset)
                && !wanted.has(Controller::Cpuset);
            let made = made.and_then(|()| match unset {
                true => Ok(parents(&tree.mount, &dir)
                    .iter()
                    .chain([&dir])
                    .try_for_each(|d| cpuset::inherit_v1(d))?),
                false => Ok(()),
            });
            if let Err(error) = made {
                remove::undo(&cgroup);
                return Err(error);
            }
            cgroup.dirs.push((index, dir));
        }
        Ok(cgroup)
    }

    /// Finds the cgroup `path` again, in every hierarchy where it is.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(hierarchy: &Hierarchy, path: &str) -> Result<Cgroup, OpenError> {
        let path = checked(path)?;
        let dirs: Vec<(usize, PathBuf)> = hierarchy
            .trees()
            .iter()
            .map(|tree| tree.mount.join(&path))
            .enumerate()
            .filter(|(_, dir)| dir.is_dir())
            .collect();
        if dirs.is_empty() {
            return Err(OpenError::NotFound { path });
        }
        Ok(Cgroup {
            hierarchy: hierarchy.clone(),
            path,
            dirs,
        })
    }
}

/// Makes `dir`; its parents too when they are not there (the common case is one `mkdir`).
fn make_v1(dir: &Path, is_cpuset: bool, mount: &Path) -> Result<(), CreateError> {
    for _ in 0..TRIES {
        match fs::create_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for parent in parents(mount, dir) {
                    mkdir_shared(&parent)?;
                    if is_cpuset {
                        cpuset::inherit_v1(&parent)?;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                clear_leftover(mount, Version::V1, dir)?
            }
            Err(source) => return Err(FileError::new("make the cgroup", dir, source).into()),
        }
    }
    Err(FileError::new("make the cgroup", dir, io::Error::from_raw_os_error(libc::ENOENT)).into())
}

/// Makes the v2 cgroup `path`: enables the wanted controllers in every parent, from the root down.
fn make_v2(
    mount: &Path,
    path: &str,
    wanted: &Wanted,
    hierarchy: &Hierarchy,
    index: usize,
) -> Result<(), CreateError> {
    let dir = mount.join(path);
    let mut needs: Vec<(Controller, &str, &str)> = wanted
        .needs
        .iter()
        .filter(|(controller, _)| hierarchy.index(*controller) == Some(index))
        .filter_map(|(controller, what)| Some((*controller, controller.v2_name()?, what.as_str())))
        .collect();
    if hierarchy.index(Controller::Pids) == Some(index) && !wanted.has(Controller::Pids) {
        needs.push((Controller::Pids, "pids", "every container"));
    }
    for _ in 0..TRIES {
        let mut vanished = false;
        for parent in std::iter::once(mount.to_path_buf()).chain(parents(mount, &dir)) {
            if parent != mount {
                mkdir_shared(&parent)?;
            }
            match enable(&parent, &needs) {
                Err(CreateError::File(error))
                    if error.errno() == Some(libc::ENOENT) && parent != mount && !parent.is_dir() =>
                {
                    vanished = true;
                    break;
                }
                other => other?,
            }
        }
        if vanished {
            continue;
        }
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                clear_leftover(mount, Version::V2, &dir)?
            }
            Err(source) => return Err(FileError::new("make the cgroup", &dir, source).into()),
        }
    }
    Err(FileError::new(
        "make the cgroup",
        &dir,
        io::Error::from_raw_os_error(libc::ENOENT),
    )
    .into())
}

/// Enables in `parent` what of `needs` is not enabled yet.
fn enable(parent: &Path, needs: &[(Controller, &str, &str)]) -> Result<(), CreateError> {
    if needs.is_empty() {
        return Ok(());
    }
    let control = parent.join("cgroup.subtree_control");
    let enabled = file::read(&control)?;
    let lacking: Vec<_> = needs
        .iter()
        .filter(|(_, name, _)| !enabled.split_ascii_whitespace().any(|there| there == *name))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let controllers = lacking
        .iter()
        .map(|(_, name, _)| format!("+{name}"))
        .collect::<Vec<_>>()
        .join(" ");
    let error = match file::write(&control, &controllers) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match error.errno() {
        Some(libc::EBUSY) => {
            let pids = remove::procs_of(parent).unwrap_or_default();
            Err(CreateError::ParentBusy {
                parent: parent.into(),
                controllers,
                pids: pids.into_iter().take(8).collect(),
            })
        }
        // The kernel answers ENOENT for a controller that the parent's own parent has not handed on.
        Some(libc::ENOENT) if parent.is_dir() => {
            let there = file::read(&parent.join("cgroup.controllers"))?;
            let absent = lacking
                .iter()
                .find(|(_, name, _)| !there.split_ascii_whitespace().any(|c| c == *name));
            Err(absent.map_or(CreateError::File(error), |(controller, _, what)| {
                CreateError::NotDelegated {
                    what: (*what).into(),
                    controller: *controller,
                    parent: parent.into(),
                }
            }))
        }
        _ => Err(error.into()),
    }
}

/// A directory that others use too: it may be there already.
fn mkdir_shared(dir: &Path) -> Result<(), FileError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(FileError::new("make the cgroup", dir, error))
        }
        _ => Ok(()),
    }
}

/// Removes an empty leftover of the same name, so that none of its settings lives on.
fn clear_leftover(mount: &Path, version: Version, dir: &Path) -> Result<(), CreateError> {
    let in_use = |source| CreateError::InUse {
        path: dir.into(),
        source,
    };
    match remove::procs_of(dir) {
        Ok(pids) if pids.is_empty() => {}
        Ok(_) => return Err(in_use(io::Error::from_raw_os_error(libc::EBUSY))),
        Err(error) => return Err(error.into()),
    }
    remove::leftover(mount, version, dir).map_err(|error| in_use(error.source))
}

/// The directories between the mount point and `dir`, from the top, without both.
pub(crate) fn parents(mount: &Path, dir: &Path) -> Vec<PathBuf> {
    let mut between: Vec<PathBuf> = dir
        .ancestors()
        .skip(1)
        .take_while(|parent| *parent != mount)
        .map(Path::to_path_buf)
        .collect();
    between.reverse();
    between
}
