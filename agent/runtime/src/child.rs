//! What the new process does between clone and exec.
//!
//! Invariants: nothing here returns into the caller's code: the process execs, or reports its failure and ends.
//! The order: standard streams, session, keyring → user ids mapped → namespaces joined → names, loopback, sysctl →
//! mounts → hooks → pivot_root → descriptors closed → Landlock → limits, bounding set, user, capabilities → working directory
//! → program found → label → no_new_privs → seccomp → wait for the start message → exec. After the filter only
//! read, write, execve and exit_group are called.

mod program;

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, getcwd, setgroups, setresgid, setresuid, setsid};

use crate::landlock;
use crate::recipe::{Label, Process, Recipe};
use crate::report::{self, Down, Failure, Inside, Step, Up};
use crate::rootfs::{PROC_MAGIC, Rootfs};
use crate::seccomp::{self, Filter, LoadError};
use crate::sys::process as sys;
use crate::timing::Timing;

use program::exec;
pub(crate) use program::{exec_first, find_program};

/// The child's ends.
pub(crate) struct Ends<'a> {
    /// The socket to the caller.
    pub(crate) socket: BorrowedFd<'a>,
    /// Standard input, output and error.
    pub(crate) stdio: [RawFd; 3],
    /// Opened namespaces to join: CLONE_NEW*, descriptor, path for messages.
    pub(crate) join: &'a [(u64, OwnedFd, std::path::PathBuf)],
    /// A network namespace made beforehand, its loopback interface up, that is this container's alone.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// The mount namespace to be joined.
    pub(crate) mounts: Option<&'a OwnedFd>,
    /// The network namespace is made here, not by the clone.
    pub(crate) own_network: bool,
    /// Start FIFO and failure FIFO, both read-write, for a container that outlives its creator.
    pub(crate) fifos: Option<(RawFd, RawFd)>,
    /// For each mount the user namespace whose maps it is shown through, where it has one; empty: none has.
    pub(crate) idmaps: &'a [Option<OwnedFd>],
    /// The JSON of the OCI state up to the pid, and after it, for hooks inside.
    pub(crate) state: &'a crate::state::HookState,
}

/// Set up the container and exec; on failure report it and end.
pub(crate) fn run(recipe: &Recipe, ends: &Ends<'_>) -> ! {
    let Err(failure) = set_up(recipe, ends);
    // The caller is gone if this fails: nobody is left to be told.
    let _ = report::send_to(ends.socket, &Up::Failed(failure).encode());
    sys::exit_now(1)
}

/// Wait for one message from the caller.
fn expect(ends: &Ends<'_>, buffer: &mut [u8], step: &str) -> Result<Down, Failure> {
    let bytes = report::receive(ends.socket, buffer).step(step, "")?;
    let bytes = bytes.ok_or_else(|| Failure::refused(step, "", "the runtime is gone"))?;
    Down::decode(bytes).ok_or_else(|| Failure::refused(step, "", "unexpected message from the runtime"))
}

fn unexpected<T>(step: &str) -> Result<T, Failure> {
    Err(Failure::refused(
        step,
        "",
        "the runtime sent the messages in another order",
    ))
}

