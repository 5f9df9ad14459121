//! The caller's half of making a container: state folder, cgroup, clone, id maps, interfaces, filter.
//!
//! Invariants: what was made is undone when a later step fails, in reverse order, and what could not be undone is
//! named in the error; the caller's timer slack, namespaces and signal mask are afterwards what they were before.

mod errors;
mod talk;

pub use errors::{CreateCause, CreateError};

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_rt::cgroup::{Cgroup, Wanted};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, mkfifo};

use crate::child;
use crate::container::{Channel, Container, Words};
use crate::hooks;
use crate::joined::{self, Lent};
use crate::net;
use crate::plan::Plan;
use crate::prepare::{self, Unprepared};
use crate::proof::InterfacePromise;
use crate::report::{Down, Up};
use crate::seccomp;
use crate::state::{self, Record, StoredFilter, claim};
use crate::sys::process::{self as sys, CloneArgs, Cloned};
use crate::timing::Timing;

use talk::Child;

/// linux/capability.h
const SYS_ADMIN: u32 = 21;
const SYS_NICE: u32 = 23;

/// The container's standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// What has been made so far.
struct Made {
    state_dir: PathBuf,
    /// Nobody deletes it meanwhile.
    held: claim::Held,
    cgroup: Option<Cgroup>,
    child: Option<(Pid, OwnedFd)>,
    /// A mount namespace is lent.
    lent: bool,
    /// Interfaces that are inside, and the namespace they are in.
    moved: Option<(OwnedFd, Vec<InterfacePromise>)>,
}

impl Made {
    /// Undo everything; returns what stays behind.
    fn undo(self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some((namespace, moved)) = &self.moved {
            left.extend(
                net::give_back(namespace.as_fd(), moved)
                    .iter()
                    .map(ToString::to_string),
            );
        }
        if let Some((pid, pidfd)) = &self.child {
            match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => left.push(format!("process {pid}: {}", errno.desc())),
            }
            let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED); // ECHILD: it has been waited for
        }
        if self.lent {
            left.extend(joined::give_back(&self.state_dir, None).err());
        }
        if let Some(cgroup) = &self.cgroup {
            if let Err(e) = cgroup.kill() {
                left.push(e.to_string());
            }
            if let Err(e) = cgroup.remove() {
                left.push(e.to_string());
            }
        }
        if let Err(e) = fs::remove_dir_all(&self.state_dir) {
            left.push(format!("{}: {e}", self.state_dir.display()));
        }
        left
    }
}

impl Plan {
    /// Make the container: everything up to "waiting before exec". On an error everything is undone.
    ///
    /// # Errors
    /// [`CreateError`] with the step that failed, the path and the kernel's answer.
    pub fn create(self, stdio: Stdio) -> Result<Container, CreateError> {
        let mut timing = Timing::begin();
        let state_dir = self.state_dir.clone();
        let held = reserve(&self.id, &state_dir, &self.cgroup).map_err(|cause| CreateError {
            cause,
            left: Vec::new(),
        })?;
        let mut made = Made {
            state_dir,
            held,
            cgroup: None,
            child: None,
            lent: false,
            moved: None,
        };
        match self.make(stdio, &mut made, &mut timing) {
            Ok(mut container) => {
                container.folder = made.held.unlock().ok();
                Ok(container)
            }
            Err(cause) => Err(CreateError {
                cause,
                left: made.undo(),
            }),
        }
    }

