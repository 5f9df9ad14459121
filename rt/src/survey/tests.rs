//! Small trees made by hand in the shapes of machines that no guest has: two sockets with SMT, big.LITTLE, cpufreq, cpuidle,
//! resctrl, lockdown. What real kernels answer is shown in guests.

use std::path::Path;

use super::machines::{amd, board, server, tree, with_v1};
use super::*;
use crate::show::show;

fn look(root: &Path, json: &str) -> Vec<Finding> {
    let machine = Machine::new(root);
    let topology = machine.topology().unwrap();
    let spec: NodeSpec = serde_json::from_str(json).unwrap();
    assert_eq!(spec.validate(Some(&topology)), [], "{json}");
    survey(&Context {
        machine: &machine,
        topology: &topology,
        spec: &spec.effective(),
        kept: &[],
        cpuset: None,
    })
}

fn of<'a>(findings: &'a [Finding], knob: &str) -> Vec<&'a Finding> {
    findings.iter().filter(|finding| finding.knob == knob).collect()
}

#[test]
fn a_server_with_smt_and_two_sockets() {
    let root = server();
    let findings = look(
        root.path(),
        r#"{"cpus":{"housekeeping":"0,2-4,6-7","isolated":"1,5"},"hints":{"realTime":true},
            "frequency":{"isolated":{"max":"3GHz"},"housekeeping":{"max":"5GHz"}},"realtime":{"preemption":"full","fairServer":"off"},
            "hugepages":{"pages":[{"size":"1G","count":2,"node":0},{"size":"1G","count":4,"node":1}]}}"#,
    );
    // By CPU and policy: the two threads of the isolated core, and the others.
    let governors = of(&findings, "governor");
    assert_eq!(governors.len(), 8);
    assert!(
        governors
            .iter()
            .all(|finding| finding.state == State::Differs && finding.wanted == "performance")
    );
    let max = of(&findings, "frequency-max");
    let states: Vec<(State, &str)> = max
        .iter()
        .map(|finding| (finding.state, finding.wanted.as_str()))
        .collect();
    assert_eq!(
        states
            .iter()
            .filter(|one| **one == (State::Differs, "3000000"))
            .count(),
        2
    );
    let beyond = max.iter().find(|finding| finding.wanted == "5000000").unwrap();
    assert_eq!(beyond.state, State::Missing);
    assert!(beyond.reason.as_ref().unwrap().contains("800000 to 3500000 kHz") && beyond.change.is_none());
    assert_eq!(of(&findings, "resume-latency").len(), 2);
    assert_eq!(of(&findings, "energy-bias").len(), 8);
    // Lockdown: read, and not to be written.
    assert_eq!(of(&findings, "preemption")[0].state, State::Ok);
    let fair = of(&findings, "fair-server");
    assert_eq!(fair.len(), 2);
    for finding in fair {
        assert_eq!(finding.state, State::Refused);
        assert!(
            finding.change.is_none()
                && finding
                    .reason
                    .as_ref()
                    .unwrap()
                    .contains("locked down (integrity)")
        );
    }
    // Pages of each node by themselves.
    let pages: Vec<State> = of(&findings, "hugepages")
        .iter()
        .map(|finding| finding.state)
        .collect();
    assert_eq!(pages[..2], [State::Differs, State::Ok]);
    // Interrupts: one may be anywhere and is on the isolated core; one is where it should be.
    let irqs = of(&findings, "irq-affinity");
    assert_eq!((irqs[0].state, irqs[1].state), (State::Differs, State::Ok));
    assert_eq!(irqs[0].change.as_ref().unwrap().value, "000000dd");
    assert!(irqs[0].actual.as_ref().unwrap().contains("ens1f0"));
    assert_eq!(of(&findings, "irqbalance")[0].state, State::Refused);
    assert_eq!(of(&findings, "ksoftirqd-priority")[0].state, State::Differs);
    // Bytes are set, and writing the ratio would lose them: undo writes the bytes.
    let dirty = of(&findings, "dirty-ratio")[0].change.as_ref().unwrap();
    assert_eq!(dirty.restore[0].0.to_string(), "/proc/sys/vm/dirty_bytes");
    assert_eq!(dirty.restore[0].1, "4096000");
    // Another value on the command line, and the driver by generation.
    let told = findings
        .iter()
        .find(|finding| finding.wanted == "nohz_full=1,5")
        .unwrap();
    assert_eq!(
        (told.state, told.actual.as_deref()),
        (State::PendingBoot, Some("nohz_full=1"))
    );
    for finding in &findings {
        assert!(
            finding.state != State::Absent || finding.reason.is_some(),
            "{finding:?}"
        );
        assert!(!finding.state.is_fault() || finding.mend.is_some(), "{finding:?}");
    }
}

