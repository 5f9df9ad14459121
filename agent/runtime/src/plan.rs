//! From an OCI configuration to a [`Plan`]: every check that needs no new process, and every refusal by name.
//!
//! Invariants: nothing is changed on the node here; a field that cannot take effect is an error that names it.

mod checks;
mod process;
mod promise;
mod recipe;
mod users;

pub(crate) use checks::id as check_id;
pub(crate) use process::{io_priority, label_of, words as exec_process};

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berth_rt::cgroup::{Extras, Hierarchy};
use berth_rt::cpu::CpuSet;
use berth_rt::sched::{SchedError, Scheduler};
use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Spec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fields;
use crate::hooks::Hook;
use crate::landlock::{self, Landlock};
use crate::network::Network;
use crate::options::OptionError;
use crate::proof::Promise;
use crate::recipe::Recipe;
use crate::state::HookState;

/// What OCI has no field for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Extensions {
    /// Layers of the root file system, topmost first; they replace `root.path`.
    pub lower: Vec<PathBuf>,
    /// Writable layer; without it the root is read-only.
    pub upper: Option<PathBuf>,
    /// overlayfs' work directory, on the file system of `upper`.
    pub work: Option<PathBuf>,
    /// Timer slack in nanoseconds, at least 1: set in the caller around the clone.
    pub timer_slack_ns: Option<u64>,
    /// Scheduling policy; goes before `process.scheduler`.
    pub scheduler: Option<Scheduler>,
    /// CPUs the first process is confined to with sched_setaffinity(2), beside the cpuset.
    pub affinity: Option<CpuSet>,
    /// cgroup settings beyond the OCI resources.
    pub cgroup: Extras,
    /// The proof reports whether the CPUs are isolated.
    pub report_isolation: bool,
    /// The launch fails unless the kernel says that the CPUs are isolated.
    pub require_isolated: bool,
    /// The container is killed when the process that created it ends.
    pub die_with_parent: bool,
    /// No symbolic link is followed on the way to the source of a bind mount.
    pub plain_sources: bool,
    /// No file of the root changes who runs it (MOUNT_ATTR_NOSUID).
    pub root_nosuid: bool,
    /// No device node of the root can be opened (MOUNT_ATTR_NODEV).
    pub root_nodev: bool,
    /// With a user namespace: the root's files are stored with the ids they have inside (an image's files belong to
    /// user 0) and are shown through the container's maps. The writable layer is not mapped: it belongs to the host
    /// id of the container's root.
    pub idmap_root: bool,
    /// Network interfaces moved in at create.
    pub interfaces: Vec<Interface>,
    /// Landlock domain of every process of the container.
    pub landlock: Option<Landlock>,
    /// A core scheduling cookie of the container's own: threads of others never run on a core's other thread while
    /// its own run on one.
    pub core_cookie: bool,
    /// The program is not dumpable: no core of it, and nobody without CAP_SYS_PTRACE looks into it. Made so and asked at its
    /// exec stop; what its children execute can be dumped again.
    pub undumpable: bool,
}

/// A network interface of the caller's namespace that goes into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name outside.
    pub name: String,
    /// Its index outside: the move is refused where name and index disagree.
    #[serde(default)]
    pub index: Option<u32>,
    /// Its name inside; unchanged where absent.
    #[serde(default)]
    pub rename: Option<String>,
    /// Its MTU inside; unchanged where absent.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Addresses it gets inside, with the length of their network.
    #[serde(default)]
    pub addresses: Vec<(std::net::IpAddr, u8)>,
    /// It stays outside, brought up; its 802.1Q VLAN of this id, 1 to 4094, is made inside.
    #[serde(default)]
    pub vlan: Option<u16>,
}

