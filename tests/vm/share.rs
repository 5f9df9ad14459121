//! What a workload has of its core beside hogs, measured against what its proof said: SCHED_FIFO below throttling (before
//! Linux 6.12), and beside the fair server (since); SCHED_DEADLINE against its budget.
//!
//! The hogs join the workload's partition before its loop begins: while a FIFO loop fills a core, rcuc and ktimers of that
//! core (FIFO 1 on PREEMPT_RT) do not run, no RCU grace period ends, and who enters a cgroup waits for one. The observer
//! runs on the housekeeping CPUs, and the loop ends by a signal.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;
use crate::realtime::node_and_loop;

/// Seconds of one measurement.
const SPAN: u32 = 4;
/// Percent that the loop is promised: below what it can have, for a guest's timers are late while others have the machine.
const PROMISED: u8 = 60;
/// So often is measured until the loop has what it was promised.
const TRIES: usize = 3;
/// A loop that begins at one signal and ends at the other.
const TURNS: &str =
    "trap 'go=1' USR1; trap 'go=' USR2; while :; do if [ -z \\\"$go\\\" ]; then sleep 0.2; fi; done";

/// A kernel with the fair server.
pub(crate) fn served(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test(
            "hogs beside a FIFO loop: its share is what was said, fair server on and off",
            |vm| {
                // Off while there was no partition yet: once there was one, 6.12 forgets the servers' bandwidth in its
                // account and refuses to lower it (EBUSY), but not to raise it.
                vm.sh("mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug")?;
                let set = |vm: &mut Vm, ns: u32| {
                    vm.sh(&format!(
                        "for d in /sys/kernel/debug/sched/fair_server/cpu[23]; do echo {ns} >$d/runtime; done"
                    ))
                };
                set(vm, 0)?;
                let without = fifo(vm, "at most 100.00 %", 100.0);
                set(vm, 50_000_000)?;
                without?;
                fifo(vm, "the fair server gives SCHED_OTHER 5.00 %", 95.0)
            },
        ),
        guest.test("hogs beside a DEADLINE loop: its budget is what it has", deadline),
    ]
}

/// A kernel that throttles real time.
pub(crate) fn throttled(guest: &Guest) -> Vec<Trial> {
    vec![guest.test(
        "hogs beside a FIFO loop: its share is what was said, throttled",
        |vm| fifo(vm, "sched_rt_runtime_us 950000 of 1000000", 95.0),
    )]
}

/// A workload of shell that promises `realtime`.
fn shell(command: &str, realtime: &str) -> String {
    node_and_loop("policy: fifo, priority: 50", "required")
        .replace("berth-sample-worker:latest", "berth-sample-busybox:latest")
        .replace(
            "args: [\"--period\", \"20ms\"]",
            &format!("command: [\"/bin/sh\", \"-c\", \"{command}\"]"),
        )
        .replace(
            "realtime: {scheduler: {policy: fifo, priority: 50}}",
            &format!("stop: {{signal: SIGKILL, grace: 1s}}\n  {realtime}"),
        )
}

/// Percent of a CPU over the span: of the workload's first process, of a hog of SCHED_OTHER, and of one of SCHED_FIFO 40.
/// All on the first CPU of the workload where it is `bound` there; else a hog of FIFO is on each.
fn beside_hogs(vm: &mut Vm, pid: i64, bound: bool) -> Result<[f64; 3]> {
    let bind = if bound {
        "taskset -pc $c {pid} >/dev/null"
    } else {
        "true"
    }
    .replace("{pid}", &pid.to_string());
    let said = vm.sh(&format!(
        "g=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup); c=$(cat $g/cpuset.cpus.effective); c=${{c%%[-,]*}}\n\
         mkdir -p $g/hog; {bind}\n\
         hog() {{ sh -c \"echo \\$\\$ >$g/hog/cgroup.procs; exec taskset -c $1 $2 sh -c 'while :; do :; done'\" & }}\n\
         hog $c ''; other=$!; sleep 1; hog $c 'chrt -f 40'; fifo=$!; hogs=$other\\ $fifo\n\
         {bound} || {{ hog $((c + 1)) 'chrt -f 40'; hogs=$hogs\\ $!; }}\n\
         sleep 1; grep -q ' 40 1 ' /proc/$fifo/stat || {{ echo no hog of FIFO; cat /proc/$fifo/stat; }}\n\
         kill -USR1 {pid}; sleep 1\n\
         now() {{ read -r up rest </proc/uptime; echo $up $(for p in {pid} $other $fifo; do read -r ran rest </proc/$p/schedstat; echo $ran; done); }}\n\
         now; sleep {SPAN}; now; kill -USR2 {pid}; kill -9 $hogs; wait 2>/dev/null\n\
         for n in 1 2 3 4 5; do rmdir $g/hog && break; sleep 1; done"
    ))?;
    let rows = said.lines().map(|line| -> Vec<f64> {
        let numbers = line.split_ascii_whitespace().map_while(|n| n.parse().ok());
        numbers.collect()
    });
    let rows: Vec<Vec<f64>> = rows.filter(|row| row.len() == 4).collect();
    let [before, after] = &rows[..] else {
        anyhow::bail!("not two readings: {said}");
    };
    ensure!(before.len() == 4 && after.len() == 4, "not two readings: {said}");
    let span = (after[0] - before[0]) * 1e7;
    Ok([1, 2, 3].map(|n| (after[n] - before[n]) / span))
}

