//! Scheduling policies as the kernel has them, and its refusals: on a node without isolcpus, and on PREEMPT_RT 6.1,
//! which has neither remote partitions nor overlayfs with a parameter for each layer.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use crate::boots::Guest;
use crate::devices::LIMIT;
use crate::lanes::Trial;
use crate::on_guest;

/// A guest whose kernel makes remote partitions, booted without isolcpus.
pub(crate) fn partitions(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("fifo, rr and deadline in a partition of their own", |vm| {
            on_guest::agent(vm)?;
            for (policy, kernel) in [
                ("policy: fifo, priority: 50", "50 1"),
                ("policy: rr, priority: 20", "20 2"),
                (DEADLINE, "0 6"),
            ] {
                policy_is(vm, policy, "required", kernel, Some("isolated"))?;
            }
            let after = vm.sh("cat /sys/fs/cgroup/cpuset.cpus.effective; sed -n 's/^Cpus_allowed_list:\\t//p' /proc/1/status")?;
            ensure!(after == "0-3\n0-3\n", "effective CPUs of the root and of PID 1 are {after}");
            Ok(())
        }),
        guest.test("a FIFO container replaced on its cores, again and again", replaced),
        guest.test("a probe counts wake-ups in the partition, below the workload", probed),
        guest.test("kernel threads that a hog keeps off its core are named", hog),
        guest.test("deadline beyond what the root domain has is refused", refused_bandwidth),
    ]
}

/// A guest with PREEMPT_RT 6.1 and isolcpus.
pub(crate) fn before_remote(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("fifo and rr in partitions below a partition, deadline refused", |vm| {
            on_guest::agent(vm)?;
            policy_is(vm, "policy: fifo, priority: 50", "required", "50 1", Some("isolated"))?;
            policy_is(vm, "policy: rr, priority: 20", "any", "20 2", Some("isolated"))?;
            given_back(vm)?;
            // CPUs of isolcpus= are in no scheduling domain, whatever partition they are in.
            let yaml = node_and_loop(DEADLINE, "required");
            on_guest::apply(vm, &yaml)?;
            vm.until("deadline is refused", "berth events | grep launch-failed | grep SCHED_DEADLINE | grep -q isolcpus=", LIMIT)?;
            on_guest::delete(vm, &yaml)?;
            on_guest::gone(vm, "loop")?;
            given_back(vm)
        }),
        guest.test("partitions side by side, one made invalid by a sibling, and put right", sibling),
        guest.test("a writable root file system", |vm| {
            let yaml = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: writes}\nspec:\n  image: berth-sample-busybox:latest\n  \
                        command: [\"/bin/sh\", \"-c\", \"echo x >/written && echo wrote && sleep 1000\"]\n  profile: system\n  cpus: shared\n";
            on_guest::apply(vm, yaml)?;
            let name = on_guest::running(vm, "writes")?;
            vm.until("it has written", &format!("berth logs {name} | grep wrote"), LIMIT)?;
            on_guest::delete(vm, yaml)?;
            on_guest::gone(vm, "writes")
        }),
    ]
}

/// `restart` answers when the new one runs: by then the old one's cores were free, and what the new one proved was read at
/// its exec stop.
const REPLACE: &str = r#"
look() {
  berth ps -o json | tr -d ' \n' >/tmp/ps
  pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' /tmp/ps); cpus=$(sed 's/.*"cpus":"\([^"]*\)".*/\1/' /tmp/ps)
  part=$(cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)/cpuset.cpus.partition)
  is="$cpus $(sed 's/.*) //' /proc/$pid/stat | cut -d' ' -f38,39) $part"
}
look; before=$pid; first=$is
for n in $rounds; do
  berth restart loop >/tmp/said 2>&1 || { echo "replacement $n:"; cat /tmp/said; berth events | tail -n 20; exit 1; }
  look
  [ $pid != $before ] && [ "$is" = "$first" ] || { echo "replacement $n: $before $first, then $pid $is"; exit 1; }
  before=$pid
done
case $is in *" 50 1 isolated") ;; *) echo "is $is"; exit 1 ;; esac
"#;

/// A FIFO container is replaced again and again on its cores: each time the partition, the policy and the proof are there
/// anew. 20 times in one CI run.
fn replaced(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let yaml = node_and_loop("policy: fifo, priority: 50", "required");
    on_guest::apply(vm, &yaml)?;
    on_guest::running(vm, "loop")?;
    let count = crate::plug::rounds(20);
    for from in (0..count).step_by(40) {
        let to = (from + 40).min(count) - 1;
        vm.sh(&format!("rounds=\"$(seq {from} {to})\"{REPLACE}"))?;
    }
    println!("{count} replacements of a FIFO container on its cores");
    vm.sh("berth prove loop")?;
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")
}

