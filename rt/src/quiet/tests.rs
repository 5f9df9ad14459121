//! Over trees made by hand in the shape of real machines: files prove what is decided and written, not what a kernel does.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

struct Tree {
    root: TempDir,
    dir: TempDir,
}

impl Tree {
    /// Eight CPUs: two clusters of four with one clock each (big.LITTLE), cpuidle, four interrupts.
    fn board() -> Tree {
        let tree = Tree {
            root: tempfile::tempdir().unwrap(),
            dir: tempfile::tempdir().unwrap(),
        };
        tree.put("/proc/sys/kernel/random/boot_id", "boot-1");
        tree.put("/proc/sys/kernel/osrelease", "6.12.1-rt");
        tree.put("/proc/sys/kernel/sched_rt_runtime_us", "950000");
        tree.put("/proc/sys/kernel/sched_rt_period_us", "1000000");
        tree.put("/sys/devices/system/cpu/online", "0-7");
        for cpu in 0..8 {
            tree.put(
                &format!("/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"),
                "0",
            );
        }
        for (policy, cpus, most) in [(0, "0 1 2 3", "1400000"), (4, "4 5 6 7", "2000000")] {
            let folder = format!("/sys/devices/system/cpu/cpufreq/policy{policy}");
            for (file, value) in [
                ("related_cpus", cpus),
                ("scaling_governor", "schedutil"),
                ("scaling_available_governors", "performance schedutil powersave "),
                ("cpuinfo_min_freq", "400000"),
                ("cpuinfo_max_freq", most),
                ("scaling_min_freq", "400000"),
                ("scaling_max_freq", most),
            ] {
                tree.put(&format!("{folder}/{file}"), value);
            }
        }
        tree.put("/proc/irq/default_smp_affinity", "ff");
        for (irq, may, goes, name) in [
            (24, "0-7", "5", "eth0-rx"),
            (25, "0-3", "2", "mmc0"),
            (26, "4-7", "4", "nvme0q1"),
            (27, "6", "6", "can0"),
        ] {
            tree.irq(irq, may, goes, name);
        }
        tree
    }

    fn irq(&self, irq: u32, may: &str, goes: &str, name: &str) {
        self.put(&format!("/proc/irq/{irq}/smp_affinity_list"), may);
        self.put(&format!("/proc/irq/{irq}/effective_affinity_list"), goes);
        self.put(&format!("/proc/irq/{irq}/{name}/x"), "");
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn get(&self, path: &str) -> String {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    fn may(&self, irq: u32) -> String {
        self.get(&format!("/proc/irq/{irq}/smp_affinity_list"))
    }

    fn keeper(&self) -> Keeper {
        Keeper::new(self.root.path(), &self.dir.path().join("quiet"))
    }

    /// Every file below /proc and /sys with its text.
    fn all(&self) -> BTreeMap<PathBuf, String> {
        fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, into);
                } else {
                    into.insert(path.clone(), fs::read_to_string(&path).unwrap().trim().to_owned());
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.root.path(), &mut all);
        all
    }
}

fn wish(cpus: &str) -> Wish {
    Wish {
        strict: true,
        cpus: cpus.parse().unwrap(),
        resume: Some(Resume::Within(20)),
        governor: Some("performance".into()),
        min_khz: Some(1_800_000),
        irqs: Irqs::Away,
        ..Wish::default()
    }
}

fn holds(readings: &[Reading]) -> bool {
    readings.iter().all(|reading| reading.holds)
}

#[test]
fn a_wish_is_made_so_and_put_back() {
    let tree = Tree::board();
    let before = tree.all();
    let keeper = tree.keeper();
    keeper.hold("a", &wish("4-7")).unwrap();
    let cpu = "/sys/devices/system/cpu";
    assert_eq!(
        tree.get(&format!("{cpu}/cpu5/power/pm_qos_resume_latency_us")),
        "20"
    );
    assert_eq!(
        tree.get(&format!("{cpu}/cpu3/power/pm_qos_resume_latency_us")),
        "0"
    );
    assert_eq!(
        tree.get(&format!("{cpu}/cpufreq/policy4/scaling_governor")),
        "performance"
    );
    assert_eq!(
        tree.get(&format!("{cpu}/cpufreq/policy4/scaling_min_freq")),
        "1800000"
    );
    assert_eq!(
        tree.get(&format!("{cpu}/cpufreq/policy0/scaling_governor")),
        "schedutil"
    );
    let may: Vec<String> = (24..28).map(|irq| tree.may(irq)).collect();
    // What could go nowhere else may go anywhere but there.
    assert_eq!(may, ["0-3", "0-3", "0-3", "0-3"]);
    assert_eq!(
        CpuSet::from_mask(&tree.get("/proc/irq/default_smp_affinity"))
            .unwrap()
            .to_string(),
        "0-3"
    );
    assert_eq!(keeper.holders(), ["a"]);
    keeper.release("a").unwrap();
    assert_eq!(tree.all(), before);
    assert_eq!(keeper.holders(), Vec::<String>::new());
}

