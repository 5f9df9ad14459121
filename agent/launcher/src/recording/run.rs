//! One traced run.
#![allow(unsafe_code)] // fork(2) of the child that keeps the time

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::time::Instant;

use berth_images::{Digest, Mode, Stores};
use berth_policies::{Profile, ProfileSpec};
use berth_rt::cgroup::Hierarchy;
use berth_runtime::seccomp::{Architecture, syscall_names, syscall_number};
use berth_runtime::trace::{Call, Ended, Seen};
use berth_runtime::{Container, Context, Plan, Stdio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, fork};

use super::{Settings, Trace, refuse, sort};
use crate::compose::{Inputs, chain, compose};
use crate::ranges::Ranges;
use crate::selinux::Labels;
use crate::wire::Refusal;
use crate::{check, users};

/// Runs a program again and again, traced.
#[derive(Debug)]
pub struct Recorder {
    settings: Settings,
    stores: Stores,
    hierarchy: Hierarchy,
    names: HashMap<u64, &'static str>,
    /// The node's own profiles, for `extends`.
    pub(super) custom: BTreeMap<String, ProfileSpec>,
    /// How often it ran.
    pub(super) runs: usize,
}

impl Recorder {
    /// Looks for the image and the cgroups. SIGINT and SIGTERM are blocked from here on: they end the run, not this
    /// process.
    ///
    /// # Errors
    /// A refusal: no such image, no cgroups.
    pub fn new(mut settings: Settings, custom: BTreeMap<String, ProfileSpec>) -> Result<Recorder, Refusal> {
        settings
            .paths
            .make()
            .map_err(|e| refuse(format!("folders: {e}"), "record as root"))?;
        let images = settings.paths.state.join("images");
        let stores = Stores::open(images, Mode::Read, &settings.preloaded, None).map_err(|e| Refusal {
            stage: "image".into(),
            message: chain(&e),
            hint: e.hint(),
        })?;
        let image_refused = |e: berth_images::ImageError| refusal("image", chain(&e), e.hint());
        settings.request.image = stores
            .resolve(&settings.request.image)
            .map_err(image_refused)?
            .to_string();
        checked(&settings.request)?;
        let hierarchy = Hierarchy::discover(std::path::Path::new("/")).map_err(|e| Refusal {
            stage: "record".into(),
            message: chain(&e),
            hint: e.hint(),
        })?;
        let numbered = |name| Some((u64::from(syscall_number(Architecture::NATIVE, name)?), name));
        signals()
            .thread_block()
            .map_err(|e| refuse(format!("signals: {e}"), "report this"))?;
        Ok(Recorder {
            names: syscall_names().filter_map(numbered).collect(),
            settings,
            stores,
            hierarchy,
            custom,
            runs: 0,
        })
    }

    /// One run under a profile.
    ///
    /// # Errors
    /// A refusal of the launch, with its stage.
    pub fn run(&mut self, profile: &Profile) -> Result<Trace, Refusal> {
        self.runs += 1;
        let mut request = self.settings.request.clone();
        request.id = format!("{}-{}", request.id, self.runs);
        let paths = &self.settings.paths;
        let labels = Labels::find(std::path::Path::new("/sys"), &paths.run);
        let ranges = Ranges::new(&paths.state, self.settings.id_base);
        let storage = paths.storage(&request.id);
        let done = self.launch(profile, &request, &labels, &ranges);
        ranges.free(&request.id);
        labels.free(&request.id);
        crate::paths::remove_tree(&storage).map_err(|e| refuse(e.to_string(), "remove it"))?;
        done
    }

