//! `berth node check`, `tune` and `cmdline` on real kernels: tuned, checked, put back bit for bit, also after a kill between
//! any two steps. A snapshot has every file that is touched, and policy and CPUs of every thread of the kernel (of an
//! interrupt's thread, the interrupt's).

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::{Value, json};

use crate::boots::Guest;
use crate::lanes::Trial;

/// Every knob this kernel has, on CPUs 2-3.
const WHOLE: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: guest}
spec:
  cpus: {housekeeping: "0-1", isolated: "2-3"}
  hints: {realTime: true, highPowerConsumption: true}
  realtime: {fairServer: off, kernel: true, priorities: {irqThreads: 55}}
  hugepages: {pages: [{size: 2M, count: 4, node: 0}, {size: 2M, count: 2, node: 1}]}
"#;

/// One of each kind of write: files with one word, a mask and a count, a policy, a thread's CPUs.
const SMALL: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: guest}
spec:
  realtime: {throttling: off, priorities: {ksoftirqd: 2}}
  memory: {swappiness: 5}
  hugepages: {pages: [{size: 2M, count: 3}]}
  workqueues: {writeback: "0-1"}
"#;

/// What `tune` may touch, as it is: sorted lines of a path or a thread and its value. Workers come and go by themselves.
const SNAPSHOT: &str = r#"
snapshot() {
  for f in /proc/sys/kernel/sched_rt_runtime_us /proc/sys/kernel/timer_migration /proc/sys/kernel/*watchdog* \
    /proc/sys/kernel/hung_task_timeout_secs /proc/sys/vm/stat_interval /proc/sys/vm/swappiness /proc/sys/vm/dirty_* \
    /proc/sys/net/core/rps_default_mask /proc/sys/net/core/busy_* /proc/irq/default_smp_affinity /proc/irq/*/smp_affinity \
    /sys/devices/virtual/workqueue/cpumask* /sys/bus/workqueue/devices/writeback/cpumask /sys/kernel/mm/ksm/run \
    /sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/mm/hugepages/*/nr_hugepages \
    /sys/devices/system/node/node*/hugepages/*/nr_hugepages /sys/devices/system/cpu/cpu*/online \
    /sys/devices/system/cpu/cpu*/power/pm_qos_resume_latency_us /sys/devices/system/machinecheck/*/ignore_ce \
    /sys/class/net/*/queues/*/rps_cpus /sys/kernel/debug/sched/preempt /sys/kernel/debug/sched/fair_server/*/runtime; do
    [ -f $f ] && echo "$f $(cat $f 2>/dev/null)"
  done
  for p in /proc/[0-9]*; do
    read -r stat <$p/stat || continue
    case $stat in *"(kworker"*) continue ;; esac
    # The thread of an interrupt follows it, and on which of its CPUs that is delivered the kernel chooses anew.
    case $stat in *"(irq/"*) cpus=interrupt ;; *) cpus=$(sed -n 's/^Cpus_allowed_list:.//p' $p/status) ;; esac
    set -- ${stat##*) }
    [ $2 = 2 ] && echo "${p#/proc/} ${17} ${38} ${39} $cpus"
  done 2>/dev/null
  true
}
"#;

/// In one guest the sweep of kills too: it takes longest.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    let mut tests = without_sweep(guest);
    tests.push(guest.test("a network card's channels are set, and put back", channels));
    tests.push(guest.test("killed between any two steps, put back bit for bit", killed));
    tests
}

pub(crate) fn without_sweep(guest: &Guest) -> Vec<Trial> {
    let mut tests = short(guest);
    tests.push(guest.test(
        "a write that fails puts everything back and says what helps",
        fails,
    ));
    tests
}

/// Without what x86 alone has.
pub(crate) fn short(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("every item of check is read, or absent with its reason", check),
        guest.test("tuned, checked, and put back bit for bit", whole),
    ]
}

fn prepare(vm: &mut Vm, document: &str) -> Result<()> {
    vm.sh(&format!(
        "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug\ncat >/tmp/node.yaml <<'END'\n{document}\nEND"
    ))
    .map(drop)
}

