//! `berth device ls`, `explain`, `watch`: devices as the rules see them, read by this command itself; the rules
//! are those in force, or those of files.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use berth_documents::{Set, check};
use berth_hotplug::device::{Action, Device, SYS_ROOT};
use berth_hotplug::enumerate::{Filter, enumerate_from};
use berth_hotplug::monitor::{Monitor, MonitorError, RECEIVE_BUFFER, Source};
use berth_hotplug::rule::{Clause, Rule, Rules, View};
use berth_hotplug::safe;
use clap::{Args, Subcommand};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::api::{Container, Documents, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::{or_none, with_hint};
use super::{DONE, Format, Outcome, OutputArgs, no, table};

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// List devices with the rule and the container of each
    Ls(LsArgs),
    /// Why rules match a device or not, clause by clause
    Explain(ExplainArgs),
    /// Show device events as they come, with the rule that matches
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Also devices with neither a node nor a rule
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    rules: RulesArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Path of the device below /sys
    syspath: PathBuf,
    /// The action to match with
    #[arg(long, default_value = "add", value_parser = action)]
    action: Action,
    #[command(flatten)]
    rules: RulesArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    rules: RulesArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct RulesArgs {
    /// Rules of these files in the place of those in force
    #[arg(long, value_name = "PATH")]
    rules: Vec<PathBuf>,
}

fn action(text: &str) -> Result<Action, String> {
    text.parse()
        .map_err(|e: berth_hotplug::event::EventError| e.to_string())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    subsystem: Option<String>,
    syspath: String,
    devnode: Option<String>,
    identity: String,
    rule: Option<String>,
    containers: Vec<String>,
}

#[derive(Serialize)]
struct Explained {
    rule: String,
    holds: bool,
    clauses: Vec<Clause>,
}

#[derive(Serialize)]
struct Seen {
    action: &'static str,
    name: String,
    subsystem: Option<String>,
    syspath: String,
    rule: Option<String>,
    workload: Option<String>,
}

pub(super) fn main(folders: &Folders, command: DeviceCommand) -> Outcome {
    match command {
        DeviceCommand::Ls(args) => ls(folders, &args),
        DeviceCommand::Explain(args) => explain_device(folders, &args),
        DeviceCommand::Watch(args) => watch(folders, &args),
    }
}

/// The rules of files, else those the agent has, else those of the configuration folder.
fn rules(folders: &Folders, args: &RulesArgs) -> anyhow::Result<Vec<Rule>> {
    let set: Set = if args.rules.is_empty() {
        match ask::<Documents>(folders, Op::Documents) {
            Ok(documents) => documents.set,
            Err(_) if !folders.config.is_dir() => Set::default(),
            Err(_) => load(std::slice::from_ref(&folders.config))?,
        }
    } else {
        let base = ask::<Documents>(folders, Op::Documents)
            .map(|d| d.set)
            .unwrap_or_default();
        let report = check(&args.rules, &base);
        if let Some(fault) = report.faults.first() {
            anyhow::bail!("{fault}");
        }
        report.set
    };
    let compiled = set.rules.iter().map(|(name, document)| {
        document.spec.compile(name).map_err(|problems| {
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("rule {name}: {}", texts.join("; "))
        })
    });
    compiled.collect()
}

fn load(paths: &[PathBuf]) -> anyhow::Result<Set> {
    berth_documents::load(paths).map_err(|faults| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(texts.join("\n"))
    })
}

/// Name of the rule that a device belongs to, or what is wrong with that.
fn chosen(rules: &Rules, device: &Device, action: Action) -> Option<(String, Option<String>)> {
    match rules.choose(&View::new(device), action) {
        Ok(Some(c)) if c.rule.spec.forbid => Some((format!("{} (forbids)", c.rule.name), None)),
        Ok(chosen) => chosen.map(|c| (c.rule.name.clone(), Some(c.rule.spec.workload.clone()))),
        Err(tie) => Some((format!("tie: {}", tie.rules.join(", ")), None)),
    }
}