    fn launch(
        &self,
        profile: &Profile,
        request: &crate::wire::LaunchRequest,
        labels: &Labels,
        ranges: &Ranges,
    ) -> Result<Trace, Refusal> {
        if request.cni.is_some() {
            return Err(refuse(
                "network: a recording has no network of the plug-ins",
                "record with `network: none` or `host`",
            ));
        }
        let digest: Digest = request
            .image
            .parse()
            .map_err(|e| refuse(format!("image: {e}"), "report this"))?;
        let image = self
            .stores
            .image(&digest)
            .map_err(|e| refusal("image", chain(&e), e.hint()))?;
        let named = image
            .config
            .config()
            .as_ref()
            .and_then(|c| c.user().clone())
            .unwrap_or_default();
        let user = users::of_image(&named, &image.layers).map_err(|e| refuse(e, "name another image"))?;
        let storage = self.settings.paths.storage(&request.id);
        let sources: Vec<_> = request.mounts.iter().map(|m| m.source.clone()).collect();
        let mut composed = compose(&Inputs {
            request,
            image: &image.config,
            layers: &image.layers,
            user: &user,
            profile,
            cgroup_parent: "",
            storage: &storage,
            sources: &sources,
            network: None,
            secrets: None,
            udev: None,
            oom_score_adj: 0,
        })?;
        labels.apply(&request.id, &mut composed.spec)?;
        ranges.apply(&request.id, &mut composed.spec)?;
        for folder in [&composed.extensions.upper, &composed.extensions.work]
            .into_iter()
            .flatten()
        {
            crate::paths::make_dir(folder, 0o755)
                .map_err(|e| refuse(e.to_string(), "make STATE writable"))?;
        }
        let containers = self.settings.paths.run.join("containers");
        let context = Context {
            state_root: &containers,
            hierarchy: &self.hierarchy,
            cgroup_parent: "",
            detached: false,
        };
        let bundle = self.settings.paths.container(&request.id);
        let plan = Plan::prepare(
            &request.id,
            &bundle,
            &composed.spec,
            &composed.extensions,
            &context,
        );
        let plan = plan.map_err(|e| refusal("plan", chain(&e), e.hint()))?;
        let mut container = plan
            .create(streams()?)
            .map_err(|e| refusal("create", chain(&e), e.hint()))?;
        let trace = self.follow(&mut container);
        match container.delete() {
            Ok(()) => trace,
            Err(left) => {
                let left: Vec<String> = left.iter().map(ToString::to_string).collect();
                Err(refuse(format!("left behind: {}", left.join("; ")), "remove it"))
            }
        }
    }

    fn follow(&self, container: &mut Container) -> Result<Trace, Refusal> {
        let mut trace = Trace {
            ended: Ended::Code(0),
            calls: BTreeSet::new(),
            values: BTreeMap::new(),
            refused: BTreeMap::new(),
            filtered: BTreeMap::new(),
            files: BTreeMap::new(),
            devices: BTreeSet::new(),
            foreign: false,
        };
        let filter = container.filter().cloned();
        let begun = Instant::now();
        let limit = self.settings.limit;
        let mut last = None;
        let mut again = || {
            last = sleeper(if begun.elapsed() < limit {
                limit - begun.elapsed()
            } else {
                GRACE
            });
            last
        };
        let end = again();
        let mut see = |seen| match seen {
            Seen::Exec(tid) => executed(&mut trace, tid),
            Seen::Enter(call) => {
                if call.arch != Architecture::NATIVE.audit() {
                    trace.foreign = true;
                    return;
                }
                let Some(name) = self.names.get(&call.number).copied() else {
                    return;
                };
                trace.calls.insert(name);
                if let Some(index) = sort::deciding(name) {
                    let value = call.args[index] & 0xffff_ffff;
                    trace.values.entry(name).or_default().insert(value);
                }
                let answer = filter.as_ref().and_then(|f| {
                    f.evaluate(Architecture::NATIVE, u32::try_from(call.number).ok()?, &call.args)
                });
                // clone3 is answered ENOSYS on purpose: its caller goes on with clone.
                if let Some(words) = answer.and_then(words).filter(|_| name != "clone3") {
                    trace.filtered.insert(name, words);
                }
            }
            Seen::Exit(call, result) => {
                if let Some(name) = self.names.get(&call.number).copied() {
                    returned(&mut trace, name, call, result);
                }
            }
        };
        let ended = container
            .start_traced(None, end, &mut again, &mut see)
            .map_err(|e| refusal("start", chain(&e), e.hint()))
            .and_then(|ended| ended.map_err(|e| refuse(format!("tracing: {}", e.desc()), "record again")));
        if let Some(pid) = last {
            let _ = kill(pid, Signal::SIGKILL); // it may have ended
            let _ = nix::sys::wait::waitpid(pid, None);
        }
        trace.ended = ended?;
        // A default that the program was told to end with is not its own end.
        Ok(trace)
    }
}

/// After SIGTERM.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

fn refusal(stage: &str, message: String, hint: Option<String>) -> Refusal {
    Refusal {
        stage: stage.into(),
        message,
        hint,
    }
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set
}

/// No input; output and errors where this process's go.
fn streams() -> Result<Stdio, Refusal> {
    let failed = |e: std::io::Error| refuse(format!("standard streams: {e}"), "give them");
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed);
    let stdin: OwnedFd = File::open("/dev/null").map_err(failed)?.into();
    Ok(Stdio {
        stdin,
        stdout: own(std::io::stderr().as_fd())?,
        stderr: own(std::io::stderr().as_fd())?,
    })
}

