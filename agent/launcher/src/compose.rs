//! Image configuration, request and profile → one OCI document and the runtime's extensions.
//!
//! A pure function of its inputs and of what the kernel lacks. Invariants: no security setting is written here: the profile overwrites every
//! one of them ([`Profile::apply`]); what the request grants beyond the profile is only what berth gave this
//! one container (its devices, its cores, its mounts), and each grant is a line of its own.

use std::path::{Path, PathBuf};

use berth_images::ImageConfiguration;
use berth_policies::{Mechanism, Profile};
use berth_rt::cgroup::{Extras, Isolate};
use berth_rt::cpu::CpuSet;
use berth_runtime::Extensions;
use berth_runtime::landlock::{Access, Landlock, PathRule, Scope};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxCpuBuilder, LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount,
    MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::users::User;
use crate::wire::{DeviceGrant, InterfaceGrant, LaunchRequest, Network, Refusal};

/// Where programs are looked for when neither image nor request says.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bounds of a volume that only the image asks for: it is the node's memory.
const VOLUME_SIZE: &str = "size=64m";
const VOLUME_INODES: &str = "nr_inodes=16384";

/// Most tasks of a container whose request names no number.
pub const DEFAULT_TASKS: u64 = 4096;

/// What compose needs beside the request.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Checked by [`crate::check::check`].
    pub request: &'a LaunchRequest,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// The image's unpacked layers, topmost first.
    pub layers: &'a [PathBuf],
    /// The image's user, as numbers.
    pub user: &'a User,
    /// The resolved profile.
    pub profile: &'a Profile,
    /// Parent of the container's cgroup.
    pub cgroup_parent: &'a str,
    /// Folder for a writable root's own files.
    pub storage: &'a Path,
    /// Host paths of the request's mounts, without a link in them, in their order.
    pub sources: &'a [PathBuf],
    /// With a network of the node's plug-ins: the folder of its files, and the layer with places for them.
    pub network: Option<&'a (PathBuf, PathBuf)>,
    /// With secrets: the folder they are put together in, and the layer with a place for them.
    pub secrets: Option<&'a (PathBuf, PathBuf)>,
    /// With events of its devices: its folder of records, and the layer with a place for it.
    pub udev: Option<&'a (PathBuf, PathBuf)>,
    /// oom_score_adj every container starts with.
    pub oom_score_adj: i32,
}

/// What the runtime gets.
#[derive(Debug)]
pub struct Composed {
    /// The OCI document.
    pub spec: Spec,
    /// What OCI has no field for.
    pub extensions: Extensions,
    /// The part of the arguments that new arguments at `start` do not replace: command or entrypoint.
    pub program: Vec<String>,
}

fn refuse(message: impl Into<String>) -> Refusal {
    Refusal {
        stage: "compose".into(),
        message: message.into(),
        hint: None,
    }
}

fn built(error: OciSpecError) -> Refusal {
    refuse(format!("the OCI document: {error}"))
}

/// Composes.
///
/// # Errors
/// A refusal of the stage `compose`: no program to run, or what the profile does not allow.
pub fn compose(inputs: &Inputs<'_>) -> Result<Composed, Refusal> {
    let request = inputs.request;
    let (program, rest) = arguments(inputs)?;
    let mut spec = SpecBuilder::default()
        .version("1.3.0".to_owned())
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(true)
                .build()
                .map_err(built)?,
        )
        .hostname(host(request))
        .mounts(mounts(inputs).map_err(built)?)
        .process(process(inputs, program.iter().cloned().chain(rest).collect())?)
        .linux(linux(inputs).map_err(built)?)
        .build()
        .map_err(built)?;
    inputs.profile.apply(&mut spec).map_err(|e| Refusal {
        stage: "profile".into(),
        message: chain(&e),
        hint: e.hint(),
    })?;
    leave_out(inputs.profile, &mut spec);
    if let Some(linux) = spec.linux_mut() {
        network(linux, request.network);
        grant(linux, &request.devices).map_err(built)?;
    }
    let cpus: CpuSet = request
        .placement
        .cpus
        .parse()
        .map_err(|e| refuse(format!("placement.cpus: {e}")))?;
    let writable = spec
        .root()
        .as_ref()
        .is_some_and(|root| root.readonly() != Some(true));
    // noexec is not laid on the root: its programs are the image's.
    let laid = |flag: &str| inputs.profile.mount_flags.iter().any(|f| f == flag);
    let extensions = Extensions {
        lower: inputs
            .network
            .iter()
            .map(|(_, layer)| layer.clone())
            .chain(inputs.layers.iter().cloned())
            .chain(inputs.secrets.map(|(_, layer)| layer.clone()))
            .chain(inputs.udev.map(|(_, layer)| layer.clone()))
            .collect(),
        upper: writable.then(|| inputs.storage.join("upper")),
        work: writable.then(|| inputs.storage.join("work")),
        root_nosuid: laid("nosuid"),
        root_nodev: laid("nodev"),
        idmap_root: true,
        timer_slack_ns: request.timer_slack_ns,
        scheduler: request.scheduler,
        affinity: Some(cpus),
        die_with_parent: true,
        plain_sources: true,
        report_isolation: !request.placement.shared,
        interfaces: request.interfaces.iter().map(interface).collect(),
        require_isolated: request.placement.require_isolated,
        landlock: landlock(inputs.profile),
        core_cookie: core_cookie(inputs.profile),
        undumpable: !inputs.profile.dumpable,
        cgroup: Extras {
            isolate: match (request.placement.shared, request.placement.require_isolated) {
                (true, _) => Isolate::No,
                (false, false) => Isolate::Try,
                (false, true) => Isolate::Must,
            },
            ..Extras::default()
        },
    };
    Ok(Composed {
        spec,
        extensions,
        program,
    })
}