/// Looks at the probe of the container whose first process is $pid: its cgroup's partition, user, CPUs, rt_priority and
/// policy, descriptors.
const PROBE: &str = r#"
group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
probe=$(for p in $(cat $group/cgroup.procs); do grep -q '^berth-probe$' /proc/$p/comm && echo $p; done)
echo $probe; echo $group; cat $group/cpuset.cpus.partition $group/cpuset.cpus.effective
sed -n 's/^\(Uid\|Cpus_allowed_list\|CapEff\):\t//p' /proc/$probe/status
sed 's/.*) //' /proc/$probe/stat | cut -d' ' -f38,39
ls /proc/$probe/fd | wc -l
"#;

/// The probe beside a workload that asks for one: within its partition, on its CPU, one priority below it. It counts while the
/// workload's isolation is proven, and goes with it.
fn probed(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let yaml = node_and_loop("policy: fifo, priority: 50", "required").replace("name: loop", "name: probed")
        + "  wakeups: probe\n";
    on_guest::apply(vm, &yaml)?;
    let container = on_guest::in_phase(vm, "probed", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let name = container["name"].as_str().context("no name")?;
    let cpu = container["cpus"].as_str().context("no CPUs")?;
    // It takes its user and its CPU once it runs.
    vm.until(
        "it samples",
        &format!("pid={pid}{PROBE}[ \"$(awk '/^Uid:/ {{print $2}}' /proc/$probe/status)\" = 65534 ]"),
        LIMIT,
    )?;
    let there = vm.sh(&format!("pid={pid}{PROBE}"))?;
    let lines: Vec<&str> = there.lines().collect();
    let [
        probe,
        group,
        partition,
        cpus,
        user,
        rights,
        on,
        policy,
        descriptors,
    ] = lines[..]
    else {
        anyhow::bail!("{there}");
    };
    ensure!(
        (partition, cpus, policy) == ("isolated", cpu, "49 1"),
        "the workload has CPUs {cpu}; its probe: {there}"
    );
    // It goes from one of its CPUs to the next.
    ensure!(on == "2" || on == "3", "the probe may run on {on}");
    let nobody = "65534\t65534\t65534\t65534";
    ensure!(
        (user, rights, descriptors) == (nobody, "0000000000000000", "0"),
        "{there}"
    );
    let said = vm.sh("berth ps -o json")?;
    ensure!(said.contains("probe, SCHED_FIFO 49"), "{said}");
    let count = "wget -qO- http://127.0.0.1:9464/metrics | \
        sed -n 's/^berth_run_delay_seconds_count{source=\"probe\",workload=\"probed\"} //p'";
    vm.until(
        "it is counted",
        &format!("n=$({count}); [ \"${{n:-0}}\" -gt 10 ]"),
        LIMIT,
    )?;
    let histogram = vm.sh(
        "wget -qO- http://127.0.0.1:9464/metrics | grep '^berth_run_delay_seconds.*workload=\"probed\"'",
    )?;
    ensure!(
        !histogram.contains("schedstat") && histogram.contains("le=\"+Inf\""),
        "{histogram}"
    );
    // Beside it the proof holds, that of the isolation too, and nothing has drifted since.
    let proof = vm.sh(&format!("berth prove {name}"))?;
    ensure!(proof.contains("isolated (remote cpuset partition)"), "{proof}");
    let now = on_guest::in_phase(vm, "probed", "running")?;
    ensure!(
        now["pid"] == pid && now["drift"].as_array().is_none_or(Vec::is_empty),
        "{now}"
    );
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "probed")?;
    vm.sh(&format!(
        "[ ! -e /proc/{probe} ] && [ ! -e {group} ] && ! ls /run/berth/containers/*/wakeups.json 2>/dev/null"
    ))
    .map(drop)
}

/// Nothing is left of the partitions of this kernel.
fn given_back(vm: &mut Vm) -> Result<()> {
    let left = vm.sh(
        "cd /sys/fs/cgroup; cat cpuset.cpus.effective berth.isolated/cpuset.cpus.partition; ls -d berth.isolated/*/ 2>/dev/null; true",
    )?;
    ensure!(
        left == "0-3\nmember\n",
        "effective CPUs, and what is left: {left}"
    );
    Ok(())
}