/// A child that ends after so long, or when SIGINT or SIGTERM comes.
fn sleeper(limit: std::time::Duration) -> Option<Pid> {
    let Ok(waiting) = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return None;
    };
    // SAFETY: this process has one thread; the child polls, and ends without running anything of this process's.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(waiting.as_fd(), PollFlags::POLLIN)], limit);
            // SAFETY: _exit runs nothing of this process's.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { child }) => Some(child),
        Err(_) => None,
    }
}

/// A filter's answer that is not "go on", in words.
fn words(answer: u32) -> Option<String> {
    match answer & 0xffff_0000 {
        0x7fff_0000 | 0x7ffc_0000 => None,
        0x0005_0000 => Some(format!(
            "{:?}",
            nix::errno::Errno::from_raw((answer & 0xffff) as i32)
        )),
        0x0003_0000 => Some("SIGSYS".into()),
        0x8000_0000 | 0 => Some("death".into()),
        other => Some(format!("{other:#x}")),
    }
}

/// A new program: itself and its loader are mapped from files that may be executed.
fn executed(trace: &mut Trace, tid: i32) {
    let maps = std::fs::read_to_string(format!("/proc/{tid}/maps")).unwrap_or_default();
    for path in maps.lines().filter_map(|l| l.find('/').map(|at| &l[at..])) {
        trace.files.entry(path.to_owned()).or_default().insert('x');
    }
}

fn returned(trace: &mut Trace, name: &'static str, call: Call, result: i64) {
    let errno = i32::try_from(-result).unwrap_or(0);
    if matches!(errno, libc::EPERM | libc::EACCES) {
        let about = sort::path_argument(name).and_then(|index| text(call.tid, call.args[index]));
        trace
            .refused
            .entry((name, errno))
            .or_insert(about.unwrap_or_default());
    }
    if result < 0 {
        return;
    }
    let flags = match name {
        "open" => call.args[1],
        "openat" => call.args[2],
        "creat" => (libc::O_WRONLY | libc::O_CREAT) as u64,
        "openat2" => word(call.tid, call.args[2]).unwrap_or(0),
        _ => {
            if let Some(path) = changed(name, &call) {
                trace.files.entry(path).or_default().insert('c');
            }
            return;
        }
    };
    opened(trace, call.tid, result, flags as i32);
}

/// The path of a call that makes or removes a name; relative ones are not followed.
fn changed(name: &str, call: &Call) -> Option<String> {
    let index = match name {
        "mkdir" | "rmdir" | "unlink" | "rename" | "mknod" => 0,
        "mkdirat" | "unlinkat" | "renameat" | "renameat2" | "mknodat" | "link" | "symlink" => 1,
        _ => return None,
    };
    text(call.tid, call.args[index]).filter(|path| path.starts_with('/'))
}

fn opened(trace: &mut Trace, tid: i32, fd: i64, flags: i32) {
    let file = format!("/proc/{tid}/fd/{fd}");
    let mut how = BTreeSet::new();
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => how.extend(['r']),
        libc::O_WRONLY => how.extend(['w']),
        _ => how.extend(['r', 'w']),
    }
    if let Ok(meta) = std::fs::metadata(&file) {
        let kind = if meta.file_type().is_char_device() {
            Some('c')
        } else if meta.file_type().is_block_device() {
            Some('b')
        } else {
            None
        };
        if let Some(kind) = kind {
            let rdev = meta.rdev();
            let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
            let access: String = how.iter().collect();
            trace.devices.insert(format!("{kind} {major}:{minor} {access}"));
        }
    }
    if flags & libc::O_CREAT != 0 {
        how.insert('c');
    }
    let path = std::fs::read_link(&file)
        .ok()
        .and_then(|p| p.into_os_string().into_string().ok());
    if let Some(path) = path.filter(|p| p.starts_with('/')) {
        trace.files.entry(path).or_default().extend(how);
    }
}

/// A text of the traced process's memory.
fn text(tid: i32, address: u64) -> Option<String> {
    let mut bytes = [0u8; 256];
    let n = File::open(format!("/proc/{tid}/mem"))
        .ok()?
        .read_at(&mut bytes, address)
        .ok()?;
    let end = bytes[..n].iter().position(|b| *b == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

fn word(tid: i32, address: u64) -> Option<u64> {
    let mut bytes = [0u8; 8];
    let memory = File::open(format!("/proc/{tid}/mem")).ok()?;
    memory.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

/// A request is checked as the launcher would.
fn checked(request: &crate::wire::LaunchRequest) -> Result<(), Refusal> {
    let path = "/sys/devices/system/cpu/online";
    let online = std::fs::read_to_string(path).map_err(|e| refuse(format!("{path}: {e}"), "mount /sys"))?;
    let online = online
        .trim()
        .parse()
        .map_err(|e| refuse(format!("{path}: {e}"), "report this"))?;
    check::check(request, &online)
}
