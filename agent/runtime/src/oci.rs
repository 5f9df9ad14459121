//! The OCI runtime command line: `berth oci [global options] COMMAND …`.
//!
//! Invariants: every command is one process of one thread (a second one makes the network namespace while the
//! configuration is read, and has ended before anything is cloned); an error is one line on standard error, and the same as
//! JSON or text in the `--log` file, where callers such as containerd look for it; exit codes: 0 done, 1 it failed,
//! 2 wrong usage, and for `run` the container's own (128 + signal where it was killed).

mod args;
mod exec;
mod features;
mod run;
mod terminal;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_rt::cgroup::Hierarchy;

use crate::container::{Container, OpenError};
use crate::create::Stdio;
use crate::network::Beside;
use crate::plan::{self, Context, Extensions, Plan};
use crate::state::{Record, Status};
use crate::timing::Timing;
use args::{Command, Global, How, Listed, Parsed, Usage};
use terminal::Taker;

/// Folder of the containers' states without `--root`.
pub const ROOT: &str = "/run/berth/oci";

/// A command that failed: the message and what to change.
#[derive(Debug)]
struct Failed {
    message: String,
    hint: Option<String>,
}

impl Failed {
    fn new(message: impl ToString, hint: Option<String>) -> Self {
        Self {
            message: message.to_string(),
            hint,
        }
    }
}

macro_rules! failed_from {
    ($($error:ty),*) => { $(
        impl From<$error> for Failed {
            fn from(e: $error) -> Self {
                Self { hint: e.hint(), message: e.to_string() }
            }
        }
    )* };
}
failed_from!(
    crate::plan::PlanError,
    crate::create::CreateError,
    crate::start::StartError,
    crate::container::ContainerError,
    crate::exec::ExecError,
    OpenError
);

/// Run one command; `args` without the program's name and the word `oci`. Returns the exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    let Parsed { global, command } = match args::parse(&args) {
        Ok(parsed) => parsed,
        Err(Usage::Help(text)) => {
            println!("{text}");
            return 0;
        }
        Err(Usage::Wrong {
            global,
            message,
            hint,
        }) => {
            report(&global, &Failed { message, hint });
            return 2;
        }
    };
    match carry_out(&global, command) {
        Ok(status) => status,
        Err(failed) => {
            report(&global, &failed);
            1
        }
    }
}

/// One line on standard error, and the same in the log file.
fn report(global: &Global, failed: &Failed) {
    let mut text = failed.message.clone();
    if let Some(hint) = &failed.hint {
        text.push_str("\n  hint: ");
        text.push_str(hint);
    }
    // Callers of other runtimes look for the word.
    eprintln!("berth oci: error: {text}");
    log(global, "error", &text);
}

fn log(global: &Global, level: &str, text: &str) {
    let Some(path) = &global.log else { return };
    let line = if global.log_json {
        serde_json::json!({"level": level, "msg": text, "time": timestamp()}).to_string()
    } else {
        format!("time=\"{}\" level={level} msg={text:?}", timestamp())
    };
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(e) = opened.and_then(|mut f| writeln!(f, "{line}")) {
        eprintln!("berth oci: cannot write log `{}`: {e}", path.display());
    }
}

/// RFC 3339 in UTC, seconds.
fn timestamp() -> String {
    let seconds = (crate::container::now() / 1_000_000_000) as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970-01-01, years beginning in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

fn hierarchy() -> Result<Hierarchy, Failed> {
    Hierarchy::discover(Path::new("/")).map_err(|e| Failed::new(&e, e.hint()))
}

fn own_stdio() -> Result<Stdio, Failed> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>, name: &str| -> Result<OwnedFd, Failed> {
        crate::sys::process::dup_high(fd)
            .map_err(|e| Failed::new(format!("{name} is not open: {}", e.desc()), None))
    };
    Ok(Stdio {
        stdin: copy(std::io::stdin().as_fd(), "standard input")?,
        stdout: copy(std::io::stdout().as_fd(), "standard output")?,
        stderr: copy(std::io::stderr().as_fd(), "standard error")?,
    })
}

