//! The configuration's words turned into the [`Recipe`] of the new process, field by field.

use std::path::{Component, Path, PathBuf};

use berth_rt::cgroup::{Controller, Hierarchy};
use oci_spec::runtime::{
    self as oci, Linux, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, LinuxResources, Spec,
};

use super::{Extensions, Hooks, Interface, PlanError, checks, process, users};
use crate::hooks::Hook;
use crate::numa::MemoryPolicy;
use crate::options;
use crate::recipe::{Mount, Node, NodeKind, Process, Recipe, Root};
use crate::sys::mount::attr;

/// Everything the new process does.
pub(super) fn write(
    id: &str,
    bundle: &Path,
    spec: &Spec,
    words: &oci::Process,
    extensions: &Extensions,
    joined_users: Option<&users::Joined>,
) -> Result<Recipe, PlanError> {
    let linux = spec.linux().as_ref();
    if !checks::has_own(linux, LinuxNamespaceType::Mount) {
        return Err(PlanError::refused_hint(
            "linux.namespaces",
            "a container needs a mount namespace of its own",
            "add {\"type\": \"mount\"} to linux.namespaces",
        ));
    }
    let (new, joined) = namespaces(linux);
    let own_users = new & libc::CLONE_NEWUSER as u64 != 0 || joined_users.is_some();
    let (root, root_readonly) = root(bundle, spec, extensions)?;
    let devices = devices(linux)?;
    let users = own_users.then(|| users::of(linux, extensions, joined_users));
    if let Some(users) = &users {
        users::own(users, &devices)?;
    }
    let hooks = spec.hooks().as_ref();
    let uts = checks::has_own(linux, LinuxNamespaceType::Uts);
    let name = |field: &str, value: &Option<String>| match value.as_deref() {
        None | Some("") => Ok(None),
        Some(_) if !uts => Err(PlanError::refused(
            field,
            "the container has no UTS namespace of its own",
        )),
        Some(name) if name.len() > 64 => Err(PlanError::refused(field, "it is longer than 64 bytes")),
        Some(name) => Ok(Some(name.to_owned())),
    };
    let propagation = match linux.and_then(|l| l.rootfs_propagation().as_deref()) {
        None | Some("") => None,
        Some(word) => Some(options::propagation(word).ok_or_else(|| {
            PlanError::refused("linux.rootfsPropagation", format!("`{word}` is no propagation"))
        })?),
    };
    let paths = |list: Option<&Vec<String>>, field: &str| {
        list.into_iter()
            .flatten()
            .map(|p| absolute(p, field))
            .collect::<Result<Vec<_>, _>>()
    };
    let mount_label = linux
        .and_then(|l| l.mount_label().clone())
        .filter(|l| !l.is_empty());
    if mount_label.is_some() && !process::selinux_enabled() {
        return Err(PlanError::refused(
            "linux.mountLabel",
            "SELinux is not enabled on this node",
        ));
    }
    Ok(Recipe {
        preserved: 0,
        in_order: false,
        over: false,
        clocks: clocks(linux)?,
        id: id.to_owned(),
        root,
        root_flags: root_flags(root_readonly, extensions),
        propagation,
        mounts: mounts(bundle, spec, own_users)?,
        users,
        devices,
        masked: paths(linux.and_then(|l| l.masked_paths().as_ref()), "linux.maskedPaths")?,
        readonly: paths(
            linux.and_then(|l| l.readonly_paths().as_ref()),
            "linux.readonlyPaths",
        )?,
        new,
        joined,
        hostname: name("hostname", spec.hostname())?,
        domainname: name("domainname", spec.domainname())?,
        sysctl: sysctl(linux)?,
        process: Process {
            personality: personality(linux),
            memory: linux
                .and_then(|l| l.memory_policy().as_ref())
                .map(MemoryPolicy::of)
                .transpose()
                .map_err(|why| PlanError::refused("linux.memoryPolicy", why))?,
            ..process::words(words, own_users)?
        },
        mount_label,
        oom_score_adj: process::oom_score(words)?,
        die_with_parent: extensions.die_with_parent,
        plain_sources: extensions.plain_sources,
        hooks_before_pivot: hooks
            .is_some_and(|h| h.create_container().as_ref().is_some_and(|c| !c.is_empty())),
        hooks_outside: hooks.is_some_and(|h| {
            #[allow(deprecated)] // prestart is deprecated and still in the specification
            let prestart = h.prestart().as_ref();
            prestart.is_some_and(|c| !c.is_empty())
                || h.create_runtime().as_ref().is_some_and(|c| !c.is_empty())
        }),
        hooks_inside: hooks_inside(hooks, words)?,
        create_container_hooks: hooks_of(
            "createContainer",
            hooks.and_then(|h| h.create_container().as_ref()),
        )?,
        filtered: linux.is_some_and(|l| l.seccomp().is_some()),
        cgroups: Vec::new(),
        cgroup_v2: false,
    })
}

