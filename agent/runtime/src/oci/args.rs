//! The command line's words. By hand: parsing is on the timed path, and the options are those that callers of OCI
//! runtimes use.
//!
//! Pure. Invariant: an option that would do nothing is refused by name.

mod exec;
mod update;

pub(super) use exec::ExecArgs;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

/// What comes before the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Global {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) log_json: bool,
}

/// One command.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Create {
        id: String,
        bundle: PathBuf,
        pid_file: Option<PathBuf>,
        console: Option<PathBuf>,
        how: How,
    },
    Start {
        id: String,
    },
    Run {
        id: String,
        bundle: PathBuf,
        pid_file: Option<PathBuf>,
        console: Option<PathBuf>,
        terminal: bool,
        keep: bool,
        detach: bool,
        how: How,
    },
    State {
        id: String,
    },
    Kill {
        id: String,
        signal: i32,
        all: bool,
    },
    Delete {
        id: String,
        force: bool,
    },
    Exec(Box<ExecArgs>),
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Ps {
        id: String,
        json: bool,
    },
    Events {
        id: String,
        once: bool,
        /// Seconds between two.
        interval: u64,
    },
    Update {
        id: String,
        source: Update,
    },
    Features,
    Version,
    List {
        how: Listed,
    },
}

/// What a container is made with, beside its bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct How {
    /// So many descriptors from 3 on go in.
    pub(super) preserved: u32,
    /// The root is entered with chroot.
    pub(super) no_pivot: bool,
    /// It keeps its caller's session keyring.
    pub(super) callers_keyring: bool,
}

/// How containers are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Listed {
    #[default]
    Table,
    Json,
    /// Ids alone.
    Quiet,
}

/// Where the new resources stand.
#[derive(Debug, PartialEq)]
pub(super) enum Update {
    /// A file; `-` is standard input.
    File(PathBuf),
    /// The options.
    Words(Box<LinuxResources>),
}

/// A whole command line.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub(super) global: Global,
    pub(super) command: Command,
}

/// Not a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Help(&'static str),
    Wrong {
        global: Global,
        message: String,
        hint: Option<String>,
    },
}

const HELP: &str = "\
usage: berth oci [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] [--preserve-fds N]
         [--no-pivot] [--no-new-keyring] ID
                                               make a container, do not start its program
  start ID                                     prove it and start its program
  run [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] [--tty] [--detach] [--keep]
      [--preserve-fds N] [--no-pivot] [--no-new-keyring] ID
                                               create, start, wait, delete
  exec [--process FILE] [--tty] [--console-socket SOCKET] [--detach] [--pid-file FILE] [--cwd DIR]
       [--env NAME=VALUE] [--user UID[:GID]] [--additional-gids GID] [--cap CAPABILITY] [--no-new-privs]
       [--process-label LABEL] [--apparmor PROFILE] [--preserve-fds N] [--ignore-paused]
       [--cgroup [CONTROLLERS:]PATH] ID PROGRAM [ARGUMENT…]
                                               one more process inside, proven like the first
  state ID                                     its OCI state as JSON
  kill [--all] ID [SIGNAL]                     send a signal (default SIGTERM)
  pause ID                                     freeze every process of it
  resume ID                                    let them go on
  update [--resources FILE | limits] ID        change its resources
  ps [--format table|json] ID                  its processes
  events [--stats] [--interval SECONDS] ID     what it uses, as JSON, once or again and again
  delete [--force] ID                          free it; --force kills it first
  features                                     what this runtime applies, as JSON
  list [--format table|json] [--quiet]         all containers below --root";

/// Options that other runtimes have and that would do nothing here, or not what they say.
const REFUSED: &[(&str, &str)] = &[
    (
        "--systemd-cgroup",
        "cgroups are made through cgroupfs; configure the caller for cgroupfs",
    ),
    ("--no-subreaper", "no subreaper is set"),
    ("--rootless", "berth runs as root"),
    ("--criu", "checkpoints are not supported"),
    (
        "--kernel-memory",
        "the kernel has no limit of its own for kernel memory any more",
    ),
    ("--l3-cache-schema", "Intel RDT is not supported"),
    ("--mem-bw-schema", "Intel RDT is not supported"),
];

struct Words<'a> {
    words: &'a [OsString],
    at: usize,
    /// The rest of `--name=value`.
    value: Option<OsString>,
}

enum Word {
    Option(String),
    Value(OsString),
}