/// Read the bundle, check it, make the container.
fn create(
    global: &Global,
    id: &str,
    bundle: &Path,
    detached: bool,
    (console, how): ((Option<&Path>, bool), How),
) -> Result<(Container, Taker), Failed> {
    preserved(how.preserved)?;
    let mut timing = Timing::begin();
    let mut network = None;
    let mut bundle = plan::load_telling(bundle, |text| network = Beside::begin(text))?;
    timing.mark("load");
    let hierarchy = hierarchy()?;
    timing.mark("hierarchy");
    let taker = terminal_of(&mut bundle, console, detached)?;
    for name in &bundle.unknown {
        log(
            global,
            "warning",
            &format!("config.json: `{name}` is no field of the specification and is not applied"),
        );
    }
    for (destination, option) in plan::without_effect(&mut bundle.spec) {
        let text = format!(
            "mount `{}`: option \"{option}\" has no effect on a bind mount and is passed over",
            destination.display()
        );
        eprintln!("berth oci: warning: {text}");
        log(global, "warning", &text);
    }
    let context = Context {
        state_root: &global.root,
        hierarchy: &hierarchy,
        cgroup_parent: "",
        detached,
    };
    let mut plan = Plan::prepare(id, &bundle.path, &bundle.spec, &Extensions::default(), &context)?;
    timing.mark("plan");
    // From here on there is one thread again: the clone copies no other.
    if let Some(network) = network.and_then(Beside::end) {
        plan.give_network(network);
    }
    timing.mark("network");
    if plan.pid_namespace.is_some() {
        // Others are there already, and may lie in wait.
        guard_own_program()?;
    }
    not_for_others(how.preserved)?;
    plan.preserve_descriptors(how.preserved);
    plan.mounts_in_order();
    if how.no_pivot {
        plan.without_pivot()?;
    }
    if how.callers_keyring {
        plan.keep_keyring();
    }
    let mut container = plan.create(own_stdio()?)?;
    container.prepend(timing);
    Ok((container, taker))
}

/// Descriptors that are to go in: each is there, so none of this program's own will have its number.
fn preserved(count: u32) -> Result<(), Failed> {
    match crate::sys::process::preserved(count).find(|fd| !crate::sys::process::is_open(*fd)) {
        None => Ok(()),
        Some(fd) => Err(Failed::new(
            format!("--preserve-fds {count}: descriptor {fd} is not open"),
            Some("open what is to go in from 3 on, without a gap".into()),
        )),
    }
}

/// Hooks and other programs on the way do not get them.
fn not_for_others(count: u32) -> Result<(), Failed> {
    crate::sys::process::preserved(count)
        .try_for_each(|fd| crate::sys::process::close_on_exec(fd, true))
        .map_err(|e| Failed::new(format!("--preserve-fds {count}: {}", e.desc()), None))
}

/// Who takes the terminal of a bundle; `console` is the console socket and whether a terminal is asked for besides.
fn terminal_of(
    bundle: &mut plan::Bundle,
    (socket, asked): (Option<&Path>, bool),
    detached: bool,
) -> Result<Taker, Failed> {
    let Some(process) = bundle.spec.process_mut() else {
        return Ok(Taker::Nobody); // refused by the plan
    };
    let wanted = asked || process.terminal().unwrap_or(false);
    process.set_terminal(Some(wanted));
    let taker = terminal::taker(wanted, socket, !detached)?;
    if let (Taker::Relay, Some(size)) = (&taker, terminal::own_size()) {
        let words = oci_spec::runtime::BoxBuilder::default()
            .height(size.rows)
            .width(size.columns);
        process.set_console_size(words.build().ok());
    }
    Ok(taker)
}

