//! `berth audit`: the audit logs of agent and launcher, read where they lie; no agent is needed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use berth_audit::{Findings, Record, Seal, clean, records, seals, verify};
use berth_launcher::cri::timestamp;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::daemon::settings::Folders;

use super::{DONE, Format, Outcome, OutputArgs, no, table};

/// The chains of a node.
const CHAINS: [&str; 2] = ["agent", "launcher"];

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// List records, oldest first
    Ls(LsArgs),
    /// Show one record in full
    Show(ShowArgs),
    /// Look for cuts, changes and swaps; 0 only if there are none
    Verify(VerifyArgs),
    /// Print where each chain stands, to be noted elsewhere
    Head(HeadArgs),
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Of one chain: agent or launcher
    #[arg(long, value_parser = CHAINS)]
    chain: Option<String>,
    /// Of one kind: api, configuration, request, launch, start, order, exec, drift, refused, end, …
    #[arg(long)]
    kind: Option<String>,
    /// Whose subject contains this
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// With one result: ok, refused or failed
    #[arg(long)]
    result: Option<String>,
    /// Asked for by this user
    #[arg(long)]
    uid: Option<u32>,
    /// The last ones only
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// agent or launcher
    #[arg(value_parser = CHAINS)]
    chain: String,
    /// Its number
    number: u64,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A head that was noted before, as `berth audit head` prints it; may be given more than once
    #[arg(long, value_name = "CHAIN:NUMBER:HASH", value_parser = noted)]
    head: Vec<Seal>,
    /// Records that a power cut took, and that the log itself tells of, are no fault
    #[arg(long)]
    accept_gaps: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct HeadArgs {
    #[command(flatten)]
    output: OutputArgs,
}

fn noted(text: &str) -> Result<Seal, String> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [chain, seq, hash] if CHAINS.contains(&chain) && hash.len() == 64 => Ok(Seal {
            chain: chain.to_owned(),
            seq: seq.parse().map_err(|_| format!("{seq} is no number"))?,
            hash: hash.to_owned(),
        }),
        _ => Err("CHAIN:NUMBER:HASH, as `berth audit head` prints it".to_owned()),
    }
}

/// A record and the chain it is of.
#[derive(Debug, Serialize)]
struct Listed {
    chain: &'static str,
    #[serde(flatten)]
    record: Record,
}

pub(super) fn main(folders: &Folders, command: AuditCommand) -> Outcome {
    match command {
        AuditCommand::Ls(args) => ls(folders, &args),
        AuditCommand::Show(args) => show(folders, &args),
        AuditCommand::Verify(args) => check(folders, &args),
        AuditCommand::Head(args) => head(folders, &args),
    }
}

fn folder(folders: &Folders, chain: &str) -> PathBuf {
    folders.state.join("audit").join(chain)
}

/// Every record that can be read, of one chain or of all, by time.
fn all(folders: &Folders, chain: Option<&str>) -> anyhow::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for name in CHAINS.into_iter().filter(|name| chain.is_none_or(|c| c == *name)) {
        let folder = folder(folders, name);
        let stored = match records(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            stored => stored.with_context(|| folder.display().to_string())?,
        };
        for stored in stored {
            let stored = stored?;
            match stored.record {
                Ok(record) => found.push(Listed { chain: name, record }),
                Err(why) => eprintln!(
                    "berth: {}:{}: {why}: see `berth audit verify`",
                    stored.file.display(),
                    stored.line
                ),
            }
        }
    }
    found.sort_by_key(|listed| listed.record.at);
    Ok(found)
}

fn ls(folders: &Folders, args: &LsArgs) -> Outcome {
    let mut found = all(folders, args.chain.as_deref())?;
    found.retain(|Listed { record, .. }| {
        args.kind.as_ref().is_none_or(|kind| record.kind == *kind)
            && args
                .subject
                .as_ref()
                .is_none_or(|subject| record.subject.contains(subject))
            && args.result.as_ref().is_none_or(|result| record.result == *result)
            && args
                .uid
                .is_none_or(|uid| record.who.as_ref().is_some_and(|who| who.uid == uid))
    });
    if let Some(last) = args.last {
        found.drain(..found.len().saturating_sub(last));
    }
    if args.output.output == Format::Json {
        table::json(&found)?;
        return Ok(DONE);
    }
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    table::print(
        &[
            "TIME", "CHAIN", "NUMBER", "KIND", "RESULT", "WHO", "SUBJECT", "TEXT",
        ],
        &rows,
    )?;
    Ok(DONE)
}

