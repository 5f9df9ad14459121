//! berth-escape: published container escapes, rebuilt from their descriptions and tried against an OCI runtime.
//!
//! ```text
//! berth-escape list                       the attacks
//! berth-escape one ATTACK RUNTIME         one of them; 0: held
//! berth-escape all RUNTIME...             the table; 0: the first runtime holds all
//! berth-escape inside ATTACK [WORD...]    what runs in the container
//! berth-escape race FOLDER A B            the helper beside it: exchanges two names for ever
//! ```
//! RUNTIME is `berth` (the built binary), `crun`, `runc` or a path. `BERTH_ESCAPE_SECONDS` is how long a helper
//! races (default 2). Invariants: everything happens below a temporary folder, in a mount namespace of the
//! program's own; what would change the host is opened for writing and never written; files that an attack may
//! reach are canaries.

mod bombs;
mod files;
mod image;
mod inside;
mod inside_bombs;
mod inside_kernel;
mod lab;
mod process;
mod races;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use berth_tests::runtime::Runtime;
use lab::Verdict;

/// One attack.
struct Attack {
    /// Its name.
    name: &'static str,
    /// Where it was published, or what it is.
    source: &'static str,
    run: fn(&Runtime) -> Result<Verdict>,
}

fn attacks() -> Vec<Attack> {
    [
        image::ATTACKS,
        files::ATTACKS,
        process::ATTACKS,
        races::ATTACKS,
        bombs::ATTACKS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, source, run)| Attack {
        name,
        source,
        run: *run,
    })
    .collect()
}

/// A row of a room's table.
type Row = (&'static str, &'static str, fn(&Runtime) -> Result<Verdict>);

fn one(name: &str, runtime: &str) -> Result<bool> {
    let attack = attacks().into_iter().find(|a| a.name == name);
    let attack = attack.with_context(|| format!("no attack {name}: see `berth-escape list`"))?;
    lab::alone()?;
    let runtime = Runtime::named(runtime)?;
    lab::baseline(&runtime)?;
    let verdict = (attack.run)(&runtime)?;
    println!("{name}: {verdict}");
    if let Verdict::Refused(why) = &verdict {
        println!("  {}", why.trim());
    }
    Ok(verdict.held())
}

fn all(runtimes: &[String]) -> Result<bool> {
    lab::alone()?;
    let runtimes: Vec<Runtime> = runtimes
        .iter()
        .map(|name| Runtime::named(name))
        .collect::<Result<_>>()?;
    if runtimes.is_empty() {
        bail!("which runtime? berth, crun, runc or a path");
    }
    runtimes.iter().try_for_each(lab::baseline)?;
    let titles: Vec<String> = runtimes.iter().map(Runtime::version).collect();
    println!("| attack | published as | {} |", titles.join(" | "));
    println!("|---|---|{}", "---|".repeat(titles.len()));
    let mut held = true;
    for attack in attacks() {
        let mut cells = Vec::new();
        for (n, runtime) in runtimes.iter().enumerate() {
            let verdict = (attack.run)(runtime).unwrap_or_else(|e| Verdict::Failed(format!("{e:#}")));
            held &= n > 0 || verdict.held();
            cells.push(verdict.to_string().replace('|', "/").replace('\n', " "));
        }
        println!("| {} | {} | {} |", attack.name, attack.source, cells.join(" | "));
    }
    Ok(held)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["inside", attack, rest @ ..] => {
            inside::run(attack, rest);
            Ok(true)
        }
        ["race", folder, a, b] => races::exchange(folder, a, b).map(|()| true),
        ["list"] => {
            attacks().iter().for_each(|a| println!("{}", a.name));
            Ok(true)
        }
        ["one", name, runtime] => one(name, runtime),
        ["all", ..] => all(&words[1..].iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()),
        _ => Err(anyhow::anyhow!(
            "berth-escape list | one ATTACK RUNTIME | all RUNTIME..."
        )),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("berth-escape: {e:#}");
            ExitCode::from(2)
        }
    }
}
