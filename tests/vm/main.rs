//! The guests. One boot for each kernel command line (`boots.rs`), shared by its tests; the guest runs the binary that
//! ships. To add a test to a boot, add its function behind that boot's name below.
//!
//! `RIG_OUT` moves the rig's folder (default `.rig`); `BERTH_LANES` says how many guests run at once (two, where cores and
//! memory suffice); `BERTH_ROUNDS` multiplies rounds. A failing test keeps console and log and says where.

mod apparmor;
mod boots;
mod cloud;
mod cycles;
mod devices;
mod dist;
mod escape;
mod fields;
mod firmware;
mod journey;
mod lanes;
mod media;
mod on_guest;
mod plain;
mod plug;
mod power;
mod profiles;
mod quiet;
mod realtime;
mod rig;
mod selinux;
mod share;
#[path = "../native/shipped.rs"]
#[allow(dead_code)] // natively the loaded filter is read back too
mod shipped;
mod systemd;
mod tuning;
mod vfio;
mod watchdog;

use std::process::ExitCode;

use berth_tests::skips;
use berth_tests::vm::needs::Machine;
use berth_tests::vm::out;
use libtest_mimic::Arguments;

use boots::{Guest, Spec};
use lanes::Trial;

/// The tests of one module in one guest, in order.
type Tests = fn(&Guest) -> Vec<Trial>;

/// Every boot, and what runs in it: the longest first, so that the lanes end together.
fn boots() -> Vec<(Spec, Vec<Tests>)> {
    vec![
        (
            boots::PLAIN,
            vec![
                // Before any partition.
                share::served as Tests,
                realtime::partitions,
                quiet::guarding,
                plain::tests,
                profiles::tests,
                escape::tests,
                fields::tests,
                tuning::tests,
                // The last of its boot: it resets the guest.
                watchdog::tests,
            ],
        ),
        (
            boots::RT_612,
            vec![
                journey::tests,
                quiet::plugged,
                rig::tests,
                cycles::two,
                media::tests,
                plug::tests,
            ],
        ),
        (power::POWER, vec![|_| power::tests()]),
        (boots::ARM64, vec![firmware::tests, tuning::short]),
        (boots::SELINUX, vec![selinux::tests]),
        (boots::SYSTEMD, vec![systemd::tests]),
        (
            boots::RT_61,
            vec![realtime::before_remote, share::throttled, tuning::without_sweep],
        ),
        (boots::FIRMWARE, vec![firmware::tests]),
        (boots::CLOUD, vec![cloud::tests, apparmor::tests]),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let listing = arguments.list;
    let mut suites = Vec::new();
    for (spec, modules) in boots() {
        let guest = Guest::new(spec.clone());
        let mut tests: Vec<Trial> = modules.iter().flat_map(|tests| tests(&guest)).collect();
        // A listing names every test, whatever this machine has.
        if listing || !spec.is_missing(tests.len()) {
            tests.push(guest.end());
            suites.push(tests);
        }
    }
    suites.push(dist::tests());
    suites.push(rig::without_a_guest());
    // By then every kernel's configuration is there.
    suites.push(firmware::options());
    let memory = Machine::read("amd64", "busybox", "", &out(), true).memory;
    let trials = lanes::begin(&arguments, suites, lanes::lanes(memory));
    if !listing && arguments.filter.is_none() {
        // A whole run: images are built while the guests before them run. A failure is told by its guest.
        std::thread::spawn(move || {
            let specs = boots().into_iter().map(|(spec, _)| spec);
            specs.filter(|spec| spec.config().is_err()).count()
        });
    }
    // Each of the harness's threads waits for one test of a lane.
    let waiting = Arguments {
        test_threads: Some(trials.len().max(1)),
        ..arguments
    };
    let conclusion = libtest_mimic::run(&waiting, trials);
    // What was skipped is a failure unless the committed list has it.
    if !listing && let Err(wrong) = skips::check("vm", include_str!("../skips.txt")) {
        wrong.iter().for_each(|line| eprintln!("{line}"));
        return ExitCode::from(101);
    }
    conclusion.exit_code()
}
