//! `berth device record` and `simulate`: what happened to devices, written down; and what rules would have done.
//!
//! Simulating runs the very matcher and the very decisions of the agent over a recording. Monitors are played: every
//! launch works, every stop ends at once. Invariants: needs no root, reads nothing of this machine, and gives the same
//! text for the same recording and documents.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use berth_documents::Set;
use berth_hotplug::device::SYS_ROOT;
use berth_hotplug::enumerate::{Filter, enumerate_from};
use berth_hotplug::monitor::{Monitor, MonitorError, RECEIVE_BUFFER, Source};
use berth_hotplug::recording::{Reader, Recorder, Step};
use berth_hotplug::safe;
use berth_launcher::wire::{DeviceGrant, Exit, InterfaceGrant};
use berth_rt::placement::{Core, Pool};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::core::desired::Desired;
use crate::core::{Effect, Event, Node, NoticeKind, Report, State};
use crate::daemon::matcher::{Found, Matcher};

use super::table::with_hint;
use super::{DONE, Format, Outcome, OutputArgs};

#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// The file to write; it must not be there
    file: PathBuf,
    /// Only devices of this subsystem (more than once: of these)
    #[arg(long, value_name = "NAME")]
    subsystem: Vec<String>,
    /// End after so many seconds; without it at Ctrl-C
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// A file that `berth device record` wrote
    recording: PathBuf,
    /// Files with the rules and their workloads
    #[arg(long, value_name = "PATH", required = true)]
    rules: Vec<PathBuf>,
    /// Whole cores the node has for workloads
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    cores: u32,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn record(args: &RecordArgs) -> Outcome {
    let filter = match args.subsystem.as_slice() {
        [] => Filter::default(),
        names => Filter::subsystems(names.iter().cloned()),
    };
    let mut monitor = Monitor::open(Source::Auto, RECEIVE_BUFFER).map_err(|e| with_hint(&e, e.hint()))?;
    let source = match monitor.source() {
        Source::Udev => "udev",
        _ => "kernel",
    };
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(&args.file)
        .with_context(|| format!("{}", args.file.display()))?;
    let mut recorder = Recorder::begin(file, Path::new(SYS_ROOT), source)?;
    let begun = Instant::now();
    let there = enumerate_from(monitor.source(), Path::new(SYS_ROOT), &filter)
        .map_err(|e| with_hint(&e, e.hint()))?;
    for device in &there {
        recorder.there(device)?;
    }
    eprintln!("berth: {} devices are there; recording events", there.len());
    let wanted = |subsystem: Option<&str>| {
        args.subsystem.is_empty() || args.subsystem.iter().any(|s| Some(s.as_str()) == subsystem)
    };
    let end = args.seconds.map(|s| begun + Duration::from_secs(s));
    loop {
        match monitor.next() {
            Ok(Some(event)) if wanted(event.device.subsystem()) => {
                let at = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                recorder.event(at, &event)?;
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let left = end.map(|end| end.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Ok(DONE);
                }
                let wait = left.map_or(PollTimeout::NONE, |left| {
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                });
                let mut one = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
                match poll(&mut one, wait) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error @ MonitorError::Overflow) => {
                anyhow::bail!("{error}: the recording ends here and is not whole")
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A line of the outcome.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// Milliseconds of the recording.
    at: u64,
    /// `device`, `launch`, `start`, `stop`, `inject`, `eject`, `note`, `end`.
    what: &'static str,
    name: String,
    text: String,
}

struct World {
    state: State,
    now: u64,
    told: Vec<Told>,
}

/// A folder that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn make() -> anyhow::Result<Folder> {
        let mut template = std::env::temp_dir().join("berth-simulate-XXXXXX");
        template = nix::unistd::mkdtemp(&template).with_context(|| template.display().to_string())?;
        Ok(Folder(template))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("berth: {}: {error}", self.0.display());
        }
    }
}

pub(super) fn simulate(args: &SimulateArgs) -> Outcome {
    let set: Set = super::device::load(&args.rules)?;
    let folder = Folder::make()?;
    let sys = folder.0.join("sys");
    fs::create_dir(&sys)?;
    let told = run(&args.recording, &set, &sys, args.cores)?;
    for line in &told {
        if args.output.output == Format::Json {
            println!("{}", serde_json::to_string(line)?);
            continue;
        }
        let at = format!("{}.{:03}", line.at / 1000, line.at % 1000);
        let text = safe::show(&line.text, 512);
        match line.what {
            "device" => println!("{at:>8} {} {text}", line.name),
            what => println!(
                "{at:>8}   {what} {}{}{text}",
                line.name,
                if text.is_empty() { "" } else { ": " }
            ),
        }
    }
    Ok(DONE)
}