#[test]
fn half_of_an_smt_pair_and_cpus_that_are_not_there_are_refused() {
    let root = server();
    let topology = Machine::new(root.path()).topology().unwrap();
    for (json, path, part) in [
        (
            r#"{"cpus":{"isolated":"1"}}"#,
            "spec.cpus.isolated",
            "threads of one core",
        ),
        (
            r#"{"cpus":{"isolated":"1,5,9"}}"#,
            "spec.cpus.isolated",
            "CPUs 9 are not online",
        ),
        (
            r#"{"cpus":{"isolated":"0-7"}}"#,
            "spec.cpus.housekeeping",
            "no CPU is left",
        ),
        (r#"{"cpus":{"offlined":"9"}}"#, "spec.cpus.offlined", "no CPUs 9"),
        (
            r#"{"watchdogs":{"cpus":"8"}}"#,
            "spec.watchdogs.cpus",
            "CPUs 8 are not online",
        ),
        (
            r#"{"hugepages":{"pages":[{"size":"1G","count":1,"node":2}]}}"#,
            "spec.hugepages.pages[0].node",
            "no memory on node 2",
        ),
    ] {
        let spec: NodeSpec = serde_json::from_str(json).unwrap();
        let problems = spec.validate(Some(&topology));
        assert_eq!(problems.len(), 1, "{json}: {problems:?}");
        assert!(
            problems[0].path == path && problems[0].message.contains(part),
            "{problems:?}"
        );
        assert!(problems[0].hint.is_some(), "{problems:?}");
    }
    // isolcpus= of the boot says otherwise.
    tree(root.path(), &[("/sys/devices/system/cpu/isolated", "0,4")]);
    let topology = Machine::new(root.path()).topology().unwrap();
    let spec: NodeSpec = serde_json::from_str(r#"{"cpus":{"housekeeping":"0,4"}}"#).unwrap();
    let problems = spec.validate(Some(&topology));
    assert!(
        problems[0].message.contains("isolated already")
            && problems[0].hint.as_ref().unwrap().contains("isolcpus=")
    );
}

#[test]
fn a_board_with_big_and_little_cores() {
    let root = board();
    let findings = look(
        root.path(),
        r#"{"cpus":{"housekeeping":"0-3","isolated":"4-5"},"hints":{"realTime":true},"realtime":{"kernel":true,"fairServer":"off","preemption":"full"},
            "frequency":{"isolated":{"min":"2GHz"}},"hugepages":{"pages":[{"size":"2M","count":1}]}}"#,
    );
    assert_eq!(of(&findings, "realtime-kernel")[0].state, State::Ok);
    let governors = of(&findings, "governor");
    assert_eq!(governors.len(), 2);
    assert!(governors[0].interface.contains("policy4") && governors[1].interface.contains("policy0"));
    let min = of(&findings, "frequency-min");
    assert_eq!(
        (min.len(), min[0].wanted.as_str(), min[0].state),
        (1, "2000000", State::Differs)
    );
    // What this kernel was built without is named, with what it costs.
    let tick = findings
        .iter()
        .find(|finding| finding.wanted == "nohz_full=4-5")
        .unwrap();
    assert_eq!(tick.state, State::Missing);
    assert!(
        tick.reason
            .as_ref()
            .unwrap()
            .contains("CONFIG_NO_HZ_FULL: the tick"),
        "{tick:?}"
    );
    let pages = of(&findings, "hugepages")[0];
    assert_eq!(pages.state, State::Missing);
    assert_eq!(
        pages.reason.as_deref(),
        Some("this kernel is built without CONFIG_HUGETLBFS")
    );
    // A kernel without a fair server does what `off` asks for; PREEMPT_RT has no modes to choose.
    assert_eq!(of(&findings, "fair-server")[0].state, State::Absent);
    assert_eq!(of(&findings, "preemption")[0].state, State::Absent);
    assert_eq!(
        of(&findings, "system-affinity")[0].reason.as_deref(),
        Some("process 1 is not systemd but init")
    );
    // No x86 argument for an arm64 board.
    assert!(
        findings
            .iter()
            .all(|finding| !finding.wanted.contains("tsc=") && !finding.wanted.contains("mce="))
    );
}

#[test]
fn a_server_and_a_board_are_shown() {
    let root = server();
    let machine = Machine::new(root.path());
    let shown = show(&machine, &machine.topology().unwrap());
    assert_eq!(shown.smt.as_deref(), Some("on"));
    assert_eq!(shown.caches.len(), 2);
    assert_eq!(shown.caches[0].cpus, "0-1,4-5");
    assert_eq!(shown.resctrl, ["L3", "MB"]);
    assert_eq!(shown.kernel.lockdown.as_deref(), Some("integrity"));
    assert_eq!(shown.kernel.preemption.as_deref(), Some("full"));
    assert_eq!(shown.frequency_driver.as_deref(), Some("intel_pstate"));
    assert_eq!(shown.idle_governor.as_deref(), Some("menu"));
    assert_eq!(shown.cpus[0].idle_states, ["POLL 0us", "!C6 133us"]);
    assert_eq!(shown.cpus[1].frequency_khz, Some((800_000, 3_500_000)));
    assert_eq!(shown.cpus[1].interrupts_handled, Some(207));
    assert_eq!(shown.cpus[5].interrupts, [30]);
    assert_eq!(shown.memory[0].distance, "10 21");
    assert_eq!(
        (shown.memory[0].total_kib, shown.memory[0].free_kib),
        (Some(65536), Some(1024))
    );
    assert_eq!(shown.memory[1].hugepages.get("1G"), Some(&(4, 0)));
    assert_eq!(shown.hypervisor, None);
    let root = board();
    let machine = Machine::new(root.path());
    let shown = show(&machine, &machine.topology().unwrap());
    let capacities: Vec<Option<u32>> = shown.cpus.iter().map(|cpu| cpu.capacity).collect();
    assert_eq!(
        capacities,
        [Some(446), Some(446), Some(446), Some(446), Some(1024), Some(1024)]
    );
    assert!(shown.kernel.realtime && shown.smt.is_none() && shown.resctrl.is_empty());
}

/// A document with every field that there is.
fn every() -> NodeSpec {
    serde_json::from_str(
        r#"{"cpus":{"housekeeping":"0","isolated":"1","shared":"2","offlined":"3","balance":false,"schedLoadBalance":false},
            "realtime":{"budget":"1s","throttling":"off","fairServer":"off","preemption":"full","timerMigration":true,"kernel":true,
              "priorities":{"ksoftirqd":1,"rcuc":1,"ktimers":1,"irqThreads":1,"rcu":1}},
            "hugepages":{"defaultSize":"2M","pages":[{"size":"2M","count":1}]},
            "frequency":{"isolated":{"governor":"a","min":"1GHz","max":"1GHz","energyPreference":"a","energyBias":1},
              "housekeeping":{"governor":"a","min":"1GHz","max":"1GHz","energyPreference":"a","energyBias":1},"driver":"active"},
            "power":{"resumeLatency":"any","maxCState":1,"poll":true,"minPerformance":1},
            "interrupts":{"affinity":"all","threaded":true},
            "network":{"rps":"all","queues":1,"devices":[{"interface":"a"}],"busyPoll":1},
            "memory":{"numaBalancing":true,"transparentHugepages":"never","ksm":true,"statInterval":"1s","swappiness":1,"dirtyRatio":1,"dirtyBackgroundRatio":1},
            "watchdogs":{"nmi":true,"soft":true,"cpus":"all","hungTask":"1s"},
            "workqueues":{"cpus":"all","writeback":"all","threads":"all"},
            "machineCheck":{"enabled":true,"ignoreCorrected":true},
            "kernel":{"arguments":["a"],"pageSize":"4k","iommuPassthrough":true,"trustTsc":true}}"#
            .replace(r#""queues":1"#, r#""queues":"1""#)
            .as_str(),
    )
    .unwrap()
}

/// Each field of a node document that tunes something turns a knob whose entry in the table names that field.
#[test]
fn every_field_has_a_knob_and_every_knob_a_field() {
    let every = every();
    let mut fields = Vec::new();
    fn walk(value: &serde_json::Value, path: String, fields: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                map.iter()
                    .for_each(|(key, value)| walk(value, format!("{path}.{key}"), fields));
            }
            _ => fields.push(path),
        }
    }
    walk(&serde_json::to_value(&every).unwrap(), "spec".into(), &mut fields);
    // These are the placement's, not the kernel's.
    let placement = ["spec.cpus.shared", "spec.realtime.budget"];
    fields.retain(|field| !placement.contains(&field.as_str()));
    let named: std::collections::BTreeSet<&str> =
        TABLE.iter().flat_map(|knob| knob.field.split(", ")).collect();
    for field in &fields {
        assert!(named.contains(field.as_str()), "no knob for {field}");
    }
    for name in named {
        assert!(fields.iter().any(|field| field == name), "no field {name}");
    }
}

