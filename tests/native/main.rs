//! Journeys on this machine's own kernel, as root, with the built binary: folders, cgroups and devices of a
//! test's own. Every test is followed by a look at the machine: what is left behind fails it.
//!
//! `BERTH_ROUNDS` multiplies the rounds (default 1).

mod audit;
mod bundle;
mod cards;
mod commands;
mod cpusets;
mod crash;
mod cycles;
mod density;
mod disks;
mod docs;
mod drift;
mod escape;
mod fields;
mod journey;
mod latency;
mod loaded;
mod network;
mod oci;
mod plug;
mod preloaded;
mod profiles;
mod quiet;
mod refusals;
mod robust;
mod roles;
mod sabotage;
mod sandbox;
mod secrets;
mod shipped;
mod tenants;
mod uevents;
mod wakeups;

use std::process::ExitCode;

use anyhow::Result;
use berth_tests::leftovers::Snapshot;
use berth_tests::skips;
use libtest_mimic::{Arguments, Failed, Trial};

/// A test that must leave the machine as it found it.
pub(crate) fn test(name: impl Into<String>, body: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let before = Snapshot::take().map_err(|e| Failed::from(format!("{e:#}")))?;
        body().map_err(|e| Failed::from(format!("{e:?}")))?;
        before.nothing_left().map_err(|e| Failed::from(format!("{e:#}")))
    })
}

/// How many rounds of something that one CI run does `once` times.
pub(crate) fn rounds(once: usize) -> usize {
    once * std::env::var("BERTH_ROUNDS")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(1)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the node's cores and its real-time budget.
    arguments.test_threads = Some(1);
    let mut tests = Vec::new();
    if nix::unistd::Uid::effective().is_root() {
        for module in [
            oci::tests,
            sabotage::tests,
            escape::tests,
            fields::tests,
            network::tests,
            robust::tests,
            journey::tests,
            plug::tests,
            uevents::tests,
            cards::tests,
            disks::tests,
            commands::tests,
            drift::tests,
            refusals::tests,
            preloaded::tests,
            crash::tests,
            audit::tests,
            roles::tests,
            sandbox::tests,
            secrets::tests,
            tenants::tests,
            cycles::tests,
            latency::tests,
            wakeups::tests,
            cpusets::tests,
            density::tests,
            docs::tests,
            profiles::tests,
            quiet::tests,
        ] {
            tests.extend(module());
        }
    } else {
        skips::skip("native", "needs root");
    }
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, tests);
    if !listing && let Err(wrong) = skips::check("native", include_str!("../skips.txt")) {
        wrong.iter().for_each(|line| eprintln!("{line}"));
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
