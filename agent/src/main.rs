//! The berth binary: command line, daemon, and the door to the launcher and to the OCI runtime.
//!
//! Invariant: `berth oci …` and `berth launcher` are reached before anything could have started a thread; `oci` is
//! looked for before the command line is parsed at all, because it is started once for each step of a container.

mod api;
mod cli;
mod core;
mod daemon;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == "oci") {
        let code = berth_runtime::oci::main(args);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    cli::main()
}