#[test]
fn every_knob_of_the_table_is_told() {
    let root = server();
    let machine = Machine::new(root.path());
    let findings = survey(&Context {
        machine: &machine,
        topology: &machine.topology().unwrap(),
        spec: &every(),
        kept: &[],
        cpuset: None,
    });
    for knob in TABLE {
        assert!(
            findings.iter().any(|finding| finding.knob == knob.name),
            "nothing is told of {}",
            knob.name
        );
    }
}

#[test]
fn an_amd_server_with_smt_off_and_another_driver() {
    let root = amd();
    let findings = look(
        root.path(),
        r#"{"cpus":{"housekeeping":"0","isolated":"1-3"},"power":{"minPerformance":100,"resumeLatency":"3us"},
            "frequency":{"driver":"passive","isolated":{"governor":"performance","energyPreference":"performance","min":"2GHz"}}}"#,
    );
    let states = |knob: &str| of(&findings, knob).iter().map(|f| f.state).collect::<Vec<_>>();
    // acpi-cpufreq has governors and limits, and neither a preference nor a least performance.
    assert_eq!(states("governor"), [State::Differs; 3]);
    assert_eq!(states("frequency-min"), [State::Differs; 3]);
    assert_eq!(states("energy-preference"), [State::Absent; 3]);
    assert_eq!(states("min-performance"), [State::Absent]);
    assert_eq!(states("resume-latency"), [State::Differs; 3]);
    let driver = of(&findings, "pstate-driver");
    assert!(
        driver
            .iter()
            .any(|f| f.state.is_fault() && f.wanted.contains("amd_pstate=passive")),
        "{driver:?}"
    );
    let machine = Machine::new(root.path());
    let topology = machine.topology().unwrap();
    let shown = show(&machine, &topology);
    assert_eq!(
        (shown.smt.as_deref(), shown.frequency_driver.as_deref()),
        (Some("off"), Some("acpi-cpufreq"))
    );
    assert_eq!(
        (shown.idle_driver.as_deref(), shown.idle_governor.as_deref()),
        (Some("acpi_idle"), Some("teo"))
    );
    assert_eq!(shown.cpus[1].idle_states, ["POLL 0us", "C1 1us", "C2 400us"]);
    assert_eq!(shown.cpus.len(), 4, "the second threads are off line");
    assert!(shown.resctrl.is_empty());
    // With its second thread off line a CPU is a whole core; the second thread itself cannot be given.
    let spec = |json: &str| serde_json::from_str::<NodeSpec>(json).unwrap();
    let off = spec(r#"{"cpus":{"isolated":"1,5"}}"#).validate(Some(&topology));
    assert!(off[0].message.contains("CPUs 5 are not online"), "{off:?}");
}

