//! `berth exec`: one more process inside, with this command's own standard streams; the monitor is asked
//! directly, the agent only says whose container a name means: with a container's id it need not be there.

use std::os::fd::AsFd;
use std::process::ExitCode;

use berth_launcher::client::Client;
use berth_launcher::wire::{self, Command, Exit, Reply};
use clap::Args;

use crate::api::Op;
use crate::core::report::words;
use crate::daemon::settings::Folders;

use super::client::ask;
use super::{Outcome, no};

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Environment added
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Working folder inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Container (or a workload with one)
    name: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// `NAME=VALUE`.
pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE".to_owned()),
    }
}

pub(super) fn main(folders: &Folders, args: ExecArgs) -> Outcome {
    let mut monitor = monitor(folders, &args.name)?;
    let command = Command::Exec {
        version: wire::VERSION,
        args: args.command,
        env: args.env,
        cwd: args.workdir,
        terminal: None,
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    monitor.send(&command, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
    while let Some(received) = monitor.receive()? {
        match received.reply {
            Reply::ExecExited(exit) => return Ok(code(&exit)),
            Reply::Refused(refusal) => {
                eprintln!("berth: {}", words(&refusal));
                return Ok(no());
            }
            _ => {}
        }
    }
    anyhow::bail!("the monitor ended before the process did")
}

/// The monitor of the container that is named.
fn monitor(folders: &Folders, name: &str) -> anyhow::Result<Client> {
    // An id names a socket; whatever it is not, the agent knows.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if !name.starts_with('.')
        && name.chars().all(plain)
        && let Ok(client) = Client::monitor(&folders.run, name)
    {
        return Ok(client);
    }
    let found: Vec<String> = ask(
        folders,
        Op::Resolve {
            name: name.to_owned(),
        },
    )?;
    let [id] = found.as_slice() else {
        anyhow::bail!(
            "`{name}` has {} containers: name one of those in `berth ps`",
            found.len()
        );
    };
    Ok(Client::monitor(&folders.run, id)?)
}

/// What the command line says where it has no option but folders; `None`: clap has the word.
pub(super) fn by_hand(words: &[String]) -> Option<ExecArgs> {
    let [name, rest @ ..] = words else { return None };
    let command = match rest {
        [dashes, command @ ..] if dashes == "--" => command,
        command => command,
    };
    let first = command.first()?;
    // Another `--` is for clap to read.
    if name.starts_with('-') || first.starts_with('-') || command.iter().any(|word| word == "--") {
        return None;
    }
    Some(ExecArgs {
        env: Vec::new(),
        workdir: None,
        name: name.clone(),
        command: command.to_vec(),
    })
}

/// The exit code a shell would give.
pub(super) fn code(exit: &Exit) -> ExitCode {
    let code = match (exit.code, exit.signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