/// Where a plan is carried out.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Folder of the containers' states; each has one folder in it, named by its id.
    pub state_root: &'a Path,
    /// The node's cgroup hierarchies.
    pub hierarchy: &'a Hierarchy,
    /// cgroup that takes containers without an absolute `linux.cgroupsPath`. Empty: they lie at the top as
    /// `berth-ID`, and no parent stays behind.
    pub cgroup_parent: &'a str,
    /// Start and proof come from another process: the container waits at FIFOs in its state folder.
    pub detached: bool,
}

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The id cannot name a folder.
    #[error(
        "container id `{0}` is not valid: 1 to 255 letters, digits, `_`, `+`, `-`, `.`, the first no `.`"
    )]
    Id(String),
    /// The bundle's config.json cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not the JSON of an OCI configuration.
    #[error("`{path}` is not an OCI configuration: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        source: serde_json::Error,
    },
    /// A field is there that this runtime does not apply.
    #[error("{field} is refused: {reason}")]
    Refused {
        /// Path of the field, as in config.json.
        field: String,
        /// Why.
        reason: String,
        /// What to change.
        hint: Option<String>,
    },
    /// A field that is needed is not there.
    #[error("{field} is missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// A mount option.
    #[error("mount `{destination}`: {source}")]
    Option {
        /// The mount.
        destination: PathBuf,
        /// Which option and why.
        source: OptionError,
    },
    /// The scheduling policy is out of range.
    #[error("process.scheduler: {0}")]
    Scheduler(#[source] SchedError),
    /// The root file system, a namespace to join or a directory is not there.
    #[error("{field} `{path}`: {source}")]
    Path {
        /// Field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl PlanError {
    pub(crate) fn refused(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused {
            field: field.into(),
            reason: reason.into(),
            hint: None,
        }
    }

    pub(crate) fn refused_hint(
        field: impl Into<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Refused {
            field: field.into(),
            reason: reason.into(),
            hint: Some(hint.into()),
        }
    }

    /// The setting to change, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, field, .. } => hint
                .clone()
                .or_else(|| Some(format!("take {field} out of config.json"))),
            Self::Scheduler(source) => source.hint(),
            Self::Path { field, .. } => Some(format!("set {field} to something that exists")),
            _ => None,
        }
    }
}

/// A bundle's configuration, read.
#[derive(Debug)]
pub struct Bundle {
    /// The bundle folder, absolute.
    pub path: PathBuf,
    /// Its configuration.
    pub spec: Spec,
    /// Properties that the schema does not have; the specification wants them passed over.
    pub unknown: Vec<String>,
}

/// Read `bundle`/config.json and refuse fields by name.
///
/// # Errors
/// [`PlanError`]: unreadable, not JSON, or with a refused field (all of them are named).
pub fn load(bundle: &Path) -> Result<Bundle, PlanError> {
    load_telling(bundle, |_| ())
}

/// As [`load`]; `tell` gets the text of config.json before it is parsed.
pub(crate) fn load_telling(bundle: &Path, tell: impl FnOnce(&[u8])) -> Result<Bundle, PlanError> {
    let read = |path: &Path, source| PlanError::Read {
        path: path.to_owned(),
        source,
    };
    let path = std::fs::canonicalize(bundle).map_err(|e| read(bundle, e))?;
    let file = path.join("config.json");
    let text = read_document(&file).map_err(|e| read(&file, e))?;
    tell(&text);
    let parse = |source| PlanError::Parse {
        path: file.clone(),
        source,
    };
    let findings = fields::check(&text).map_err(parse)?;
    if let [(field, reason), ..] = &findings.refused[..] {
        let all: Vec<&str> = findings.refused.iter().map(|(f, _)| f.as_str()).collect();
        return Err(PlanError::Refused {
            field: all.join(", "),
            reason: (*reason).to_owned(),
            hint: None,
        }
        .or(field));
    }
    let spec = read_spec(&text).map_err(parse)?;
    Ok(Bundle {
        path,
        spec,
        unknown: findings.unknown,
    })
}

/// Take out of bind mounts what mount(2) passes over there: parameters of a file system. The specification has unknown
/// options go to mount(2), which does the same; who asked is told.
pub(crate) fn without_effect(spec: &mut Spec) -> Vec<(PathBuf, String)> {
    let mut told = Vec::new();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let fs = mount.typ().clone().unwrap_or_default();
        let destination = mount.destination().clone();
        let Some(words) = mount.options().as_ref() else {
            continue;
        };
        let idle = crate::options::idle(&fs, words);
        if idle.is_empty() {
            continue;
        }
        let kept = words.iter().filter(|w| !idle.contains(w)).cloned().collect();
        mount.set_options(Some(kept));
        told.extend(idle.into_iter().map(|word| (destination.clone(), word)));
    }
    told
}

/// Longest document that is read, bytes: a configuration with a large filter has about 100,000.
const LONGEST: u64 = 16 << 20;

/// A regular file of bounded size: who opens a FIFO or a device waits for ever, or reads for ever.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn read_document(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read};
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if meta.len() > LONGEST {
        let text = format!("it has {} bytes, at most {LONGEST} are read", meta.len());
        return Err(Error::new(ErrorKind::FileTooLarge, text));
    }
    let mut text = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1);
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