/// The profile's Landlock domain in the runtime's words.
fn landlock(profile: &Profile) -> Option<Landlock> {
    let wanted = profile.landlock.as_ref()?;
    let access = |word: &String| match word.as_str() {
        "read" => Some(Access::Read),
        "execute" => Some(Access::Execute),
        "write" => Some(Access::Write),
        "make" => Some(Access::Make),
        "makeDevices" => Some(Access::MakeDevices),
        "ioctl" => Some(Access::Ioctl),
        _ => None, // resolving refused it
    };
    let scope = |word: &String| match word.as_str() {
        "abstractSockets" => Some(Scope::AbstractSockets),
        "signals" => Some(Scope::Signals),
        _ => None,
    };
    let paths = wanted.paths.iter().map(|rule| PathRule {
        path: rule.path.clone().into(),
        access: rule.access.iter().filter_map(access).collect(),
        optional: rule.optional,
    });
    Some(Landlock {
        paths: paths.collect(),
        bind_tcp: wanted.bind_tcp.clone(),
        connect_tcp: wanted.connect_tcp.clone(),
        scope: wanted.scope.iter().filter_map(scope).collect(),
        skip: profile.skip.contains(&Mechanism::Landlock),
    })
}

/// Asked for, and not both missing and allowed to be.
fn core_cookie(profile: &Profile) -> bool {
    let may_miss = profile.skip.contains(&Mechanism::CoreScheduling);
    profile.core_scheduling && (!may_miss || berth_runtime::core_scheduling())
}

/// What the node lacks and the profile says may be left out.
fn leave_out(profile: &Profile, spec: &mut Spec) {
    let skip = |mechanism| profile.skip.contains(&mechanism);
    if skip(Mechanism::Selinux) && !Path::new("/sys/fs/selinux/enforce").exists() {
        if let Some(process) = spec.process_mut() {
            process.set_selinux_label(None);
        }
        if let Some(linux) = spec.linux_mut() {
            linux.set_mount_label(None);
        }
    }
    let apparmor = || std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    if skip(Mechanism::Apparmor)
        && !apparmor().is_ok_and(|on| on.trim() == "Y")
        && let Some(process) = spec.process_mut()
    {
        process.set_apparmor_profile(None);
    }
}

/// An error with all its causes, one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let said = e.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = e.source();
    }
    text
}

/// Its host name.
pub(crate) fn host(request: &LaunchRequest) -> String {
    request.hostname.clone().unwrap_or_else(|| host_name(&request.id))
}

/// The id as a host name: at most 64 bytes.
fn host_name(id: &str) -> String {
    id.chars().take(64).collect()
}

/// The arguments in two parts: `command` replaces entrypoint and cmd of the image, `args` replaces its cmd.
fn arguments(inputs: &Inputs<'_>) -> Result<(Vec<String>, Vec<String>), Refusal> {
    let wanted = &inputs.request.process;
    let image = inputs.image.config().as_ref();
    let of_image = |list: Option<&Option<Vec<String>>>| list.and_then(|l| l.clone()).unwrap_or_default();
    let entrypoint = of_image(image.map(|c| c.entrypoint()));
    let cmd = of_image(image.map(|c| c.cmd()));
    let (first, rest) = match (wanted.command.is_empty(), wanted.args.is_empty()) {
        (true, true) => (entrypoint, cmd),
        (true, false) => (entrypoint, wanted.args.clone()),
        (false, _) => (wanted.command.clone(), wanted.args.clone()),
    };
    match first.first().or(rest.first()) {
        None => Err(Refusal {
            hint: Some("name one with `command`".into()),
            ..refuse("no program: the image has neither entrypoint nor cmd, and the request names none")
        }),
        Some(program) if program.is_empty() => Err(refuse("the program's name is empty")),
        Some(_) => Ok((first, rest)),
    }
}