/// A FIFO loop with a promised share: its proof says `words` and that it can have `most` percent; beside both hogs it has what
/// was promised, and not more than was said. More than that is refused.
fn fifo(vm: &mut Vm, words: &str, most: f64) -> Result<()> {
    on_guest::agent(vm)?;
    let asked = |share: u8| {
        let realtime =
            format!("realtime: {{class: hard, share: {share}, scheduler: {{policy: fifo, priority: 50}}}}");
        shell(TURNS, &realtime)
    };
    let yaml = asked(PROMISED);
    on_guest::apply(vm, &yaml)?;
    let container = on_guest::in_phase(vm, "loop", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let name = container["name"].as_str().context("no name")?;
    let proof = vm.sh(&format!("berth prove {name}"))?;
    let line = proof.lines().find(|line| line.contains("at most"));
    let line = line.with_context(|| proof.clone())?;
    ensure!(
        line.contains(words) && line.contains(&format!("at most {most:.2} %")),
        "{words}, and {most} % are not in {line}"
    );
    let [had, other, fifo] = until_it_has(vm, f64::from(PROMISED), |vm| beside_hogs(vm, pid, true))?;
    println!(
        "a FIFO loop had {had:.1} % beside hogs of SCHED_OTHER {other:.1} % and FIFO 40 {fifo:.1} %; at most {most} % was said"
    );
    ensure!(
        had >= f64::from(PROMISED) && had <= most + 3.0,
        "of {PROMISED} % promised it had {had:.1} %"
    );
    ensure!(fifo < 1.0, "the hog of a lower priority had {fifo:.1} %");
    if most < 100.0 {
        ensure!(other > 1.0, "SCHED_OTHER had {other:.1} %");
        on_guest::apply(vm, &asked(97))?;
        let refused = "berth events | grep launch-failed | grep -q '97.00 % of each core is asked for, 95.00 % can be had'";
        vm.until("more than that is refused", refused, LIMIT)?;
    } else {
        ensure!(other < 1.0, "SCHED_OTHER had {other:.1} %");
    }
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")
}

/// 30 % of a CPU are promised to a DEADLINE loop, among hogs of FIFO on both CPUs of its partition: it has them, and not more.
fn deadline(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let realtime = "realtime: {class: hard, scheduler: {policy: deadline, runtime: 30ms, deadline: 100ms, period: 100ms}}";
    let yaml = shell("trap : USR1 USR2; while :; do :; done", realtime);
    on_guest::apply(vm, &yaml)?;
    let container = on_guest::in_phase(vm, "loop", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let [had, other, fifo] = until_it_has(vm, 25.0, |vm| beside_hogs(vm, pid, false))?;
    println!(
        "a DEADLINE loop of 30 % had {had:.1} % beside hogs of SCHED_OTHER {other:.1} % and FIFO 40 {fifo:.1} %"
    );
    ensure!((25.0..35.0).contains(&had), "of 30 % it had {had:.1} %");
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")
}

/// Measures until the loop has `least` percent, a few times.
fn until_it_has(vm: &mut Vm, least: f64, measure: impl Fn(&mut Vm) -> Result<[f64; 3]>) -> Result<[f64; 3]> {
    let mut found = measure(vm)?;
    for _ in 1..TRIES {
        if found[0] >= least {
            break;
        }
        println!("had {:.1} %: measured again", found[0]);
        found = measure(vm)?;
    }
    Ok(found)
}
