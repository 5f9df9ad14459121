//! `berth completions`, `berth man`.

use std::io::{self, Write};

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, DONE, Outcome};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The command whose page is wanted, such as `image load`; berth(1) where absent
    command: Vec<String>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Outcome {
    // Into memory first: the generator panics where writing fails, and a pipe may be closed early.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "berth", &mut text);
    written(&text)
}

/// A pipe that its reader closed early is no error.
fn written(text: &[u8]) -> Outcome {
    let mut out = io::stdout();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(DONE),
        done => Ok(done.map(|()| DONE)?),
    }
}

pub(super) fn man(args: &ManArgs) -> Outcome {
    let mut command = Cli::command();
    command.build();
    let mut found = command;
    let mut name = "berth".to_owned();
    for word in &args.command {
        found = found
            .find_subcommand(word)
            .with_context(|| format!("there is no command `{word}`"))?
            .clone();
        name = format!("{name}-{word}");
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(found).title(name).render(&mut text)?;
    written(&text)
}