/// The document's type has other names for two flags of `process.scheduler` than the specification.
fn read_spec(text: &[u8]) -> Result<Spec, serde_json::Error> {
    const FLAG: &[u8] = b"SCHED_FLAG_";
    if !text.windows(FLAG.len()).any(|w| w == FLAG) {
        return serde_json::from_slice(text);
    }
    let mut document: serde_json::Value = serde_json::from_slice(text)?;
    let flags = document.pointer_mut("/process/scheduler/flags");
    for flag in flags.and_then(|f| f.as_array_mut()).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    serde_json::from_value(document)
}

impl PlanError {
    /// The hint names one field even where several are refused.
    fn or(self, field: &str) -> Self {
        match self {
            Self::Refused {
                field: all,
                reason,
                hint: None,
            } => Self::Refused {
                hint: Some(format!("take {field} out of config.json")),
                field: all,
                reason,
            },
            other => other,
        }
    }
}

/// What the kernel lacks of Landlock and core scheduling is refused here.
fn confine(recipe: &mut Recipe, extensions: &Extensions) -> Result<(), PlanError> {
    if let Some(landlock) = &extensions.landlock {
        if let Some(missing) = landlock::missing(landlock, landlock::version()).filter(|_| !landlock.skip) {
            let hint = "start a kernel that has it, or write `onMissing: {landlock: skip}` in the profile";
            return Err(PlanError::refused_hint("landlock", missing, hint));
        }
        if !recipe.hooks_inside.is_empty() {
            return Err(PlanError::refused(
                "landlock",
                "startContainer hooks would run in the domain",
            ));
        }
        recipe.process.landlock = Some(landlock.clone());
    }
    if extensions.core_cookie {
        crate::sys::process::core_cookie(0).map_err(|errno| {
            let why = match errno {
                nix::errno::Errno::EINVAL => "this kernel has no core scheduling (CONFIG_SCHED_CORE)",
                nix::errno::Errno::ENODEV => {
                    "the cores of this node have one thread each: there is nothing to keep apart"
                }
                other => other.desc(),
            };
            let hint = "take it out of the profile, or write `onMissing: {coreScheduling: skip}`";
            PlanError::refused_hint("coreScheduling", why, hint)
        })?;
        recipe.process.core_cookie = true;
    }
    Ok(())
}

/// Hooks of the runtime's side, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// After the namespaces are made, before pivot_root; in the runtime's namespaces.
    pub prestart: Vec<Hook>,
    /// The same, after prestart.
    pub create_runtime: Vec<Hook>,
    /// After the program was executed.
    pub poststart: Vec<Hook>,
    /// After the container was deleted.
    pub poststop: Vec<Hook>,
}

/// A checked configuration, ready to become a container.
#[derive(Debug)]
pub struct Plan {
    pub(crate) id: String,
    pub(crate) recipe: Recipe,
    pub(crate) state_dir: PathBuf,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) cgroup: String,
    pub(crate) resources: LinuxResources,
    pub(crate) extras: Extras,
    pub(crate) seccomp: Option<LinuxSeccomp>,
    pub(crate) hooks: Hooks,
    pub(crate) hook_state: HookState,
    pub(crate) promise: Promise,
    pub(crate) scheduler: Option<(Scheduler, u64)>,
    pub(crate) io_priority: Option<(u32, u32)>,
    pub(crate) affinity: Option<CpuSet>,
    pub(crate) timer_slack_ns: Option<u64>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) uid_map: String,
    pub(crate) gid_map: String,
    pub(crate) pid_namespace: Option<PathBuf>,
    /// The mount namespace that is joined.
    pub(crate) mount_namespace: Option<PathBuf>,
    /// The user namespace that is joined.
    pub(crate) users: Option<OwnedFd>,
    pub(crate) detached: bool,
    /// Joined in the place of a network namespace that clone(2) makes.
    pub(crate) network: Option<Network>,
}

impl Plan {
    /// Does the container get a network namespace of its own, owned by the caller's user namespace? Only such a one
    /// takes a [`Network`].
    pub fn wants_network(&self) -> bool {
        let new = |flag: i32| self.recipe.new & flag as u64 != 0;
        new(libc::CLONE_NEWNET) && self.recipe.users.is_none()
    }

    /// Gives it a network namespace that is there already. Without [`wants_network`](Self::wants_network) it is let go.
    pub fn give_network(&mut self, network: Network) {
        if self.wants_network() {
            self.network = Some(network);
        }
    }

    /// Gives `count` of the caller's descriptors, from 3 on, to the container's program. They must be open.
    pub fn preserve_descriptors(&mut self, count: u32) {
        self.recipe.preserved = count;
        self.promise.preserved = count;
    }