fn ls(folders: &Folders, args: &LsArgs) -> Outcome {
    let rules = Rules::new(rules(folders, &args.rules)?);
    let containers: Vec<Container> = ask(folders, Op::Ps).unwrap_or_default();
    let mut by_device: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for container in &containers {
        if let Some(device) = &container.device {
            by_device.entry(device).or_default().push(container.name.clone());
        }
    }
    let devices = enumerate_from(Source::Auto, Path::new(SYS_ROOT), &Filter::default())
        .map_err(|e| with_hint(&e, e.hint()))?;
    let rows: Vec<Row> = devices
        .iter()
        .map(|device| Row {
            name: device.sysname(),
            subsystem: device.subsystem().map(str::to_owned),
            syspath: device.syspath().display().to_string(),
            devnode: device.devnode().map(str::to_owned),
            identity: device.identity(),
            rule: chosen(&rules, device, Action::Add).map(|(rule, _)| rule),
            containers: by_device
                .get(device.sysname().as_str())
                .cloned()
                .unwrap_or_default(),
        })
        .filter(|row| {
            args.all || row.devnode.is_some() || row.rule.is_some() || row.subsystem.as_deref() == Some("net")
        })
        .collect();
    if args.output.output == Format::Json {
        table::json(&rows)?;
        return Ok(DONE);
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let shown = |text: &str| safe::show(text, 128);
            vec![
                shown(&row.name),
                or_none(&row.subsystem.as_deref().map(shown)),
                or_none(&row.devnode.as_deref().map(shown)),
                or_none(&row.rule),
                if row.containers.is_empty() {
                    "-".to_owned()
                } else {
                    row.containers.join(", ")
                },
                shown(&row.syspath),
            ]
        })
        .collect();
    table::print(
        &["NAME", "SUBSYSTEM", "NODE", "RULE", "CONTAINER", "SYSPATH"],
        &cells,
    )?;
    Ok(DONE)
}

fn explain_device(folders: &Folders, args: &ExplainArgs) -> Outcome {
    let rules = rules(folders, &args.rules)?;
    let device = Device::from_sysfs(Path::new(SYS_ROOT), &args.syspath)?;
    let device = berth_hotplug::enumerate::refresh(Source::Auto, &device).unwrap_or(device);
    let all: Vec<Explained> = rules
        .iter()
        .map(|rule| {
            let explained = rule.matches.explain(&device, args.action);
            Explained {
                rule: rule.name.clone(),
                holds: explained.holds,
                clauses: explained.clauses,
            }
        })
        .collect();
    let any = all.iter().any(|e| e.holds);
    if args.output.output == Format::Json {
        table::json(&all)?;
        return Ok(DONE);
    }
    println!("{device}");
    for explained in &all {
        println!(
            "rule {}: {}",
            explained.rule,
            if explained.holds {
                "matches"
            } else {
                "does not match"
            }
        );
        for clause in &explained.clauses {
            let actual = clause
                .actual
                .as_ref()
                .map_or_else(|| "(none)".to_owned(), |a| format!("\"{a}\""));
            let holds = if clause.holds { "yes" } else { "no " };
            let of = match clause.of.as_str() {
                "" => String::new(),
                of => format!("{of}: "),
            };
            println!(
                "  {holds}  {of}{}  is {actual}  at {}",
                clause.text,
                safe::show(&clause.found_at, 256)
            );
        }
    }
    match chosen(&Rules::new(rules), &device, args.action) {
        Some((rule, Some(workload))) => println!("rule {rule} counts: workload {workload}"),
        Some((rule, None)) if rule.ends_with("(forbids)") => println!("rule {rule}: nothing is launched"),
        Some((tie, None)) => println!("{tie}: nothing is launched; give one of them a higher priority"),
        None if all.is_empty() => println!("there are no rules"),
        None if any => println!("no rule counts"),
        None => println!("no rule matches"),
    }
    Ok(DONE)
}

fn watch(folders: &Folders, args: &WatchArgs) -> Outcome {
    let rules = Rules::new(rules(folders, &args.rules)?);
    let mut monitor = Monitor::open(Source::Auto, RECEIVE_BUFFER).map_err(|e| with_hint(&e, e.hint()))?;
    loop {
        match monitor.next() {
            Ok(Some(event)) => {
                let device = &event.device;
                let found = match event.action {
                    Action::Remove => None,
                    action => chosen(&rules, device, action),
                };
                let (rule, workload) = found.map_or((None, None), |(rule, workload)| (Some(rule), workload));
                let seen = Seen {
                    action: event.action.as_str(),
                    name: device.sysname(),
                    subsystem: device.subsystem().map(str::to_owned),
                    syspath: device.syspath().display().to_string(),
                    rule,
                    workload,
                };
                print(&seen, device, args.output.output)?;
            }
            Ok(None) => {
                let mut one = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
                match poll(&mut one, PollTimeout::NONE) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error @ MonitorError::Overflow) => eprintln!("berth: {error}"),
            Err(error) => {
                eprintln!("berth: {error}");
                return Ok(no());
            }
        }
    }
}

fn print(seen: &Seen, device: &Device, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        println!("{}", serde_json::to_string(seen)?);
        return Ok(());
    }
    let then = match (&seen.rule, &seen.workload) {
        (Some(rule), Some(workload)) => format!("  rule {rule}: workload {workload}"),
        (Some(rule), None) => format!("  {rule}"),
        _ => String::new(),
    };
    println!(
        "{:<8} {device}  {}{then}",
        seen.action,
        safe::show(&seen.syspath, 256)
    );
    Ok(())
}
