//! The command line: one file for each command.
//!
//! Exit codes: 0 done, 1 the answer is no or it failed, 2 wrong usage (clap's own). Listings go to standard
//! output, everything else to standard error. `-o json` is the shape of [`crate::api`].

mod agent;
mod apply;
mod audit;
mod check;
mod client;
mod device;
mod events;
mod exec;
mod generate;
mod generate_policy;
mod image;
mod inspect;
mod latency;
mod launcher;
mod logs;
mod node;
mod orders;
mod profile;
mod prove;
mod prove_self;
mod ps;
mod record;
mod run;
mod simulate;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::daemon::settings::Folders;

/// A container node agent: plug a device, and its container runs on its own cores, proven.
#[derive(Debug, Parser)]
#[command(name = "berth", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    folders: FolderArgs,
    #[command(subcommand)]
    command: Command,
}

/// The folders where no option names others.
const RUN: &str = "/run/berth";
const STATE: &str = "/var/lib/berth";
const CONFIG: &str = "/etc/berth";
const PRELOADED: &str = "/usr/share/berth/images";

#[derive(Debug, Args)]
struct FolderArgs {
    /// Sockets and what does not outlive a boot
    #[arg(long, global = true, value_name = "DIR", default_value = RUN)]
    run_dir: PathBuf,
    /// Images, logs, state
    #[arg(long, global = true, value_name = "DIR", default_value = STATE)]
    state_dir: PathBuf,
    /// Documents
    #[arg(long, global = true, value_name = "DIR", default_value = CONFIG)]
    config_dir: PathBuf,
    /// Read-only store of images that came with the firmware, with its seal beside it in DIR.seal
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = PRELOADED
    )]
    preloaded_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Agent(agent::AgentArgs),
    /// Run the launcher, the privileged half
    Launcher(launcher::LauncherArgs),
    /// Validate documents
    Check(check::CheckArgs),
    /// Show what applying documents would change
    Plan(apply::PlanArgs),
    /// Change the node to what documents say
    Apply(apply::ApplyArgs),
    /// Take documents away
    Delete(apply::DeleteArgs),
    /// List containers
    Ps(ps::PsArgs),
    /// Show containers in full
    Inspect(inspect::InspectArgs),
    /// Print a container's output
    Logs(logs::LogsArgs),
    /// Run one more process inside a container
    Exec(exec::ExecArgs),
    /// Stop workloads or containers, until they are started again
    Stop(orders::StopArgs),
    /// Start what was stopped or has failed
    Start(orders::NamesArgs),
    /// Put new containers in the place of those that run
    Restart(orders::NamesArgs),
    /// Send a signal to the first process of containers
    Kill(orders::KillArgs),
    /// Freeze every task of containers
    Freeze(orders::NamesArgs),
    /// Thaw frozen containers
    Thaw(orders::NamesArgs),
    /// Show what happened
    Events(events::EventsArgs),
    /// Run one workload in the foreground
    Run(run::RunArgs),
    /// Show what was promised beside what the kernel says; 0 only if all holds
    Prove(prove::ProveArgs),
    /// Measure wake-up latency on the host's cores and inside a container
    Latency(latency::LatencyArgs),
    /// Devices and the rules that match them
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// The node itself
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Images in the node's store
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// The audit logs of agent and launcher
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Security profiles
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// The OCI runtime command line (create, start, state, kill, delete, …)
    #[command(disable_help_flag = true)]
    Oci {
        /// Passed on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Print shell completions
    Completions(generate::CompletionsArgs),
    /// Print the manual page
    Man(generate::ManArgs),
}

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
struct OutputArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

/// How a command that did not fail ended.
type Outcome = anyhow::Result<ExitCode>;

/// Done.
const DONE: ExitCode = ExitCode::SUCCESS;

/// The answer is no.
fn no() -> ExitCode {
    ExitCode::from(1)
}

/// A command line of one of the commands that programs call again and again: only that command is described to the
/// parser, as describing them all takes longer than the command itself. `None`: anything else, help and faults too;
/// then the whole parser has the word.
fn quick(words: &[OsString]) -> Option<Cli> {
    const FOLDERS: [&str; 4] = ["--run-dir", "--state-dir", "--config-dir", "--preloaded-dir"];
    let mut paths: [Option<&OsString>; 4] = [None; 4];
    let mut at = 1;
    while let Some(which) = FOLDERS
        .iter()
        .position(|flag| words.get(at).is_some_and(|word| word == flag))
    {
        let path = words.get(at + 1)?;
        // Twice, or another option in its place: clap says so.
        if path.as_encoded_bytes().starts_with(b"-") || paths[which].replace(path).is_some() {
            return None;
        }
        at += 2;
    }
    if words.get(at)? == "exec" {
        let text: Option<Vec<String>> = words[at + 1..]
            .iter()
            .map(|word| word.to_str().map(str::to_owned))
            .collect();
        if let Some(args) = text.and_then(|text| exec::by_hand(&text)) {
            let or = |which: usize, default: &str| {
                paths[which].map_or_else(|| PathBuf::from(default), PathBuf::from)
            };
            let folders = FolderArgs {
                run_dir: or(0, RUN),
                state_dir: or(1, STATE),
                config_dir: or(2, CONFIG),
                preloaded_dir: or(3, PRELOADED),
            };
            let command = Command::Exec(args);
            return Some(Cli { folders, command });
        }
    }
    fn one<A: Args>(words: &[OsString], name: &'static str) -> Option<(FolderArgs, A)> {
        let command = FolderArgs::augment_args(clap::Command::new("berth"))
            .subcommand(A::augment_args(clap::Command::new(name)));
        let mut matches = command.try_get_matches_from(words).ok()?;
        let folders = FolderArgs::from_arg_matches_mut(&mut matches).ok()?;
        let (_, mut matches) = matches.remove_subcommand()?;
        Some((folders, A::from_arg_matches_mut(&mut matches).ok()?))
    }
    let (folders, command) = match words.get(at)?.to_str()? {
        "exec" => one(words, "exec").map(|(folders, args)| (folders, Command::Exec(args))),
        "ps" => one(words, "ps").map(|(folders, args)| (folders, Command::Ps(args))),
        "inspect" => one(words, "inspect").map(|(folders, args)| (folders, Command::Inspect(args))),
        "prove" => one(words, "prove").map(|(folders, args)| (folders, Command::Prove(args))),
        _ => None,
    }?;
    Some(Cli { folders, command })
}