fn set_up(recipe: &Recipe, ends: &Ends<'_>) -> Result<Infallible, Failure> {
    let mut timing = Timing::begin();
    // One for all messages: under the filter nothing large may be allocated.
    let mut buffer = vec![0u8; report::LONGEST];
    // While it is being made, a container must not outlive its maker.
    sys::set_parent_death_signal(libc::SIGKILL).step("set parent death signal", "")?;
    // Until its exec this is the runtime's own program: who shares the pid namespace must not get at it by
    // /proc/PID/exe.
    sys::set_not_dumpable().step("make undumpable", "")?;
    for (target, fd) in ends.stdio.iter().enumerate() {
        sys::dup_onto(*fd, target as RawFd).step("standard streams", "")?;
    }
    setsid().step("setsid", "")?;
    let mut inside: Vec<Inside> = match recipe.process.callers_keyring {
        true => Vec::new(),
        false => own_keyring(&recipe.id)?.into_iter().collect(),
    };
    umask(Mode::empty());
    let mut prepared = None;
    if recipe.users.is_some() {
        match expect(ends, &mut buffer, "map users")? {
            Down::Mapped => become_root()?,
            _ => return unexpected("map users"),
        }
        if ends.own_network {
            unshare(CloneFlags::CLONE_NEWNET).step("unshare", "network namespace")?;
        }
        prepared = Some(crate::prepare::receive(recipe, ends.socket, &mut buffer)?);
    }
    // The host's procfs, known to be one: a container's own /proc is not to be trusted with labels.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let proc = nix::fcntl::open("/proc", flags, Mode::empty()).step("open", "/proc")?;
    if crate::sys::mount::fs_magic(&proc).step("stat", "/proc")? != PROC_MAGIC {
        return Err(Failure::refused("open", "/proc", "it is not a proc file system"));
    }
    if let Some(promised) = &recipe.clocks {
        inside.push(clocks(&proc, promised)?);
    }
    for (kind, fd, path) in ends.join {
        setns(fd, CloneFlags::from_bits_retain(*kind as i32)).step("join namespace", path)?;
    }
    if let Some(network) = ends.network {
        setns(network, CloneFlags::CLONE_NEWNET).step("join the new network namespace", "")?;
    }
    name_things(recipe, &proc, ends.network.is_none(), &mut inside)?;
    timing.mark("session and names");
    let mut rootfs = Rootfs::begin(recipe, prepared, ends.idmaps, ends.mounts)?;
    timing.mark("root");
    rootfs.mounts()?;
    timing.mark("mounts");
    rootfs.hide()?;
    timing.mark("hide");
    let cwd = &recipe.process.cwd;
    if cwd != Path::new("/") {
        let root = rootfs.root.as_fd();
        let found =
            crate::sys::mount::open_below(root, cwd, libc::O_PATH, crate::sys::mount::Resolve::InRoot);
        if matches!(found, Err(Errno::ENOENT)) {
            crate::rootfs::make_path(root, cwd, true)?;
        }
    }
    hooks_and_placement(recipe, ends, &mut buffer)?;
    timing.mark("cgroup and hooks");
    rootfs.pivot()?;
    timing.mark("pivot");
    if recipe.new & libc::CLONE_NEWCGROUP as u64 != 0 {
        // Only now is this process where its root shall be.
        unshare(CloneFlags::CLONE_NEWCGROUP).step("unshare", "cgroup namespace")?;
    }
    let slave = match &recipe.process.terminal {
        Some(size) => {
            let pty = crate::console::open(rootfs.root.as_fd(), recipe.process.uid, *size)?;
            crate::console::as_console(rootfs.root.as_fd(), pty.slave.as_fd())?;
            crate::sys::fds::send(ends.socket, &Up::Console.encode(), &[pty.master.as_fd()])
                .step("send terminal", "")?;
            Some(pty.slave)
        }
        None => None,
    };
    let label = recipe
        .process
        .label
        .as_ref()
        .map(|l| open_label(&proc, l))
        .transpose()?;
    // Capabilities, limits and user; the filter comes first where no_new_privs does not allow it later.
    let mut filter = None;
    if recipe.filtered {
        match expect(ends, &mut buffer, "seccomp")? {
            Down::Filter(flags, program) => filter = Some(seccomp::from_bytes(flags, &program)),
            _ => return unexpected("seccomp"),
        }
    }
    timing.mark("filter");
    if let Some(slave) = &slave {
        for target in 0..3 {
            sys::dup_onto(slave.as_raw_fd(), target).step("standard streams", "")?;
        }
        crate::console::control(0).step("controlling terminal", "")?;
    }
    drop(slave);
    let (wait, tell) = ends
        .fifos
        .unwrap_or((ends.socket.as_raw_fd(), ends.socket.as_raw_fd()));
    let mut keep = vec![wait, tell, ends.socket.as_raw_fd()];
    keep.extend(label.as_ref().map(|(fd, _)| fd.as_raw_fd()));
    for fd in sys::preserved(recipe.preserved) {
        sys::close_on_exec(fd, false).step("preserve descriptor", fd.to_string())?;
        keep.push(fd);
    }
    sys::close_all_but(&keep).step("close descriptors", "")?;
    // Closed by number: their owners must not close them again.
    std::mem::forget((proc, rootfs));
    if let Some(domain) = recipe.process.personality {
        sys::set_personality(domain).step("personality", "")?;
    }
    let process = &recipe.process;
    if let Some(policy) = &process.memory {
        inside.push(policy.enter()?);
    }
    if let Some(landlock) = &process.landlock {
        let found = landlock::enter(landlock)?;
        let source = "mount(2), open(2) inside, before exec";
        inside.push(["landlock".into(), found.promised, found.actual, source.into()]);
        timing.mark("landlock");
    }
    if recipe.users.is_none() {
        limit(process, None)?;
    }
    let mut looked = false;
    if !process.no_new_privs
        && let Some(filter) = filter.take()
    {
        // Where the working directory lies is asked before the filter may deny the question. What this process may
        // enter only as its user is asked then.
        looked = match enter_cwd(&process.cwd) {
            Err(failure) if failure.errno == Errno::EACCES => false,
            entered => entered.map(|()| true)?,
        };
        load(&filter, ends.socket)?;
    }
    credentials(process)?;
    timing.mark("credentials");
    umask(Mode::from_bits_truncate(process.umask));
    if looked {
        // It is there; may this user be?
        chdir(".").step("chdir", &process.cwd)?;
    } else {
        enter_cwd(&process.cwd)?;
    }
    sys::unblock_signals().step("signal mask", "")?;
    if !recipe.die_with_parent && ends.fifos.is_some() {
        sys::set_parent_death_signal(0).step("set parent death signal", "")?;
    } else {
        sys::set_parent_death_signal(libc::SIGKILL).step("set parent death signal", "")?;
    }
    if recipe.hooks_inside.is_empty() {
        sys::default_sigpipe().step("signal", "SIGPIPE")?;
        find_program(process)?;
        label.map_or(Ok(()), |(fd, label)| write_label((&fd, label)))?;
        restrict(process, filter.as_ref(), ends.socket)?;
        ready(ends, timing, inside)?;
        exec(process, wait_for_start(wait, tell, &mut buffer), tell)
    } else {
        // Hooks that run inside need more system calls than the filter may leave.
        find_program(process)?;
        ready(ends, timing, inside)?;
        let start = wait_for_start(wait, tell, &mut buffer);
        let state = ends.state.at(nix::unistd::getpid().as_raw(), "created");
        let outcome = crate::hooks::run("startContainer", &recipe.hooks_inside, &state)
            .map_err(|e| Failure::refused("startContainer", "", &e.to_string()))
            // Not before: a hook need not read what it is told.
            .and_then(|()| sys::default_sigpipe().step("signal", "SIGPIPE"))
            .and_then(|()| label.map_or(Ok(()), |(fd, label)| write_label((&fd, label))))
            .and_then(|()| restrict(process, filter.as_ref(), ends.socket));
        match outcome {
            Ok(()) => exec(process, start, tell),
            Err(failure) => give_up(tell, &failure),
        }
    }
}