/// The image's environment, then the request's; a later name replaces an earlier one in its place.
fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let image = inputs
        .image
        .config()
        .as_ref()
        .and_then(|c| c.env().clone())
        .unwrap_or_default();
    let home = inputs.user.home.as_ref().map(|home| format!("HOME={home}"));
    let wanted = inputs
        .request
        .process
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let mut all: Vec<String> = vec![PATH.to_owned()];
    for entry in home.into_iter().chain(image).chain(wanted) {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|e| e.split('=').next() == Some(&name)) {
            Some(same) => *same = entry,
            None => all.push(entry),
        }
    }
    all
}

fn process(inputs: &Inputs<'_>, args: Vec<String>) -> Result<Process, Refusal> {
    let image_cwd = inputs
        .image
        .config()
        .as_ref()
        .and_then(|c| c.working_dir().clone());
    let cwd = match (&inputs.request.process.cwd, image_cwd) {
        (Some(cwd), _) => cwd.clone(),
        (None, Some(cwd)) if cwd.starts_with('/') => cwd,
        (None, Some(cwd)) if !cwd.is_empty() => {
            return Err(refuse(format!(
                "the image's working folder {cwd:?} is not absolute"
            )));
        }
        _ => "/".to_owned(),
    };
    let user = UserBuilder::default()
        .uid(inputs.user.uid)
        .gid(inputs.user.gid)
        .additional_gids(inputs.user.groups.clone())
        .build()
        .map_err(built)?;
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(environment(inputs))
        .cwd(cwd)
        .oom_score_adj(inputs.oom_score_adj)
        .build()
        .map_err(built)?;
    // The builder fills these with a default of its own: they are the profile's.
    process
        .set_capabilities(None)
        .set_rlimits(None)
        .set_no_new_privileges(None);
    Ok(process)
}