    fn make(mut self, stdio: Stdio, made: &mut Made, timing: &mut Timing) -> Result<Container, CreateCause> {
        let dir = made.state_dir.clone();
        let fifos = self.detached.then(|| make_fifos(&dir)).transpose()?;
        timing.mark("state");
        // v1 groups are made while the child mounts; v2 groups must be there for CLONE_INTO_CGROUP.
        let own_users = self.recipe.users.is_some();
        let needed_early = self.hierarchy.mode() == berth_rt::cgroup::Mode::V2
            || self.recipe.mounts.iter().any(|m| m.fs == "cgroup");
        if needed_early {
            self.make_cgroup(made)?;
            timing.mark("cgroup");
        }
        let into = made.cgroup.as_ref().map(Cgroup::dir_fd).transpose()?.flatten();
        if let Some(cgroup) = &made.cgroup {
            self.recipe.cgroups = cgroup.paths();
            self.recipe.cgroup_v2 = self.hierarchy.mode() == berth_rt::cgroup::Mode::V2;
        }
        let mounts = match &self.mount_namespace {
            Some(path) => {
                let named = |errno: Errno| CreateCause::file("join mount namespace", path)(errno.into());
                let fd = joined::open(path).map_err(named)?;
                let lent = Lent::begin(path, &fd, &dir).map_err(named)?;
                made.lent = true;
                Some((fd, lent))
            }
            None => None,
        };
        let (mounts, lent) = mounts.unzip();
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(CreateCause::call("socketpair"))?;
        let idmaps =
            prepare::idmaps(&self.recipe).map_err(|(what, errno)| CreateCause::Call { what, errno })?;
        let (pid, pidfd) = self.clone_child(
            stdio,
            (&ours, theirs, &made.held),
            fifos,
            into.as_ref(),
            &idmaps,
            mounts.as_ref(),
        )?;
        let socket = ours;
        let child = Child {
            pid,
            socket: &socket,
            console: RefCell::new(None),
            seccomp: self.seccomp.as_ref(),
            state: &self.hook_state,
        };
        made.child = Some((pid, pidfd));
        timing.mark("clone");
        if let Some(score) = self.recipe.oom_score_adj {
            write_proc(pid, "oom_score_adj", &score.to_string())?;
        }
        if own_users {
            child::limit(&self.recipe.process, Some(pid))?;
            if self.users.is_none() {
                write_proc(pid, "uid_map", &self.uid_map)?;
                write_proc(pid, "gid_map", &self.gid_map)?;
            }
            child.send(&Down::Mapped)?;
            match prepare::outside_in(&self.recipe, pid, &idmaps, child.socket.as_fd()) {
                Ok(()) => {}
                Err(Unprepared::Failed(failure)) => return Err(failure.into()),
                Err(Unprepared::Call(what, errno)) => return Err(CreateCause::Call { what, errno }),
                Err(Unprepared::Gone) => return Err(child.last_words()),
            }
            timing.mark("mounts outside");
        }
        if made.cgroup.is_none() {
            self.make_cgroup(made)?;
            timing.mark("cgroup");
        }
        let Some(cgroup) = made.cgroup.clone() else {
            return Err(CreateCause::Died("no cgroup".into()));
        };
        let mut enter = Vec::new();
        for (name, path) in cgroup.paths() {
            enter.push(match name.as_str() {
                "unified" if into.is_some() => continue,
                "unified" => path.join("cgroup.procs"),
                _ => path.join("tasks"),
            });
        }
        // Their paths mean nothing in another mount namespace.
        child.place(enter, own_users || mounts.is_some())?;
        let interfaces = std::mem::take(&mut self.interfaces);
        if !interfaces.is_empty() {
            let namespace = match &self.network {
                // The new process may not have joined it yet, and is where its caller is.
                Some(network) => (network.as_fd().try_clone_to_owned())
                    .map_err(CreateCause::file("open", Path::new("network namespace")))?,
                None => net::namespace_of(pid)?,
            };
            let (namespace, moved) = made.moved.insert((namespace, Vec::new()));
            for interface in &interfaces {
                moved.push(net::move_into(interface, namespace.as_fd())?);
            }
            timing.mark("interfaces");
        }
        if self.recipe.hooks_outside || self.recipe.hooks_before_pivot {
            match child.receive()? {
                Up::Hooks => {}
                other => return Err(child.unexpected(other)),
            }
            let text = self.hook_state.at(pid.as_raw(), "created");
            hooks::run("prestart", &self.hooks.prestart, &text)?;
            hooks::run("createRuntime", &self.hooks.create_runtime, &text)?;
            child.send(&Down::HooksDone(pid.as_raw()))?;
            timing.mark("hooks");
        }
        let filter = match &self.seccomp {
            Some(section) => {
                let filter = seccomp::compile(section, &seccomp::Options::default())?;
                seccomp::supported(&filter).map_err(CreateCause::Unsupported)?;
                timing.mark("seccomp");
                child.send(&Down::Filter(filter.flags, seccomp::to_bytes(&filter)))?;
                Some(filter)
            }
            None => None,
        };
        let (start_time, _) = state::process(pid.as_raw()).ok_or_else(|| child.died())?;
        let mut promise = std::mem::take(&mut self.promise);
        crate::container::promise_cgroup(&mut promise, &cgroup, &self.resources, &self.extras);
        promise.start_time = Some(start_time);
        if let Some((_, moved)) = &made.moved {
            promise.interfaces.clone_from(moved);
        }
        let record = Record {
            version: state::VERSION,
            id: self.id.clone(),
            pid: pid.as_raw(),
            start_time,
            boot_id: state::boot_id().map_err(CreateCause::file(
                "read",
                Path::new("/proc/sys/kernel/random/boot_id"),
            ))?,
            created_at: crate::container::now(),
            cgroup: self.cgroup.clone(),
            detached: self.detached,
            promise,
            hooks: std::mem::take(&mut self.hooks),
            state: self.hook_state.clone(),
            scheduler: self.scheduler,
            io_priority: self.io_priority,
            affinity: self.affinity.clone(),
            process: Some(self.recipe.process.clone()),
            filter: filter.as_ref().map(|f| StoredFilter {
                flags: f.flags,
                hash: seccomp::hash(f),
                listener: f.listener.clone(),
            }),
            ready_to_exec: self.recipe.hooks_inside.is_empty(),
        };
        if let (true, Some(filter)) = (self.detached, &filter) {
            let file = dir.join(state::FILTER);
            fs::write(&file, seccomp::to_bytes(filter)).map_err(CreateCause::file("write", &file))?;
        }
        let text = serde_json::to_vec(&record).map_err(|e| CreateCause::file("write", &dir)(e.into()))?;
        state::prepare_file(&dir, state::RECORD, &text).map_err(CreateCause::file("write", &dir))?;
        timing.mark("record");
        let inside = match child.receive()? {
            Up::Ready(steps, inside) => {
                let steps = steps.into_iter().map(|(s, us)| (format!("inside: {s}"), us));
                timing.steps.extend(steps);
                inside
            }
            other => return Err(child.unexpected(other)),
        };
        if let (Some(fd), Some(lent)) = (&mounts, lent) {
            lent.made(fd, &dir)
                .map_err(CreateCause::call("look at the joined mount namespace"))?;
        }
        timing.mark("ready");
        state::put_file(&dir, state::RECORD).map_err(CreateCause::file("write", &dir))?;
        timing.mark("store");
        let Some((_, pidfd)) = made.child.take() else {
            return Err(CreateCause::Died("no process".into()));
        };
        let console = child.console.take();
        let channel = if self.detached {
            Channel::Fifos
        } else {
            Channel::Socket(socket)
        };
        let mut container = Container::made(
            record,
            pidfd,
            cgroup,
            dir,
            channel,
            timing.clone(),
            Words {
                process: self.recipe.process,
                filter,
                inside,
            },
        );
        container.console = console;
        Ok(container)
    }

