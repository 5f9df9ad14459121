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

/// Every boot, and what runs in it. What one CI run has no time for is behind `long`: `make test-long` runs it.
fn suite(long: bool) -> Vec<(Spec, Vec<Tests>)> {
    let mut plain: Vec<Tests> = vec![realtime::partitions, plain::tests];
    let mut rt_61: Vec<Tests> = vec![realtime::before_remote];
    let mut rt_612: Vec<Tests> = vec![journey::tests, rig::tests, devices::tests];
    if long {
        plain.extend([escape::tests as Tests, tuning::tests]);
        rt_61.push(tuning::without_sweep);
        rt_612.push(plug::tests);
    }
    // The last of its boot: it resets the guest.
    plain.push(watchdog::tests);
    let mut boots = vec![
        (boots::RT_612, rt_612),
        (boots::PLAIN, plain),
        (boots::RT_61, rt_61),
        (boots::SELINUX, vec![selinux::tests as Tests]),
        (boots::CLOUD, vec![cloud::tests]),
        (boots::SYSTEMD, vec![systemd::tests]),
        (boots::FIRMWARE, vec![firmware::tests]),
    ];
    if long {
        boots.push((boots::ARM64, vec![arm64::tests]));
        boots.push((boots::FIRMWARE_ARM64, vec![firmware::tests]));
    }
    boots
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let rounds = std::env::var("BERTH_ROUNDS")
        .ok()
        .and_then(|r| r.parse::<usize>().ok());
    let long = arguments.list || rounds.is_some_and(|rounds| rounds > 1);
    let mut trials = dist::tests();
    trials.extend(rig::without_a_guest());
    for (spec, modules) in suite(long) {
        let guest = Guest::new(spec.clone());
        let mut tests: Vec<Trial> = modules.iter().flat_map(|tests| tests(&guest)).collect();
        // A listing names every test, whatever this machine has.
        if !arguments.list && spec.is_missing(tests.len()) {
            continue;
        }
        tests.push(guest.end());
        trials.append(&mut tests);
    }
    if arguments.list || long && !power::POWER.is_missing(1) {
        trials.append(&mut power::tests());
    }
    if !arguments.list && arguments.filter.is_none() {
        // A whole run: images are built while the guests before them run. A failure is told by its guest.
        let specs: Vec<Spec> = suite(long).into_iter().map(|(spec, _)| spec).collect();
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
