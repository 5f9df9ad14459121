//! `berth image load`, `ls`, `inspect`, `rm`, `verify`: the store of this node, used directly; it locks itself.

use std::path::PathBuf;

use berth_images::{Digest, ImageError, LoadOptions, Mode, Source, Store, Stores};
use clap::{Args, Subcommand};

use crate::api::{Container, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::table::{or_none, with_hint};
use super::{DONE, Format, Outcome, OutputArgs, no, table};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Load an OCI archive (tar, tar.gz) or layout folder
    Load(LoadArgs),
    /// List images
    Ls(LsArgs),
    /// Show an image in full
    Inspect(InspectArgs),
    /// Remove an image, and what only it needs
    Rm(RmArgs),
    /// Hash everything in the store, and in the preloaded one
    Verify(VerifyArgs),
    /// Print the digest that seals the store as a preloaded one (put it into DIR.seal)
    Seal,
}

#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// The archive or the folder
    path: PathBuf,
    /// Reference to store it under; the one it names where absent
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
    /// Architecture to take (amd64, arm64): for a store that another machine will read; this program's own where absent
    #[arg(long, value_name = "ARCH")]
    architecture: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// Name or digest
    reference: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// Names or digests
    #[arg(required = true)]
    references: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// An image that must be there and usable; the whole store is hashed in any case
    reference: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

fn told(error: ImageError) -> anyhow::Error {
    let hint = error.hint();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    with_hint(text, hint)
}

pub(super) fn main(folders: &Folders, command: ImageCommand) -> Outcome {
    let root = folders.images();
    let open = |mode| Store::open(&root, mode).map_err(told);
    match command {
        ImageCommand::Load(args) => {
            let options = LoadOptions {
                name: args.name.as_deref(),
                architecture: args.architecture.as_deref(),
                ..LoadOptions::default()
            };
            let loaded = open(Mode::Write)?
                .load_from(Source::Path(&args.path), &options)
                .map_err(|error| told(error).context(format!("{}: not loaded", args.path.display())))?;
            if args.output.output == Format::Json {
                table::json(&loaded)?;
            } else {
                println!("{} {}", loaded.reference, loaded.digest);
                for dropped in &loaded.dropped {
                    eprintln!("left out: {dropped}");
                }
            }
        }
        ImageCommand::Ls(args) => {
            let listed = both(folders).map_err(told)?.list().map_err(told)?;
            if args.output.output == Format::Json {
                table::json(&listed)?;
            } else {
                let rows: Vec<Vec<String>> = listed
                    .iter()
                    .map(|one| {
                        let e = &one.entry;
                        let cells = [e.reference.to_string(), e.digest.to_string(), e.platform.clone()];
                        let store = if one.preloaded { "preloaded" } else { "own" };
                        let more = [
                            e.layers.to_string(),
                            e.size.to_string(),
                            store.into(),
                            or_none(&e.problem),
                        ];
                        cells.into_iter().chain(more).collect()
                    })
                    .collect();
                table::print(
                    &[
                        "REFERENCE",
                        "DIGEST",
                        "PLATFORM",
                        "LAYERS",
                        "BYTES",
                        "STORE",
                        "PROBLEM",
                    ],
                    &rows,
                )?;
            }
        }
        ImageCommand::Inspect(args) => {
            // The image's configuration is JSON by nature: both formats show it so.
            let inspection = both(folders)
                .map_err(told)?
                .inspect(&args.reference)
                .map_err(told)?;
            table::json(&inspection)?;
        }
        ImageCommand::Rm(args) => {
            let store = open(Mode::Write)?;
            let in_use = in_use(folders, &store);
            let mut freed = Vec::new();
            for reference in &args.references {
                freed.push(store.remove(reference, &in_use).map_err(told)?);
            }
            if args.output.output == Format::Json {
                table::json(&freed)?;
            } else {
                let (blobs, layers, bytes) = freed
                    .iter()
                    .fold((0, 0, 0), |s, f| (s.0 + f.blobs, s.1 + f.layers, s.2 + f.bytes));
                println!("freed {blobs} blobs, {layers} layers, {bytes} bytes");
            }
        }
        ImageCommand::Verify(args) => {
            let store = both(folders).map_err(told)?;
            if let Some(reference) = &args.reference {
                store.inspect(reference).map_err(told)?;
            }
            let faults = store.verify().map_err(told)?;
            if args.output.output == Format::Json {
                table::json(&faults)?;
            } else {
                for fault in &faults {
                    println!("{}: {}", fault.path.display(), fault.problem);
                }
                if faults.is_empty() {
                    println!("the store is what was loaded");
                }
            }
            return Ok(if faults.is_empty() { DONE } else { no() });
        }
        ImageCommand::Seal => println!("{}", open(Mode::Read)?.seal().map_err(told)?),
    }
    Ok(DONE)
}

/// The writable store, empty where it was not made yet, and the preloaded one.
fn both(folders: &Folders) -> Result<Stores, ImageError> {
    Stores::open(folders.images(), Mode::Read, &folders.preloaded, None)
}

/// Images of containers; none where no agent answers (then nothing is launched either).
fn in_use(folders: &Folders, store: &Store) -> Vec<Digest> {
    let containers: Vec<Container> = ask(folders, Op::Ps).unwrap_or_default();
    let live = containers.iter().filter(|c| c.pid.is_some());
    live.filter_map(|c| store.resolve(&c.image).ok()).collect()
}