#[test]
fn a_v1_node_gives_up_balancing_with_consent_alone() {
    let root = with_v1();
    let cpus = r#""housekeeping":"0-3","isolated":"4-5""#;
    let without = look(root.path(), &format!(r#"{{"cpus":{{{cpus}}}}}"#));
    assert!(
        without.iter().all(|f| f.field != "spec.cpus.schedLoadBalance"),
        "{without:?}"
    );
    let with = look(
        root.path(),
        &format!(r#"{{"cpus":{{{cpus},"schedLoadBalance":false}}}}"#),
    );
    let house = of(&with, "cpuset-housekeeping");
    let told: Vec<(&str, &str)> = house
        .iter()
        .map(|f| (f.interface.as_str(), f.wanted.as_str()))
        .collect();
    let top = "/sys/fs/cgroup/cpuset";
    assert_eq!(
        told,
        [
            ("/sys/fs/cgroup/cpuset/berth-housekeeping", "cpus 0-3 mems 0"),
            ("cpuset of service (pid 900)", "berth-housekeeping"),
        ],
        "the kernel's thread stays"
    );
    // Back to the root, and to the CPUs that it had.
    let restore = &house[1].change.as_ref().unwrap().restore;
    assert_eq!((restore[0].1.as_str(), restore[1].1.as_str()), ("/", "0"));
    let balance = of(&with, "sched-load-balance");
    let told: Vec<(String, State)> = balance
        .iter()
        .map(|f| (f.interface.replace(top, ""), f.state))
        .collect();
    let file = "cpuset.sched_load_balance";
    assert_eq!(
        told,
        [
            (format!("/docker/{file}"), State::Differs),
            (format!("/docker/wide/{file}"), State::Refused),
            (format!("/{file}"), State::Differs),
        ],
        "the root comes last; a cpuset of isolated CPUs alone, or of none, may balance"
    );
    assert!(
        balance[1]
            .mend
            .as_ref()
            .unwrap()
            .contains("echo 0-3 > /sys/fs/cgroup/cpuset/docker/wide/cpuset.cpus")
    );
    // Without cgroup v1 there is nothing to do.
    let v2 = board();
    let none = look(
        v2.path(),
        &format!(r#"{{"cpus":{{{cpus},"schedLoadBalance":false}}}}"#),
    );
    assert!(
        of(&none, "sched-load-balance")
            .iter()
            .all(|f| f.state == State::Absent)
    );
}