/// A session keyring of the container's own, and the fact that it is there.
pub(crate) fn own_keyring(id: &str) -> Result<Option<Inside>, Failure> {
    let name = format!("_berth.{id}");
    match sys::join_session_keyring(&name) {
        Ok(()) => {}
        Err(Errno::ENOSYS) => return Ok(None), // a kernel without keyrings has nothing to share
        Err(errno) => return Err(Failure::new("session keyring", id, errno)),
    }
    let actual = sys::session_keyring().step("session keyring, read back", id)?;
    let source = "keyctl(KEYCTL_DESCRIBE) inside, before exec";
    Ok(Some(["keyring.session".into(), name, actual, source.into()]))
}

/// Host name, domain name, loopback (of a network namespace that the clone made), sysctl.
fn name_things(
    recipe: &Recipe,
    proc: &OwnedFd,
    cloned: bool,
    inside: &mut Vec<Inside>,
) -> Result<(), Failure> {
    if let Some(name) = &recipe.hostname {
        nix::unistd::sethostname(name).step("sethostname", name)?;
        // Nobody outside can ask for another namespace's name, so it is read back here.
        let actual = nix::sys::utsname::uname().step("uname", name)?;
        if actual.nodename() != name.as_str() {
            return Err(nix::Error::EPERM).step("the host name, read back", name);
        }
    }
    if let Some(name) = &recipe.domainname {
        sys::set_domain_name(name).step("setdomainname", name)?;
    }
    if cloned && recipe.new & libc::CLONE_NEWNET as u64 != 0 {
        sys::loopback_up().step("bring up", "lo")?;
    }
    for (key, value) in &recipe.sysctl {
        let path = Path::new("sys").join(key);
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = nix::fcntl::openat(proc, &path, flags, Mode::empty()).step("sysctl", key)?;
        std::fs::File::from(file)
            .write_all(value.as_bytes())
            .step("sysctl", key)?;
        // As the host name: /proc/sys shows everybody his own namespaces.
        let file = nix::fcntl::openat(proc, &path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .step("sysctl, read back", key)?;
        let actual = std::io::read_to_string(std::fs::File::from(file)).step("sysctl, read back", key)?;
        let words = |text: &str| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let source = format!("/proc/sys/{key} inside, before exec");
        inside.push([
            format!("sysctl.{}", key.replace('/', ".")),
            words(value),
            words(&actual),
            source,
        ]);
    }
    Ok(())
}

/// What the clocks of this process's time namespace are ahead, beside what they shall be.
fn clocks(proc: &OwnedFd, promised: &str) -> Result<Inside, Failure> {
    let path = "self/timens_offsets";
    let file = nix::fcntl::openat(proc, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let file = std::fs::File::from(file.step("linux.timeOffsets, read back", path)?);
    let actual = std::io::read_to_string(file).step("linux.timeOffsets, read back", path)?;
    let words = |text: &str| text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let source = "/proc/self/timens_offsets inside, before exec".to_owned();
    Ok(["clocks".into(), words(promised), words(&actual), source])
}

pub(crate) fn become_root() -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).step("become root of the user namespace", "linux.gidMappings")?;
    setresuid(uid, uid, uid).step("become root of the user namespace", "linux.uidMappings")
}