#[test]
fn the_first_core_takes_the_interrupts_of_the_others() {
    let tree = Tree::board();
    let before = tree.all();
    for (cpu, siblings) in [(4, "4-5"), (5, "4-5"), (6, "6-7"), (7, "6-7")] {
        tree.put(
            &format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
            siblings,
        );
    }
    let with_siblings = tree.all();
    let keeper = tree.keeper();
    let first = Wish {
        irqs: Irqs::First,
        cpus: "4-7".parse().unwrap(),
        ..Wish::default()
    };
    keeper.hold("a", &first).unwrap();
    // Both threads of the first core still take what they took.
    assert_eq!(tree.may(24), "0-5");
    assert_eq!(
        CpuSet::from_mask(&tree.get("/proc/irq/default_smp_affinity"))
            .unwrap()
            .to_string(),
        "0-5"
    );
    let away = keeper.read("a").unwrap();
    assert!(
        holds(&away) && away.iter().any(|r| r.promised.contains("6-7")),
        "{away:?}"
    );
    keeper.release("a").unwrap();
    assert_eq!(tree.all(), with_siblings);
    assert!(before.len() < with_siblings.len());
}

#[test]
fn two_holders_do_not_undo_each_other() {
    let tree = Tree::board();
    let before = tree.all();
    let keeper = tree.keeper();
    let only = |cpus: &str| Wish {
        irqs: Irqs::Away,
        resume: Some(Resume::Within(0)),
        cpus: cpus.parse().unwrap(),
        ..Wish::default()
    };
    keeper.hold("a", &only("4-5")).unwrap();
    keeper.hold("b", &only("6")).unwrap();
    assert_eq!((tree.may(24), tree.may(26)), ("0-3,7".into(), "7".into()));
    keeper.release("a").unwrap();
    assert_eq!((tree.may(24), tree.may(26)), ("0-5,7".into(), "4-5,7".into()));
    let qos = |cpu: u32| {
        tree.get(&format!(
            "/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us"
        ))
    };
    assert_eq!((qos(4), qos(6)), ("0".into(), "n/a".into()));
    keeper.release("b").unwrap();
    assert_eq!(tree.all(), before);
}

#[test]
fn killed_before_any_write_it_is_put_back() {
    let plan = {
        let tree = Tree::board();
        let before = tree.all();
        tree.keeper().hold("a", &wish("4-7")).unwrap();
        let after = tree.all();
        let changed: Vec<PathBuf> = before
            .iter()
            .filter(|(path, text)| after[*path] != **text)
            .map(|(path, _)| path.strip_prefix(tree.root.path()).unwrap().to_owned())
            .collect();
        assert!(changed.len() >= 10, "{changed:?}");
        changed
    };
    for written in 0..=plan.len() {
        let tree = Tree::board();
        let before = tree.all();
        tree.keeper().hold("a", &wish("4-7")).unwrap();
        // As if the kill had come before the others were written.
        for path in &plan[written..] {
            let path = tree.root.path().join(path);
            fs::write(&path, &before[&path]).unwrap();
        }
        tree.keeper().release("a").unwrap();
        assert_eq!(tree.all(), before, "{written}");
        // The next one finds nothing of it.
        tree.keeper().hold("b", &wish("4-7")).unwrap();
        tree.keeper().release("b").unwrap();
        assert_eq!(tree.all(), before, "{written}");
    }
}

