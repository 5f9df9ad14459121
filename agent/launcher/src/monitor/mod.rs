//! A monitor: parent, subreaper and keeper of one container, forked from the launcher and never executed anew.
//!
//! ```text
//! creating ──> armed ──start──> running <──> frozen ──stop──> stopping ──> exited ──release──> (ends)
//!     │          │                  └────────────────────────────────────────^
//!     └──────────┴──> failed ──release──> (ends)
//! ```
//!
//! One poll loop: SIGCHLD and SIGTERM by signalfd, the container's output, its links, its partition, the monitor's own
//! socket and the connections to it. Invariants: no thread is ever started here; nothing but the disk and the short calls
//! of the runtime is waited for; the container's first process dies with this process (PR_SET_PDEATHSIG), so it
//! is never left without its keeper; exit.json is on disk before anybody is told of the exit; the container's
//! cgroup and mounts are freed before that.

mod commands;
mod drift;
mod grants;
mod guard;
mod interfaces;
mod life;
mod links;
pub(crate) mod output;
pub(crate) mod quiet;
mod uevents;
pub(crate) mod wakeups;

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_audit::{Entry, Who};
use berth_policies::OnDrift;
use berth_rt::cpu::CpuSet;
use berth_runtime::proof::{Fact, Proof};
use berth_runtime::{Container, Plan};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet as AffinitySet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::conn::{Conn, Read};
use crate::frame::FrameError;
use crate::paths::{self, Paths};
use crate::policy::Policy;
use crate::record::Recorder;
use crate::wire::{Event, Exit, LaunchRequest, Phase, Refusal, Reply, Status, VERSION};
use crate::{harden, socket};
use links::Links;
use output::Output;

/// Name of a monitor in /proc/PID/comm.
const NAME: &std::ffi::CStr = c"berth-mon";

/// Most connections at once.
const MAX_CONNS: usize = 32;

/// What the launcher hands to the monitor it forks.
pub(crate) struct Seed {
    pub(crate) request: LaunchRequest,
    pub(crate) plan: Plan,
    /// What `command` or the image's entrypoint named.
    pub(crate) program: Vec<String>,
    pub(crate) paths: Paths,
    pub(crate) boot_id: String,
    pub(crate) proof_interval: Duration,
    /// The connection the request came on, with whatever came after it.
    pub(crate) conn: Conn,
    /// Who is at its other end.
    pub(crate) who: Option<Who>,
    /// The place for its secrets, and whose they become.
    pub(crate) secrets: crate::secrets::Ready,
    /// Sources of mounts, and the labels they get.
    pub(crate) relabel: Vec<(std::path::PathBuf, String)>,
    /// What is done about drift: the request's answer or the profile's, the stricter one.
    pub(crate) on_drift: OnDrift,
    /// What may be asked for.
    pub(crate) policy: Arc<Policy>,
    /// Steps of the launch so far, microseconds.
    pub(crate) timing: Vec<(String, u64)>,
    /// When the last step of the launch began.
    pub(crate) begun: Instant,
}

impl Seed {
    /// Notes how long a step of the launch took.
    pub(crate) fn mark(&mut self, step: &str) {
        mark(&mut self.timing, &mut self.begun, step);
    }
}

/// Notes how long a step took, and begins the next.
fn mark(timing: &mut Vec<(String, u64)>, begun: &mut Instant, step: &str) {
    let now = Instant::now();
    let micros = u64::try_from((now - *begun).as_micros()).unwrap_or(u64::MAX);
    timing.push((step.to_owned(), micros));
    *begun = now;
}

struct Keeper {
    number: u64,
    conn: Conn,
    who: Option<Who>,
    greeted: bool,
}

struct Exec {
    pid: i32,
    pidfd: OwnedFd,
    /// Connection that asked.
    by: u64,
}

