//! The worker as its users see it: what it prints, and how it ends.
#![allow(clippy::unwrap_used)] // A test says what it expects by failing.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_device-worker"));
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(args: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let output = start(args).wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    (
        output.status.code(),
        lines,
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn kill(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([signal, &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn it_counts_cycles_and_ends_by_itself() {
    let (code, lines, _) = run(&["--period", "1ms", "--cycles", "50", "--exit-code", "7"]);
    assert_eq!(code, Some(7));
    assert_eq!(lines[0]["event"], "start");
    let end = lines.last().unwrap();
    assert_eq!(
        (&end["event"], end["cycles"].as_u64()),
        (&Value::from("end"), Some(50))
    );
    let latency = &end["latencyUs"];
    let of = |name: &str| latency[name].as_u64().unwrap();
    assert!(
        of("min") <= of("median") && of("median") <= of("p99") && of("p99") <= of("max"),
        "{latency}"
    );
    assert!(end["uptimeMs"].as_u64().unwrap() >= 50);
    let scheduling = &end["scheduling"];
    assert_eq!(scheduling["policy"], "other");
    assert!(scheduling["timerSlackNs"].as_u64().unwrap() > 0);
}

#[test]
fn it_says_the_policy_and_cores_the_kernel_gave_it() {
    let worker = env!("CARGO_BIN_EXE_device-worker");
    let output = Command::new("taskset")
        .args(["-c", "0", "chrt", "--batch", "0", worker, "--cycles", "1"])
        .output();
    let end = String::from_utf8(output.unwrap().stdout).unwrap();
    let end: Value = serde_json::from_str(end.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&end["scheduling"]["policy"], &end["scheduling"]["cpus"]),
        (&"batch".into(), &"0".into())
    );
}

#[test]
fn it_ends_with_0_on_sigterm_after_a_last_line() {
    let mut child = start(&[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("\"start\""));
    kill(&child, "-TERM");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(
        rest.lines().last().unwrap().contains("\"event\":\"end\""),
        "{rest}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_reports_once_a_second_and_can_ignore_sigterm() {
    let mut child = start(&["--ignore-term"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"start\""));
    kill(&child, "-TERM");
    let report: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(report["event"], "report");
    assert!(report["cycles"].as_u64().unwrap() > 0);
    kill(&child, "-KILL");
    assert_eq!(child.wait().unwrap().code(), None);
}

#[test]
fn it_reads_the_device_it_is_given_and_says_why_it_cannot() {
    let (_, lines, _) = run(&["--device", "/dev/zero", "--cycles", "5"]);
    let device = &lines.last().unwrap()["device"];
    assert_eq!(
        (&device["kind"], &device["number"], &device["open"]),
        (&"char".into(), &"1:5".into(), &true.into())
    );
    assert!(device["bytes"].as_u64().unwrap() >= 4096);
    let (code, lines, _) = run(&["--device", "/no/device", "--cycles", "5"]);
    let device = &lines.last().unwrap()["device"];
    assert_eq!((code, &device["open"]), (Some(0), &false.into()));
    assert!(device["problem"].as_str().unwrap().contains("No such file"));
    let (_, lines, _) = run(&["--device", "/etc/hostname", "--cycles", "1"]);
    assert_eq!(lines[0]["device"]["problem"], "no device node");
}

#[test]
fn it_looks_at_an_interface_and_says_what_it_may_not() {
    let (_, lines, _) = run(&["--interface", "lo", "--cycles", "3"]);
    assert!(lines[0]["device"]["up"].is_boolean(), "{}", lines[0]);
    let (code, lines, _) = run(&["--interface", "no-such-0", "--cycles", "3"]);
    assert_eq!(code, Some(0));
    assert!(
        lines[0]["device"]["problem"]
            .as_str()
            .unwrap()
            .contains("interface state")
    );
    // Without CAP_NET_RAW the state is still there.
    let worker = env!("CARGO_BIN_EXE_device-worker");
    let output = Command::new("setpriv")
        .args([
            "--bounding-set=-net_raw",
            "--inh-caps=-all",
            worker,
            "--interface",
            "lo",
            "--cycles",
            "3",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let start: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(start["device"]["up"].is_boolean());
    assert!(
        start["device"]["problem"]
            .as_str()
            .unwrap()
            .contains("raw socket"),
        "{start}"
    );
}

#[test]
fn a_wrong_argument_is_wrong_usage() {
    let (code, lines, error) = run(&["--period", "0ms"]);
    assert_eq!((code, lines.len()), (Some(2), 0));
    assert!(error.contains("--period") && error.contains("usage:"));
}
