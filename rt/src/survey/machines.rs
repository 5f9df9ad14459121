//! Trees of /sys and /proc in the shape of machines that no guest has, made by hand.

use std::fs;
use std::path::Path;

pub(super) fn tree(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
}

pub(super) fn cpu(root: &Path, cpu: u32, core: u32, package: u32, siblings: &str) {
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
pub(super) fn server() -> tempfile::TempDir {
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
pub(super) fn board() -> tempfile::TempDir {
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

/// One package of four AMD cores whose second threads are off line (SMT off): acpi-cpufreq, acpi_idle with teo, resctrl not mounted.
pub(super) fn amd() -> tempfile::TempDir {
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

/// A node with cgroup v1: a service with a thread that keeps to CPU 0, a thread of the kernel's, a container manager's folder
/// with one container that was given CPU 2, and one that nobody narrowed.
pub(super) fn with_v1() -> tempfile::TempDir {
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
