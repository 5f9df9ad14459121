//! The sample device worker: opens the device it was given, runs a real-time loop, reports what it has.
//!
//! One JSON object a line goes to standard output: a first (`"event":"start"`), one for each second
//! (`"event":"report"`) and a last (`"event":"end"`). Everything it says of its own scheduling is asked of the
//! kernel each time. It ends with 0 on SIGTERM or SIGINT, after `--cycles`, or with `--exit-code`. With `--calls` it tells
//! what the kernel answers to those system calls, and ends.

mod args;
mod device;
mod kernel;
mod stats;

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use device::Device;
use stats::Latencies;

/// Nanoseconds between two reports.
const REPORT_NS: u64 = 1_000_000_000;
/// Nanoseconds between two looks at the device.
const DEVICE_NS: u64 = 100_000_000;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("device-worker: {problem}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    if let Some(numbers) = &args.calls {
        return if say(&json!({"event": "calls", "errno": kernel::calls(numbers)})) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    kernel::catch_signals(args.ignore_term);
    let locked = kernel::lock_memory();
    let mut device = Device::open(&args);
    let mut latencies = Latencies::new();
    let period = args.period_ns;

    let start = kernel::now();
    if !say(&report(
        "start",
        start,
        start,
        0,
        0,
        &Latencies::new(),
        &device,
        &locked,
    )) {
        return ExitCode::FAILURE;
    }
    let (mut cycles, mut missed) = (0u64, 0u64);
    let mut deadline = start + period;
    let (mut next_report, mut next_look) = (start + REPORT_NS, start);
    while !kernel::asked_to_end() && args.cycles.is_none_or(|most| cycles < most) {
        kernel::sleep_until(deadline);
        let woken = kernel::now();
        cycles += 1;
        latencies.add(woken.saturating_sub(deadline));
        if woken >= next_look && !args.look_once {
            device.look();
            next_look = woken + DEVICE_NS;
        }
        if woken >= next_report {
            let line = report(
                "report", start, woken, cycles, missed, &latencies, &device, &locked,
            );
            if !say(&line) {
                // Nobody reads any more; nothing is left to report to.
                return ExitCode::FAILURE;
            }
            latencies.clear();
            next_report = woken + REPORT_NS;
        }
        // A cycle that ended after the next one should have begun has missed it, and each one after it so far.
        deadline += period;
        let done = kernel::now();
        if done > deadline {
            let late = (done - deadline) / period + 1;
            missed += late;
            deadline += late * period;
        }
    }
    if !args.look_once {
        device.look();
    }
    let told = say(&report(
        "end",
        start,
        kernel::now(),
        cycles,
        missed,
        &latencies,
        &device,
        &locked,
    ));
    if !told {
        return ExitCode::FAILURE;
    }
    ExitCode::from(args.exit_code)
}

#[allow(clippy::too_many_arguments)]
fn report(
    event: &str,
    start: u64,
    now: u64,
    cycles: u64,
    missed: u64,
    latencies: &Latencies,
    device: &Device,
    locked: &Value,
) -> Value {
    json!({
        "event": event,
        "pid": std::process::id(),
        "uptimeMs": (now - start) / 1_000_000,
        "cycles": cycles,
        "missed": missed,
        "latencyUs": latencies.summary(),
        "scheduling": kernel::scheduling(),
        "memoryLocked": locked,
        "device": device.state(),
    })
}

/// Prints one line at once; `false` when it cannot be written.
fn say(line: &Value) -> bool {
    let mut text = line.to_string();
    text.push('\n');
    std::io::stdout().lock().write_all(text.as_bytes()).is_ok()
}