/// Check as JSON, whatever it answers.
fn findings(vm: &mut Vm) -> Result<Vec<Value>> {
    let (code, text) = vm.run("berth node check --from /tmp/node.yaml -o json")?;
    let checked: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(
        (code == 0) == (checked["ok"] == true),
        "exit {code}, and ok is {}",
        checked["ok"]
    );
    Ok(checked["findings"].as_array().context("no findings")?.clone())
}

fn check(vm: &mut Vm) -> Result<()> {
    prepare(vm, WHOLE)?;
    let all = findings(vm)?;
    ensure!(all.len() > 50, "only {} items", all.len());
    for one in &all {
        let named = one["actual"].is_string() || one["reason"].is_string() || one["state"] == "pendingBoot";
        ensure!(named, "neither read nor a reason: {one}");
        let amiss =
            !["ok", "absent", "kept", "untilBoot"].contains(&one["state"].as_str().unwrap_or_default());
        ensure!(
            !amiss || one["mend"].is_string(),
            "nothing says how to mend: {one}"
        );
    }
    let state = |knob: &str| -> Vec<&str> {
        let of = all.iter().filter(|one| one["knob"] == knob);
        of.filter_map(|one| one["state"].as_str()).collect()
    };
    ensure!(
        state("realtime-kernel") == ["ok"],
        "the kernel: {:?}",
        state("realtime-kernel")
    );
    ensure!(
        state("numa-balancing") == ["absent"],
        "numa_balancing: {:?}",
        state("numa-balancing")
    );
    ensure!(
        state("governor").iter().all(|state| *state == "absent"),
        "cpufreq: {:?}",
        state("governor")
    );
    ensure!(
        state("rt-throttling") == ["differs"],
        "throttling: {:?}",
        state("rt-throttling")
    );
    Ok(())
}

fn whole(vm: &mut Vm) -> Result<()> {
    prepare(vm, WHOLE)?;
    vm.sh(&format!("{SNAPSHOT}\nsnapshot >/tmp/before"))?;
    let (code, said) = vm.run("berth node tune --from /tmp/node.yaml")?;
    ensure!(code == 0, "exit {code}: {said}");
    let all = findings(vm)?;
    let left: Vec<&Value> = all
        .iter()
        .filter(|one| {
            one["when"] == "runTime"
                && !["ok", "absent", "kept"].contains(&one["state"].as_str().unwrap_or_default())
        })
        .collect();
    ensure!(left.is_empty(), "not clean after tune: {left:#?}");
    // Not check's own word alone.
    let seen = vm.sh(
        "cat /proc/sys/kernel/sched_rt_runtime_us /sys/bus/workqueue/devices/writeback/cpumask /proc/irq/default_smp_affinity \
         /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages /sys/devices/system/cpu/cpu3/power/pm_qos_resume_latency_us; \
         p=$(grep -l '^ksoftirqd/3$' /proc/[0-9]*/comm | cut -d/ -f3); sed 's/.*) //' /proc/$p/stat | cut -d' ' -f38,39",
    )?;
    ensure!(seen == "-1\n3\n3\n4\n3\n11 1\n", "the kernel says {seen:?}");
    vm.sh(&format!(
        "{SNAPSHOT}\nsnapshot >/tmp/tuned; ! cmp -s /tmp/before /tmp/tuned"
    ))?;
    vm.sh("berth node tune --undo")?;
    same(vm, "undo")?;
    vm.sh("test ! -e /run/berth/node-tune.journal")?;
    // What only a boot mends is told by cmdline, and what this kernel was booted with is not pending.
    let line = vm.sh("berth node cmdline --from /tmp/node.yaml --for plain")?;
    let x86 = vm.sh("uname -m")?.trim() == "x86_64";
    ensure!(
        line.split_whitespace().any(|word| word == "idle=poll") == x86,
        "idle=poll is x86's alone: {line}"
    );
    for argument in [
        "nohz_full=2-3",
        "rcu_nocbs=2-3",
        "isolcpus=managed_irq,2-3",
        "irqaffinity=0-1",
    ] {
        ensure!(
            line.split_whitespace().any(|word| word == argument),
            "{argument} is not in {line}"
        );
    }
    let table = vm.sh("berth node cmdline --from /tmp/node.yaml; cat /proc/cmdline")?;
    let booted = table
        .lines()
        .last()
        .is_some_and(|line| line.contains("nohz_full=2-3"));
    let told = table
        .lines()
        .find(|line| line.starts_with("nohz_full=2-3"))
        .context("no nohz_full")?;
    ensure!(told.contains("in force") == booted, "{told}");
    Ok(())
}

