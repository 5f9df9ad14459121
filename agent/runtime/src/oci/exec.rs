//! `exec`, `update`, `ps` and `events` of the command line.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Process};
use serde_json::json;

use super::args::{ExecArgs, Global, Update};
use super::{Failed, hierarchy, own_stdio, run, terminal};
use crate::console::Size;
use crate::container::Container;
use crate::exec::{ExecRequest, ExecUser};
use crate::proof::CapabilitySets;

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, what: &str) -> Result<T, Failed> {
    let failed = |e: &dyn std::fmt::Display| Failed::new(format!("{what} `{}`: {e}", path.display()), None);
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map_err(|e| failed(&e))?;
        text
    } else {
        std::fs::read(path).map_err(|e| failed(&e))?
    };
    serde_json::from_slice(&text).map_err(|e| failed(&e))
}

fn request(container: &Container, args: &ExecArgs) -> Result<ExecRequest, Failed> {
    if let Some(path) = &args.process {
        let process: Process = read_json(path, "--process")?;
        if process.command_line().is_some() || process.user().username().is_some() {
            let message = format!(
                "--process `{}`: commandLine and username belong to another platform",
                path.display()
            );
            return Err(Failed::new(message, None));
        }
        return Ok(ExecRequest {
            terminal: args.terminal.then(Size::default),
            process: Some(Box::new(process)),
            preserved: args.preserved,
            while_paused: args.while_paused,
            cgroups: args.cgroups.clone(),
            ..ExecRequest::default()
        });
    }
    let (own, _) = container.words()?;
    let user = args.user.map(|(uid, gid)| ExecUser {
        uid,
        gid: gid.unwrap_or(0),
        groups: args.groups.clone(),
        umask: None,
    });
    let user = match user {
        None if !args.groups.is_empty() => Some(ExecUser {
            uid: own.uid,
            gid: own.gid,
            groups: [own.groups.clone(), args.groups.clone()].concat(),
            umask: None,
        }),
        other => other,
    };
    let mut capabilities = None;
    if !args.capabilities.is_empty() {
        let mut sets: CapabilitySets = own.capabilities;
        for name in &args.capabilities {
            let upper = name.to_ascii_uppercase();
            let long = match upper.starts_with("CAP_") {
                true => upper,
                false => format!("CAP_{upper}"),
            };
            let bit = long
                .parse::<caps::Capability>()
                .map_err(|_| Failed::new(format!("--cap `{name}` is no capability"), None))?
                .bitmask();
            for set in [&mut sets.bounding, &mut sets.permitted, &mut sets.effective] {
                *set |= bit;
            }
            // Another user than root keeps over exec what is ambient.
            if user.as_ref().map_or(own.uid, |u| u.uid) != 0 {
                sets.inheritable |= bit;
                sets.ambient |= bit;
            }
        }
        capabilities = Some(sets);
    }
    Ok(ExecRequest {
        args: args.args.clone(),
        env: args.env.clone(),
        cwd: args.cwd.clone(),
        user,
        capabilities,
        no_new_privs: args.no_new_privs,
        label: args.label.clone(),
        terminal: args.terminal.then(Size::default),
        preserved: args.preserved,
        while_paused: args.while_paused,
        cgroups: args.cgroups.clone(),
        ..ExecRequest::default()
    })
}

pub(super) fn exec(global: &Global, args: &ExecArgs) -> Result<i32, Failed> {
    super::preserved(args.preserved)?;
    super::guard_own_program()?;
    super::not_for_others(args.preserved)?;
    let hierarchy = hierarchy()?;
    let container = Container::open(&global.root, &args.id, &hierarchy)?;
    let mut request = request(&container, args)?;
    let process = request.process.as_deref();
    let wanted = request.terminal.is_some() || process.is_some_and(|p| p.terminal().unwrap_or(false));
    let taker = terminal::taker(wanted, args.console.as_deref(), !args.detach)?;
    if let (terminal::Taker::Relay, Some(size)) = (&taker, terminal::own_size()) {
        request.terminal = Some(size);
    }
    let waiting = match args.detach {
        true => None,
        // Before the clone: no signal may be lost between the start and the wait.
        false => {
            Some(run::Waiting::begin().map_err(|e| Failed::new(format!("signals: {}", e.desc()), None))?)
        }
    };
    let mut exec = container.exec(request, own_stdio()?)?;
    if let Some(path) = &args.pid_file {
        super::put_pid(path, exec.pid).map_err(|message| {
            let _ = crate::sys::process::pidfd_signal(std::os::fd::AsFd::as_fd(&exec.pidfd), libc::SIGKILL); // its caller does not know of it
            Failed::new(
                message,
                Some("give --pid-file a path in a folder that exists".into()),
            )
        })?;
    }
    let session = terminal::hand_over(taker, exec.console.take())?;
    match waiting {
        None => Ok(0),
        Some(waiting) => waiting
            .wait(std::os::fd::AsFd::as_fd(&exec.pidfd), session)
            .map_err(|e| Failed::new(format!("wait: {}", e.desc()), None)),
    }
}

pub(super) fn update(global: &Global, id: &str, source: Update) -> Result<(), Failed> {
    let resources: LinuxResources = match source {
        Update::File(path) => read_json(&path, "--resources")?,
        Update::Words(resources) => *resources,
    };
    Ok(Container::open(&global.root, id, &hierarchy()?)?.update(&resources)?)
}

pub(super) fn ps(global: &Global, id: &str, as_json: bool) -> Result<(), Failed> {
    let pids = Container::open(&global.root, id, &hierarchy()?)?.processes()?;
    if as_json {
        println!("{}", json!(pids));
        return Ok(());
    }
    println!("{:>8} {:>8} COMMAND", "PID", "PPID");
    for pid in pids {
        // One that has ended meanwhile is not shown.
        let Ok(stat) = crate::state::read_small(&format!("/proc/{pid}/stat")) else {
            continue;
        };
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        println!(
            "{pid:>8} {:>8} {}",
            parent.unwrap_or("?"),
            line.join(" ").trim_end().escape_debug()
        );
    }
    Ok(())
}

/// One JSON object a line: what the container uses; once, or until it has ended.
pub(super) fn events(global: &Global, id: &str, once: bool, interval: u64) -> Result<(), Failed> {
    let hierarchy = hierarchy()?;
    let mut kills = None;
    loop {
        let container = Container::open(&global.root, id, &hierarchy)?;
        if !container.alive() {
            return match once {
                true => Err(Failed::new(format!("container `{id}` is not running"), None)),
                false => Ok(()),
            };
        }
        let stats = container.stats()?;
        if let (Some(before), Some(now)) = (kills, stats.oom_kills)
            && now > before
        {
            println!("{}", json!({"type": "oom", "id": id}));
        }
        kills = stats.oom_kills;
        println!(
            "{}",
            json!({"type": "stats", "id": id, "data": {
                "cpu": {
                    "usage": {"total": stats.cpu_us.map(|us| us.saturating_mul(1000))},
                    "throttling": {"throttledPeriods": stats.throttled_periods},
                },
                "memory": {
                    "usage": {"usage": stats.memory_bytes, "max": stats.memory_peak_bytes},
                    "oomKills": stats.oom_kills,
                },
                "pids": {"current": stats.pids},
            }})
        );
        if once {
            return Ok(());
        }
        let pidfd = container.pidfd();
        match pidfd {
            Some(pidfd) if crate::container::ended(pidfd, Duration::from_secs(interval)) => return Ok(()),
            _ => {}
        }
    }
}