/// `linux.timeOffsets` as /proc/self/timens_offsets takes and shows it.
fn clocks(linux: Option<&Linux>) -> Result<Option<String>, PlanError> {
    let Some(offsets) = linux.and_then(|l| l.time_offsets().as_ref()) else {
        return Ok(None);
    };
    let refuse = |why: String| PlanError::refused("linux.timeOffsets", why);
    if let Some(name) = offsets.keys().find(|k| *k != "monotonic" && *k != "boottime") {
        return Err(refuse(format!("`{name}` is neither monotonic nor boottime")));
    }
    let time = LinuxNamespaceType::Time;
    if !checks::has_own(linux, time) || checks::joined(linux, time).is_some() {
        return Err(refuse("the container has no new time namespace".into()));
    }
    let mut text = String::new();
    for name in ["monotonic", "boottime"] {
        let offset = offsets.get(name);
        let seconds = offset.and_then(|o| o.secs()).unwrap_or(0);
        let nanoseconds = offset.and_then(|o| o.nanosecs()).unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(refuse(format!(
                "{name}: nanosecs {nanoseconds} is a second or more"
            )));
        }
        text += &format!("{name} {seconds} {nanoseconds}\n");
    }
    Ok(Some(text))
}

fn personality(linux: Option<&Linux>) -> Option<u64> {
    let personality = linux.and_then(|l| l.personality().as_ref())?;
    Some(match personality.domain() {
        oci::LinuxPersonalityDomain::PerLinux => 0,
        oci::LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

pub(super) fn absolute(path: &str, field: &str) -> Result<PathBuf, PlanError> {
    let path = PathBuf::from(path);
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(PlanError::refused(
            field,
            format!("`{}` is not an absolute path without `..`", path.display()),
        ));
    }
    Ok(path)
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    kind as u64
}

fn namespaces(linux: Option<&Linux>) -> (u64, Vec<(u64, PathBuf)>) {
    let (mut new, mut joined) = (0, Vec::new());
    for ns in linux.and_then(|l| l.namespaces().as_ref()).into_iter().flatten() {
        match ns.path() {
            None => new |= flag(ns.typ()),
            Some(_)
                if matches!(
                    ns.typ(),
                    LinuxNamespaceType::Pid | LinuxNamespaceType::User | LinuxNamespaceType::Mount
                ) => {}
            Some(path) => joined.push((flag(ns.typ()), path.clone())),
        }
    }
    (new, joined)
}

fn root_flags(readonly: bool, extensions: &Extensions) -> u64 {
    [
        (readonly, attr::RDONLY),
        (extensions.root_nosuid, attr::NOSUID),
        (extensions.root_nodev, attr::NODEV),
    ]
    .iter()
    .filter_map(|(asked, bit)| asked.then_some(bit))
    .sum()
}

fn root(bundle: &Path, spec: &Spec, extensions: &Extensions) -> Result<(Root, bool), PlanError> {
    let readonly = spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false);
    let directory = |field: &'static str, path: &Path| match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(path.to_owned()),
        Ok(_) => Err(PlanError::Path {
            field,
            path: path.to_owned(),
            source: Errno::ENOTDIR.into(),
        }),
        Err(source) => Err(PlanError::Path {
            field,
            path: path.to_owned(),
            source,
        }),
    };
    use nix::errno::Errno;
    if extensions.lower.is_empty() {
        let root = spec.root().as_ref().ok_or(PlanError::Missing { field: "root" })?;
        if root.path().as_os_str().is_empty() {
            return Err(PlanError::refused("root.path", "it is empty"));
        }
        let path = directory("root.path", &bundle.join(root.path()))?;
        if path == Path::new("/") {
            return Err(PlanError::refused("root.path", "it is the node's own root"));
        }
        return Ok((Root::Dir(path), readonly));
    }
    let lower = extensions
        .lower
        .iter()
        .map(|l| directory("lower", l))
        .collect::<Result<Vec<_>, _>>()?;
    let upper = match (&extensions.upper, &extensions.work) {
        (Some(upper), Some(work)) => Some((directory("upper", upper)?, directory("work", work)?)),
        (None, None) => None,
        _ => return Err(PlanError::refused("upper", "upper and work belong together")),
    };
    let readonly = readonly || upper.is_none();
    // Any directory will do as mount point: the overlay lies over it in the container's mount namespace alone.
    Ok((
        Root::Overlay {
            at: lower[0].clone(),
            lower,
            upper,
        },
        readonly,
    ))
}

