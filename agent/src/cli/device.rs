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
    /// Write down which devices are there and what happens to them
    Record(super::simulate::RecordArgs),
    /// What rules would have done with a recording; needs no root and no agent
    Simulate(super::simulate::SimulateArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Also devices with neither a node nor a rule
    #[arg(long)]
    all: bool,
    /// As a tree: what hangs on what, with the workload of each
    #[arg(long)]
    tree: bool,
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
    would: Option<String>,
}

pub(super) fn main(folders: &Folders, command: DeviceCommand) -> Outcome {
    match command {
        DeviceCommand::Ls(args) => ls(folders, &args),
        DeviceCommand::Explain(args) => explain_device(folders, &args),
        DeviceCommand::Watch(args) => watch(folders, &args),
        DeviceCommand::Record(args) => super::simulate::record(&args),
        DeviceCommand::Simulate(args) => super::simulate::simulate(&args),
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

pub(super) fn load(paths: &[PathBuf]) -> anyhow::Result<Set> {
    berth_documents::load(paths).map_err(|faults| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(texts.join("\n"))
    })
}

/// Name of the rule that a device belongs to, or what is wrong with that.
fn chosen(rules: &Rules, device: &Device, action: Action) -> Option<(String, Option<String>)> {
    let view = View::new(device);
    let picked = match action {
        Action::Remove => rules.choose_removed(&view),
        action => rules.choose(&view, action),
    };
    match picked {
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
    if args.tree {
        print!("{}", tree(&devices, &rows));
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

/// The listed devices below those that they hang on.
fn tree(devices: &[Device], rows: &[Row]) -> String {
    let listed: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.syspath.as_str(), row)).collect();
    let mut all: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let words = |device: &Device| {
        let mut words = device.to_string();
        if let Some(row) = listed.get(device.syspath().display().to_string().as_str()) {
            if let Some(rule) = &row.rule {
                words += &format!("  rule {}", safe::show(rule, 128));
            }
            if !row.containers.is_empty() {
                words += &format!("  -> {}", row.containers.join(", "));
            }
        }
        words
    };
    let wanted = |device: &&Device| listed.contains_key(device.syspath().display().to_string().as_str());
    for device in devices.iter().filter(wanted) {
        let above = device.parents();
        all.insert(device.devpath().to_owned(), (above.len(), words(device)));
        for (n, parent) in above.iter().enumerate() {
            let depth = above.len() - 1 - n;
            let put = || (depth, words(parent));
            all.entry(parent.devpath().to_owned()).or_insert_with(put);
        }
    }
    // A path sorts before what lies below it.
    let lines = all
        .values()
        .map(|(depth, words)| format!("{}{words}\n", "  ".repeat(*depth)));
    lines.collect()
}

/// What the rule would make of the device, in words.
fn would_be(rule: &Rule, view: &View<'_>, matched: &berth_hotplug::rule::Matched) -> String {
    if rule.spec.forbid {
        return "nothing is launched: the rule forbids it".to_owned();
    }
    let made = match rule.render(view, matched) {
        Ok(made) => made,
        Err(errors) => {
            let texts: Vec<String> = errors.iter().map(|(path, e)| format!("{path}: {e}")).collect();
            return format!("nothing is launched: {}", texts.join("; "));
        }
    };
    let device = view.device();
    let label = made.label.clone().unwrap_or_else(|| device.sysname());
    let mut words = vec![format!(
        "workload {} as {}",
        rule.spec.workload,
        crate::core::names::of_device(&rule.spec.workload, &label)
    )];
    for offer in &made.offers {
        let Some(member) = rule.members.get(offer.member) else {
            continue;
        };
        if !member.name.is_empty() {
            words.push(format!(
                "its {} of {} devices, {} needed",
                member.name,
                rule.members.len(),
                rule.need()
            ));
        }
        if let Some(into) = &member.device {
            let inside = offer.path.as_deref().or(device.devnode()).unwrap_or("no node");
            words.push(format!("{} {inside}", into.access));
        }
        if let Some(into) = &member.filesystem {
            let access = if into.read_only { "read-only" } else { "to write" };
            words.push(format!(
                "{} mounted at {}, {access}",
                into.types.join(" or "),
                into.path
            ));
        }
        if let Some(vfio) = &rule.spec.vfio {
            let group = if vfio.whole_group {
                " with its whole group"
            } else {
                ""
            };
            words.push(format!("bound to vfio-pci{group}"));
        }
        if member.interface.is_some() {
            let inside = offer
                .interface
                .as_deref()
                .or(device.interface())
                .unwrap_or("no interface");
            words.push(format!("interface {inside}"));
        }
        words.extend(offer.env.iter().map(|(k, v)| format!("{k}={v}")));
    }
    words.extend(made.env.iter().map(|(k, v)| format!("{k}={v}")));
    words.extend(made.args.iter().map(|arg| format!("arg {arg}")));
    words.extend(
        made.mounts
            .iter()
            .map(|(from, to, _)| format!("mount {from} at {to}")),
    );
    safe::show(&words.join(", "), 1024)
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
    let rules = Rules::new(rules);
    let view = View::new(&device);
    let picked = match args.action {
        Action::Remove => rules.choose_removed(&view),
        action => rules.choose(&view, action),
    };
    if let Ok(Some(picked)) = &picked {
        println!("would: {}", would_be(picked.rule, &view, &picked.matched));
        let trigger: Vec<&str> = picked.rule.spec.trigger.iter().map(|a| a.as_str()).collect();
        if !trigger.is_empty() && args.action != Action::Remove {
            println!("once one of these has happened: {}", trigger.join(", "));
        }
    }
    match chosen(&rules, &device, args.action) {
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
                let found = chosen(&rules, device, event.action);
                let view = View::new(device);
                let would = match event.action {
                    Action::Remove => rules.choose_removed(&view),
                    action => rules.choose(&view, action),
                };
                let would = would.ok().flatten().map(|c| would_be(c.rule, &view, &c.matched));
                let (rule, workload) = found.map_or((None, None), |(rule, workload)| (Some(rule), workload));
                let seen = Seen {
                    action: event.action.as_str(),
                    name: device.sysname(),
                    subsystem: device.subsystem().map(str::to_owned),
                    syspath: device.syspath().display().to_string(),
                    rule,
                    workload,
                    would,
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
    if let Some(would) = &seen.would {
        println!("         would: {would}");
    }
    Ok(())
}