    /// The kernel lists the container's mounts in the order of the configuration, bind mounts too (from Linux 6.15): each
    /// costs a system call more.
    pub fn mounts_in_order(&mut self) {
        self.recipe.in_order = true;
    }

    /// The root is entered with chroot(2) rather than pivot_root(2).
    ///
    /// # Errors
    /// [`PlanError`]: the container could leave it.
    pub fn without_pivot(&mut self) -> Result<(), PlanError> {
        let bounding = self.recipe.process.capabilities.bounding;
        if let Some(why) = crate::over::refused(bounding, self.recipe.users.is_some()) {
            return Err(PlanError::refused_hint(
                "--no-pivot",
                why,
                "take CAP_SYS_ADMIN from process.capabilities, or give the container a user namespace",
            ));
        }
        self.recipe.over = true;
        Ok(())
    }

    /// The container has its caller's session keyring in the place of one of its own.
    pub fn keep_keyring(&mut self) {
        self.recipe.process.callers_keyring = true;
    }

    /// Check a configuration. `bundle` is absolute.
    ///
    /// # Errors
    /// [`PlanError`] with the field that is refused.
    pub fn prepare(
        id: &str,
        bundle: &Path,
        spec: &Spec,
        extensions: &Extensions,
        context: &Context<'_>,
    ) -> Result<Self, PlanError> {
        checks::id(id)?;
        checks::unsupported(spec)?;
        let process = spec
            .process()
            .as_ref()
            .ok_or(PlanError::Missing { field: "process" })?;
        let users = users::joined(spec.linux().as_ref())?;
        let mut recipe = recipe::write(id, bundle, spec, process, extensions, users.as_ref())?;
        confine(&mut recipe, extensions)?;
        let linux = spec.linux().as_ref();
        let resources = recipe::resources(linux.and_then(|l| l.resources().as_ref()), context.hierarchy);
        let scheduler = match (&extensions.scheduler, process.scheduler()) {
            (Some(scheduler), _) => {
                scheduler.validate().map_err(PlanError::Scheduler)?;
                Some((*scheduler, 0))
            }
            (None, Some(oci)) => Some(Scheduler::from_oci(oci).map_err(PlanError::Scheduler)?),
            (None, None) => None,
        };
        let cgroup = match linux.and_then(|l| l.cgroups_path().as_ref()) {
            Some(path) if path.is_absolute() => path.to_string_lossy().into_owned(),
            Some(path) => format!("{}/{}", context.cgroup_parent, path.display()),
            None if context.cgroup_parent.is_empty() => format!("/berth-{id}"),
            None => format!("{}/{id}", context.cgroup_parent),
        };
        checks::cgroup_path(&cgroup)?;
        let seccomp = linux.and_then(|l| l.seccomp().clone());
        let mut interfaces = extensions.interfaces.clone();
        interfaces.extend(recipe::net_devices(linux));
        if !interfaces.is_empty() && !checks::has_own(linux, oci_spec::runtime::LinuxNamespaceType::Network) {
            return Err(PlanError::refused(
                "linux.netDevices",
                "the container has no network namespace of its own",
            ));
        }
        let (uid_map, gid_map) = users::id_maps(linux)?;
        let mut promise = promise::write(spec, process, &recipe, &resources, extensions)?;
        promise.scheduler = scheduler.as_ref().map(|(s, _)| *s);
        let pid_namespace = checks::joined(linux, oci_spec::runtime::LinuxNamespaceType::Pid);
        let mount_namespace = checks::joined(linux, oci_spec::runtime::LinuxNamespaceType::Mount);
        if let Some(path) = &mount_namespace {
            checks::mount_namespace(path, &recipe)?;
            recipe.over = true;
        }
        Ok(Self {
            id: id.to_owned(),
            state_dir: context.state_root.join(id),
            hierarchy: context.hierarchy.clone(),
            cgroup,
            resources,
            extras: extensions.cgroup.clone(),
            seccomp,
            hooks: recipe::outer_hooks(spec)?,
            hook_state: HookState::new(id, bundle, spec),
            promise,
            scheduler,
            io_priority: process::io_priority(process)?,
            affinity: extensions.affinity.clone(),
            timer_slack_ns: extensions.timer_slack_ns,
            interfaces,
            uid_map,
            gid_map,
            pid_namespace,
            mount_namespace,
            users: users.map(|(fd, ..)| fd),
            detached: context.detached,
            network: None,
            recipe,
        })
    }
}