/// One container's keeper.
pub(crate) struct Monitor<'a> {
    recorder: &'a Recorder,
    /// An entry that is kept once nobody waits for this process any more.
    owed: Cell<Option<Entry>>,
    secrets: crate::secrets::Ready,
    relabel: Vec<(std::path::PathBuf, String)>,
    on_drift: OnDrift,
    policy: Arc<Policy>,
    request: LaunchRequest,
    plan: Option<Plan>,
    program: Vec<String>,
    paths: Paths,
    boot_id: String,
    proof_interval: Duration,
    timing: Vec<(String, u64)>,
    begun: Instant,
    listener: Option<OwnedFd>,
    signals: SignalFd,
    conns: Vec<Keeper>,
    next_conn: u64,
    container: Option<Container>,
    pid: Option<i32>,
    start_time: Option<u64>,
    output: Option<Output>,
    links: Option<Links>,
    heard: uevents::Heard,
    partitions: Option<guard::Partitions>,
    cores: guard::Cores,
    probe: Option<wakeups::Probe>,
    execs: Vec<Exec>,
    phase: Phase,
    created_at: u64,
    started_at: Option<u64>,
    exit: Option<Exit>,
    failure: Option<Refusal>,
    proof: Option<Proof>,
    drift: Vec<Fact>,
    /// What kept it from ending, told last.
    held: Option<String>,
    /// What raises the interrupts of its devices, where they are to come to its cores.
    controllers: Vec<String>,
    dropped: u64,
    kill_at: Option<Instant>,
    prove_at: Option<Instant>,
    released: bool,
}

enum Source {
    Signals,
    Listener,
    Pipe(usize),
    Links,
    Partitions,
    Conn(u64),
}

/// Becomes the monitor: the whole life of the forked process. Returns its exit status.
pub(crate) fn run(seed: Seed, recorder: &Recorder) -> i32 {
    let id = seed.request.id.clone();
    match Monitor::new(seed, recorder) {
        Ok(mut monitor) => {
            monitor.launch();
            harden::trim();
            monitor.serve();
            0
        }
        Err(failed) => {
            let (mut conn, refusal) = *failed;
            eprintln!("berth monitor of {id}: {}", refusal.message);
            recorder
                .note(crate::record::refused("launch", &id, &refusal, None))
                .ok();
            let failed = Event::Failed { refusal, proof: None };
            let _ = conn.say(&Reply::Event(Box::new(failed)), Vec::new());
            1
        }
    }
}

impl<'a> Monitor<'a> {
    fn new(seed: Seed, recorder: &'a Recorder) -> Result<Monitor<'a>, Box<(Conn, Refusal)>> {
        match Monitor::prepare(&seed) {
            Ok((signals, listener)) => Ok(Monitor {
                recorder,
                owed: Cell::new(None),
                policy: seed.policy,
                secrets: seed.secrets,
                relabel: seed.relabel,
                on_drift: seed.on_drift,
                request: seed.request,
                plan: Some(seed.plan),
                program: seed.program,
                paths: seed.paths,
                boot_id: seed.boot_id,
                proof_interval: seed.proof_interval,
                timing: seed.timing,
                begun: seed.begun,
                listener: Some(listener),
                signals,
                conns: vec![Keeper {
                    number: 0,
                    conn: seed.conn,
                    who: seed.who,
                    greeted: true,
                }],
                next_conn: 1,
                container: None,
                pid: None,
                start_time: None,
                output: None,
                links: None,
                heard: uevents::Heard::default(),
                partitions: None,
                cores: guard::Cores::default(),
                probe: None,
                execs: Vec::new(),
                phase: Phase::Creating,
                created_at: paths::now(),
                started_at: None,
                exit: None,
                failure: None,
                proof: None,
                drift: Vec::new(),
                held: None,
                controllers: Vec::new(),
                dropped: 0,
                kill_at: None,
                prove_at: None,
                released: false,
            }),
            Err(message) => {
                let refusal = Refusal {
                    stage: "monitor".into(),
                    message,
                    hint: None,
                };
                Err(Box::new((seed.conn, refusal)))
            }
        }
    }

    fn prepare(seed: &Seed) -> Result<(SignalFd, OwnedFd), String> {
        let said = |step: &'static str| move |e: Errno| format!("{step}: {e}");
        nix::unistd::setsid().map_err(said("setsid"))?;
        prctl::set_name(NAME).map_err(said("PR_SET_NAME"))?;
        prctl::set_child_subreaper(true).map_err(said("PR_SET_CHILD_SUBREAPER"))?;
        keep_off(seed).map_err(|e| format!("sched_setaffinity: {e}"))?;
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.add(Signal::SIGHUP);
        set.thread_block().map_err(said("sigprocmask"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).map_err(said("signalfd"))?;
        let name = format!("{}.sock", seed.request.id);
        let folder = seed.paths.monitors();
        let listener =
            socket::listen(&folder, &name).map_err(|e| format!("{}/{name}: {e}", folder.display()))?;
        Ok((signals, listener))
    }

    fn serve(&mut self) {
        while !(self.released && self.conns.iter().all(|k| k.conn.idle())) {
            self.tell_drops(false);
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    eprintln!("berth monitor of {}: poll: {e}", self.request.id);
                    return;
                }
            };
            for (source, flags) in ready {
                match source {
                    Source::Signals => self.on_signals(),
                    Source::Listener => self.on_listener(),
                    Source::Pipe(n) => self.output.iter_mut().for_each(|o| o.read(n)),
                    Source::Links => self.on_links(),
                    Source::Partitions => self.on_partitions(),
                    Source::Conn(number) => self.on_conn(number, flags),
                }
            }
            let now = Instant::now();
            if self.kill_at.is_some_and(|at| at <= now) {
                self.kill_at = None;
                self.kill();
            }
            if self.prove_at.is_some_and(|at| at <= now) {
                self.prove_at = Some(now + self.proof_interval);
                self.watch();
                self.write_wakeups();
            }
        }
    }

