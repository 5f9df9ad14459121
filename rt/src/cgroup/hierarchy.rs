//! Which cgroup hierarchies this node has, from `/proc/self/mountinfo`, `/proc/cgroups` and the v2 root's
//! `cgroup.controllers`. Read once: a [`Hierarchy`] is cheap to clone and touches no file afterwards.
//!
//! Invariants: a mount that another mount covers is not used; of several mounts of one hierarchy the one
//! that shows the most of it is used. A controller is in at most one [`Tree`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::file::{self, FileError};

/// A cgroup controller, under the name that OCI and the kernel use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU time: shares or weight, bandwidth, v1 real-time budget.
    Cpu,
    /// CPU accounting (v1; v2 always counts).
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Device permissions (v2: BPF programs, always there).
    Devices,
    /// Freezing (v2: always there).
    Freezer,
    /// Block devices: `blkio` in v1, `io` in v2.
    Io,
    /// Number of processes.
    Pids,
    /// Huge pages.
    Hugetlb,
    /// RDMA handles and objects.
    Rdma,
    /// Network class identifier (v1).
    NetCls,
    /// Network priority (v1).
    NetPrio,
}

impl Controller {
    /// Every controller that is known here.
    pub const ALL: [Controller; 12] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Devices,
        Controller::Freezer,
        Controller::Io,
        Controller::Pids,
        Controller::Hugetlb,
        Controller::Rdma,
        Controller::NetCls,
        Controller::NetPrio,
    ];

    /// The name in v1 mount options and `/proc/cgroups`.
    #[must_use]
    pub fn v1_name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
            Controller::Io => "blkio",
            Controller::Pids => "pids",
            Controller::Hugetlb => "hugetlb",
            Controller::Rdma => "rdma",
            Controller::NetCls => "net_cls",
            Controller::NetPrio => "net_prio",
        }
    }

    /// The name in v2's `cgroup.controllers`; `None` for what v2 has built in or not at all.
    #[must_use]
    pub fn v2_name(self) -> Option<&'static str> {
        match self {
            Controller::Io => Some("io"),
            Controller::Cpu
            | Controller::Cpuset
            | Controller::Memory
            | Controller::Pids
            | Controller::Hugetlb
            | Controller::Rdma => Some(self.v1_name()),
            Controller::Cpuacct
            | Controller::Devices
            | Controller::Freezer
            | Controller::NetCls
            | Controller::NetPrio => None,
        }
    }

    /// Whether every v2 cgroup can do this without the controller being enabled.
    #[must_use]
    pub fn built_into_v2(self) -> bool {
        matches!(
            self,
            Controller::Cpuacct | Controller::Devices | Controller::Freezer
        )
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v1_name())
    }
}

/// Version of one mounted hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// cgroup v1.
    V1,
    /// cgroup v2.
    V2,
}

/// How the node's controllers are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// v1 hierarchies only.
    V1,
    /// v1 hierarchies with controllers, and a v2 hierarchy beside them.
    Hybrid,
    /// v2 only (a v1 hierarchy without controllers, such as `name=systemd`, does not count).
    V2,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::V1 => "cgroup v1",
            Mode::Hybrid => "hybrid cgroup v1 and v2",
            Mode::V2 => "cgroup v2",
        })
    }
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Its version.
    pub version: Version,
    /// Its controllers.
    pub controllers: Vec<Controller>,
    /// v1: `name=…` of a hierarchy that has one, such as systemd's without a controller.
    pub name: Option<String>,
    /// Where it is mounted (below the root that `discover` was given).
    pub mount: PathBuf,
    /// Which cgroup of the hierarchy is at the mount point: `/` unless only a part is mounted.
    pub mount_root: String,
}

impl Tree {
    /// Whether the hierarchy does what `controller` stands for.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller) || (self.version == Version::V2 && controller.built_into_v2())
    }
}

/// Why a controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The kernel was built without it.
    NotInKernel,
    /// It is off on the kernel's command line.
    Disabled,
    /// The kernel has it, but no hierarchy with it is mounted here.
    NotMounted,
    /// Only cgroup v1 has it, and this node's is v2.
    OnlyV1,
    /// The node has it, but this cgroup was made without it.
    NotInCgroup,
}

/// A controller that something needs and that is not there.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{what}: the {controller} controller {}", self.state())]
pub struct Missing {
    /// What needs it, such as `linux.resources.memory`.
    pub what: String,
    /// The controller.
    pub controller: Controller,
    /// Why it is not there.
    pub why: Absence,
}

