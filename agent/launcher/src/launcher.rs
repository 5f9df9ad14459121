//! The launcher: listens on RUN/launcher.sock, checks requests, forks monitors.
//!
//! Invariants: one process, one thread, one poll loop; only uid 0 is heard; no request is carried out that
//! [`crate::check`] and `Launcher::judge` did not accept; every security setting comes from the profile that
//! was resolved here. Monitors are watched by pidfd, those forked here and those found at start alike: when one
//! dies, its container is killed (its first process was already, by the kernel) and swept. SIGTERM and SIGINT
//! end the launcher and touch no monitor.
#![allow(unsafe_code)] // fork(2), from a process with one thread

mod judge;
mod settings;
mod spare;
mod sweep;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_audit::{Entry, Sink, Who};
use berth_images::{Mode, Stores};
use berth_rt::cgroup::Hierarchy;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::client::LAUNCHER_SOCKET;
use crate::compose::chain;
use crate::conn::{Conn, Read};
use crate::frame::decode_first;
use crate::harden;
use crate::monitor::{self, Seed};
use crate::paths::{self, Paths};
use crate::policy::PolicyFile;
use crate::profile::Profiles;
use crate::ranges::{self, Ranges};
use crate::record::{self, Recorder};
use crate::selinux::Labels;
use crate::wire::{LaunchRequest, LauncherRequest, Refusal, Reply};
use crate::{check, socket};
pub use settings::{LauncherConfig, LauncherError};
use spare::Spare;

/// Most connections at once.
const MAX_CONNS: usize = 64;
/// A connection that has said nothing whole for so long is closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Without anything to do it looks at the agent's audit log so often.
const REST_MS: i32 = 600_000;

struct Peer {
    conn: Conn,
    who: Option<Who>,
    since: Instant,
}

struct Watched {
    id: String,
    pidfd: OwnedFd,
}

struct Launcher {
    config: LauncherConfig,
    paths: Paths,
    boot_id: String,
    oom_score_adj: i32,
    hierarchy: Hierarchy,
    store: Option<Stores>,
    profiles: Profiles,
    policy: PolicyFile,
    recorder: Recorder,
    labels: Labels,
    ranges: Ranges,
    signals: SignalFd,
    listener: OwnedFd,
    peers: Vec<Peer>,
    watched: Vec<Watched>,
    spare: Spare,
    /// Something was done since memory was last given back.
    stirred: bool,
}

/// Serves until SIGTERM or SIGINT. Called first thing in the process: it executes itself once more from a sealed
/// copy, with the same arguments and environment.
///
/// # Errors
/// Why it cannot serve. Refused requests are answered, not returned.
pub fn main(config: LauncherConfig) -> Result<(), LauncherError> {
    let uid = nix::unistd::geteuid().as_raw();
    if uid != 0 {
        return Err(LauncherError::NotRoot(uid));
    }
    let config = settle(config)?;
    let hardened = harden::harden()?;
    let setup = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| LauncherError::Setup { what, source }
    };
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(setup("/proc/self/task"))?
        .count();
    if threads != 1 {
        return Err(LauncherError::Threads(threads));
    }
    for remark in &hardened.remarks {
        eprintln!("berth launcher: {remark}");
    }
    let paths = Paths {
        run: config.run_dir.clone(),
        state: config.state_dir.clone(),
        config: config.config_dir.clone(),
    };
    paths.make().map_err(setup("folders"))?;
    let sink = Sink::named(&config.audit_to).ok_or_else(|| LauncherError::Setting {
        setting: "--audit-to",
        reason: format!("{:?}: none, journald or syslog", config.audit_to),
    })?;
    let recorder = Recorder::open(&paths.audit("launcher"), config.audit_bytes, sink);
    let recorder = recorder.map_err(|e| setup("audit log")(io::Error::other(e)))?;
    let mut policy = PolicyFile::new(&config.config_dir, config.parse_policy);
    if let Err(e) = policy.read() {
        // It serves: containers that run are kept. Nothing new is launched until the file is mended.
        eprintln!("berth launcher: nothing is launched: {e}");
    }
    let hierarchy = Hierarchy::discover(std::path::Path::new("/")).map_err(|e| LauncherError::Cgroups {
        message: chain(&e),
        hint: e.hint(),
    })?;
    let signals = signals().map_err(|e| setup("signals")(e.into()))?;
    let socket = config.run_dir.join(LAUNCHER_SOCKET);
    let listener =
        socket::listen(&config.run_dir, LAUNCHER_SOCKET).map_err(setup(&socket.display().to_string()))?;
    let mut launcher = Launcher {
        paths,
        boot_id: paths::boot_id().map_err(setup("boot id"))?,
        // What runs in a container must not be spared because the launcher is.
        oom_score_adj: hardened.oom_score_adj.max(0),
        hierarchy,
        store: None,
        profiles: Profiles::new(config.config_dir.join("profiles")),
        policy,
        recorder,
        labels: Labels::find(std::path::Path::new("/sys"), &config.run_dir),
        ranges: Ranges::new(&config.state_dir, config.id_base),
        signals,
        listener,
        peers: Vec::new(),
        watched: Vec::new(),
        spare: Spare::default(),
        stirred: true,
        config,
    };
    let begun = Entry::new("launcher", "launcher", format!("serves {}", socket.display()));
    launcher.recorder.note(begun).ok();
    launcher.adopt();
    eprintln!("berth launcher: serving {}", socket.display());
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        eprintln!("berth launcher: the service manager was not told: {error} (NOTIFY_SOCKET)");
    }
    launcher.serve();
    // The next launcher replaces the socket: between the two, nobody is there.
    drop(paths::remove_file(&socket));
    Ok(())
}