/// Hooks outside and inside, and the word that the cgroup holds this process.
fn hooks_and_placement(recipe: &Recipe, ends: &Ends<'_>, buffer: &mut [u8]) -> Result<(), Failure> {
    let (n, opened) = crate::sys::fds::receive(ends.socket, buffer).step("cgroup", "")?;
    match Down::decode(&buffer[..n]) {
        _ if n == 0 => return Err(Failure::refused("cgroup", "", "the runtime is gone")),
        Some(Down::Placed(files)) => {
            for file in opened {
                nix::unistd::write(&file, b"0").step("enter cgroup", "opened by the runtime")?;
            }
            for file in files {
                let path = Path::new(OsStr::from_bytes(file.to_bytes()));
                std::fs::write(path, "0").step("enter cgroup", path)?;
            }
        }
        _ => return unexpected("cgroup"),
    }
    if recipe.hooks_outside || recipe.hooks_before_pivot {
        report::send_to(ends.socket, &Up::Hooks.encode()).step("hooks", "")?;
        let pid = match expect(ends, buffer, "hooks")? {
            Down::HooksDone(pid) => pid,
            _ => return unexpected("hooks"),
        };
        let state = ends.state.at(pid, "created");
        crate::hooks::run("createContainer", &recipe.create_container_hooks, &state)
            .map_err(|e| Failure::refused("createContainer", "", &e.to_string()))?;
    }
    Ok(())
}

/// Apply the limits to this process, or from outside to another.
pub(crate) fn limit(process: &Process, pid: Option<nix::unistd::Pid>) -> Result<(), Failure> {
    for l in &process.rlimits {
        sys::set_limit(pid, l.resource, l.soft, l.hard).step("set resource limit", &l.name)?;
    }
    Ok(())
}

/// Bounding set, groups, user, the other four sets.
pub(crate) fn credentials(process: &Process) -> Result<(), Failure> {
    let caps = process.capabilities;
    for capability in 0..64u32 {
        if caps.bounding & (1 << capability) != 0 {
            continue;
        }
        match sys::drop_bounding(capability) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break, // past the kernel's last
            // Without CAP_SETPCAP nothing can be dropped: all is well where it was not there.
            Err(Errno::EPERM) if sys::in_bounding(capability) == Ok(false) => {}
            Err(errno) => {
                return Err(Failure::new(
                    "drop bounding capability",
                    capability.to_string(),
                    errno,
                ));
            }
        }
    }
    let root = process.uid == 0;
    if !root {
        sys::set_keep_caps(true).step("keep capabilities", "")?;
    }
    let groups: Vec<Gid> = process.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).step("setgroups", format!("{:?}", process.groups))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    setresgid(gid, gid, gid).step("setgid", process.gid.to_string())?;
    setresuid(uid, uid, uid).step("setuid", process.uid.to_string())?;
    if !root {
        sys::set_keep_caps(false).step("keep capabilities", "")?;
    }
    sys::set_capabilities(caps.effective, caps.permitted, caps.inheritable)
        .step("set capabilities", format!("{:#x}", caps.permitted))?;
    sys::clear_ambient().step("clear ambient capabilities", "")?;
    for capability in (0..64u32).filter(|c| caps.ambient & (1 << c) != 0) {
        sys::raise_ambient(capability).step("set ambient capability", capability.to_string())?;
    }
    Ok(())
}