fn run(recording: &Path, set: &Set, sys: &Path, cores: u32) -> anyhow::Result<Vec<Told>> {
    let file = File::open(recording).with_context(|| recording.display().to_string())?;
    let named = |e: berth_hotplug::recording::RecordingError| {
        let hint = e.hint();
        with_hint(format!("{}: {e}", recording.display()), hint)
    };
    let mut reader = Reader::open(BufReader::new(file), sys).map_err(named)?;
    let mut matcher = Matcher::new(false);
    matcher.set_rules(set);
    let mut world = World {
        state: State::new(node(cores)),
        now: 0,
        told: Vec::new(),
    };
    let desired = Desired::of(set);
    let own = world.state.node.clone();
    world.feed(Event::Desired { desired, node: own });
    let mut there = Vec::new();
    let mut ready = false;
    while let Some(step) = reader.step().map_err(named)? {
        match step {
            Step::There(device) if !ready => there.push(device),
            Step::There(_) => anyhow::bail!(
                "{}: line {}: a device that was there, after events",
                recording.display(),
                reader.line()
            ),
            Step::Event(at, event) => {
                if !std::mem::replace(&mut ready, true) {
                    world.begin(&mut matcher, std::mem::take(&mut there));
                }
                world.until(at);
                let text = format!("{}", event.device);
                world.tell("device", format!("{:<7}", event.action.as_str()), text);
                let mut found = Found::default();
                matcher.apply((*event).clone(), &mut found);
                world.take(found);
                reader.clear(&event)?;
            }
        }
    }
    if !ready {
        world.begin(&mut matcher, there);
    }
    // What still waits for silence or for the end of a grace.
    let end = world.now + 3_600_000;
    while let Some(at) = world.state.deadline().filter(|at| *at <= end) {
        world.until(at);
    }
    let left: Vec<(String, String, String)> = (world.state.instances.values())
        .map(|i| {
            let why = match &i.phase {
                crate::core::instance::Phase::Waiting { why }
                | crate::core::instance::Phase::Partial { why } => why.clone(),
                _ => i
                    .failure
                    .as_ref()
                    .map(crate::core::report::words)
                    .unwrap_or_default(),
            };
            (i.name.clone(), i.phase.as_str().to_owned(), why)
        })
        .collect();
    for (name, phase, why) in left {
        let text = if why.is_empty() {
            phase
        } else {
            format!("{phase}: {why}")
        };
        world.tell("end", name, text);
    }
    Ok(world.told)
}

/// A node of so many whole cores beside one for housekeeping.
fn node(cores: u32) -> Node {
    let core = |cpu: u32| Core {
        cpus: [cpu].into_iter().collect(),
        node: 0,
    };
    Node {
        pool: Pool {
            online: (0..=cores).collect(),
            housekeeping: [0].into_iter().collect(),
            isolated: (1..=cores).collect(),
            cores: (0..=cores).map(core).collect(),
            memory_nodes: [0].into_iter().collect(),
            rt_budget_us: 950_000,
            numa: None,
        },
        rt_groups: false,
        schedstat: true,
    }
}

impl World {
    fn tell(&mut self, what: &'static str, name: String, text: String) {
        self.told.push(Told {
            at: self.now,
            what,
            name,
            text,
        });
    }

    fn begin(&mut self, matcher: &mut Matcher, there: Vec<berth_hotplug::device::Device>) {
        let mut found = Found::default();
        matcher.resync(there, &mut found);
        self.take(found);
        self.feed(Event::Ready);
    }

    /// Lets the time of the recording come, with what was due before.
    fn until(&mut self, at: u64) {
        while let Some(due) = self.state.deadline().filter(|due| *due <= at) {
            self.now = self.now.max(due);
            self.feed(Event::Tick);
        }
        self.now = self.now.max(at);
    }