fn mount(destination: &Path, typ: &str, source: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

fn mounts(inputs: &Inputs<'_>) -> Result<Vec<Mount>, OciSpecError> {
    const OWN: [(&str, &str, &[&str]); 6] = [
        ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        (
            "/dev",
            "tmpfs",
            &["nosuid", "noexec", "strictatime", "mode=755", "size=1m"],
        ),
        (
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=64m"],
        ),
        ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    let mut all = Vec::with_capacity(OWN.len() + inputs.sources.len());
    let borrowed = inputs.profile.own_users && inputs.request.network == Network::Host;
    for (destination, typ, options) in OWN {
        if borrowed && typ == "sysfs" {
            // A user namespace may mount a sysfs only for a network namespace of its own.
            let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
            all.push(mount(
                Path::new(destination),
                "bind",
                Path::new("/sys"),
                &options,
            )?);
            continue;
        }
        all.push(mount(Path::new(destination), typ, Path::new(typ), options)?);
    }
    let volumes = inputs
        .image
        .config()
        .as_ref()
        .and_then(|c| c.volumes().clone())
        .unwrap_or_default();
    for volume in volumes.iter().map(Path::new) {
        let covered = inputs.request.mounts.iter().any(|m| m.destination == volume);
        if volume.is_absolute() && !covered {
            // A volume nobody gave is an empty one that ends with the container.
            all.push(mount(
                volume,
                "tmpfs",
                Path::new("tmpfs"),
                &[
                    "nosuid",
                    "nodev",
                    "noexec",
                    "mode=755",
                    VOLUME_SIZE,
                    VOLUME_INODES,
                ],
            )?);
        }
    }
    if let Some((files, _)) = inputs.network {
        let options = ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro"];
        for (destination, name) in crate::cni::files() {
            all.push(mount(&destination, "bind", &files.join(name), &options)?);
        }
    }
    if let Some((secrets, _)) = inputs.secrets {
        let options = ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro"];
        all.push(mount(
            Path::new(crate::secrets::INSIDE),
            "bind",
            secrets,
            &options,
        )?);
    }
    if let Some((folder, _)) = inputs.udev {
        let options = ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro"];
        all.push(mount(Path::new(crate::uevent::INSIDE), "bind", folder, &options)?);
    }
    for (wanted, source) in inputs.request.mounts.iter().zip(inputs.sources) {
        let access = if wanted.read_only { "rro" } else { "rw" };
        let mut options = vec!["rbind", "rprivate", "rnosuid", "rnodev", access];
        if inputs.profile.own_users && inputs.profile.idmap_mounts {
            options.push("ridmap");
        }
        all.push(mount(&wanted.destination, "bind", source, &options)?);
    }
    Ok(all)
}

fn linux(inputs: &Inputs<'_>) -> Result<Linux, OciSpecError> {
    let request = inputs.request;
    let mut linux = LinuxBuilder::default()
        .cgroups_path(Path::new("/").join(inputs.cgroup_parent).join(&request.id))
        .resources(resources(request)?)
        .build()?;
    // As above: these are the profile's.
    linux
        .set_namespaces(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_devices(None);
    Ok(linux)
}

fn resources(request: &LaunchRequest) -> Result<LinuxResources, OciSpecError> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut cpu = LinuxCpuBuilder::default().cpus(request.placement.cpus.clone());
    if !request.placement.mems.is_empty() {
        cpu = cpu.mems(request.placement.mems.clone());
    }
    if let Some(budget) = request.rt_budget {
        cpu = cpu
            .realtime_runtime(number(budget.runtime_us))
            .realtime_period(budget.period_us);
    }
    let mut resources = LinuxResourcesBuilder::default().cpu(cpu.build()?);
    if let Some(bytes) = request.memory_bytes {
        // Limit and swap together: the limit is what it may have, not where swapping begins.
        let memory = LinuxMemoryBuilder::default()
            .limit(number(bytes))
            .swap(number(bytes));
        resources = resources.memory(memory.build()?);
    }
    // A fork bomb ends at its own limit, also where nobody thought of one.
    let pids = number(request.pids.unwrap_or(DEFAULT_TASKS));
    resources = resources.pids(LinuxPidsBuilder::default().limit(pids).build()?);
    let mut resources = resources.build()?;
    resources.set_devices(None);
    Ok(resources)
}

/// The host's network is a container without a network namespace of its own.
fn network(linux: &mut Linux, network: Network) {
    if network == Network::Host
        && let Some(namespaces) = linux.namespaces_mut()
    {
        namespaces.retain(|n| n.typ() != LinuxNamespaceType::Network);
    }
}

/// One node and one permission for each device, after the profile's own rules.
fn grant(linux: &mut Linux, devices: &[DeviceGrant]) -> Result<(), OciSpecError> {
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for device in devices.iter().filter(|d| d.mount.is_none()) {
        let typ = if device.block {
            LinuxDeviceType::B
        } else {
            LinuxDeviceType::C
        };
        let (major, minor) = (i64::from(device.major), i64::from(device.minor));
        nodes.push(
            LinuxDeviceBuilder::default()
                .path(&device.path)
                .typ(typ)
                .major(major)
                .minor(minor)
                .file_mode(device.mode)
                .uid(device.uid)
                .gid(device.gid)
                .build()?,
        );
        rules.push(
            LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(typ)
                .major(major)
                .minor(minor)
                .access(device.access.clone())
                .build()?,
        );
    }
    if !devices.is_empty() {
        resources.set_devices(Some(rules));
        linux.set_devices(Some(nodes)).set_resources(Some(resources));
    }
    Ok(())
}

/// A device grant in the runtime's words.
pub(crate) fn device(grant: &DeviceGrant) -> berth_runtime::Device {
    berth_runtime::Device {
        block: grant.block,
        major: grant.major,
        minor: grant.minor,
        path: grant.path.clone().into(),
        access: grant.access.clone(),
        mode: grant.mode,
        uid: grant.uid,
        gid: grant.gid,
    }
}

/// What is mounted of a device, in the runtime's words.
pub(crate) fn filesystem(grant: &DeviceGrant) -> Option<berth_runtime::Filesystem> {
    let mount = grant.mount.as_ref()?;
    Some(berth_runtime::Filesystem {
        major: grant.major,
        minor: grant.minor,
        path: grant.path.clone().into(),
        types: mount.types.clone(),
        label: mount.label.clone(),
        read_only: !grant.access.contains('w'),
    })
}

/// An interface grant in the runtime's words.
pub(crate) fn interface(grant: &InterfaceGrant) -> berth_runtime::Interface {
    berth_runtime::Interface {
        name: grant.name.clone(),
        index: Some(grant.index),
        rename: grant.rename.clone(),
        mtu: grant.mtu,
        addresses: grant.addresses.clone(),
        vlan: grant.vlan,
    }
}

#[cfg(test)]
mod tests;