    /// Polls; gives what is ready.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let mut sources = vec![(Source::Signals, self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(listener) = &self.listener {
            sources.push((Source::Listener, listener.as_fd(), PollFlags::POLLIN));
        }
        if let Some(output) = &self.output {
            sources.extend(
                output
                    .fds()
                    .map(|(n, fd)| (Source::Pipe(n), fd, PollFlags::POLLIN)),
            );
        }
        if let Some(links) = &self.links {
            sources.push((Source::Links, links.as_fd(), PollFlags::POLLIN));
        }
        if let Some(partitions) = &self.partitions {
            let told = |fd| (Source::Partitions, fd, PollFlags::POLLPRI);
            sources.extend(partitions.fds().map(told));
        }
        sources.extend(
            self.conns
                .iter()
                .map(|k| (Source::Conn(k.number), k.conn.as_fd(), k.conn.interest())),
        );
        let due = self.output.as_ref().and_then(Output::due);
        let next = [self.kill_at, self.prove_at, due].into_iter().flatten().min();
        poll_sources(sources, next)
    }

    fn on_listener(&mut self) {
        let Some(listener) = &self.listener else { return };
        match socket::accept(listener.as_fd()) {
            Ok(Some(stream)) => {
                let root = matches!(socket::peer(stream.as_fd()), Ok((_, 0)));
                if root && self.conns.len() < MAX_CONNS {
                    let number = self.next_conn;
                    self.next_conn += 1;
                    let who = socket::who(stream.as_fd()).ok();
                    self.conns.push(Keeper {
                        number,
                        who,
                        conn: Conn::new(stream),
                        greeted: false,
                    });
                }
            }
            Ok(None) => {}
            Err(e) => eprintln!("berth monitor of {}: accept: {e}", self.request.id),
        }
    }

    fn on_conn(&mut self, number: u64, flags: PollFlags) {
        let Some(keeper) = self.conns.iter_mut().find(|k| k.number == number) else {
            return;
        };
        let mut open = !flags.contains(PollFlags::POLLNVAL);
        if flags.contains(PollFlags::POLLOUT) {
            open &= keeper.conn.flush().is_ok();
        }
        if open && flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            open &= matches!(keeper.conn.read(), Ok(Read::Open));
        }
        self.commands(number);
        let done = self.conn(number).is_none_or(|c| c.closing && c.idle());
        if !open || done {
            self.close(number);
        }
    }

    /// Carries out every whole command that came on a connection.
    fn commands(&mut self, number: u64) {
        loop {
            let Some(conn) = self.conn(number).filter(|c| !c.closing) else {
                return;
            };
            match conn.next_line() {
                Ok(Some(line)) => self.on_line(number, &line),
                Ok(None) => return,
                Err(e) => return self.refuse_frame(number, &e),
            }
        }
    }

    fn refuse_frame(&mut self, number: u64, error: &FrameError) {
        self.refuse(number, "request", error.to_string());
        if let Some(conn) = self.conn(number) {
            conn.closing = true;
        }
    }

    /// Keeps an entry about this container in the launcher's audit log, behind the one that is still owed.
    fn note(&self, entry: Entry) {
        self.pay();
        self.recorder.note(entry).ok();
    }

    /// Keeps the entry that was put off.
    fn pay(&self) {
        if let Some(owed) = self.owed.take() {
            self.recorder.note(owed).ok();
        }
    }

    fn who(&self, number: u64) -> Option<Who> {
        self.conns
            .iter()
            .find(|k| k.number == number)
            .and_then(|k| k.who.clone())
    }

    fn conn(&mut self, number: u64) -> Option<&mut Conn> {
        self.conns
            .iter_mut()
            .find(|k| k.number == number)
            .map(|k| &mut k.conn)
    }

    /// Ends a connection, and what was executed for it: nobody reads its output any more.
    fn close(&mut self, number: u64) {
        self.conns.retain(|k| k.number != number);
        for exec in self.execs.iter().filter(|e| e.by == number) {
            let _ = socket::pidfd_signal(exec.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Answers one connection; a peer that cannot be told anything loses its connection.
    fn say(&mut self, number: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        let told = self.conn(number).map(|conn| conn.say(reply, fds));
        if matches!(told, Some(Err(_))) {
            self.close(number);
        }
    }

    fn refuse(&mut self, number: u64, stage: &str, message: String) {
        let refusal = Refusal {
            stage: stage.into(),
            message,
            hint: None,
        };
        self.say(number, &Reply::Refused(refusal), Vec::new());
    }

    /// Tells everybody who listens.
    fn tell(&mut self, event: &Event) {
        let reply = Reply::Event(Box::new(event.clone()));
        let listeners: Vec<u64> = self
            .conns
            .iter()
            .filter(|k| k.conn.subscribed)
            .map(|k| k.number)
            .collect();
        for number in listeners {
            let fds = if crate::frame::descriptors(&reply) == 1 {
                self.pidfd()
            } else {
                Vec::new()
            };
            self.say(number, &reply, fds);
        }
    }

    fn tell_drops(&mut self, at_once: bool) {
        let Some(output) = &mut self.output else { return };
        let bytes = output.tell(at_once);
        self.dropped = output.dropped();
        if bytes > 0 {
            self.tell(&Event::Dropped { bytes });
        }
    }

    /// A copy of the container's pidfd, where it lives.
    fn pidfd(&self) -> Vec<OwnedFd> {
        let lives = self.pid.is_some();
        let fd = self
            .container
            .as_ref()
            .filter(|_| lives)
            .and_then(Container::pidfd);
        fd.and_then(|fd| fd.try_clone_to_owned().ok())
            .into_iter()
            .collect()
    }

    fn status(&self) -> (Status, Vec<OwnedFd>) {
        let fds = self.pidfd();
        let status = Status {
            version: VERSION,
            request: self.request.clone(),
            phase: self.phase,
            monitor_pid: i32::try_from(std::process::id()).unwrap_or(0),
            // Without its descriptor no pid is told: the two go together.
            pid: self.pid.filter(|_| !fds.is_empty()),
            start_time: self.start_time,
            boot_id: self.boot_id.clone(),
            created_at: self.created_at,
            started_at: self.started_at,
            exit: self.exit,
            failure: self.failure.clone(),
            proof: self.proof.clone(),
            drift: self.drift.clone(),
            log: self.paths.log(&self.request.id),
            dropped_bytes: self.output.as_ref().map_or(self.dropped, Output::dropped),
            timing: self.timing.clone(),
            takes: true,
        };
        (status, fds)
    }
}

/// Leaves the cores that the container has for itself: under a real-time policy it may never give them up, and its
/// output and its end are this process's work. Where they are all there is, nothing changes.
fn keep_off(seed: &Seed) -> Result<(), Errno> {
    let placement = &seed.request.placement;
    let Ok(cpus) = placement.cpus.parse::<CpuSet>() else {
        return Ok(());
    };
    if placement.shared {
        return Ok(());
    }
    let mut set = sched_getaffinity(Pid::from_raw(0))?;
    let mut left = 0;
    for cpu in 0..AffinitySet::count() {
        if set.is_set(cpu)? {
            if u32::try_from(cpu).is_ok_and(|c| cpus.contains(c)) {
                set.unset(cpu)?;
            } else {
                left += 1;
            }
        }
    }
    if left == 0 {
        return Ok(());
    }
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// poll(2) until something is ready or `next` has come.
fn poll_sources(
    sources: Vec<(Source, BorrowedFd<'_>, PollFlags)>,
    next: Option<Instant>,
) -> Result<Vec<(Source, PollFlags)>, Errno> {
    let timeout = match next {
        None => PollTimeout::NONE,
        Some(at) => {
            // Rounded up, so that the time has come when poll returns.
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
        }
    };
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
        .collect();
    poll(&mut fds, timeout)?;
    let flags: Vec<PollFlags> = fds
        .iter()
        .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
        .collect();
    let ready = sources.into_iter().map(|(source, _, _)| source).zip(flags);
    Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
}