    fn take(&mut self, found: Found) {
        for event in found.events {
            self.feed(event);
        }
        for notice in found.notices {
            self.tell("note", notice.subject, notice.text);
        }
    }

    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.state.step(self.now, event) {
                self.play(effect, &mut events);
            }
        }
    }

    fn name(&self, id: &str) -> String {
        self.state
            .instances
            .get(id)
            .map_or_else(|| id.to_owned(), |i| i.name.clone())
    }

    /// What launcher and monitors would answer.
    fn play(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        let mut report = |id: &str, report| {
            events.push_back(Event::Report {
                id: id.to_owned(),
                report,
            });
        };
        let started = || Report::Started {
            at: 0,
            isolation: None,
            timing: Vec::new(),
        };
        match effect {
            Effect::Launch { request, image } => {
                report(
                    &request.id,
                    Report::Created {
                        pid: 1,
                        start_time: 1,
                        takes: true,
                    },
                );
                if !request.armed {
                    report(&request.id, started());
                }
                let mut words = vec![image, format!("cores {}", request.placement.cpus)];
                words.extend(given(&request.devices, &request.interfaces));
                words.extend(request.vfio.iter().map(|f| format!("PCI function {}", f.address)));
                words.extend(request.process.env.iter().map(|(k, v)| format!("{k}={v}")));
                words.extend(request.process.args.iter().map(|arg| format!("arg {arg}")));
                words.extend(
                    request
                        .mounts
                        .iter()
                        .map(|m| format!("mount {} at {}", m.source.display(), m.destination.display())),
                );
                words.extend(request.armed.then(|| "armed".to_owned()));
                let name = self.name(&request.id);
                self.tell("launch", name, words.join(", "));
            }
            Effect::Start {
                id,
                devices,
                interfaces,
                env,
                ..
            } => {
                report(&id, started());
                let mut words = vec![format!("armed container {id}")];
                words.extend(given(&devices, &interfaces));
                words.extend(env.iter().map(|(k, v)| format!("{k}={v}")));
                let name = self.name(&id);
                self.tell("start", name, words.join(", "));
            }
            Effect::Inject {
                id,
                devices,
                interfaces,
                ..
            } => {
                let name = self.name(&id);
                self.tell("inject", name, given(&devices, &interfaces).join(", "));
            }
            Effect::Eject {
                id,
                devices,
                interfaces,
            } => {
                let name = self.name(&id);
                self.tell("eject", name, given(&devices, &interfaces).join(", "));
            }
            Effect::Uevent { id, action, .. } => {
                let name = self.name(&id);
                self.tell("uevent", name, action.to_owned());
            }
            Effect::Stop(id) => {
                report(
                    &id,
                    Report::Exited(Exit {
                        code: Some(0),
                        signal: None,
                        oom: false,
                        at: 0,
                    }),
                );
                let name = self.name(&id);
                self.tell("stop", name, String::new());
            }
            Effect::Release(id) => report(&id, Report::Closed),
            Effect::Sweep(id) => report(&id, Report::Swept(Ok(()))),
            Effect::Note(notice) => {
                let shown = matches!(
                    notice.kind,
                    NoticeKind::Refused
                        | NoticeKind::LaunchFailed
                        | NoticeKind::Waiting
                        | NoticeKind::Partial
                        | NoticeKind::GaveUp
                );
                if shown {
                    self.tell("note", notice.subject, notice.text);
                }
            }
            // Nothing is moved: the recording tells what happened on the host.
            Effect::Hold { .. } | Effect::Unhold(_) => {}
            Effect::Signal(..) | Effect::Freeze(_) | Effect::Thaw(_) => {}
        }
    }
}

fn given(devices: &[DeviceGrant], interfaces: &[InterfaceGrant]) -> Vec<String> {
    let kind = |d: &DeviceGrant| if d.block { 'b' } else { 'c' };
    let devices = devices.iter().map(|d| {
        let what = if d.mount.is_some() { "mounted at" } else { "as" };
        format!(
            "{} {}:{} {} {what} {}",
            kind(d),
            d.major,
            d.minor,
            d.access,
            d.path
        )
    });
    let interfaces = interfaces.iter().map(|i| {
        let mut words = match i.vlan {
            Some(id) => format!("vlan {id} of interface {} as {}", i.name, i.inside()),
            None => format!("interface {} as {}", i.name, i.inside()),
        };
        words.extend(i.mtu.map(|mtu| format!(" mtu {mtu}")));
        words.extend(
            i.addresses
                .iter()
                .map(|(address, length)| format!(" {address}/{length}")),
        );
        words
    });
    devices.chain(interfaces).collect()
}
