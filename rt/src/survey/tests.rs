//! Small trees made by hand in the shapes of machines that no guest has: two sockets with SMT, big.LITTLE, cpufreq, cpuidle,
//! resctrl, lockdown. What real kernels answer is shown in guests.

use std::fs;
use std::path::Path;

use super::*;
use crate::show::show;

fn tree(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}

fn cpu(root: &Path, cpu: u32, core: u32, package: u32, siblings: &str) {
    let base = format!("/sys/devices/system/cpu/cpu{cpu}");
    tree(
        root,
        &[
            (&format!("{base}/topology/core_id"), &core.to_string()),
            (
                &format!("{base}/topology/physical_package_id"),
                &package.to_string(),
            ),
            (&format!("{base}/topology/thread_siblings_list"), siblings),
            (&format!("{base}/online"), "1"),
            (&format!("{base}/power/pm_qos_resume_latency_us"), "0"),
        ],
    );
}

/// Two packages of two cores of two threads: cores 0 (0,4), 1 (1,5) on node 0; 2 (2,6), 3 (3,7) on node 1.
fn server() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    for id in 0..8u32 {
        let core = id % 4;
        cpu(at, id, core % 2, core / 2, &format!("{core},{}", core + 4));
        let base = format!("/sys/devices/system/cpu/cpufreq/policy{id}");
        let idle = format!("/sys/devices/system/cpu/cpu{id}/cpuidle");
        let cache = format!("/sys/devices/system/cpu/cpu{id}/cache/index3");
        let package = if core < 2 { "0-1,4-5" } else { "2-3,6-7" };
        tree(
            at,
            &[
                (&format!("{base}/affected_cpus"), &id.to_string()),
                (&format!("{base}/scaling_governor"), "powersave"),
                (
                    &format!("{base}/scaling_available_governors"),
                    "performance powersave",
                ),
                (&format!("{base}/scaling_driver"), "intel_pstate"),
                (&format!("{base}/scaling_min_freq"), "800000"),
                (&format!("{base}/scaling_max_freq"), "3500000"),
                (&format!("{base}/cpuinfo_min_freq"), "800000"),
                (&format!("{base}/cpuinfo_max_freq"), "3500000"),
                (
                    &format!("{base}/energy_performance_preference"),
                    "balance_performance",
                ),
                (
                    &format!("/sys/devices/system/cpu/cpu{id}/power/energy_perf_bias"),
                    "6",
                ),
                (&format!("{idle}/state0/name"), "POLL"),
                (&format!("{idle}/state0/latency"), "0"),
                (&format!("{idle}/state0/disable"), "0"),
                (&format!("{idle}/state1/name"), "C6"),
                (&format!("{idle}/state1/latency"), "133"),
                (&format!("{idle}/state1/disable"), "1"),
                (&format!("{cache}/level"), "3"),
                (&format!("{cache}/type"), "Unified"),
                (&format!("{cache}/size"), "39424K"),
                (&format!("{cache}/shared_cpu_list"), package),
            ],
        );
    }
    tree(
        at,
        &[
            ("/sys/devices/system/cpu/online", "0-7"),
            ("/sys/devices/system/cpu/present", "0-7"),
            ("/sys/devices/system/cpu/isolated", ""),
            ("/sys/devices/system/cpu/smt/control", "on"),
            ("/sys/devices/system/cpu/intel_pstate/min_perf_pct", "22"),
            ("/sys/devices/system/cpu/cpuidle/current_driver", "intel_idle"),
            ("/sys/devices/system/cpu/cpuidle/current_governor", "menu"),
            ("/sys/devices/system/node/online", "0-1"),
            ("/sys/devices/system/node/has_memory", "0-1"),
            ("/sys/devices/system/node/node0/cpulist", "0-1,4-5"),
            ("/sys/devices/system/node/node1/cpulist", "2-3,6-7"),
            ("/sys/devices/system/node/node0/distance", "10 21"),
            (
                "/sys/devices/system/node/node0/meminfo",
                "Node 0 MemTotal:       65536 kB\nNode 0 MemFree:        1024 kB",
            ),
            (
                "/sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages",
                "0",
            ),
            (
                "/sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages",
                "4",
            ),
            ("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "4"),
            ("/sys/devices/cpu/caps/pmu_name", "icelake"),
            (
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                "tsc",
            ),
            ("/sys/fs/resctrl/info/L3/num_closids", "16"),
            ("/sys/fs/resctrl/info/MB/num_closids", "8"),
            (
                "/sys/kernel/security/lockdown",
                "none [integrity] confidentiality",
            ),
            ("/sys/kernel/debug/sched/preempt", "none voluntary (full)"),
            ("/sys/kernel/debug/sched/fair_server/cpu1/runtime", "50000000"),
            ("/sys/kernel/debug/sched/fair_server/cpu1/period", "1000000000"),
            ("/sys/kernel/debug/sched/fair_server/cpu5/runtime", "50000000"),
            ("/sys/kernel/debug/sched/fair_server/cpu5/period", "1000000000"),
            ("/proc/cpuinfo", "vendor_id\t: GenuineIntel\nflags\t\t: fpu tsc"),
            ("/proc/cmdline", "root=/dev/sda1 nohz_full=1"),
            ("/proc/sys/kernel/osrelease", "6.12.0"),
            ("/proc/sys/vm/dirty_ratio", "0"),
            ("/proc/sys/vm/dirty_bytes", "4096000"),
            ("/proc/irq/default_smp_affinity", "ff"),
            ("/proc/irq/30/smp_affinity", "ff"),
            ("/proc/irq/30/effective_affinity_list", "5"),
            ("/proc/irq/30/ens1f0/spurious", "0"),
            ("/sys/class/net/ens1f0/queues/rx-0/rps_cpus", "00"),
            ("/sys/class/net/ens1f0/device/vendor", "0x8086"),
            ("/proc/irq/31/smp_affinity", "01"),
            ("/proc/irq/31/effective_affinity_list", "0"),
            (
                "/proc/interrupts",
                "      CPU0 CPU1\n 30:   5   7  PCI-MSI ens1f0\nLOC: 100 200 Local timer\nERR: 0",
            ),
            (
                "/proc/9/stat",
                "9 (ksoftirqd/1) S 2 0 0 0 -1 69238848 0 0 0 0 0 0 0 0 20 0 1 0 25 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0",
            ),
            ("/proc/9/status", "Name: ksoftirqd/1\nCpus_allowed_list:\t1"),
            (
                "/proc/10/stat",
                "10 (irqbalance) S 1 0 0 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 30 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0",
            ),
        ],
    );
    root
}