    fn make_cgroup(&self, made: &mut Made) -> Result<(), CreateCause> {
        let mut wanted = Wanted::for_resources(Some(&self.resources), &self.extras);
        if self.needs_group_everywhere() {
            let realtime = self.scheduler.as_ref().is_some_and(|(s, _)| s.is_realtime());
            wanted = wanted.everywhere(!realtime && !self.holds(SYS_NICE));
        }
        let cgroup = Cgroup::create(&self.hierarchy, &self.cgroup, &wanted)?;
        made.cgroup = Some(cgroup.clone());
        cgroup.apply(&self.resources, &self.extras)?;
        Ok(())
    }

    /// Root in a cgroup namespace, with no filter between it and a nested user namespace, in which it may mount the
    /// hierarchies: a group of its own in each is what keeps it off the host's. CAP_SYS_ADMIN has them anyway.
    fn needs_group_everywhere(&self) -> bool {
        let new = |flag: libc::c_int| self.recipe.new & flag as u64 != 0;
        new(libc::CLONE_NEWCGROUP)
            && self.recipe.users.is_none()
            && !self.recipe.filtered
            && self.recipe.process.uid == 0
            && !self.holds(SYS_ADMIN)
    }

    /// Does the first process make its network namespace itself? Making one takes as long as the mounts that the caller
    /// makes for a container with a user namespace. An interface must find it there at once.
    fn makes_network(&self) -> bool {
        let new = |flag: libc::c_int| self.recipe.new & flag as u64 != 0;
        self.recipe.users.is_some() && new(libc::CLONE_NEWNET) && self.interfaces.is_empty()
    }

