//! `berth events`: what happened.

use std::io::Write;

use clap::Args;

use crate::api::{Happening, Op};
use crate::daemon::settings::Folders;

use super::client::Client;
use super::{DONE, Format, Outcome, OutputArgs};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on with what happens
    #[arg(short, long)]
    follow: bool,
    /// Only those with a greater number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    since: u64,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn main(folders: &Folders, args: &EventsArgs) -> Outcome {
    let mut client = Client::connect(folders)?;
    client.send(Op::Events {
        follow: args.follow,
        since: args.since,
    })?;
    let past: Vec<Happening> = client.answer()?;
    for happening in &past {
        print(happening, args.output.output)?;
    }
    if args.follow {
        while let Some(happening) = client.next::<Happening>()? {
            print(&happening, args.output.output)?;
        }
        anyhow::bail!("the agent ended");
    }
    Ok(DONE)
}

/// JSON here is one object a line: a list that is followed has no end.
fn print(happening: &Happening, format: Format) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(happening)?)?,
        Format::Text => writeln!(out, "{}", text(happening))?,
    }
    out.flush()?;
    Ok(())
}

/// `TIME NUMBER EVENT SUBJECT TEXT`.
fn text(happening: &Happening) -> String {
    let time = berth_launcher::cri::timestamp(happening.at);
    let word = match serde_json::to_value(happening.event) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    };
    format!(
        "{time} {} {word:<16} {} {}",
        happening.seq, happening.subject, happening.text
    )
    .trim_end()
    .to_owned()
}