impl Missing {
    fn state(&self) -> &'static str {
        match self.why {
            Absence::NotInKernel => "is not in this kernel",
            Absence::Disabled => "is disabled on the kernel's command line",
            Absence::NotMounted => "is in the kernel but not mounted",
            Absence::OnlyV1 => "exists only in cgroup v1, and this node has cgroup v2",
            Absence::NotInCgroup => "was not asked for when this cgroup was made",
        }
    }

    /// The setting to change.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let name = self.controller.v1_name();
        match self.why {
            Absence::NotInKernel => Some(format!("build the kernel with the {name} cgroup controller")),
            Absence::Disabled => Some(format!(
                "take cgroup_disable={name} off the kernel's command line"
            )),
            Absence::NotMounted => Some(format!(
                "mount it: mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}, or boot with \
                 systemd.unified_cgroup_hierarchy=1"
            )),
            Absence::OnlyV1 | Absence::NotInCgroup => None,
        }
    }
}

/// Why the node's hierarchies could not be found.
#[derive(Debug, Error)]
pub enum DiscoverError {
    /// A file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line of mountinfo is not of the form that proc(5) gives.
    #[error("{}: line {line} is not a mount: `{text}`", path.display())]
    Mountinfo {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// No hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted in this mount namespace")]
    None,
}

impl DiscoverError {
    /// The setting to change.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            DiscoverError::None => Some("mount -t cgroup2 cgroup2 /sys/fs/cgroup".into()),
            _ => None,
        }
    }
}

/// The cgroup hierarchies of this node.
#[derive(Clone, Debug)]
pub struct Hierarchy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    mode: Mode,
    trees: Vec<Tree>,
    /// Controllers of `/proc/cgroups`, with whether each is enabled.
    kernel: Vec<(String, bool)>,
}

impl Hierarchy {
    /// Finds what is mounted: reads `ROOT/proc/self/mountinfo`, `ROOT/proc/cgroups` and the v2 root's
    /// `cgroup.controllers`. `root` is `/` except in tests.
    ///
    /// # Errors
    /// [`DiscoverError`].
    pub fn discover(root: &Path) -> Result<Hierarchy, DiscoverError> {
        let path = root.join("proc/self/mountinfo");
        let mut trees =
            parse_mountinfo(&file::read(&path)?).map_err(|(line, text)| DiscoverError::Mountinfo {
                path: path.clone(),
                line,
                text,
            })?;
        for tree in &mut trees {
            tree.mount = root.join(tree.mount.strip_prefix("/").unwrap_or(&tree.mount));
            if tree.version == Version::V2 {
                let controllers = file::read(&tree.mount.join("cgroup.controllers"))?;
                tree.controllers = Controller::ALL
                    .into_iter()
                    .filter(|c| {
                        c.v2_name()
                            .is_some_and(|name| controllers.split_ascii_whitespace().any(|c| c == name))
                    })
                    .collect();
            }
        }
        let v1 = trees
            .iter()
            .any(|tree| tree.version == Version::V1 && !tree.controllers.is_empty());
        let v2 = trees.iter().any(|tree| tree.version == Version::V2);
        let mode = match (v1, v2) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::V1,
            (false, true) => Mode::V2,
            (false, false) => return Err(DiscoverError::None),
        };
        let kernel = parse_cgroups(&file::read_if_there(&root.join("proc/cgroups"))?.unwrap_or_default());
        Ok(Hierarchy(Arc::new(Inner {
            root: root.into(),
            mode,
            trees,
            kernel,
        })))
    }

    /// How the controllers are mounted.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// The root that `discover` was given.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Every hierarchy, in the order of the mounts.
    #[must_use]
    pub fn trees(&self) -> &[Tree] {
        &self.0.trees
    }

    /// The v2 hierarchy, where one is mounted.
    #[must_use]
    pub fn v2(&self) -> Option<&Tree> {
        self.0.trees.iter().find(|tree| tree.version == Version::V2)
    }

    /// The hierarchy that has `controller`. In a hybrid node v1 comes first, and what is built into v2 is
    /// looked for in v1 alone: the processes of a container are not in its v2 hierarchy.
    #[must_use]
    pub fn tree(&self, controller: Controller) -> Option<&Tree> {
        self.index(controller).map(|index| &self.0.trees[index])
    }

    pub(crate) fn index(&self, controller: Controller) -> Option<usize> {
        let trees = &self.0.trees;
        trees
            .iter()
            .position(|tree| tree.controllers.contains(&controller))
            .or_else(|| {
                trees.iter().position(|tree| {
                    self.0.mode == Mode::V2 && tree.version == Version::V2 && tree.has(controller)
                })
            })
    }

    /// Why `controller` cannot be used, as an error about `what`.
    pub(crate) fn missing(&self, what: &str, controller: Controller) -> Missing {
        let name = controller.v1_name();
        let why = match self.0.kernel.iter().find(|(known, _)| known == name) {
            _ if self.0.mode == Mode::V2 && controller.v2_name().is_none() => Absence::OnlyV1,
            Some((_, true)) => Absence::NotMounted,
            Some((_, false)) => Absence::Disabled,
            None => Absence::NotInKernel,
        };
        Missing {
            what: what.into(),
            controller,
            why,
        }
    }
}