    fn holds(&self, capability: u32) -> bool {
        self.recipe.process.capabilities.bounding & (1 << capability) != 0
    }

    /// Clone; in the child everything that follows, in the caller the pid.
    fn clone_child(
        &self,
        stdio: Stdio,
        (ours, theirs, held): (&OwnedFd, OwnedFd, &OwnedFd),
        fifos: Option<(OwnedFd, OwnedFd)>,
        into: Option<&OwnedFd>,
        idmaps: &[Option<OwnedFd>],
        mounts: Option<&OwnedFd>,
    ) -> Result<(Pid, OwnedFd), CreateCause> {
        let open = |path: &Path| {
            nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|e| CreateCause::file("open", path)(e.into()))
        };
        let mut join = Vec::new();
        for (kind, path) in &self.recipe.joined {
            join.push((*kind, open(path)?, path.clone()));
        }
        let mut high = Vec::new();
        for fd in [stdio.stdin, stdio.stdout, stdio.stderr] {
            let fd = if fd.as_raw_fd() < 3 {
                sys::dup_high(fd.as_fd()).map_err(CreateCause::call("dup"))?
            } else {
                fd
            };
            high.push(fd);
        }
        let numbers = [high[0].as_raw_fd(), high[1].as_raw_fd(), high[2].as_raw_fd()];
        let fifo_numbers = fifos.as_ref().map(|(a, b)| (a.as_raw_fd(), b.as_raw_fd()));
        let slack = match self.timer_slack_ns {
            Some(ns) => {
                let before = sys::timer_slack().map_err(CreateCause::call("timer slack"))?;
                sys::set_timer_slack(ns).map_err(CreateCause::call("timer slack"))?;
                Some(before)
            }
            None => None,
        };
        let own_pids = match &self.pid_namespace {
            Some(path) if self.users.is_none() => {
                let own = open(Path::new("/proc/self/ns/pid_for_children"))?;
                setns(open(path)?, CloneFlags::CLONE_NEWPID)
                    .map_err(CreateCause::call("join pid namespace"))?;
                Some(own)
            }
            _ => None,
        };
        let own_clocks = match &self.recipe.clocks {
            Some(offsets) => {
                // Only who has none in it yet can set a time namespace's clocks: it is made for the child to be.
                let own = open(Path::new("/proc/self/ns/time"))?;
                let time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
                nix::sched::unshare(time).map_err(CreateCause::call("make time namespace"))?;
                let path = Path::new("/proc/self/timens_offsets");
                let set =
                    fs::write(path, offsets).map_err(CreateCause::file("set linux.timeOffsets in", path));
                Some((own, time, set))
            }
            None => None,
        };
        // The cgroup namespace is made by the child itself, once the cgroup holds it; the network namespace too where
        // the caller has mounts to make meanwhile.
        let mut namespaces = self.recipe.new & !(libc::CLONE_NEWCGROUP as u64);
        let own_network = self.makes_network();
        if own_clocks.is_some() {
            namespaces &= !(libc::CLONE_NEWTIME as u64);
        }
        if self.network.is_some() || own_network {
            namespaces &= !(libc::CLONE_NEWNET as u64);
        }
        let cloned = match &own_clocks {
            Some((_, _, Err(_))) => Err(Errno::ECANCELED),
            _ => {
                let wanted = CloneArgs {
                    namespaces,
                    cgroup: into.map(AsRawFd::as_raw_fd),
                    ..CloneArgs::default()
                };
                match &self.users {
                    None => sys::clone3(wanted),
                    Some(users) => {
                        let pids = self.pid_namespace.as_deref().map(open).transpose()?;
                        crate::users::clone_in(users.as_fd(), pids.as_ref().map(AsFd::as_fd), wanted)
                    }
                }
            }
        };
        if let Ok(Cloned::Child) = cloned {
            // A copy of the caller's end here would keep it open when the caller is killed before this process has
            // asked for its death signal: it would wait for ever. This side never returns, so nothing closes twice.
            let _ = nix::unistd::close(ours.as_raw_fd());
            // And a copy of the lock would keep the folder from being freed.
            let _ = nix::unistd::close(held.as_raw_fd());
            let ends = child::Ends {
                socket: theirs.as_fd(),
                stdio: numbers,
                join: &join,
                network: self.network.as_ref().map(AsFd::as_fd),
                mounts,
                own_network,
                fifos: fifo_numbers,
                idmaps,
                state: &self.hook_state,
            };
            child::run(&self.recipe, &ends);
        }
        if let Some((own, time, set)) = own_clocks {
            setns(own, time).map_err(CreateCause::call("leave time namespace"))?;
            set?;
        }
        if let Some(own) = own_pids {
            setns(own, CloneFlags::CLONE_NEWPID).map_err(CreateCause::call("leave pid namespace"))?;
        }
        if let Some(before) = slack {
            sys::set_timer_slack(before).map_err(CreateCause::call("timer slack"))?;
        }
        match cloned.map_err(CreateCause::call("clone"))? {
            Cloned::Parent(pid, pidfd) => Ok((pid, pidfd)),
            Cloned::Child => sys::exit_now(1),
        }
    }
}

/// Make the state folder and hold it; that it did not exist reserves the id.
fn reserve(id: &str, dir: &Path, cgroup: &str) -> Result<claim::Held, CreateCause> {
    claim::make(dir, cgroup).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => CreateCause::Exists(id.to_owned()),
        _ => CreateCause::file("make folder", dir)(e),
    })
}

/// Both ends of both FIFOs belong to the child: it never sees an end of file, and whoever starts it may go away.
fn make_fifos(dir: &Path) -> Result<(OwnedFd, OwnedFd), CreateCause> {
    let make = |name: &str| {
        let path = dir.join(name);
        let file = |e: Errno| CreateCause::file("make FIFO", &path)(e.into());
        mkfifo(&path, Mode::from_bits_truncate(0o600)).map_err(file)?;
        nix::fcntl::open(&path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|e| CreateCause::file("open FIFO", &path)(e.into()))
    };
    Ok((make(state::START)?, make(state::FAILURE)?))
}

fn write_proc(pid: Pid, name: &str, text: &str) -> Result<(), CreateCause> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    fs::write(&path, text).map_err(CreateCause::file("write", &path))
}
