//! What is asked of a joined process, and what it is promised.

use std::ffi::CString;
use std::path::PathBuf;

use berth_rt::cpu::CpuSet;
use berth_rt::sched::Scheduler;
use oci_spec::runtime as oci;

use super::ExecError;
use crate::console::Size;
use crate::container::Container;
use crate::plan::{self, PlanError};
use crate::proof::{CapabilitySets, IsolationPromise, NamespaceKind, NamespacePromise, Promise, Rlimit};
use crate::recipe::{Label, Process, outside};
use crate::seccomp::Filter;

/// What runs. What is not said is the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value`, added to the container's environment; a name that is there already is replaced.
    pub env: Vec<String>,
    /// Working directory inside, absolute; that of the container where absent.
    pub cwd: Option<String>,
    /// User, groups and umask inside.
    pub user: Option<ExecUser>,
    /// The five sets before exec. Another user than root keeps none but the ambient ones.
    pub capabilities: Option<CapabilitySets>,
    /// `no_new_privs`; it can be switched on where the container has it off, and not off where it is on.
    pub no_new_privs: bool,
    /// SELinux context or AppArmor profile, whichever the node has.
    pub label: Option<String>,
    /// A terminal of this size, in the container's devpts.
    pub terminal: Option<Size>,
    /// CPUs while it joins (`execCPUAffinity.initial`).
    pub first_cpus: Option<CpuSet>,
    /// CPUs of the program (`execCPUAffinity.final`).
    pub cpus: Option<CpuSet>,
    /// So many of the caller's descriptors, from 3 on, go in. They must be open.
    pub preserved: u32,
    /// A paused container is joined too: the process begins once it is resumed, and the caller waits for that.
    pub while_paused: bool,
    /// Groups below the container's own that it goes into, `[CONTROLLERS:]PATH`; they are there already.
    pub cgroups: Vec<String>,
    /// A whole OCI process instead: everything in it counts, nothing is the container's own but the filter.
    pub process: Option<Box<oci::Process>>,
}

/// Whom a joined process belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecUser {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// At most 0o777; the container's where absent.
    pub umask: Option<u32>,
}

/// A request worked out.
pub(super) struct Wanted {
    pub(super) process: Process,
    pub(super) filter: Option<Filter>,
    pub(super) promise: Promise,
    pub(super) first_cpus: Option<CpuSet>,
    pub(super) cpus: Option<CpuSet>,
    pub(super) scheduler: Option<(Scheduler, u64)>,
    pub(super) io_priority: Option<(u32, u32)>,
}

fn bad(e: &PlanError) -> ExecError {
    ExecError::Request(e.to_string())
}

impl Container {
    /// Check the request and lay it over the container's own words.
    pub(super) fn wanted(&self, request: &ExecRequest) -> Result<Wanted, ExecError> {
        let (own, filter) = self.words()?;
        let (mut scheduler, mut io_priority) = (None, None);
        let (mut first_cpus, mut cpus) = (request.first_cpus.clone(), request.cpus.clone());
        let users = matches!(
            self.record.promise.namespaces.get(&NamespaceKind::User),
            Some(NamespacePromise::New | NamespacePromise::Joined { .. })
        );
        let mut process = match &request.process {
            Some(whole) => {
                let process = plan::exec_process(whole, users).map_err(|e| bad(&e))?;
                scheduler = whole.scheduler().as_ref().map(Scheduler::from_oci).transpose()?;
                io_priority = plan::io_priority(whole).map_err(|e| bad(&e))?;
                Process {
                    // Confinement is the container's, whatever runs.
                    personality: own.personality,
                    memory: own.memory,
                    callers_keyring: own.callers_keyring,
                    landlock: own.landlock,
                    core_cookie: own.core_cookie,
                    ..process
                }
            }
            None => laid_over(own, request)?,
        };
        let (first, last) = process.exec_cpus.clone();
        (first_cpus, cpus) = (first_cpus.or(first), cpus.or(last));
        if let Some(size) = request.terminal {
            process.terminal = Some(size);
        }
        if process.args.is_empty() {
            return Err(ExecError::Request("no program is named".into()));
        }
        let mut promise = self.record.promise.clone();
        promise_process(&mut promise, &process)?;
        promise.isolation = IsolationPromise::None;
        promise.timer_slack_ns = None;
        promise.start_time = None;
        promise.preserved = request.preserved;
        promise.scheduler = scheduler.as_ref().map(|(s, _)| *s);
        promise.terminal = process.terminal.is_some();
        // A program is not held to the cores of the container's first process, but to those of its cgroup.
        cpus = cpus.or_else(|| self.record.affinity.clone());
        if let Some(cpus) = &cpus {
            promise.cpus = Some(cpus.clone());
        }
        Ok(Wanted {
            process,
            filter,
            promise,
            first_cpus,
            cpus,
            scheduler,
            io_priority,
        })
    }
}

fn laid_over(own: Process, request: &ExecRequest) -> Result<Process, ExecError> {
    let refuse = |why: &str| ExecError::Request(why.to_owned());
    let c = |text: &String| CString::new(text.as_str()).map_err(|_| refuse("a NUL byte"));
    let mut process = own;
    process.terminal = None;
    process.args = request.args.iter().map(c).collect::<Result<_, _>>()?;
    for pair in &request.env {
        let Some((name, _)) = pair.split_once('=') else {
            return Err(refuse("an environment entry has no `=`"));
        };
        let prefix = format!("{name}=");
        process
            .env
            .retain(|e| !e.to_bytes().starts_with(prefix.as_bytes()));
        process.env.push(c(pair)?);
    }
    if let Some(cwd) = &request.cwd {
        process.cwd = PathBuf::from(cwd);
        if !process.cwd.is_absolute() {
            return Err(refuse("the working directory is not absolute"));
        }
    }
    if let Some(user) = &request.user {
        (process.uid, process.gid) = (user.uid, user.gid);
        process.groups.clone_from(&user.groups);
        process.umask = user.umask.unwrap_or(process.umask);
        if process.umask > 0o777 {
            return Err(refuse("the umask is more than 777"));
        }
    }
    if let Some(sets) = request.capabilities {
        process.capabilities = sets;
    }
    process.no_new_privs |= request.no_new_privs;
    if let Some(label) = &request.label {
        process.label = plan::label_of(label).map_err(|e| bad(&e))?;
    }
    Ok(process)
}

/// What the kernel must say of the process itself.
fn promise_process(promise: &mut Promise, words: &Process) -> Result<(), ExecError> {
    let host = |maps: &Option<Vec<_>>, id: u32| match maps {
        None => Ok(id),
        Some(maps) => outside(maps, id)
            .ok_or_else(|| ExecError::Request(format!("id {id} is not mapped in the user namespace"))),
    };
    promise.uid = Some(host(&promise.uid_map, words.uid)?);
    promise.gid = Some(host(&promise.gid_map, words.gid)?);
    let groups: Result<Vec<u32>, ExecError> =
        words.groups.iter().map(|g| host(&promise.gid_map, *g)).collect();
    promise.groups = Some(groups?);
    promise.capabilities = Some(words.capabilities.after_exec(words.uid == 0, words.no_new_privs));
    promise.no_new_privs = words.no_new_privs;
    promise.rlimits = words
        .rlimits
        .iter()
        .map(|l| {
            let limit = Rlimit {
                soft: l.soft,
                hard: l.hard,
            };
            (l.name.clone(), limit)
        })
        .collect();
    promise.lsm_label = words.label.as_ref().map(Label::shown);
    Ok(())
}