/// Write a pid file by renaming it into place.
fn put_pid(path: &Path, pid: i32) -> Result<(), String> {
    let temporary = path.with_file_name(format!(
        ".{}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| format!("cannot write pid file `{}`: {e}", path.display()))
}

fn write_pid_file(path: Option<&PathBuf>, container: &mut Container) -> Result<(), Failed> {
    let Some(path) = path else { return Ok(()) };
    put_pid(path, container.pid()).map_err(|mut message| {
        for e in container.delete().err().unwrap_or_default() {
            message += &format!("; {e}");
        }
        Failed::new(
            message,
            Some("give --pid-file a path in a folder that exists".into()),
        )
    })
}

/// Free it. A poststop hook that fails is a warning: the specification has the lifecycle go on as if it had not.
fn delete(global: &Global, container: &mut Container) -> Result<(), Failed> {
    let errors = container.delete().err().unwrap_or_default();
    let (hooks, errors): (Vec<_>, Vec<_>) = errors.iter().partition(|e| e.what == "poststop");
    for hook in hooks {
        eprintln!("berth oci: warning: {hook}");
        log(global, "warning", &hook.to_string());
    }
    if errors.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Err(Failed::new(all.join("; "), None))
}

fn carry_out(global: &Global, command: Command) -> Result<i32, Failed> {
    match command {
        Command::Create {
            id,
            bundle,
            pid_file,
            console,
            how,
        } => {
            let console = ((console.as_deref(), false), how);
            let (mut container, taker) = create(global, &id, &bundle, true, console)?;
            give_terminal(&mut container, taker)?;
            write_pid_file(pid_file.as_ref(), &mut container)?;
        }
        Command::Start { id } => {
            Container::open(&global.root, &id, &hierarchy()?)?.start(None)?;
        }
        Command::Run {
            id,
            bundle,
            pid_file,
            console,
            terminal,
            keep,
            detach,
            how,
        } => {
            // Before the clone: no signal may be lost between the start and the wait.
            let waiting =
                run::Waiting::begin().map_err(|e| Failed::new(format!("signals: {}", e.desc()), None))?;
            let console = ((console.as_deref(), terminal), how);
            let (mut container, taker) = create(global, &id, &bundle, detach, console)?;
            let session = give_terminal(&mut container, taker)?;
            write_pid_file(pid_file.as_ref(), &mut container)?;
            container.start(None)?;
            if detach {
                return Ok(0);
            }
            let pidfd = container
                .pidfd()
                .ok_or_else(|| Failed::new("wait: there is no process", None))?;
            let status = waiting
                .wait(pidfd, session)
                .map_err(|e| Failed::new(format!("wait: {}", e.desc()), None))?;
            container.mark("wait");
            if !keep {
                delete(global, &mut container)?;
            }
            if std::env::var_os("BERTH_OCI_TIMING").is_some() {
                for (step, us) in container.timing() {
                    eprintln!("{us:>7} us  {step}");
                }
            }
            return Ok(status);
        }
        Command::State { id } => {
            // In lines, as other runtimes print it: callers look for `"status": "…"`.
            let state = Container::open(&global.root, &id, &hierarchy()?)?.state_json();
            let state: serde_json::Value = serde_json::from_str(&state).unwrap_or(state.into());
            println!("{state:#}");
        }
        Command::Kill { id, signal, all } => {
            let container = Container::open(&global.root, &id, &hierarchy()?)?;
            if all {
                container.signal_all(signal)?;
            } else {
                container.signal(signal)?;
            }
        }
        Command::Delete { id, force } => return forget(global, &id, force),
        Command::Exec(args) => return exec::exec(global, &args),
        Command::Pause { id } => Container::open(&global.root, &id, &hierarchy()?)?.pause()?,
        Command::Resume { id } => Container::open(&global.root, &id, &hierarchy()?)?.resume()?,
        Command::Ps { id, json } => exec::ps(global, &id, json)?,
        Command::Events { id, once, interval } => exec::events(global, &id, once, interval)?,
        Command::Update { id, source } => exec::update(global, &id, source)?,
        Command::Features => println!("{}", features::json()),
        Command::Version => println!("berth version {}\nspec: 1.3.0", env!("CARGO_PKG_VERSION")),
        Command::List { how } => list(global, how, &hierarchy()?),
    }
    Ok(0)
}

/// Before another container's processes can reach this one: its program must not be theirs to write.
fn guard_own_program() -> Result<(), Failed> {
    crate::sys::own::unwritable().map_err(|e| {
        let hint = "run as root with CAP_SYS_ADMIN, with /proc mounted";
        Failed::new(
            format!("its own program from a read-only mount: {}", e.desc()),
            Some(hint.into()),
        )
    })
}

/// Hand the terminal over; a container whose terminal nobody takes is not left behind.
fn give_terminal(container: &mut Container, taker: Taker) -> Result<Option<terminal::Session>, Failed> {
    let master = container.take_console();
    terminal::hand_over(taker, master).map_err(|mut failed| {
        for e in container.delete().err().unwrap_or_default() {
            failed.message += &format!("; {e}");
        }
        failed
    })
}

fn forget(global: &Global, id: &str, force: bool) -> Result<i32, Failed> {
    let hierarchy = hierarchy()?;
    match Container::open(&global.root, id, &hierarchy) {
        Ok(mut container) => {
            let status = container.status();
            if !force && status != Status::Stopped {
                let hint = format!("kill it first, or use `delete --force {id}`");
                return Err(Failed::new(
                    format!("container `{id}` is {}", status.as_str()),
                    Some(hint),
                ));
            }
            delete(global, &mut container)?;
        }
        Err(OpenError::NotFound { .. }) if force => {}
        Err(OpenError::Creating { .. } | OpenError::Unfinished { .. } | OpenError::State { .. }) if force => {
            Container::sweep(&global.root, id, &hierarchy).map_err(|errors| {
                let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
                Failed::new(all.join("; "), None)
            })?;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(0)
}

fn list(global: &Global, how: Listed, hierarchy: &Hierarchy) {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(&global.root).into_iter().flatten().flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        match Container::open(&global.root, &id, hierarchy) {
            Ok(c) => {
                let status = c.status();
                let pid = if status == Status::Stopped { 0 } else { c.pid() };
                let record: &Record = c.record();
                rows.push((id, pid, status.as_str(), record.state.bundle().to_owned()));
            }
            Err(OpenError::NotFound { .. }) => {}
            Err(_) => rows.push((id, 0, Status::Creating.as_str(), PathBuf::new())),
        }
    }
    rows.sort();
    if how == Listed::Quiet {
        rows.iter().for_each(|(id, ..)| println!("{id}"));
        return;
    }
    if how == Listed::Json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(id, pid, status, bundle)| {
                serde_json::json!({"id": id, "pid": pid, "status": status, "bundle": bundle})
            })
            .collect();
        println!("{}", serde_json::Value::from(rows));
        return;
    }
    println!("{:<24} {:>8} {:<9} BUNDLE", "ID", "PID", "STATUS");
    for (id, pid, status, bundle) in rows {
        println!("{id:<24} {pid:>8} {status:<9} {}", bundle.display());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn timestamps() {
        let now = super::timestamp();
        assert_eq!(now.len(), 20);
        assert!(now.starts_with("20") && now.ends_with('Z'), "{now}");
    }
}