impl Words<'_> {
    fn next(&mut self) -> Option<Word> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(match word.to_str() {
            Some(text) if text.starts_with('-') && text.len() > 1 => match text.split_once('=') {
                Some((name, value)) => {
                    self.value = Some(value.into());
                    Word::Option(name.to_owned())
                }
                None => Word::Option(text.to_owned()),
            },
            _ => Word::Value(word.clone()),
        })
    }

    fn value(&mut self, option: &str) -> Result<OsString, Bad> {
        if let Some(value) = self.value.take() {
            return Ok(value);
        }
        let value = self
            .words
            .get(self.at)
            .cloned()
            .ok_or_else(|| Bad(format!("{option} needs a value"), None))?;
        self.at += 1;
        Ok(value)
    }
}

impl Words<'_> {
    /// A value behind an option that took none is an error.
    fn no_value_left(&mut self, name: &str) -> Result<(), Bad> {
        match self.value.take() {
            Some(_) => Err(Bad(
                format!("{name}: a value for an option that takes none"),
                None,
            )),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Bad(String, Option<String>);

fn unknown(option: &str, command: &str) -> Bad {
    match REFUSED.iter().find(|(name, _)| *name == option) {
        Some((_, why)) => Bad(format!("{option} is refused"), Some((*why).to_owned())),
        None => Bad(
            format!("unknown option {option}{command}"),
            Some("`berth oci --help` lists the options".into()),
        ),
    }
}

/// Parse a command line.
pub(super) fn parse(args: &[OsString]) -> Result<Parsed, Usage> {
    let mut global = Global {
        root: super::ROOT.into(),
        log: None,
        log_json: false,
    };
    let mut words = Words {
        words: args,
        at: 0,
        value: None,
    };
    let outcome = globals(&mut global, &mut words).and_then(|name| match name {
        Some(name) => command(&name, &mut words).map(Some),
        None => Ok(None),
    });
    match outcome {
        Ok(Some(command)) => Ok(Parsed { global, command }),
        Ok(None) => Err(Usage::Help(HELP)),
        Err(Bad(message, hint)) => Err(Usage::Wrong {
            global,
            message,
            hint,
        }),
    }
}

/// Options before the command; its name, or `None` for help.
fn globals(global: &mut Global, words: &mut Words<'_>) -> Result<Option<String>, Bad> {
    loop {
        let Some(word) = words.next() else {
            return Err(Bad(
                "no command".into(),
                Some("`berth oci --help` lists the commands".into()),
            ));
        };
        match word {
            Word::Value(name) => return Ok(Some(name.to_string_lossy().into_owned())),
            Word::Option(option) => match option.as_str() {
                "--root" => global.root = words.value(&option)?.into(),
                "--log" => global.log = Some(words.value(&option)?.into()),
                "--log-format" => {
                    let format = words.value(&option)?;
                    global.log_json = match format.to_str() {
                        Some("json") => true,
                        Some("text") => false,
                        _ => {
                            return Err(Bad(
                                format!("--log-format {format:?} is neither json nor text"),
                                None,
                            ));
                        }
                    };
                }
                // Errors are always logged; there is nothing more to say.
                "--debug" => {}
                "-h" | "--help" => return Ok(None),
                "-v" | "--version" => return Ok(Some("version".to_owned())),
                _ => return Err(unknown(&option, "")),
            },
        }
        if words.value.take().is_some() {
            return Err(Bad("a value for an option that takes none".into(), None));
        }
    }
}

#[derive(Default)]
struct Options {
    bundle: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    console: Option<PathBuf>,
    terminal: bool,
    keep: bool,
    detach: bool,
    how: How,
    all: bool,
    force: bool,
    once: bool,
    interval: Option<u64>,
    listed: Listed,
    values: Vec<OsString>,
}

fn command(name: &str, words: &mut Words<'_>) -> Result<Command, Bad> {
    const COMMANDS: [&str; 15] = [
        "create", "start", "run", "exec", "state", "kill", "pause", "resume", "update", "ps", "events",
        "delete", "features", "list", "version",
    ];
    match name {
        "exec" => return exec::parse(words).map(|args| Command::Exec(Box::new(args))),
        "update" => return update::parse(words),
        _ if !COMMANDS.contains(&name) => {
            let hint = "`berth oci --help` lists the commands".to_owned();
            return Err(Bad(format!("unknown command `{name}`"), Some(hint)));
        }
        _ => {}
    }
    let mut o = Options::default();
    while let Some(word) = words.next() {
        match word {
            Word::Value(value) => o.values.push(value),
            Word::Option(option) => match (name, option.as_str()) {
                ("create" | "run", "-b" | "--bundle") => o.bundle = Some(words.value(&option)?.into()),
                ("create" | "run", "--pid-file") => o.pid_file = Some(words.value(&option)?.into()),
                ("create" | "run", "--console-socket") => o.console = Some(words.value(&option)?.into()),
                ("create" | "run", "--preserve-fds") => {
                    o.how.preserved = descriptors(&words.value(&option)?)?
                }
                ("create" | "run", "--no-pivot") => o.how.no_pivot = true,
                ("create" | "run", "--no-new-keyring") => o.how.callers_keyring = true,
                ("run", "-t" | "--tty") => o.terminal = true,
                ("run", "-d" | "--detach") => o.detach = true,
                ("run", "--keep") => o.keep = true,
                ("kill", "-a" | "--all") => o.all = true,
                ("delete", "-f" | "--force") => o.force = true,
                ("events", "--stats") => o.once = true,
                ("events", "--interval") => o.interval = Some(seconds(&words.value(&option)?)?),
                ("list", "-q" | "--quiet") => o.listed = Listed::Quiet,
                ("list" | "ps", "-f" | "--format") => {
                    o.listed = match words.value(&option)?.to_str() {
                        Some("json") => Listed::Json,
                        Some("table") => Listed::Table,
                        _ => return Err(Bad("--format is table or json".into(), None)),
                    };
                }
                _ => return Err(unknown(&option, &format!(" of {name}"))),
            },
        }
        words.no_value_left(name)?;
    }
    finish(name, o)
}

/// `5`, `5s`: whole seconds, 1 to 86400.
fn seconds(text: &OsStr) -> Result<u64, Bad> {
    let text = text.to_string_lossy();
    let number = text.strip_suffix('s').unwrap_or(&text).parse::<u64>().ok();
    number.filter(|n| (1..=86_400).contains(n)).ok_or_else(|| {
        let hint = "whole seconds, 1 to 86400".to_owned();
        Bad(format!("--interval `{text}` is no interval"), Some(hint))
    })
}

/// How many descriptors: 0 to 1024.
fn descriptors(text: &OsStr) -> Result<u32, Bad> {
    let text = text.to_string_lossy();
    let number = text.parse::<u32>().ok().filter(|n| *n <= 1024);
    number.ok_or_else(|| {
        let hint = "how many descriptors go in, from 3 on: 0 to 1024".to_owned();
        Bad(format!("--preserve-fds `{text}`"), Some(hint))
    })
}

fn finish(name: &str, o: Options) -> Result<Command, Bad> {
    let text = |value: &OsStr| value.to_string_lossy().into_owned();
    let wanted = match name {
        "features" | "list" | "version" => 0..=0,
        "kill" => 1..=2,
        _ => 1..=1,
    };
    if !wanted.contains(&o.values.len()) {
        return Err(Bad(
            format!("{name}: {} arguments, wanted {wanted:?}", o.values.len()),
            Some("an ID".into()),
        ));
    }
    let id = o.values.first().map(|v| text(v)).unwrap_or_default();
    let bundle = o.bundle.unwrap_or_else(|| PathBuf::from("."));
    Ok(match name {
        "create" => Command::Create {
            id,
            bundle,
            pid_file: o.pid_file,
            console: o.console,
            how: o.how,
        },
        "start" => Command::Start { id },
        "run" => Command::Run {
            id,
            bundle,
            pid_file: o.pid_file,
            console: o.console,
            terminal: o.terminal,
            keep: o.keep,
            detach: o.detach,
            how: o.how,
        },
        "state" => Command::State { id },
        "kill" => {
            let word = o.values.get(1).map_or_else(|| "SIGTERM".to_owned(), |v| text(v));
            let hint = "a name such as SIGTERM or TERM, or a number from 0 to 64".to_owned();
            let signal = signal(&word).ok_or_else(|| Bad(format!("`{word}` is no signal"), Some(hint)))?;
            Command::Kill {
                id,
                signal,
                all: o.all,
            }
        }
        "pause" => Command::Pause { id },
        "resume" => Command::Resume { id },
        "ps" => Command::Ps {
            id,
            json: o.listed == Listed::Json,
        },
        "events" => Command::Events {
            id,
            once: o.once,
            interval: o.interval.unwrap_or(5),
        },
        "delete" => Command::Delete { id, force: o.force },
        "features" => Command::Features,
        "version" => Command::Version,
        _ => Command::List { how: o.listed },
    })
}

/// A signal by name, with or without SIG, or by number.
fn signal(word: &str) -> Option<i32> {
    if let Ok(number) = word.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = word.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<i32>().ok()
        }
    };
    if let Some(rest) = short.strip_prefix("RTMIN") {
        return offset(rest).map(|o| 34 + o).filter(|n| (34..=64).contains(n));
    }
    if let Some(rest) = short.strip_prefix("RTMAX") {
        return offset(rest).map(|o| 64 + o).filter(|n| (34..=64).contains(n));
    }
    format!("SIG{short}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|s| s as i32)
}

#[cfg(test)]
mod tests;