fn mounts(bundle: &Path, spec: &Spec, own_users: bool) -> Result<Vec<Mount>, PlanError> {
    let mut all = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let refuse = |why: String| {
            PlanError::refused(
                "mounts",
                format!("destination `{}`: {why}", mount.destination().display()),
            )
        };
        let destination = Path::new("/").join(mount.destination());
        if destination.components().any(|c| c == Component::ParentDir) {
            return Err(refuse("it has `..` in it".into()));
        }
        let destination: PathBuf = destination.components().collect();
        if destination == Path::new("/") {
            return Err(refuse("the root itself cannot be mounted over".into()));
        }
        let fs = mount.typ().as_deref().unwrap_or("none");
        let words = mount.options().as_deref().unwrap_or_default();
        let mut options = options::parse(fs, words).map_err(|source| PlanError::Option {
            destination: destination.clone(),
            source,
        })?;
        let source = mount.source().clone().unwrap_or_default();
        if destination == Path::new("/dev") && fs != "tmpfs" {
            return Err(refuse(format!("/dev must be a tmpfs, not `{fs}`")));
        }
        let source = if options.bind.is_some() {
            if source.as_os_str().is_empty() {
                return Err(refuse("a bind mount needs a source".into()));
            }
            bundle.join(source)
        } else {
            if fs == "none" || fs.is_empty() {
                return Err(refuse("it has no type and is no bind mount".into()));
            }
            if fs == "cgroup2" {
                options.data.clear();
            }
            source
        };
        let fs = if fs == "cgroup2" {
            "cgroup".to_owned()
        } else {
            fs.to_owned()
        };
        let idmap = users::mapping(mount, &options, own_users).map_err(refuse)?;
        all.push(Mount {
            destination,
            source,
            fs,
            options,
            idmap,
        });
    }
    if !all.iter().any(|m| m.destination == Path::new("/dev")) {
        let words = ["nosuid", "strictatime", "mode=755", "size=65536k"].map(str::to_owned);
        let options = options::parse("tmpfs", &words).map_err(|source| PlanError::Option {
            destination: "/dev".into(),
            source,
        })?;
        let dev = Mount {
            destination: "/dev".into(),
            source: "tmpfs".into(),
            fs: "tmpfs".into(),
            options,
            idmap: None,
        };
        let below = |m: &Mount| m.destination.starts_with("/dev");
        all.insert(all.iter().position(below).unwrap_or(all.len()), dev);
    }
    Ok(all)
}

fn devices(linux: Option<&Linux>) -> Result<Vec<Node>, PlanError> {
    let mut nodes = Vec::new();
    for device in linux.and_then(|l| l.devices().as_ref()).into_iter().flatten() {
        let path = absolute(&device.path().to_string_lossy(), "linux.devices")?;
        let refuse = |why: &str| PlanError::refused("linux.devices", format!("`{}`: {why}", path.display()));
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => NodeKind::Char,
            LinuxDeviceType::B => NodeKind::Block,
            LinuxDeviceType::P => NodeKind::Fifo,
            LinuxDeviceType::A => return Err(refuse("type `a` is no device node")),
        };
        let number =
            |value: i64| u32::try_from(value).map_err(|_| refuse("major and minor must not be negative"));
        let (major, minor) = match kind {
            NodeKind::Fifo => (0, 0),
            _ => (number(device.major())?, number(device.minor())?),
        };
        nodes.push(Node {
            kind,
            major,
            minor,
            mode: device.file_mode().unwrap_or(0o666),
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        });
    }
    let mut all = crate::dev::defaults(&nodes);
    all.extend(nodes);
    Ok(all)
}

