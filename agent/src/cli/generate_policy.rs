//! `berth profile generate`: documents in, the smallest SELinux module or AppArmor profile for one workload out.
//!
//! The text is made by [`berth_policies::generate`]; here documents are read, labels of mount sources are looked up
//! (the attribute `security.selinux`), and the tool that knows the language has the last word: secilc with berth's own
//! policy, never rules included, or apparmor_parser. Where it is missing nothing is printed, unless `--unchecked` says so.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use berth_documents::{Set, check};
use berth_policies::generate::{self, Mounted, Wanted};
use berth_policies::resolve;
use clap::{Args, ValueEnum};

use super::table::with_hint;
use super::{DONE, Outcome, no};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lsm {
    /// A module in CIL, beside policies/selinux
    Selinux,
    /// A profile of AppArmor
    Apparmor,
}

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// The workload
    name: String,
    /// Files with its documents, or folders with *.yaml
    #[arg(short, long = "file", required = true)]
    files: Vec<PathBuf>,
    /// For which security module
    #[arg(long, value_enum)]
    lsm: Lsm,
    /// SELinux type of a mount's files, where this node cannot tell it
    #[arg(long, value_name = "DESTINATION=TYPE")]
    label: Vec<String>,
    /// Print it although secilc or apparmor_parser is not here to check it
    #[arg(long)]
    unchecked: bool,
}

pub(super) fn main(args: &GenerateArgs) -> Outcome {
    let report = check(&args.files, &Set::default());
    report.faults.iter().for_each(|fault| eprintln!("{fault}"));
    if !report.faults.is_empty() {
        return Ok(no());
    }
    let set = report.set;
    let workload = set.workloads.get(args.name.as_str()).with_context(|| {
        let known: Vec<&str> = set.workloads.keys().map(|name| name.as_ref()).collect();
        format!("there is no workload {}: {}", args.name, known.join(", "))
    })?;
    let custom = set
        .profiles
        .iter()
        .map(|(name, document)| (name.to_string(), document.spec.clone()))
        .collect::<BTreeMap<_, _>>();
    let profile = resolve(workload.spec.profile.as_str(), &custom).map_err(|e| with_hint(&e, e.hint()))?;
    let rules = set.rules.iter().map(|(name, document)| (name, &document.spec));
    for (name, rule) in rules.filter(|(_, rule)| rule.workload == args.name) {
        ensure!(
            rule.mounts.is_empty(),
            "rule {name} mounts host paths into {}: what they are is known only when a device is there\n  \
             hint: give the workload these mounts, or write their lines by hand",
            args.name
        );
    }
    let given = labels(&args.label)?;
    let mounts: Vec<Mounted> = workload
        .spec
        .mounts
        .iter()
        .map(|mount| {
            let destination = mount.destination.as_str().to_owned();
            Mounted {
                label: given
                    .get(&destination)
                    .cloned()
                    .or_else(|| label_of(mount.source.as_path())),
                read_only: mount.read_only,
                destination,
            }
        })
        .collect();
    for destination in given.keys() {
        ensure!(
            mounts.iter().any(|m| m.destination == *destination),
            "--label {destination}: {} has no such mount",
            args.name
        );
    }
    let wanted = Wanted {
        workload: &args.name,
        profile: &profile,
        mounts: &mounts,
    };
    let text = match args.lsm {
        Lsm::Selinux => generate::selinux(&wanted),
        Lsm::Apparmor => generate::apparmor(&wanted),
    };
    let text = text.map_err(|e| with_hint(&e, e.hint()))?;
    match compile(args.lsm, &text)? {
        Checked::Taken => {}
        Checked::NoTool(tool) if args.unchecked => eprintln!("note: {tool} is not here: not checked"),
        Checked::NoTool(tool) => bail!(
            "{tool} is not here, so this cannot be checked\n  hint: install it (Debian: {}), or say --unchecked",
            if args.lsm == Lsm::Selinux {
                "secilc"
            } else {
                "apparmor"
            }
        ),
        Checked::Refused(tool, said) => bail!("{tool} refuses it: {said}"),
    }
    print!("{text}");
    Ok(DONE)
}

fn labels(words: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    words
        .iter()
        .map(|word| {
            let good = |label: &str| {
                !label.is_empty()
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            };
            match word.rsplit_once('=') {
                Some((path, label)) if path.starts_with('/') && good(label) => {
                    Ok((path.to_owned(), label.to_owned()))
                }
                _ => bail!("--label {word}: DESTINATION=TYPE is expected, such as /data=berth_shared_file_t"),
            }
        })
        .collect()
}

/// The type in a file's context; none without SELinux.
fn label_of(path: &Path) -> Option<String> {
    let context = String::from_utf8(xattr::get(path, "security.selinux").ok()??).ok()?;
    context
        .trim_end_matches('\0')
        .split(':')
        .nth(2)
        .map(str::to_owned)
}

enum Checked {
    Taken,
    NoTool(&'static str),
    Refused(&'static str, String),
}

/// Asks the tool.
fn compile(lsm: Lsm, text: &str) -> anyhow::Result<Checked> {
    let folder = std::env::temp_dir().join(format!("berth-generate-{}", std::process::id()));
    // Not one that somebody else has put there: an existing folder is an error.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| folder.display().to_string())?;
    let done = ask(lsm, text, &folder);
    std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    done
}

fn ask(lsm: Lsm, text: &str, folder: &Path) -> anyhow::Result<Checked> {
    let categories = generate::selinux_categories();
    let (tool, mut command) = match lsm {
        Lsm::Selinux => ("secilc", Command::new("secilc")),
        Lsm::Apparmor => ("apparmor_parser", Command::new("apparmor_parser")),
    };
    let own = [("generated", text)];
    let policy = generate::SELINUX_SOURCES
        .into_iter()
        .chain([("categories.cil", categories.as_str())])
        .filter(|_| lsm == Lsm::Selinux);
    match lsm {
        Lsm::Selinux => command.args(["-M", "true", "-c", "33", "-o", "/dev/null", "-f", "/dev/null"]),
        Lsm::Apparmor => command.args(["--skip-kernel-load", "--skip-cache"]),
    };
    for (name, text) in policy.chain(own) {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        command.arg(path);
    }
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Checked::NoTool(tool)),
        Err(e) => Err(e).context(tool),
        Ok(done) if done.status.success() => Ok(Checked::Taken),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            Ok(Checked::Refused(tool, said))
        }
    }
}