fn settle(mut config: LauncherConfig) -> Result<LauncherConfig, LauncherError> {
    let wrong = |setting, reason: String| LauncherError::Setting { setting, reason };
    for (setting, folder) in [
        ("--run-dir", &mut config.run_dir),
        ("--state-dir", &mut config.state_dir),
        ("--config-dir", &mut config.config_dir),
        ("--preloaded-dir", &mut config.preloaded_dir),
    ] {
        *folder = std::path::absolute(&*folder)
            .map_err(|e| wrong(setting, format!("{}: {e}", folder.display())))?;
    }
    ranges::count(config.id_base).map_err(|reason| wrong("--id-base", reason))?;
    let parent = config.cgroup_parent.trim_matches('/').to_owned();
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(char::is_whitespace);
    if !parent.split('/').all(part) {
        return Err(wrong(
            "--cgroup-parent",
            format!("{:?} is no cgroup path", config.cgroup_parent),
        ));
    }
    config.cgroup_parent = parent;
    if config.proof_interval < Duration::from_millis(100) {
        return Err(wrong("--proof-interval", "at least 100 ms".into()));
    }
    Ok(config)
}

fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        set.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

impl Launcher {
    fn serve(&mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(e) => return eprintln!("berth launcher: poll: {e}"),
            };
            if ready.iter().all(PollFlags::is_empty) && self.spare.lacks() {
                self.spare.fill();
            } else if ready.iter().all(PollFlags::is_empty) {
                // Nothing came for a while.
                self.stirred = !self.peers.is_empty();
                self.recorder.rest(&self.paths.audit("agent"));
                harden::trim();
                harden::unmap_text();
            } else {
                self.stirred = true;
            }
            let [signals, listener] = [ready[0], ready[1]];
            let monitors = &ready[2..2 + self.watched.len()];
            let dead: Vec<usize> = (0..monitors.len()).filter(|n| !monitors[*n].is_empty()).collect();
            let conns: Vec<PollFlags> = ready[2 + self.watched.len()..].to_vec();
            // First those, so that a request that came meanwhile finds the id free; both from the back, for what is
            // dealt with leaves its list.
            for n in dead.into_iter().rev() {
                let gone = self.watched.swap_remove(n);
                self.on_dead(&gone.id);
            }
            for n in (0..conns.len()).rev().filter(|n| !conns[*n].is_empty()) {
                self.on_peer(n, conns[n]);
            }
            if !listener.is_empty() {
                self.on_listener();
            }
            if !signals.is_empty() && self.on_signals() {
                return;
            }
            self.peers.retain(|p| p.since.elapsed() < PATIENCE);
        }
    }

    fn wait(&self) -> Result<Vec<PollFlags>, Errno> {
        let watched = self.watched.iter().map(|w| (w.pidfd.as_fd(), PollFlags::POLLIN));
        let peers = self.peers.iter().map(|p| (p.conn.as_fd(), p.conn.interest()));
        let own = [self.signals.as_fd(), self.listener.as_fd()].map(|fd| (fd, PollFlags::POLLIN));
        let all: Vec<(BorrowedFd<'_>, PollFlags)> = own.into_iter().chain(watched).chain(peers).collect();
        let mut fds: Vec<PollFd<'_>> = all.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
        let rests = self.peers.is_empty() && !self.stirred;
        let timeout = if self.spare.lacks() {
            PollTimeout::try_from(spare::QUIET).unwrap_or(PollTimeout::ZERO)
        } else if rests {
            PollTimeout::try_from(REST_MS).unwrap_or(PollTimeout::MAX)
        } else {
            PollTimeout::from(1000u16)
        };
        poll(&mut fds, timeout)?;
        Ok(fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect())
    }

    /// True: the end was asked for.
    fn on_signals(&mut self) -> bool {
        let mut end = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            end |= info.ssi_signo != libc::SIGCHLD as u32;
        }
        // Monitors are told apart by their pidfds; here everything that ended is only taken off the list.
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        end
    }

    fn on_listener(&mut self) {
        match socket::accept(self.listener.as_fd()) {
            Ok(Some(stream)) => match socket::peer(stream.as_fd()) {
                Ok((_, 0)) if self.peers.len() < MAX_CONNS => {
                    let who = socket::who(stream.as_fd()).ok();
                    self.peers.push(Peer {
                        conn: Conn::new(stream),
                        who,
                        since: Instant::now(),
                    });
                }
                Ok((pid, uid)) => {
                    eprintln!("berth launcher: turned away process {pid} of uid {uid}");
                    let refusal = check::refuse(format!(
                        "the launcher hears uid 0 alone, and {MAX_CONNS} connections"
                    ));
                    self.refused(
                        "connection",
                        "launcher",
                        &refusal,
                        socket::who(stream.as_fd()).ok(),
                    );
                }
                Err(e) => eprintln!("berth launcher: SO_PEERCRED: {e}"),
            },
            Ok(None) => {}
            Err(e) => eprintln!("berth launcher: accept: {e}"),
        }
    }

    fn on_peer(&mut self, n: usize, flags: PollFlags) {
        let peer = &mut self.peers[n];
        if flags.contains(PollFlags::POLLOUT) && peer.conn.flush().is_err() {
            self.peers.swap_remove(n);
            return;
        }
        let mut open = true;
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && !peer.conn.closing
        {
            open = matches!(peer.conn.read(), Ok(Read::Open));
        }
        match peer.conn.next_line() {
            Ok(Some(line)) => {
                let peer = self.peers.swap_remove(n);
                self.on_request(peer, &line);
            }
            Ok(None) if !open || (peer.conn.closing && peer.conn.idle()) => {
                self.peers.swap_remove(n);
            }
            Ok(None) => {}
            Err(e) => {
                let peer = self.peers.swap_remove(n);
                let refusal = check::refuse(e.to_string());
                self.refused("request", "launcher", &refusal, peer.who.clone());
                self.answer(peer, Err(refusal));
            }
        }
    }

    fn on_request(&mut self, peer: Peer, line: &[u8]) {
        let begun = Instant::now();
        match decode_first::<LauncherRequest>(line) {
            Err(e) => {
                let refusal = check::refuse(e.to_string());
                self.refused("request", "launcher", &refusal, peer.who.clone());
                self.answer(peer, Err(refusal));
            }
            Ok(LauncherRequest::Ping { .. }) => self.answer(peer, Ok(())),
            Ok(LauncherRequest::Sweep { id, .. }) => {
                let done = check::id(&id).and_then(|()| self.sweep(&id));
                match &done {
                    Ok(()) => {
                        let swept = Entry::new("sweep", &id, "what a dead monitor left is freed")
                            .who(peer.who.clone());
                        self.recorder.note(swept).ok();
                    }
                    Err(refusal) => self.refused("sweep", &id, refusal, peer.who.clone()),
                }
                self.answer(peer, done);
            }
            Ok(LauncherRequest::Launch(request)) => self.launch(peer, *request, begun),
        }
    }

    fn refused(&self, kind: &str, subject: &str, refusal: &Refusal, who: Option<Who>) {
        self.recorder
            .note(record::refused(kind, subject, refusal, who))
            .ok();
    }

    /// The last word on a connection.
    fn answer(&mut self, mut peer: Peer, done: Result<(), Refusal>) {
        let reply = match done {
            Ok(()) => Reply::Done,
            Err(refusal) => Reply::Refused(refusal),
        };
        peer.conn.closing = true;
        if peer.conn.say(&reply, Vec::new()).is_ok() && !peer.conn.idle() {
            self.peers.push(peer);
        }
    }

    fn launch(&mut self, peer: Peer, request: LaunchRequest, begun: Instant) {
        let id = request.id.clone();
        let mut judged = match self.judge(&request, begun) {
            Ok(judged) => judged,
            Err(refusal) => {
                self.refused("request", &id, &refusal, peer.who.clone());
                return self.answer(peer, Err(refusal));
            }
        };
        let asked = Entry::new(
            "request",
            &id,
            format!("launch of {} with profile {}", request.workload, request.profile),
        )
        .who(peer.who.clone())
        .detail(record::asked(&request));
        // What need not be recorded first is recorded while the monitor is at work.
        let asked = if judged.policy.audit.required {
            if let Err(refusal) = self.recorder.note(asked) {
                drop(paths::remove_tree(&self.paths.storage(&id)));
                self.labels.free(&id);
                self.drop_places(&id);
                return self.answer(peer, Err(refusal));
            }
            None
        } else {
            Some(asked)
        };
        if judged.plan.wants_network()
            && let Some(network) = self.spare.take()
        {
            judged.plan.give_network(network);
        }
        let mut seed = Seed {
            request,
            plan: judged.plan,
            program: judged.program,
            paths: self.paths.clone(),
            boot_id: self.boot_id.clone(),
            proof_interval: self.config.proof_interval,
            conn: peer.conn,
            who: peer.who,
            policy: judged.policy,
            secrets: judged.secrets,
            relabel: judged.relabel,
            on_drift: judged.on_drift,
            timing: judged.timing,
            begun: Instant::now(),
        };
        // SAFETY: this process has one thread (checked in main, and none is ever started), so the child may go
        // on with all of the library's state; it never returns into the launcher's loop.
        match unsafe { fork() } {
            Err(e) => {
                drop(paths::remove_tree(&self.paths.storage(&id)));
                self.labels.free(&id);
                self.drop_places(&id);
                self.ranges.free(&id);
                drop(crate::cni::detach(&self.paths, &id));
                let refusal = Refusal {
                    stage: "fork".into(),
                    message: format!("fork: {e}"),
                    hint: Some("TasksMax of the launcher's unit, kernel.pid_max".into()),
                };
                self.answer(
                    Peer {
                        conn: seed.conn,
                        who: seed.who,
                        since: begun,
                    },
                    Err(refusal),
                );
            }
            Ok(ForkResult::Child) => {
                seed.mark("fork");
                self.leave();
                let recorder = &self.recorder;
                let run = std::panic::AssertUnwindSafe(|| monitor::run(seed, recorder));
                let status = std::panic::catch_unwind(run).unwrap_or(101);
                // SAFETY: ends the process at once; the launcher's exit handlers are not the monitor's.
                unsafe { libc::_exit(status) }
            }
            Ok(ForkResult::Parent { child }) => {
                drop(seed);
                if let Some(asked) = asked {
                    self.recorder.note(asked).ok();
                }
                match socket::pidfd_open(child.as_raw()) {
                    Ok(pidfd) => self.watched.push(Watched { id, pidfd }),
                    // A child that is not yet reaped always has one; without descriptors left it cannot be watched.
                    Err(e) => eprintln!("berth launcher: monitor {child} of {id} is not watched: {e}"),
                }
            }
        }
    }

    /// In the forked monitor: closes what is the launcher's.
    fn leave(&mut self) {
        self.peers = Vec::new();
        self.watched = Vec::new();
        self.spare = Spare::default();
        // The listener and the signalfd are replaced by /dev/null rather than moved out of `self`, which the
        // monitor's process keeps untouched so that its memory stays shared.
        if let Ok(null) = std::fs::File::open("/dev/null") {
            for fd in [self.listener.as_fd(), self.signals.as_fd()] {
                use std::os::fd::AsRawFd;
                // SAFETY: dup3(2) replaces a descriptor that this process owns by another valid one.
                unsafe { libc::dup3(null.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
            }
        }
    }

    /// The image stores, opened when they are first needed.
    fn store(&mut self) -> Result<&Stores, Refusal> {
        if self.store.is_none() {
            let own = self.paths.state.join("images");
            let marks = Some((self.paths.verified(), self.boot_id.clone()));
            let store = Stores::open(own, Mode::Read, &self.config.preloaded_dir, marks);
            let store = store.map_err(|e| Refusal {
                stage: "image".into(),
                message: chain(&e),
                hint: e.hint(),
            })?;
            self.store = Some(store);
        }
        self.store.as_ref().ok_or_else(|| check::refuse("no image store"))
    }
}
