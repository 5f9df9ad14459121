//! Makes the store of images that a firmware brings along, and its seal.
//!
//! ```text
//! berth-preload [--architecture amd64|arm64] DIR NAME[:TAG]=ARCHIVE...
//! DIR, DIR.seal      as berth_images::Stores reads them: --preloaded-dir of the agent and the launcher
//! ```
//! Runs on the machine that builds the firmware: it needs neither udev nor anything else of the target's.
//! Invariants: DIR is made anew or not at all; what was written is hashed again before the seal is.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_images::{ImageError, LoadOptions, Mode, Source, Store, seal_of};

const USAGE: &str = "usage: berth-preload [--architecture amd64|arm64] DIR NAME[:TAG]=ARCHIVE...";

struct Args {
    architecture: Option<String>,
    dir: PathBuf,
    images: Vec<(String, PathBuf)>,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("berth-preload: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("berth-preload: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut architecture, mut dir, mut images) = (None, None, Vec::new());
    while let Some(word) = words.next() {
        match word.as_str() {
            "--architecture" => {
                let value = words.next().ok_or("--architecture needs amd64 or arm64")?;
                if !["amd64", "arm64"].contains(&value.as_str()) {
                    return Err(format!("--architecture {value}: amd64 or arm64"));
                }
                architecture = Some(value);
            }
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ if dir.is_none() => dir = Some(PathBuf::from(word)),
            entry => match entry.split_once('=') {
                Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                    images.push((name.to_owned(), path.into()));
                }
                _ => return Err(format!("{entry} is not NAME[:TAG]=ARCHIVE")),
            },
        }
    }
    let dir = dir.ok_or("no DIR")?;
    if images.is_empty() {
        return Err("no image".into());
    }
    Ok(Args {
        architecture,
        dir,
        images,
    })
}

fn run(args: &Args) -> Result<(), String> {
    if fs::symlink_metadata(&args.dir).is_ok() {
        return Err(format!(
            "{} is there already: a preloaded store is made anew",
            args.dir.display()
        ));
    }
    let made = fill(args);
    if made.is_err() {
        // Half a store must not reach a root file system.
        drop(berth_images::remove_tree(&args.dir));
    }
    made
}

fn fill(args: &Args) -> Result<(), String> {
    let store = Store::open(&args.dir, Mode::Write).map_err(told)?;
    for (name, archive) in &args.images {
        let options = LoadOptions {
            name: Some(name),
            architecture: args.architecture.as_deref(),
            ..LoadOptions::default()
        };
        let loaded = store.load_from(Source::Path(archive), &options).map_err(told)?;
        println!("{} {}", loaded.reference, loaded.digest);
        for dropped in &loaded.dropped {
            eprintln!("berth-preload: {name}: left out: {dropped}");
        }
    }
    if let Some(fault) = store.verify().map_err(told)?.first() {
        return Err(format!("read back: {}: {}", fault.path.display(), fault.problem));
    }
    let seal = store.seal().map_err(told)?;
    write_seal(&seal_of(&args.dir), &format!("{seal}\n"))?;
    println!("seal {seal}");
    Ok(())
}

fn write_seal(path: &Path, line: &str) -> Result<(), String> {
    let failed = |error| format!("write {}: {error}", path.display());
    let mut file = fs::File::create(path).map_err(failed)?;
    file.write_all(line.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// The error, its causes and its hint, a line each.
fn told(error: ImageError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    error
        .hint()
        .map_or(text.clone(), |hint| format!("{text}\n  hint: {hint}"))
}