/// What was changed by hand may hold anything: it is made safe once more before it reaches a terminal.
fn row(listed: &Listed) -> Vec<String> {
    let record = &listed.record;
    let who = record.who.as_ref().map_or_else(
        || table::NONE.to_owned(),
        |who| {
            format!(
                "uid {} pid {} {}",
                who.uid,
                who.pid,
                clean(who.role.as_deref().unwrap_or(""))
            )
            .trim_end()
            .to_owned()
        },
    );
    vec![
        timestamp(record.at),
        listed.chain.to_owned(),
        record.seq.to_string(),
        clean(&record.kind),
        clean(&record.result),
        who,
        clean(&record.subject),
        clean(&record.text),
    ]
}

fn show(folders: &Folders, args: &ShowArgs) -> Outcome {
    let found = all(folders, Some(&args.chain))?;
    match found.into_iter().find(|listed| listed.record.seq == args.number) {
        Some(listed) => {
            table::json(&listed)?;
            Ok(DONE)
        }
        None => anyhow::bail!("the {}'s log has no record {}", args.chain, args.number),
    }
}

/// What was found in one chain.
#[derive(Debug, Serialize)]
struct Checked {
    chain: &'static str,
    #[serde(flatten)]
    findings: Findings,
}

fn check(folders: &Folders, args: &VerifyArgs) -> Outcome {
    let mut held = args.head.clone();
    for name in CHAINS {
        match seals(&folder(folders, name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            found => held.extend(found?),
        }
    }
    let mut all = Vec::new();
    for chain in CHAINS {
        let folder = folder(folders, chain);
        let of_it: Vec<Seal> = held.iter().filter(|seal| seal.chain == chain).cloned().collect();
        let mut findings = verify(&folder, &of_it).with_context(|| folder.display().to_string())?;
        if args.accept_gaps {
            findings.faults.retain(|fault| fault.fault != "gap");
        }
        all.push(Checked { chain, findings });
    }
    let good = all.iter().all(|checked| checked.findings.faults.is_empty());
    if args.output.output == Format::Json {
        table::json(&all)?;
    } else {
        for Checked { chain, findings } in &all {
            for fault in &findings.faults {
                println!(
                    "{}: {}: {}",
                    place(&fault.file, fault.line),
                    fault.fault,
                    clean(&fault.text)
                );
            }
            let words = match findings.records {
                0 => "no record".to_owned(),
                n => format!(
                    "{n} records, {} to {}, {} seals compared",
                    findings.first, findings.last, findings.seals
                ),
            };
            println!("{chain}: {words}, {} faults", findings.faults.len());
        }
    }
    Ok(if good { DONE } else { no() })
}

fn place(file: &Path, line: usize) -> String {
    match line {
        0 => file.display().to_string(),
        line => format!("{}:{line}", file.display()),
    }
}

fn head(folders: &Folders, args: &HeadArgs) -> Outcome {
    let mut heads = Vec::new();
    for chain in CHAINS {
        let folder = folder(folders, chain);
        let head = berth_audit::Head::of(&folder).with_context(|| folder.display().to_string())?;
        heads.extend(head.map(|head| (chain, head)));
    }
    if args.output.output == Format::Json {
        let list: Vec<_> = heads
            .iter()
            .map(|(chain, head)| serde_json::json!({"chain": chain, "seq": head.seq, "hash": head.hash}))
            .collect();
        table::json(&list)?;
    } else {
        for (chain, head) in heads {
            println!("{chain}:{}:{}", head.seq, head.hash);
        }
    }
    Ok(DONE)
}
