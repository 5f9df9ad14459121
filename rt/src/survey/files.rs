//! Knobs that are one file each, or one for each CPU or memory node, outside power management.
//!
//! Sources: Documentation/admin-guide/sysctl/{kernel,vm,net}.rst, Documentation/core-api/workqueue.rst,
//! Documentation/admin-guide/mm/{hugetlbpage,transhuge,ksm}.rst.

use super::{As, Change, State, Survey, Target};
use crate::cpu::CpuSet;
use crate::node::Share;

const SYSCTL: &str = "/proc/sys";
const SCHED: &str = "/sys/kernel/debug/sched";

impl Survey<'_> {
    pub(super) fn files(&mut self) {
        self.offlined();
        self.preemption();
        let realtime = &self.spec.realtime;
        if let Some(share) = realtime.throttling {
            let period = self.machine.read("/proc/sys/kernel/sched_rt_period_us");
            let period: u64 = period.and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
            let value = match share {
                Share::Off => "-1".to_owned(),
                Share::Of(share) => (u128::from(share.us()) * u128::from(period) / 1_000_000).to_string(),
            };
            self.file(
                "rt-throttling",
                &format!("{SYSCTL}/kernel/sched_rt_runtime_us"),
                &value,
                As::Text,
            );
        }
        self.fair_server();
        let bit = |on: bool| if on { "1" } else { "0" };
        let memory = self.spec.memory.clone();
        let watchdogs = self.spec.watchdogs.clone();
        for (name, path, value) in [
            (
                "timer-migration",
                "kernel/timer_migration",
                self.spec.realtime.timer_migration.map(bit),
            ),
            (
                "numa-balancing",
                "kernel/numa_balancing",
                memory.numa_balancing.map(bit),
            ),
            ("nmi-watchdog", "kernel/nmi_watchdog", watchdogs.nmi.map(bit)),
            ("soft-watchdog", "kernel/soft_watchdog", watchdogs.soft.map(bit)),
        ] {
            if let Some(value) = value {
                self.file(name, &format!("{SYSCTL}/{path}"), value, As::Text);
            }
        }
        for (name, path, value) in [
            (
                "stat-interval",
                "vm/stat_interval",
                memory.stat_interval.map(|s| s.get()),
            ),
            ("swappiness", "vm/swappiness", memory.swappiness.map(u32::from)),
            (
                "hung-task",
                "kernel/hung_task_timeout_secs",
                watchdogs.hung_task.map(|s| s.get()),
            ),
            ("busy-read", "net/core/busy_read", self.spec.network.busy_poll),
            ("busy-poll", "net/core/busy_poll", self.spec.network.busy_poll),
        ] {
            if let Some(value) = value {
                self.file(name, &format!("{SYSCTL}/{path}"), &value.to_string(), As::Text);
            }
        }
        self.dirty("dirty-ratio", "dirty_ratio", "dirty_bytes", memory.dirty_ratio);
        self.dirty(
            "dirty-background-ratio",
            "dirty_background_ratio",
            "dirty_background_bytes",
            memory.dirty_background_ratio,
        );
        if let Some(mode) = memory.transparent_hugepages {
            let path = "/sys/kernel/mm/transparent_hugepage/enabled";
            self.file("transparent-hugepages", path, mode.as_str(), As::Word);
        }
        if let Some(on) = memory.ksm {
            self.file("ksm", "/sys/kernel/mm/ksm/run", bit(on), As::Text);
        }
        if let Some(choice) = watchdogs.cpus {
            let list = self.chosen(&choice).to_string();
            self.file(
                "watchdog-cpus",
                &format!("{SYSCTL}/kernel/watchdog_cpumask"),
                &list,
                As::List,
            );
        }
        for (name, path, choice) in [
            (
                "workqueues",
                "/sys/devices/virtual/workqueue/cpumask",
                self.spec.workqueues.cpus.clone(),
            ),
            (
                "writeback",
                "/sys/bus/workqueue/devices/writeback/cpumask",
                self.spec.workqueues.writeback.clone(),
            ),
        ] {
            if let Some(choice) = choice {
                let mask = self.chosen(&choice).to_mask();
                self.file(name, path, &mask, As::Mask);
            }
        }
        if let Some(ignore) = self.spec.machine_check.ignore_corrected {
            let base = "/sys/devices/system/machinecheck";
            let numbers = self.machine.numbers(base, "machinecheck");
            if numbers.is_empty() {
                self.absent("ignore-corrected", base, bit(ignore), None);
            }
            for number in numbers {
                let path = format!("{base}/machinecheck{number}/ignore_ce");
                self.file("ignore-corrected", &path, bit(ignore), As::Text);
            }
        }
        self.hugepages();
    }

    fn offlined(&mut self) {
        let wanted = self.spec.cpus.offlined.clone().unwrap_or_default();
        for cpu in wanted.iter() {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            if self.machine.there(&path) {
                self.file("offlined", &path, "0", As::Text);
            } else {
                let why = self
                    .online
                    .contains(cpu)
                    .then(|| "this CPU cannot be taken off line".to_owned());
                self.absent("offlined", &path, "0", why);
            }
        }
    }

    /// Why a file of the scheduler in debugfs is not there.
    fn no_debugfs(&self) -> Option<String> {
        if self.machine.there(SCHED) {
            None
        } else if self.machine.locked() {
            let mode = self.machine.lockdown().unwrap_or_default();
            Some(format!(
                "the kernel is locked down ({mode}), which closes debugfs"
            ))
        } else {
            Some("debugfs is not mounted: mount -t debugfs none /sys/kernel/debug".into())
        }
    }

    fn preemption(&mut self) {
        let Some(mode) = self.spec.realtime.preemption else {
            return;
        };
        let path = format!("{SCHED}/preempt");
        match self.machine.read(&path) {
            Some(text) if !text.split([' ', '(', ')']).any(|word| word == mode.as_str()) => {
                let mut finding = self.finding("preemption", path, mode.as_str());
                finding.actual = Some(text);
                finding.state = State::Missing;
                finding.reason = Some("this kernel does not have that mode".into());
                finding.mend = Some("choose one that is listed there".into());
                self.findings.push(finding);
            }
            Some(_) => {
                self.file("preemption", &path, mode.as_str(), As::Word);
                self.locked();
            }
            None => {
                let why = self.no_debugfs();
                self.absent("preemption", &path, mode.as_str(), why);
            }
        }
        if self.machine.realtime()
            && let Some(last) = self.findings.last_mut()
            && last.state == State::Missing
        {
            // PREEMPT_RT before 6.13 has no modes: it preempts more than `full` does.
            last.state = State::Absent;
            last.mend = None;
            last.reason = Some("PREEMPT_RT: preemption is not a choice here".into());
        }
    }

    /// The last finding, where lockdown forbids its change.
    fn locked(&mut self) {
        let locked = self.machine.locked();
        let mode = self.machine.lockdown().unwrap_or_default();
        if let Some(last) = self.findings.last_mut()
            && last.state == State::Differs
            && locked
        {
            last.state = State::Refused;
            last.change = None;
            last.reason = Some(format!(
                "the kernel is locked down ({mode}): debugfs cannot be written"
            ));
            let boot = crate::knob::find(last.knob).map_or("", |knob| knob.boot);
            last.mend = Some(match boot {
                "" => format!(
                    "boot without lockdown (lockdown=, Secure Boot), or leave {} out",
                    last.field
                ),
                boot => format!("boot argument {boot}"),
            });
        }
    }

    /// 50 ms of each second since 6.12; in nanoseconds of a period of its own.
    fn fair_server(&mut self) {
        let Some(share) = self.spec.realtime.fair_server else {
            return;
        };
        let folder = format!("{SCHED}/fair_server");
        if !self.machine.there(&folder) {
            let off = share == Share::Off;
            let why = self.no_debugfs();
            let old = self.machine.version() < (6, 12);
            self.absent("fair-server", &folder, &share.to_string(), why.filter(|_| !old));
            let version = self.machine.release();
            if let Some(last) = self.findings.last_mut() {
                if old {
                    last.reason = Some(format!("Linux {version} has no fair server"));
                }
                if !(old && off) {
                    last.state = State::Missing;
                    last.mend = Some(match old {
                        true => "use spec.realtime.throttling: it leaves a share to others".into(),
                        false => "mount debugfs, or leave the field out".into(),
                    });
                }
            }
            return;
        }
        for cpu in self.parts.isolated.intersection(&self.online).iter() {
            let period = self.machine.read(&format!("{folder}/cpu{cpu}/period"));
            let period: u64 = period.and_then(|text| text.parse().ok()).unwrap_or(1_000_000_000);
            let value = match share {
                Share::Off => 0,
                Share::Of(share) => (u128::from(share.us()) * u128::from(period) / 1_000_000) as u64,
            };
            let path = format!("{folder}/cpu{cpu}/runtime");
            self.file("fair-server", &path, &value.to_string(), As::Text);
            self.locked();
        }
    }

    /// Ratio and bytes exclude each other: writing one sets the other to 0, so putting back may mean the other.
    fn dirty(&mut self, name: &'static str, ratio: &str, bytes: &str, wanted: Option<u8>) {
        let Some(wanted) = wanted else { return };
        let path = |file: &str| format!("{SYSCTL}/vm/{file}");
        self.file(name, &path(ratio), &wanted.to_string(), As::Text);
        let Some(old) = self.machine.read(&path(bytes)).filter(|text| text != "0") else {
            return;
        };
        if let Some(Change { restore, .. }) = self.findings.last_mut().and_then(|last| last.change.as_mut()) {
            *restore = vec![(Target::File { path: path(bytes) }, old)];
        }
    }

    fn hugepages(&mut self) {
        for page in self.spec.hugepages.pages.clone() {
            let folder = format!("hugepages-{}kB", page.size.kib());
            let base = match page.node {
                Some(node) => format!("/sys/devices/system/node/node{node}/hugepages"),
                None => "/sys/kernel/mm/hugepages".into(),
            };
            let path = format!("{base}/{folder}/nr_hugepages");
            let same_size = |other: &&crate::node::Hugepage| other.size == page.size && other.node.is_some();
            let of_nodes: u64 = self
                .spec
                .hugepages
                .pages
                .iter()
                .filter(same_size)
                .map(|other| other.count)
                .sum();
            if page.node.is_none() && of_nodes > 0 {
                // The total, nodes included; an entry of none makes the kernel have files for the size, no more.
                if page.count > 0 {
                    self.file("hugepages", &path, &(page.count + of_nodes).to_string(), As::Text);
                }
                continue;
            }
            if self.machine.there(&path) {
                self.file("hugepages", &path, &page.count.to_string(), As::Text);
                continue;
            }
            let sizes: Vec<String> = self
                .machine
                .numbers_between("/sys/kernel/mm/hugepages", "hugepages-", "kB")
                .into_iter()
                .filter_map(|kib| crate::node::PageSize::of_kib(kib).map(|size| size.to_string()))
                .collect();
            let why = (!sizes.is_empty()).then(|| match page.node {
                Some(node)
                    if !self
                        .machine
                        .there(&format!("/sys/devices/system/node/node{node}")) =>
                {
                    format!("there is no node {node}")
                }
                _ => format!("this kernel has huge pages of {} only", sizes.join(", ")),
            });
            self.absent("hugepages", &path, &page.count.to_string(), why);
        }
        let Some(size) = self.spec.hugepages.default_size else {
            return;
        };
        let mut finding = self.finding(
            "hugepage-default",
            "Hugepagesize in /proc/meminfo",
            size.to_string(),
        );
        let info = self.machine.read("/proc/meminfo").unwrap_or_default();
        let kib = info.lines().find_map(|line| {
            line.strip_prefix("Hugepagesize:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<u64>()
                .ok()
        });
        finding.actual = kib
            .and_then(crate::node::PageSize::of_kib)
            .map(|size| size.to_string());
        if kib != Some(size.kib()) {
            finding.state = State::PendingBoot;
            finding.mend = Some(format!("boot argument default_hugepagesz={size}"));
        }
        self.findings.push(finding);
    }

    /// CPUs among `cpus` that are online.
    pub(super) fn of(&self, cpus: &CpuSet) -> Vec<u32> {
        cpus.intersection(&self.online).iter().collect()
    }
}