#[test]
fn what_is_changed_behind_its_back_is_put_right_and_named() {
    let tree = Tree::board();
    let keeper = tree.keeper();
    keeper.hold("a", &wish("4-7")).unwrap();
    keeper
        .hold(
            "other",
            &Wish {
                cpus: "1".parse().unwrap(),
                irqs: Irqs::Away,
                ..Wish::default()
            },
        )
        .unwrap();
    assert_eq!(keeper.mend("a").unwrap(), []);
    tree.put("/proc/irq/24/smp_affinity_list", "5");
    tree.put("/sys/devices/system/cpu/cpu4/power/pm_qos_resume_latency_us", "0");
    assert!(!holds(&keeper.read("a").unwrap()));
    // A device is plugged, and its driver puts its interrupt there.
    tree.irq(40, "7", "7", "eth1");
    let mended = keeper.mend("a").unwrap();
    let named: Vec<(&str, &str, bool)> = mended
        .iter()
        .map(|m| (m.name.as_str(), m.found.as_str(), m.drift))
        .collect();
    assert_eq!(
        named,
        [
            ("idle states of CPU 4", "0", true),
            ("interrupts", "5", true),
            ("interrupts", "7", false)
        ]
    );
    assert_eq!((tree.may(24), tree.may(40)), ("0,2-3".into(), "0,2-3".into()));
    assert_eq!(keeper.mend("a").unwrap(), []);
    // Nobody mends what is another's.
    tree.put("/proc/irq/25/smp_affinity_list", "1");
    assert_eq!(keeper.mend("a").unwrap(), []);
    assert_eq!(keeper.mend("other").unwrap().len(), 1);
}

#[test]
fn what_the_node_lacks_refuses_or_is_reported() {
    for (change, name, words) in [
        (
            Wish {
                cpus: "4-5".parse().unwrap(),
                ..wish("4-7")
            },
            "frequency",
            "have one clock",
        ),
        (
            Wish {
                governor: Some("fast".into()),
                ..wish("4-7")
            },
            "frequency",
            "no governor fast",
        ),
        (
            Wish {
                min_khz: Some(9_000_000),
                ..wish("4-7")
            },
            "frequency",
            "not within",
        ),
        (
            Wish {
                cpus: "8-9".parse().unwrap(),
                ..wish("4-7")
            },
            "idle states",
            "CPU 8 has no",
        ),
        (
            Wish {
                hugepages: vec![Huge {
                    size_kib: 2048,
                    count: 1,
                }],
                ..wish("4-7")
            },
            "hugepages-2048kB",
            "1 asked for",
        ),
        (
            Wish {
                share: Some(100),
                scheduler: Some(Scheduler::Fifo { priority: 10 }),
                ..wish("4-7")
            },
            "share",
            "100.00 % of each core is asked for, 95.00 % can be had: the fair server",
        ),
    ] {
        let tree = Tree::board();
        let before = tree.all();
        let refused = tree.keeper().hold("a", &change).unwrap_err();
        assert!(
            refused.to_string().contains(words) && refused.hint().is_some(),
            "{refused}"
        );
        assert_eq!((tree.all(), tree.keeper().holders().len()), (before.clone(), 0));
        let soft = tree
            .keeper()
            .hold(
                "a",
                &Wish {
                    strict: false,
                    ..change
                },
            )
            .unwrap();
        let told = soft
            .iter()
            .find(|r| r.name == name && r.actual.contains("not here"))
            .unwrap();
        assert!(told.actual.contains(words) && told.holds, "{told:?}");
        tree.keeper().release("a").unwrap();
        assert_eq!(tree.all(), before);
    }
}

#[test]
fn shares() {
    let fifo = Some(Scheduler::Fifo { priority: 1 });
    let deadline = Some(Scheduler::Deadline {
        runtime: 960_000,
        deadline: 1_000_000,
        period: 1_000_000,
    });
    for (release, runtime, server, scheduler, budget, most) in [
        ("6.1.0", "950000", None, fifo, None, 9500),
        ("6.1.0", "-1", None, fifo, None, 10_000),
        ("6.12.0", "-1", None, fifo, None, 9500),
        ("6.12.0", "-1", Some("0"), fifo, None, 10_000),
        ("6.12.0", "950000", Some("10000000"), fifo, None, 9900),
        ("6.18.5", "950000", Some("0"), fifo, Some((300, 1000)), 3000),
        ("6.12.0", "950000", Some("0"), deadline, None, 9500),
        ("6.12.0", "-1", None, deadline, None, 10_000),
    ] {
        let tree = Tree::board();
        tree.put("/proc/sys/kernel/osrelease", release);
        tree.put("/proc/sys/kernel/sched_rt_runtime_us", runtime);
        if let Some(server) = server {
            tree.put("/sys/kernel/debug/sched/fair_server/cpu4/runtime", server);
            tree.put("/sys/kernel/debug/sched/fair_server/cpu4/period", "1000000000");
        }
        let wish = Wish {
            cpus: "4".parse().unwrap(),
            scheduler,
            budget,
            ..Wish::default()
        };
        let share = available(&Machine::bare(tree.root.path()), &wish).unwrap();
        assert_eq!(
            share.most, most,
            "{release} {runtime} {server:?} {scheduler:?}: {share:?}"
        );
        let possible = lacks::split(&Machine::bare(tree.root.path()), &wish, &BTreeMap::new())
            .1
            .is_empty();
        assert_eq!(possible, scheduler == fifo || most == 10_000);
    }
    let other = Wish {
        scheduler: Some(Scheduler::Other { nice: 0 }),
        ..Wish::default()
    };
    assert_eq!(available(&Machine::bare(Tree::board().root.path()), &other), None);
}