/// Parses the command line and runs the command.
pub(crate) fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = quick(&words).unwrap_or_else(|| Cli::parse_from(words));
    let folders = Folders {
        run: cli.folders.run_dir,
        state: cli.folders.state_dir,
        config: cli.folders.config_dir,
        preloaded: cli.folders.preloaded_dir,
    };
    let outcome = match cli.command {
        Command::Agent(args) => agent::main(folders, args),
        Command::Launcher(args) => launcher::main(folders, args),
        Command::Check(args) => check::main(&args),
        Command::Plan(args) => apply::plan(&folders, &args),
        Command::Apply(args) => apply::apply(&folders, &args),
        Command::Delete(args) => apply::delete(&folders, &args),
        Command::Ps(args) => ps::main(&folders, &args),
        Command::Inspect(args) => inspect::main(&folders, &args),
        Command::Logs(args) => logs::main(&folders, &args),
        Command::Exec(args) => exec::main(&folders, args),
        Command::Stop(args) => orders::stop(&folders, args),
        Command::Start(args) => orders::start(&folders, args),
        Command::Restart(args) => orders::restart(&folders, args),
        Command::Kill(args) => orders::kill(&folders, args),
        Command::Freeze(args) => orders::freeze(&folders, args),
        Command::Thaw(args) => orders::thaw(&folders, args),
        Command::Events(args) => events::main(&folders, &args),
        Command::Run(args) => run::main(&folders, args),
        Command::Prove(args) => prove::main(&folders, args),
        Command::Latency(args) => latency::main(&folders, &args),
        Command::Device(command) => device::main(&folders, command),
        Command::Node(command) => node::main(&folders, command),
        Command::Image(command) => image::main(&folders, command),
        Command::Audit(command) => audit::main(&folders, command),
        Command::Profile(command) => profile::main(&folders, command),
        Command::Oci { args } => Ok(ExitCode::from(
            u8::try_from(berth_runtime::oci::main(args)).unwrap_or(1),
        )),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    outcome.unwrap_or_else(|error| {
        // A reader that closed its end is no failure worth a word.
        let closed = |cause: &(dyn std::error::Error + 'static)| {
            let io = cause.downcast_ref::<std::io::Error>();
            io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
        };
        if !error.chain().any(closed) {
            table::complain(&error);
        }
        no()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both parsers read the same out of a command line, or the short one gives way.
    #[test]
    fn the_short_parser_reads_what_the_whole_one_reads() {
        let words = |line: &str| -> Vec<OsString> {
            ["berth"]
                .into_iter()
                .chain(line.split_whitespace())
                .map(OsString::from)
                .collect()
        };
        for line in [
            "exec bench -- /bin/true",
            "exec bench /bin/true -x --run-dir y",
            "exec bench a -- b",
            "exec bench -- a -- b",
            "exec bench -- -a",
            "--run-dir /r exec -e A=1 --env B=2 -w /tmp bench sh -c x",
            "--state-dir /s --config-dir /c exec bench ls -l --run-dir /inside",
            "exec --run-dir /r bench ls",
            "ps",
            "ps -o json --run-dir /r",
            "--run-dir /r --state-dir /s --config-dir /c --preloaded-dir /p ps",
            "inspect -o json a",
            "inspect --timing a",
            "prove a",
            "prove -o json",
        ] {
            let words = words(line);
            let (Some(short), Ok(whole)) = (quick(&words), Cli::try_parse_from(&words)) else {
                panic!("{line}");
            };
            assert_eq!(format!("{short:?}"), format!("{whole:?}"), "{line}");
        }
        for line in [
            "",
            "exec",
            "exec --help",
            "ps -h",
            "--run-dir",
            "--run-dir exec",
            "exec -e A bench x",
            "--run-dir /r --run-dir /s exec bench a",
            "--run-dir -x exec bench a",
            "ps --no",
            "help ps",
            "check x",
            "--version",
            "-V ps",
            "exec bench",
        ] {
            assert!(quick(&words(line)).is_none(), "{line}");
        }
    }
}
