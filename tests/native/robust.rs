//! SIGKILL at any moment of create, start, exec and delete: what is left, one `berth oci delete --force` frees; and a
//! container whose exec is cut off runs on as it was.
//!
//! The moment is swept over the time the command takes when nobody kills it. `BERTH_ROUNDS` multiplies the moments.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::leftovers::Snapshot;
use libtest_mimic::Trial;

use crate::bundle::{Bundle, text};
use crate::{rounds, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("robust::create killed at any moment", || killed("create")),
        test("robust::start killed at any moment", || killed("start")),
        test("robust::delete killed at any moment", || killed("delete")),
        test("robust::exec killed at any moment", || killed("exec")),
    ]
}

/// The commands up to the one that is killed.
fn before(step: &str) -> &'static [&'static str] {
    match step {
        "create" => &[],
        "start" => &["create"],
        _ => &["create", "start"],
    }
}

fn words<'a>(step: &'a str, dir: &'a str, id: &'a str) -> Vec<&'a str> {
    match step {
        "create" => vec!["create", "--bundle", dir, id],
        "delete" => vec!["delete", "--force", id],
        "exec" => vec!["exec", id, "/bin/true"],
        other => vec![other, id],
    }
}

/// A bundle as far as the step needs it.
fn prepared(step: &str) -> Result<(Bundle, String)> {
    let bundle = Bundle::sh("robust", "while :; do sleep 1; done")?;
    let dir = bundle.path("").display().to_string();
    for earlier in before(step) {
        let id = bundle.id.clone();
        let mut command = bundle.command(&[], &words(earlier, &dir, &id))?;
        let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
        ensure!(status.success(), "{earlier}: {status}");
    }
    Ok((bundle, dir))
}

/// It runs, another process can join it, and of the one that was cut off nothing is left in it.
fn alone(bundle: &Bundle, id: &str) -> Result<()> {
    let again = bundle.oci(&["exec", id, "/bin/echo", "another"])?;
    ensure!(text(&again).contains("another"), "exec: {}", text(&again));
    let state: serde_json::Value = serde_json::from_slice(&bundle.oci(&["state", id])?.stdout)?;
    ensure!(state["status"] == "running", "{state}");
    let pid = state["pid"].as_i64().unwrap_or_default();
    let begun = Instant::now();
    loop {
        let all = bundle.oci(&["ps", "--format", "json", id])?;
        let all: Vec<i64> = serde_json::from_slice(&all.stdout)?;
        // The first process and what it started itself.
        let status = |pid: i64| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own = |p: &i64| *p == pid || status(*p).contains(&format!("PPid:\t{pid}\n"));
        let strange: Vec<i64> = all.iter().copied().filter(|p| !own(p)).collect();
        if strange.is_empty() {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(5),
            "left in it: {strange:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn killed(step: &str) -> Result<()> {
    let clean = Snapshot::take()?;
    // How long it takes undisturbed: the middle one of five. The longest may have met something that no later one does.
    let mut times = Vec::new();
    for _ in 0..5 {
        let (bundle, dir) = prepared(step)?;
        let id = bundle.id.clone();
        let begun = Instant::now();
        let mut command = bundle.command(&[], &words(step, &dir, &id))?;
        let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
        ensure!(status.success(), "{step}: {status}");
        times.push(begun.elapsed());
    }
    times.sort();
    let usual = times[times.len() / 2];
    let moments = rounds(if step == "exec" { 20 } else { 40 });
    let (mut cut, mut ended) = (0, 0);
    for moment in 0..moments {
        let (bundle, dir) = prepared(step)?;
        let id = bundle.id.clone();
        let mut command = bundle.command(&[], &words(step, &dir, &id))?;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(usual.mul_f64(moment as f64 / moments as f64));
        let _ = child.kill();
        match child.wait()?.success() {
            true => ended += 1,
            false => cut += 1,
        }
        if step == "exec" {
            alone(&bundle, &id)
                .map_err(|e| e.context(format!("exec killed at {moment}/{moments} of {usual:?}")))?;
        }
        let freed = bundle.oci(&["delete", "--force", &id])?;
        let gone = text(&freed);
        ensure!(
            freed.status.success() || gone.contains("does not exist"),
            "{step} killed at {moment}/{moments} of {usual:?}: delete --force: {gone}"
        );
        let state = bundle.oci(&["state", &id])?;
        ensure!(
            !state.status.success(),
            "{step} killed at {moment}/{moments}: there is still a state: {}",
            text(&state)
        );
        drop(bundle);
        clean
            .nothing_left()
            .map_err(|e| e.context(format!("{step} killed at {moment}/{moments} of {usual:?}")))?;
    }
    ensure!(
        cut > moments / 4,
        "{cut} were killed on the way, {ended} ended first: this shows little"
    );
    Ok(())
}