#[test]
fn a_devices_own_interrupts_come_to_its_cores() {
    let tree = Tree::board();
    let pci = "/sys/devices/pci0000:00/0000:00:05.0";
    tree.put(&format!("{pci}/msi_irqs/24"), "msix");
    tree.put(&format!("{pci}/net/eth0/ifindex"), "3");
    tree.put("/sys/devices/platform/soc/mmc/irq", "25");
    tree.put("/sys/devices/pci0000:00/0000:00:07.0/irq", "11");
    let machine = Machine::bare(tree.root.path());
    assert_eq!(
        controller(&machine, &format!("{pci}/net/eth0")).as_deref(),
        Some(pci)
    );
    assert_eq!(
        controller(&machine, "/sys/devices/platform/soc/mmc/block/mmcblk0").as_deref(),
        Some("/sys/devices/platform/soc/mmc")
    );
    for none in [
        "/sys/devices/virtual/block/loop0",
        "/sys/devices/pci0000:00/0000:00:07.0/usb1/1-1/tty",
        "/etc/passwd",
    ] {
        assert_eq!(controller(&machine, none), None, "{none}");
    }
    let keeper = tree.keeper();
    let asked = Wish {
        irqs: Irqs::Device,
        devices: vec![pci.into()],
        cpus: "6-7".parse().unwrap(),
        ..Wish::default()
    };
    keeper.hold("a", &asked).unwrap();
    assert_eq!(
        (tree.may(24), tree.may(26), tree.may(27)),
        ("6-7".into(), "4-5".into(), "0-5".into())
    );
    tree.put("/proc/irq/24/effective_affinity_list", "6");
    tree.put("/proc/irq/27/effective_affinity_list", "0");
    let readings = keeper.read("a").unwrap();
    assert!(holds(&readings), "{readings:?}");
    tree.put("/proc/irq/24/smp_affinity_list", "0");
    tree.put("/proc/irq/24/effective_affinity_list", "0");
    assert!(
        keeper
            .read("a")
            .unwrap()
            .iter()
            .any(|r| r.name == "own interrupts" && !r.holds)
    );
    keeper.release("a").unwrap();
    assert_eq!((tree.may(24), tree.may(27)), ("0-7".into(), "6".into()));
}

#[test]
fn another_boot_has_reset_everything() {
    let tree = Tree::board();
    tree.keeper().hold("a", &wish("4-7")).unwrap();
    tree.put("/proc/sys/kernel/random/boot_id", "boot-2");
    tree.put("/proc/irq/24/smp_affinity_list", "3");
    let keeper = tree.keeper();
    keeper.release("b").unwrap();
    assert_eq!(keeper.holders(), Vec::<String>::new());
    assert_eq!(tree.may(24), "3", "another boot's values are not written");
}

#[test]
fn irqbalance_is_found_where_it_may_use_the_cores() {
    let cpus: CpuSet = "4-5".parse().unwrap();
    for (environment, isolated, found) in [
        ("A=b", "", Some(77)),
        ("IRQBALANCE_BANNED_CPULIST=4-7", "", None),
        ("IRQBALANCE_BANNED_CPULIST=5", "4-5", Some(77)),
        ("IRQBALANCE_BANNED_CPUS=000000f0", "", None),
        ("A=b", "4-7", None),
    ] {
        let tree = Tree::board();
        tree.put("/proc/77/comm", "irqbalance");
        tree.put("/proc/77/environ", &format!("X=1\0{environment}"));
        tree.put("/sys/devices/system/cpu/isolated", isolated);
        let machine = Machine::bare(tree.root.path());
        assert_eq!(balancer(&machine, &cpus), found, "{environment} {isolated}");
        let held = tree.keeper().hold(
            "a",
            &Wish {
                strict: true,
                irqs: Irqs::Away,
                cpus: cpus.clone(),
                ..Wish::default()
            },
        );
        assert_eq!(held.is_err(), found.is_some());
    }
}