/// Four LITTLE cores (0-3) and two big ones (4-5), one frequency policy each, no lockdown, no debugfs, no SMT.
fn board() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    for id in 0..6u32 {
        cpu(at, id, id, 0, &id.to_string());
        let capacity = if id < 4 { "446" } else { "1024" };
        tree(
            at,
            &[(&format!("/sys/devices/system/cpu/cpu{id}/cpu_capacity"), capacity)],
        );
    }
    for (policy, cpus, most) in [(0, "0 1 2 3", "1500000"), (4, "4 5", "2000000")] {
        let base = format!("/sys/devices/system/cpu/cpufreq/policy{policy}");
        tree(
            at,
            &[
                (&format!("{base}/affected_cpus"), cpus),
                (&format!("{base}/scaling_governor"), "schedutil"),
                (
                    &format!("{base}/scaling_available_governors"),
                    "performance schedutil",
                ),
                (&format!("{base}/scaling_driver"), "scmi"),
                (&format!("{base}/scaling_min_freq"), "600000"),
                (&format!("{base}/scaling_max_freq"), most),
                (&format!("{base}/cpuinfo_min_freq"), "600000"),
                (&format!("{base}/cpuinfo_max_freq"), most),
            ],
        );
    }
    tree(
        at,
        &[
            ("/sys/devices/system/cpu/online", "0-5"),
            ("/sys/devices/system/cpu/present", "0-5"),
            ("/sys/kernel/realtime", "1"),
            ("/proc/cpuinfo", "processor\t: 0\nCPU implementer\t: 0x41"),
            ("/proc/cmdline", "console=ttyAMA0"),
            ("/proc/sys/kernel/osrelease", "6.1.90-rt"),
            (
                "/boot/config-6.1.90-rt",
                "CONFIG_PREEMPT_RT=y\n# CONFIG_NO_HZ_FULL is not set\nCONFIG_RCU_NOCB_CPU=y\n# CONFIG_HUGETLBFS is not set",
            ),
            ("/proc/1/comm", "init"),
        ],
    );
    root
}

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