/// Two containers, each a partition of its own; a cgroup beside them claims the CPU of one.
fn sibling(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let first = node_and_loop("policy: fifo, priority: 50", "required");
    let first = first.replace(
        "isolation: required\n",
        "isolation: required\n  onDrift: repair\n",
    );
    let second = first
        .split_once("---\n")
        .map(|(_, workload)| workload.replace("name: loop", "name: beside"))
        .context("one document")?;
    let both = format!("{first}---\n{second}");
    // One after the other: the second finds a partition whose CPUs are all taken.
    on_guest::apply(vm, &first)?;
    let before = on_guest::running(vm, "loop")?;
    on_guest::apply(vm, &both)?;
    let names = [before, on_guest::running(vm, "beside")?];
    let state = |vm: &mut Vm| {
        vm.sh("cd /sys/fs/cgroup; cat cpuset.cpus.effective berth.isolated/*/cpuset.cpus.partition berth.isolated/*/cpuset.cpus.effective | tr '\\n' ' '")
    };
    let there = state(vm)?;
    ensure!(
        there == "0-1 isolated isolated 2 3 " || there == "0-1 isolated isolated 3 2 ",
        "{there}"
    );
    for name in &names {
        let proof = vm.sh(&format!("berth prove {name}"))?;
        ensure!(proof.contains("isolated (cpuset partition)"), "{proof}");
    }
    noticed(
        vm,
        "mkdir /sys/fs/cgroup/claims && echo 3 >/sys/fs/cgroup/claims/cpuset.cpus",
    )?;
    // The kernel makes the partition above invalid, and does not give it back with the claim: `onDrift: repair` does.
    vm.sh("rmdir /sys/fs/cgroup/claims")?;
    let mended = format!(
        "[ \"$(cat /sys/fs/cgroup/cpuset.cpus.effective)\" = 0-1 ] && berth prove {} >/dev/null && berth prove {} >/dev/null",
        names[0], names[1]
    );
    vm.until("both are isolated again", &mended, LIMIT)?;
    on_guest::delete(vm, &both)?;
    on_guest::gone(vm, "loop")?;
    on_guest::gone(vm, "beside")?;
    given_back(vm)?;
    policy_is(
        vm,
        "policy: fifo, priority: 50",
        "required",
        "50 1",
        Some("isolated"),
    )?;
    given_back(vm)
}

/// Does `claim`, and finds it told as drift of the isolation within 2 s. The guest's clock tells whole seconds.
pub(crate) fn noticed(vm: &mut Vm, claim: &str) -> Result<()> {
    let before = vm.sh("berth events -o json")?;
    let known = drifts(&before)?.len();
    let at: u64 = vm.sh(&format!("date +%s; {claim}"))?.trim().parse()?;
    let more = format!("[ $(berth events -o json | grep -c cpus.isolation) -gt {known} ]");
    vm.until("the lost isolation is told", &more, LIMIT)?;
    let after = vm.sh("berth events -o json")?;
    let told = drifts(&after)?.get(known).copied().context("no event")?;
    let late = told.saturating_sub(at * 1_000_000_000);
    ensure!(
        late <= 3_000_000_000,
        "told {} ms after the second it began in",
        late / 1_000_000
    );
    Ok(())
}

/// When each drift of the isolation was told, in order, nanoseconds since the epoch.
fn drifts(events: &str) -> Result<Vec<u64>> {
    let lines = serde_json::Deserializer::from_str(events).into_iter::<serde_json::Value>();
    let mut found = Vec::new();
    for line in lines {
        let value = line?;
        let all = value.as_array().cloned().unwrap_or_else(|| vec![value]);
        let of = all
            .iter()
            .filter(|e| e["text"].as_str().is_some_and(|t| t.contains("cpus.isolation")));
        found.extend(of.filter_map(|e| e["at"].as_u64()));
    }
    Ok(found)
}

const DEADLINE: &str = "policy: deadline, runtime: 10ms, deadline: 100ms, period: 100ms";