fn same(vm: &mut Vm, after: &str) -> Result<()> {
    let (code, difference) = vm.run(&format!(
        "{SNAPSHOT}\nsnapshot >/tmp/after; diff /tmp/before /tmp/after"
    ))?;
    ensure!(code == 0, "not as before after {after}:\n{difference}");
    Ok(())
}

/// Pages larger than a memory node of the guest: the kernel takes the write and finds none, and looks for none.
fn fails(vm: &mut Vm) -> Result<()> {
    let document = SMALL.replace("{size: 2M, count: 3}", "{size: 1G, count: 3}");
    prepare(vm, &document)?;
    vm.sh(&format!("{SNAPSHOT}\nsnapshot >/tmp/before"))?;
    let (code, said) = vm.run("berth node tune --from /tmp/node.yaml")?;
    ensure!(code == 1, "exit {code}: {said}");
    for part in [
        "hugepages-1048576kB/nr_hugepages",
        "cannot be set to `3`",
        "put back",
        "hugepagesz=SIZE hugepages=COUNT",
    ] {
        ensure!(said.contains(part), "{part:?} is not in {said}");
    }
    same(vm, "a tune that failed")?;
    prepare(vm, &SMALL.replace("size: 2M", "size: 64k"))?;
    let (code, said) = vm.run("berth node tune --from /tmp/node.yaml")?;
    ensure!(
        code == 1 && said.contains("huge pages of 2M"),
        "exit {code}: {said}"
    );
    same(vm, "a tune that was refused")
}

/// As many as there are housekeeping CPUs, of one card.
const CHANNELS: &str = r#"
apiVersion: berth/v1
kind: Node
metadata: {name: guest}
spec:
  cpus: {housekeeping: "0-1", isolated: "2-3"}
  network: {queues: housekeeping, devices: [{interface: NAME}]}
"#;

/// A virtio network card of four channels. Its other end is a tap device of this machine's, without an address and down: QEMU's
/// other ends have one queue. It goes with the card, or with QEMU.
fn channels(vm: &mut Vm) -> Result<()> {
    ensure!(
        std::path::Path::new("/dev/net/tun").exists(),
        "no /dev/net/tun on this machine: modprobe tun"
    );
    let end = json!({"type": "tap", "id": "four", "queues": 4, "script": "no", "downscript": "no"});
    vm.qmp("netdev_add", end)?;
    let card = json!({"id": "four", "bus": "rp0", "netdev": "four", "mq": true, "vectors": 10, "mac": "52:54:00:be:27:44"});
    vm.plug("virtio-net-pci", card)?;
    let path = vm.until(
        "the card is there",
        "grep -l be:27:44 /sys/class/net/*/address",
        crate::devices::LIMIT,
    )?;
    let name = path.split('/').nth(4).context("no name")?.to_owned();
    // The kernel's own count of what is in use.
    let queues = format!("echo $(ls /sys/class/net/{name}/queues)");
    let four = "rx-0 rx-1 rx-2 rx-3 tx-0 tx-1 tx-2 tx-3\n";
    ensure!(vm.sh(&queues)? == four, "before: {}", vm.sh(&queues)?);
    prepare(vm, &CHANNELS.replace("NAME", &name))?;
    let of_run_time = |vm: &mut Vm| -> Result<Vec<Value>> {
        let all = findings(vm)?;
        Ok(all.into_iter().filter(|one| one["when"] == "runTime").collect())
    };
    let state = |all: &[Value]| {
        let found = all.iter().find(|one| one["knob"] == "nic-queues");
        found.map(|one| (one["state"].clone(), one["actual"].clone()))
    };
    let before = of_run_time(vm)?;
    ensure!(
        state(&before) == Some((json!("differs"), json!("4 of at most 4"))),
        "{before:#?}"
    );
    let tried = vm.sh("berth node tune --dry-run --from /tmp/node.yaml")?;
    ensure!(tried.contains(&format!("channels of {name}")), "{tried}");
    ensure!(vm.sh(&queues)? == four, "a dry run changes it");
    vm.sh("berth node tune --from /tmp/node.yaml")?;
    let after = of_run_time(vm)?;
    ensure!(
        state(&after) == Some((json!("ok"), json!("2 of at most 4")))
            && after
                .iter()
                .all(|one| ["ok", "absent", "kept"].contains(&one["state"].as_str().unwrap_or_default())),
        "not clean after tune: {after:#?}"
    );
    let two = vm.sh(&queues)?;
    ensure!(two == "rx-0 rx-1 tx-0 tx-1\n", "the kernel says {two}");
    vm.sh("berth node tune --undo && test ! -e /run/berth/node-tune.journal")?;
    ensure!(vm.sh(&queues)? == four, "after undo: {}", vm.sh(&queues)?);
    vm.unplug_all()?;
    vm.qmp("netdev_del", json!({"id": "four"})).map(drop)
}