/// One package of four AMD cores whose second threads are off line (SMT off): acpi-cpufreq, acpi_idle with teo, resctrl not mounted.
fn amd() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = root.path();
    for id in 0..8u32 {
        cpu(at, id, id % 4, 0, &format!("{},{}", id % 4, id % 4 + 4));
    }
    for id in 0..4u32 {
        let base = format!("/sys/devices/system/cpu/cpufreq/policy{id}");
        let idle = format!("/sys/devices/system/cpu/cpu{id}/cpuidle");
        let mut files = vec![
            (format!("{base}/affected_cpus"), id.to_string()),
            (format!("{base}/scaling_governor"), "ondemand".into()),
            (
                format!("{base}/scaling_available_governors"),
                "ondemand performance schedutil".into(),
            ),
            (format!("{base}/scaling_driver"), "acpi-cpufreq".into()),
            (format!("{base}/scaling_min_freq"), "1500000".into()),
            (format!("{base}/scaling_max_freq"), "2800000".into()),
            (format!("{base}/cpuinfo_min_freq"), "1500000".into()),
            (format!("{base}/cpuinfo_max_freq"), "2800000".into()),
        ];
        for (state, name, latency) in [(0, "POLL", "0"), (1, "C1", "1"), (2, "C2", "400")] {
            files.push((format!("{idle}/state{state}/name"), name.into()));
            files.push((format!("{idle}/state{state}/latency"), latency.into()));
            files.push((format!("{idle}/state{state}/disable"), "0".into()));
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        tree(at, &files);
    }
    for id in 4..8 {
        tree(at, &[(&format!("/sys/devices/system/cpu/cpu{id}/online"), "0")]);
    }
    tree(
        at,
        &[
            ("/sys/devices/system/cpu/online", "0-3"),
            ("/sys/devices/system/cpu/present", "0-7"),
            ("/sys/devices/system/cpu/smt/control", "off"),
            ("/sys/devices/system/cpu/cpuidle/current_driver", "acpi_idle"),
            ("/sys/devices/system/cpu/cpuidle/current_governor_ro", "teo"),
            ("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t\t: fpu tsc"),
            ("/proc/cmdline", "root=/dev/sda1"),
            ("/proc/sys/kernel/osrelease", "6.12.0"),
        ],
    );
    fs::create_dir_all(at.join("sys/fs/resctrl")).unwrap();
    root
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

/// A node with cgroup v1: a service with a thread that keeps to CPU 0, a thread of the kernel's, a container manager's folder
/// with one container that was given CPU 2, and one that nobody narrowed.
fn with_v1() -> tempfile::TempDir {
    let root = board();
    let cpuset = "/sys/fs/cgroup/cpuset";
    let stat = |name: &str, flags: u64| {
        format!(
            "1 ({name}) S 1 0 0 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 30 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0"
        )
    };
    let mut files: Vec<(String, String)> = vec![
        (
            "/proc/self/mountinfo".into(),
            format!("30 25 0:26 / {cpuset} rw shared:9 - cgroup cgroup rw,cpuset"),
        ),
        ("/proc/900/stat".into(), stat("service", 0)),
        ("/proc/900/status".into(), "Cpus_allowed_list:\t0".into()),
        ("/proc/901/stat".into(), stat("kthread", 0x0020_0000)),
        ("/proc/901/status".into(), "Cpus_allowed_list:\t0-5".into()),
    ];
    for (folder, cpus, balance, tasks) in [
        ("", "0-5", "1", "900\n901"),
        ("/docker", "0-5", "1", ""),
        ("/docker/own", "4", "1", "77"),
        ("/docker/wide", "0-5", "1", "78\n79"),
        ("/system", "0-3", "1", "80"),
    ] {
        for (file, text) in [
            ("cpuset.cpus", cpus),
            ("cpuset.mems", "0"),
            ("cpuset.sched_load_balance", balance),
            ("tasks", tasks),
        ] {
            files.push((format!("{cpuset}{folder}/{file}"), text.into()));
        }
    }
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    tree(root.path(), &files);
    root
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