pub(crate) fn node_and_loop(scheduler: &str, isolation: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Node\nmetadata: {{name: guest}}\nspec:\n  cpus: {{housekeeping: \"0-1\", isolated: \"2-3\"}}\n---\n\
         apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: loop}}\nspec:\n  image: berth-sample-worker:latest\n  \
         args: [\"--period\", \"20ms\"]\n  profile: realtime\n  cpus: 1\n  isolation: {isolation}\n  \
         realtime: {{scheduler: {{{scheduler}}}}}\n"
    )
}

/// Runs the loop under `scheduler`: its rt_priority and policy, its partition and its proof.
fn policy_is(
    vm: &mut Vm,
    scheduler: &str,
    isolation: &str,
    kernel: &str,
    partition: Option<&str>,
) -> Result<()> {
    let yaml = node_and_loop(scheduler, isolation);
    on_guest::apply(vm, &yaml)?;
    let container = on_guest::in_phase(vm, "loop", "running")?;
    let pid = container["pid"].as_i64().context("no pid")?;
    let name = container["name"].as_str().context("no name")?;
    let actual = vm.sh(&format!("sed 's/.*) //' /proc/{pid}/stat | cut -d' ' -f38,39"))?;
    ensure!(
        actual.trim() == kernel,
        "{scheduler}: rt_priority and policy are {actual}"
    );
    if let Some(partition) = partition {
        let there = vm.sh(&format!(
            "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)/cpuset.cpus.partition"
        ))?;
        ensure!(there.trim() == partition, "{scheduler}: the partition is {there}");
    }
    vm.sh(&format!("berth prove {name}"))?;
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")
}

/// A container that never sleeps, above the kernel's own real-time threads of its core (rcuc, ktimers: priority 1): they
/// are runnable and do not run, and that is told; it is stopped all the same.
fn hog(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    let yaml = "apiVersion: berth/v1\nkind: Node\nmetadata: {name: guest}\nspec:\n  cpus: {housekeeping: \"0-1\", isolated: \"2-3\"}\n---\n\
                apiVersion: berth/v1\nkind: Workload\nmetadata: {name: hog}\nspec:\n  image: berth-sample-busybox:latest\n  \
                command: [\"/bin/sh\", \"-c\", \"trap '' TERM; while :; do :; done\"]\n  profile: realtime\n  cpus: 1\n  \
                stop: {grace: 1s}\n  realtime: {scheduler: {policy: fifo, priority: 50}}\n";
    on_guest::apply(vm, yaml)?;
    let name = on_guest::running(vm, "hog")?;
    let told = vm.until("it is told", "berth ps | grep 'starves: '", LIMIT)?;
    // The container's cores are 2 and 3, and it runs on either.
    let named = |cpu: u32| {
        told.contains(&format!("/{cpu} (pid ")) && told.contains(&format!("has not run on CPU {cpu} for "))
    };
    ensure!(named(2) || named(3), "{told}");
    let inspected = vm.sh(&format!("berth inspect {name}"))?;
    ensure!(inspected.contains("has not run on CPU"), "{inspected}");
    let events = vm.sh("berth events")?;
    ensure!(
        events.contains("starved") && events.contains("has not run on CPU"),
        "{events}"
    );
    on_guest::delete(vm, yaml)?;
    on_guest::gone(vm, "hog")
}

/// Waits until the loop is given up; why.
fn failed(vm: &mut Vm) -> Result<String> {
    let container = on_guest::in_phase(vm, "loop", "failed")?;
    Ok(container["reason"].as_str().context("no reason")?.to_string())
}

/// The kernel admits 10 % of each CPU, and the loop asks for half of one of two. Isolated CPUs have a root domain of
/// their own, which keeps its limit over the life of a partition: so the limit is set while there is one.
fn refused_bandwidth(vm: &mut Vm) -> Result<()> {
    on_guest::agent(vm)?;
    // Where the kernel's account is.
    vm.sh("mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug")?;
    let first = node_and_loop("policy: fifo, priority: 50", "required");
    on_guest::apply(vm, &first)?;
    on_guest::running(vm, "loop")?;
    vm.sh("echo 100000 >/proc/sys/kernel/sched_rt_runtime_us")?;
    on_guest::delete(vm, &first)?;
    on_guest::gone(vm, "loop")?;
    let yaml = node_and_loop(
        "policy: deadline, runtime: 50ms, deadline: 100ms, period: 100ms",
        "required",
    );
    on_guest::apply(vm, &yaml)?;
    let reason = failed(vm)?;
    for words in [
        "busy",
        "0.500 of a CPU is asked for",
        "of 0.200 that CPUs 2-3 have",
        " free",
    ] {
        ensure!(reason.contains(words), "{words} is not in {reason}");
    }
    on_guest::delete(vm, &yaml)?;
    on_guest::gone(vm, "loop")?;
    let less = node_and_loop(
        "policy: deadline, runtime: 5ms, deadline: 100ms, period: 100ms",
        "required",
    );
    on_guest::apply(vm, &less)?;
    on_guest::running(vm, "loop")?;
    vm.sh("berth prove loop && echo 950000 >/proc/sys/kernel/sched_rt_runtime_us")?;
    on_guest::delete(vm, &less)?;
    on_guest::gone(vm, "loop")
}
