//! The guests. One boot for each kernel command line (`boots.rs`), shared by its tests; the guest runs the binary that
//! ships. To add a test to a boot, add its function behind that boot's name below.
//!
//! `RIG_OUT` moves the rig's folder (default `.rig`). A failing test keeps console and log and says where.

mod arm64;
mod boots;
mod cloud;
mod devices;
mod dist;
mod escape;
mod firmware;
mod journey;
mod on_guest;
mod plain;
mod plug;
mod power;
mod realtime;
mod rig;
mod selinux;
mod systemd;
mod tuning;
mod watchdog;

use std::process::ExitCode;

use berth_tests::skips;
use libtest_mimic::{Arguments, Trial};

use boots::{Guest, Spec};

/// The tests of one module in one guest, in order.
type Tests = fn(&Guest) -> Vec<Trial>;

/// Every boot, and what runs in it.
fn suite() -> Vec<(Spec, Vec<Tests>)> {
    vec![
        (
            boots::RT_612,
            vec![journey::tests, rig::tests, devices::tests, plug::tests],
        ),
        (
            boots::PLAIN,
            vec![
                realtime::partitions,
                plain::tests,
                escape::tests,
                tuning::tests,
                watchdog::tests,
            ],
        ),
        (boots::RT_61, vec![realtime::before_remote, tuning::without_sweep]),
        (boots::SELINUX, vec![selinux::tests]),
        (boots::CLOUD, vec![cloud::tests]),
        (boots::SYSTEMD, vec![systemd::tests]),
        (boots::ARM64, vec![arm64::tests]),
        (boots::FIRMWARE, vec![firmware::tests]),
        (boots::FIRMWARE_ARM64, vec![firmware::tests]),
    ]
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut trials = dist::tests();
    trials.extend(rig::without_a_guest());
    for (spec, modules) in suite() {
        let guest = Guest::new(spec.clone());
        let mut tests: Vec<Trial> = modules.iter().flat_map(|tests| tests(&guest)).collect();
        // A listing names every test, whatever this machine has.
        if !arguments.list && spec.is_missing(tests.len()) {
            continue;
        }
        tests.push(guest.end());
        trials.append(&mut tests);
    }
    if arguments.list || !power::POWER.is_missing(1) {
        trials.append(&mut power::tests());
    }
    if !arguments.list && arguments.filter.is_none() {
        // A whole run: images are built while the guests before them run. A failure is told by its guest.
        let specs: Vec<Spec> = suite().into_iter().map(|(spec, _)| spec).collect();
        std::thread::spawn(move || specs.iter().map(Spec::config).filter(Result::is_err).count());
    }
    trials.append(&mut firmware::options());
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    // What was skipped is a failure unless the committed list has it.
    if !listing && let Err(wrong) = skips::check("vm", include_str!("../skips.txt")) {
        wrong.iter().for_each(|line| eprintln!("{line}"));
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