/// Enter the working directory and see that it lies inside the root.
pub(crate) fn enter_cwd(cwd: &Path) -> Result<(), Failure> {
    chdir(cwd).step("chdir", cwd)?;
    let now = getcwd().step("chdir", cwd)?;
    if !now.is_absolute() {
        return Err(Failure::refused(
            "chdir",
            cwd,
            "the working directory is outside the container",
        ));
    }
    Ok(())
}

/// The file that takes the label of the next exec, opened through the host's procfs.
pub(crate) fn open_label<'a>(proc: &OwnedFd, label: &'a Label) -> Result<(OwnedFd, &'a Label), Failure> {
    let path = match label {
        Label::Selinux(_) => "thread-self/attr/exec",
        Label::Apparmor(_) => "thread-self/attr/apparmor/exec",
    };
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::openat(proc, path, flags, Mode::empty()).step("open label file", path)?;
    if crate::sys::mount::fs_magic(&fd).step("stat", path)? != PROC_MAGIC {
        return Err(Failure::refused(
            "open label file",
            path,
            "it is not on a proc file system",
        ));
    }
    Ok((fd, label))
}

pub(crate) fn write_label((fd, label): (&OwnedFd, &Label)) -> Result<(), Failure> {
    let (text, field) = match label {
        Label::Selinux(label) => (label.clone(), "process.selinuxLabel"),
        Label::Apparmor(profile) => (format!("exec {profile}"), "process.apparmorProfile"),
    };
    match nix::unistd::write(fd, text.as_bytes()).step("set label", field)? {
        n if n == text.len() => Ok(()),
        _ => Err(Failure::refused(
            "set label",
            field,
            "it was written in part only",
        )),
    }
}

/// no_new_privs, then the filter.
pub(crate) fn restrict(
    process: &Process,
    filter: Option<&Filter>,
    socket: BorrowedFd<'_>,
) -> Result<(), Failure> {
    if process.no_new_privs {
        sys::set_no_new_privs().step("set no_new_privs", "")?;
    }
    filter.map_or(Ok(()), |filter| load(filter, socket))
}

/// Put a filter in force. With notifications the caller takes the listener out of this process before it goes on.
pub(crate) fn load(filter: &Filter, socket: BorrowedFd<'_>) -> Result<(), Failure> {
    match seccomp::load(filter) {
        Ok(None) => Ok(()),
        Ok(Some(listener)) => {
            let message = Up::Notify(listener.as_raw_fd()).encode();
            // Close-on-exec, and close(2) is not among what the filter must allow.
            std::mem::forget(listener);
            nix::unistd::write(socket, &message).step("seccomp listener", "")?;
            let mut answer = [0u8; 16];
            loop {
                match sys::read_raw(socket.as_raw_fd(), &mut answer) {
                    Err(Errno::EINTR) => {}
                    Ok(n) if Down::decode(&answer[..n]) == Some(Down::Taken) => return Ok(()),
                    Ok(_) => return unexpected("seccomp listener"),
                    Err(errno) => return Err(Failure::new("seccomp listener", "", errno)),
                }
            }
        }
        Err(LoadError::Refused { source, .. }) => Err(source).step("seccomp", ""),
        Err(error) => Err(Failure::refused("seccomp", "", &error.to_string())),
    }
}

fn ready(ends: &Ends<'_>, mut timing: Timing, inside: Vec<Inside>) -> Result<(), Failure> {
    timing.mark("restrict");
    // write(2) rather than send(2): the filter is in force.
    let message = Up::Ready(timing.steps, inside).encode();
    nix::unistd::write(ends.socket, &message).step("report", "")?;
    Ok(())
}

/// Blocks until the start message; ends the process when there will be none.
fn wait_for_start(wait: RawFd, tell: RawFd, buffer: &mut [u8]) -> (Vec<CString>, Vec<CString>) {
    loop {
        match crate::sys::process::read_raw(wait, buffer) {
            Err(Errno::EINTR) => {}
            Err(errno) => give_up(tell, &Failure::new("wait for start", "", errno)),
            Ok(0) => sys::exit_now(1), // the creator is gone
            Ok(n) => match Down::decode(&buffer[..n]) {
                Some(Down::Start { args, env }) => return (args, env),
                _ => give_up(
                    tell,
                    &Failure::refused("wait for start", "", "unexpected message"),
                ),
            },
        }
    }
}

fn give_up(tell: RawFd, failure: &Failure) -> ! {
    let _ = crate::sys::process::write_raw(tell, &Up::Failed(failure.clone()).encode());
    sys::exit_now(1)
}