/// One line of mountinfo.
struct Mount<'a> {
    id: u32,
    parent: u32,
    point: PathBuf,
    root: String,
    kind: &'a str,
    options: &'a str,
}

/// The cgroup hierarchies of a mountinfo text; a bad line is given back with its number.
fn parse_mountinfo(text: &str) -> Result<Vec<Tree>, (usize, String)> {
    let mut mounts: Vec<Mount<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        mounts.push(parse_mount(line).ok_or_else(|| (number + 1, line.to_owned()))?);
    }
    let mut trees: Vec<Tree> = Vec::new();
    for mount in mounts
        .iter()
        .filter(|mount| mount.kind.starts_with("cgroup") && !covered(mount, &mounts))
    {
        let (version, controllers) = match mount.kind {
            "cgroup2" => (Version::V2, Vec::new()),
            "cgroup" => {
                let named = |c: &Controller| mount.options.split(',').any(|option| option == c.v1_name());
                (Version::V1, Controller::ALL.into_iter().filter(named).collect())
            }
            _ => continue,
        };
        let tree = Tree {
            version,
            controllers,
            name: mount
                .options
                .split(',')
                .find(|option| option.starts_with("name="))
                .map(str::to_owned),
            mount: mount.point.clone(),
            mount_root: mount.root.clone(),
        };
        let same = |other: &&mut Tree| match version {
            Version::V2 => other.version == Version::V2,
            Version::V1 => !tree.controllers.is_empty() && other.controllers == tree.controllers,
        };
        match trees.iter_mut().find(same) {
            Some(other) if tree.mount_root.len() < other.mount_root.len() => *other = tree,
            Some(_) => {}
            None => trees.push(tree),
        }
    }
    Ok(trees)
}

/// Whether a path to `mount` ends in another mount: one on top of it, or one over a directory that leads to it.
fn covered(mount: &Mount<'_>, mounts: &[Mount<'_>]) -> bool {
    if mounts
        .iter()
        .any(|other| other.parent == mount.id && other.id != mount.id && other.point == mount.point)
    {
        return true;
    }
    let mut child = mount;
    // A chain of parents is no longer than the table, whatever the table says.
    for _ in 0..mounts.len() {
        let over = |other: &Mount<'_>| {
            other.parent == child.parent && other.id != child.id && child.point.starts_with(&other.point)
        };
        if child.parent != child.id && mounts.iter().any(over) {
            return true;
        }
        match mounts
            .iter()
            .find(|other| other.id == child.parent && other.id != child.id)
        {
            Some(parent) => child = parent,
            None => return false,
        }
    }
    false
}

/// `36 35 98:0 /root /mount/point options [optional…] - type source super-options`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let (id, parent) = (left.next()?.parse().ok()?, left.next()?.parse().ok()?);
    let mut left = left.skip(1);
    let (root, point) = (unescape(left.next()?), unescape(left.next()?));
    let mut right = right.split(' ');
    let (kind, _source, options) = (right.next()?, right.next()?, right.next()?);
    Some(Mount {
        id,
        parent,
        point: PathBuf::from(point),
        root,
        kind,
        options,
    })
}

/// mountinfo writes blank, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
    text
}

/// Names and the `enabled` column of `/proc/cgroups`.
fn parse_cgroups(text: &str) -> Vec<(String, bool)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.to_owned(), fields.nth(2)? == "1"))
        })
        .collect()
}

#[cfg(test)]
mod tests;