/// Each call of `tune` that changes something (SMALL has 8 changes, each with its line in the journal), killed on entry to
/// it: `--undo` puts back what was done, and after some the next `tune` does. Then `--undo`, killed on entry to its second
/// change, and the next that goes on from there, and so on: between each pair of its changes. After each, what SMALL touches
/// is looked at, in few processes.
const SWEEP: &str = r#"
knobs="/proc/sys/kernel/sched_rt_runtime_us /proc/sys/vm/swappiness $(echo /sys/kernel/mm/hugepages/*/nr_hugepages) \
  /sys/bus/workqueue/devices/writeback/cpumask"
threads=$(grep -l '^ksoftirqd' /proc/[0-9]*/comm | sed 's/comm$/stat/')
# Nice, priority, policy.
glance() { cat $knobs; cut -d' ' -f19,40,41 $threads; }
tune="berth node tune --from /tmp/node.yaml"
wrong() { echo "step $step: $*"; cat /tmp/said; exit 3; }
kill_at() {
  n=$1; shift
  berth-kill-at $n "$@" >/tmp/said 2>&1; code=$?
  case $code in 0 | 137) ;; *) wrong "exit $code of $*" ;; esac
}
same() {
  glance >/tmp/after
  cmp -s /tmp/seen /tmp/after || { diff /tmp/seen /tmp/after; wrong "not as before"; }
  [ ! -e /run/berth/node-tune.journal ] || wrong "a journal is left"
}
tuned() { $tune >/tmp/said 2>&1 || wrong "tune after a kill"; glance >/tmp/after; ! cmp -s /tmp/seen /tmp/after || wrong "not tuned"; }
undone() { berth node tune --undo >/tmp/said 2>&1 || wrong "undo"; same; }
glance >/tmp/seen
step=0; code=137
while [ $code = 137 ]; do
  step=$((step + 1)); kill_at $step $tune
  case $code$step in 1374 | 13711 | 13719) tuned ;; esac
  undone
done
tunes=$((step - 1)); step=0; code=137
tuned
while [ $code = 137 ]; do
  step=$((step + 1)); kill_at 2 berth node tune --undo
done
same
echo $tunes $((step - 1))
"#;

fn killed(vm: &mut Vm) -> Result<()> {
    prepare(vm, SMALL)?;
    vm.sh(&format!("{SNAPSHOT}\nsnapshot >/tmp/before"))?;
    let steps = vm.sh(SWEEP)?;
    let steps: Vec<u32> = steps
        .split_ascii_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let [tune, undo] = steps[..] else {
        anyhow::bail!("{steps:?}");
    };
    println!("killed at each of {tune} steps of tune and between each two of {undo} of undo");
    // Journal: header, begin, end; 8 changes with a line each. Undo: 8 changes, and the journal goes.
    ensure!(
        (tune, undo) == (19, 8),
        "steps of tune and undo are {tune} and {undo}"
    );
    same(vm, "all kills")
}