fn sysctl(linux: Option<&Linux>) -> Result<Vec<(String, String)>, PlanError> {
    let mut all = Vec::new();
    for (key, value) in linux.and_then(|l| l.sysctl().as_ref()).into_iter().flatten() {
        // Both forms are in use: dots, and slashes where a name has a dot in it.
        let dotted = if key.contains('/') {
            key.replace('.', "\u{0}").replace('/', ".")
        } else {
            key.clone()
        };
        let field = format!("linux.sysctl.{key}");
        match checks::sysctl_namespace(&dotted) {
            None => {
                return Err(PlanError::refused(
                    field,
                    "no namespace keeps it from the rest of the node",
                ));
            }
            Some(kind) if !checks::has_own(linux, kind) => {
                return Err(PlanError::refused(
                    field,
                    format!("the container has no {kind} namespace of its own"),
                ));
            }
            Some(_) => {}
        }
        let path = dotted.replace('.', "/").replace('\u{0}', ".");
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(PlanError::refused(field, "it is not a sysctl name"));
        }
        all.push((path, value.clone()));
    }
    all.sort();
    Ok(all)
}

fn hooks_of(kind: &'static str, hooks: Option<&Vec<oci::Hook>>) -> Result<Vec<Hook>, PlanError> {
    let mut all = Vec::new();
    for hook in hooks.into_iter().flatten() {
        let refuse = |why: String| Err(PlanError::refused(format!("hooks.{kind}"), why));
        if !hook.path().is_absolute() {
            return refuse(format!("`{}` is not an absolute path", hook.path().display()));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(t) => match u64::try_from(t) {
                Ok(t) if t > 0 => Some(t),
                _ => return refuse(format!("timeout {t} is not above 0")),
            },
        };
        all.push(Hook {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone(),
            timeout,
        });
    }
    Ok(all)
}

/// The hooks that run inside. One that names no environment has the container's: the runtime's has no meaning there.
fn hooks_inside(hooks: Option<&oci::Hooks>, words: &oci::Process) -> Result<Vec<Hook>, PlanError> {
    let mut all = hooks_of("startContainer", hooks.and_then(|h| h.start_container().as_ref()))?;
    for hook in all.iter_mut().filter(|h| h.env.is_none()) {
        hook.env = Some(words.env().clone().unwrap_or_default());
    }
    Ok(all)
}

/// The hooks that run in the runtime's namespaces.
pub(super) fn outer_hooks(spec: &Spec) -> Result<Hooks, PlanError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(Hooks::default());
    };
    #[allow(deprecated)] // prestart is deprecated and still in the specification
    let prestart = hooks_of("prestart", hooks.prestart().as_ref())?;
    Ok(Hooks {
        prestart,
        create_runtime: hooks_of("createRuntime", hooks.create_runtime().as_ref())?,
        poststart: hooks_of("poststart", hooks.poststart().as_ref())?,
        poststop: hooks_of("poststop", hooks.poststop().as_ref())?,
    })
}

/// `linux.netDevices`.
pub(super) fn net_devices(linux: Option<&Linux>) -> Vec<Interface> {
    let all = linux.and_then(|l| l.net_devices().as_ref()).into_iter().flatten();
    let mut all: Vec<Interface> = all
        .map(|(name, device)| Interface {
            name: name.clone(),
            index: None,
            rename: device.name().clone(),
            ..Interface::default()
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The resources with the device rules made whole: everything is denied unless the rules say otherwise, and the
/// devices that every container has are allowed after them.
pub(super) fn resources(wanted: Option<&LinuxResources>, hierarchy: &Hierarchy) -> LinuxResources {
    let mut resources = wanted.cloned().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if rules.is_empty() {
        if hierarchy.tree(Controller::Devices).is_none() {
            return resources;
        }
        rules.push(rule(LinuxDeviceType::A, None, None, false, "rwm"));
    }
    for kind in [LinuxDeviceType::C, LinuxDeviceType::B] {
        rules.push(rule(kind, None, None, true, "m"));
    }
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(LinuxDeviceType::C, Some(major), Some(minor), true, "rwm"));
    }
    rules.push(rule(LinuxDeviceType::C, Some(136), None, true, "rwm"));
    resources.set_devices(Some(rules));
    resources
}

fn rule(
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    allow: bool,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}
