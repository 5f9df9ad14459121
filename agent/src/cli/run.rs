//! `berth run`: an ephemeral workload in the foreground: its output here, its exit code ours, stopped by Ctrl-C,
//! forgotten afterwards. A restart of the agent meanwhile is waited out.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use berth_documents::WorkloadSpec;
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};

use crate::api::{Container, Details, Op};
use crate::daemon::settings::Folders;

use super::client::Client;
use super::logs::Reader;
use super::{Outcome, exec, no};

/// Between two looks at the output.
const LOOK: u8 = 50;
/// So long an agent may be away.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Its name; one is made up where absent
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Whole cores, or `shared`
    #[arg(long, value_name = "N", default_value = "shared")]
    cpus: String,
    /// SCHED_FIFO with this priority, 1 to 99
    #[arg(long, value_name = "PRIO", value_parser = clap::value_parser!(u8).range(1..=99))]
    fifo: Option<u8>,
    /// Security profile
    #[arg(long, value_name = "NAME", default_value = "strict")]
    profile: String,
    /// Most memory, such as 64Mi
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Environment added
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = exec::variable)]
    env: Vec<(String, String)>,
    /// Image in the node's store
    image: String,
    /// Arguments in the place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn spec(args: &RunArgs) -> anyhow::Result<WorkloadSpec> {
    let cpus = match args.cpus.parse::<u32>() {
        Ok(cores) => json!(cores),
        Err(_) => json!(args.cpus),
    };
    let env: Vec<Value> = args
        .env
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let mut spec = json!({
        "image": args.image,
        "profile": args.profile,
        "cpus": cpus,
        "env": env,
        "restart": {"policy": "never"},
    });
    if let Some(priority) = args.fifo {
        spec["realtime"] = json!({"scheduler": {"policy": "fifo", "priority": priority}});
    }
    if let Some(memory) = &args.memory {
        spec["memory"] = json!(memory);
    }
    if !args.command.is_empty() {
        spec["args"] = json!(args.command);
    }
    serde_json::from_value(spec).context("these options make no workload")
}

pub(super) fn main(folders: &Folders, args: RunArgs) -> Outcome {
    let spec = spec(&args)?;
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| format!("run-{}", std::process::id()));
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGINT);
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut client = Client::connect(folders)?;
    client.send(Op::Run {
        name: name.clone(),
        spec: Box::new(spec),
    })?;
    let container: Container = client.answer()?;
    let told = container.reason;
    if let Some(reason) = &told {
        eprintln!("berth: {}: {reason}", container.phase);
    }
    let mut log = Reader::new(folders.log(&container.id), false);
    let mut stopping: Option<Client> = None;
    let mut out = io::stdout().lock();
    let details: Details = loop {
        log.print(&mut out)?;
        let more = client.has_more();
        let mut fds = [
            PollFd::new(client.socket(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(LOOK)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |n: usize| fds[n].revents().is_some_and(|r| !r.is_empty());
        let (answered, signalled) = (ready(0), ready(1));
        if signalled && signals.read_signal()?.is_some() && stopping.is_none() {
            let mut other = Client::connect(folders)?;
            other.send(Op::Stop {
                names: vec![name.clone()],
                all: false,
            })?;
            stopping = Some(other);
        }
        if answered || more {
            match client.next::<Details>() {
                Ok(Some(details)) => break details,
                Ok(None) => client = again(folders, &name)?,
                Err(error) if error.downcast_ref::<io::Error>().is_some() => client = again(folders, &name)?,
                Err(error) => return Err(error),
            }
        }
    };
    log.print(&mut out)?;
    log.finish(&mut out)?;
    remove_log(folders, &details.container.id);
    Ok(ended(&details, told.as_deref()))
}

/// The agent went away: the container goes on, and the next agent knows it.
fn again(folders: &Folders, name: &str) -> anyhow::Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let asked = Client::connect(folders).and_then(|mut client| {
            client.send(Op::Wait {
                name: name.to_owned(),
            })?;
            Ok(client)
        });
        match asked {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("the agent is gone; `{name}` goes on without it")));
            }
            Err(_) => {}
        }
    }
}

/// The exit code; why there is none is said once.
fn ended(details: &Details, told: Option<&str>) -> ExitCode {
    if let Some(exit) = &details.container.exit {
        return exec::code(exit);
    }
    if let Some(reason) = &details.container.reason
        && told != Some(reason)
    {
        eprintln!("berth: {reason}");
    }
    no()
}

/// An ephemeral container's log goes with it.
pub(super) fn remove_log(folders: &Folders, id: &str) {
    let path = folders.log(id);
    for path in [path.clone(), format!("{}.1", path.display()).into()] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("berth: {}: {error}", path.display());
        }
    }
}
