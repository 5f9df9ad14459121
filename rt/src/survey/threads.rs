//! Priorities of the kernel's threads, and threads of the kernel on isolated cores.

use super::{Change, State, Survey, Target};
use crate::machine::Thread;
use crate::node::Priority;

/// `SCHED_FIFO` (sched.h).
const FIFO: u32 = 1;

impl Survey<'_> {
    pub(super) fn threads(&mut self) {
        let wanted = self.spec.realtime.priorities.clone();
        let threads = self.spec.workqueues.threads.clone();
        let asked = [wanted.ksoftirqd, wanted.rcuc, wanted.ktimers, wanted.irq_threads];
        if asked.iter().all(Option::is_none) && threads.is_none() {
            return;
        }
        let all: Vec<Thread> = self
            .machine
            .threads()
            .into_iter()
            .filter(|thread| thread.kernel)
            .collect();
        for (name, prefix, priority) in [
            ("ksoftirqd-priority", "ksoftirqd/", wanted.ksoftirqd),
            ("rcuc-priority", "rcuc/", wanted.rcuc),
            ("ktimers-priority", "ktimers/", wanted.ktimers),
            ("irq-thread-priority", "irq/", wanted.irq_threads),
        ] {
            let Some(priority) = priority else { continue };
            let mut found = false;
            for thread in all.iter().filter(|thread| thread.name.starts_with(prefix)) {
                found = true;
                self.priority(name, thread, priority);
            }
            if !found {
                self.absent(
                    name,
                    &format!("threads {prefix}*"),
                    &format!("fifo {}", priority.get()),
                    None,
                );
            }
        }
        let Some(choice) = threads else { return };
        let wanted = self.chosen(&choice);
        for thread in &all {
            // Workers follow the workqueues' mask, interrupt threads their interrupt.
            if !thread.movable || thread.name.starts_with("kworker/") || thread.name.starts_with("irq/") {
                continue;
            }
            let Some(allowed) = self.machine.allowed(thread.pid) else {
                continue;
            };
            if allowed.is_subset(&wanted) || allowed.intersection(&self.parts.isolated).is_empty() {
                continue;
            }
            let target = Target::Affinity {
                pid: thread.pid,
                start: thread.start,
                name: thread.name.clone(),
            };
            let mut finding = self.finding("kernel-threads", target.to_string(), wanted.to_string());
            finding.actual = Some(allowed.to_string());
            finding.state = State::Differs;
            finding.mend = Some("berth node tune".into());
            finding.change = Some(Change {
                knob: "kernel-threads".into(),
                target: target.clone(),
                value: wanted.to_string(),
                restore: vec![(target, allowed.to_string())],
            });
            self.findings.push(finding);
        }
        if !self
            .findings
            .iter()
            .any(|finding| finding.knob == "kernel-threads")
        {
            let mut finding = self.finding("kernel-threads", "unbound kernel threads", wanted.to_string());
            finding.actual = Some(format!("none on {}", self.parts.isolated));
            self.findings.push(finding);
        }
    }

    fn priority(&mut self, name: &'static str, thread: &Thread, priority: Priority) {
        let target = Target::Scheduler {
            pid: thread.pid,
            start: thread.start,
            name: thread.name.clone(),
        };
        let policy = match thread.policy {
            0 => "other",
            FIFO => "fifo",
            2 => "rr",
            6 => "deadline",
            _ => "another policy",
        };
        let mut finding = self.finding(name, target.to_string(), format!("fifo {}", priority.get()));
        let actual = match thread.priority {
            0 => policy.to_owned(),
            number => format!("{policy} {number}"),
        };
        finding.actual = Some(actual);
        if (thread.policy, thread.priority) != (FIFO, u32::from(priority.get())) {
            finding.state = State::Differs;
            finding.mend = Some("berth node tune".into());
            // The old attributes are read with sched_getattr(2) when the change is made: stat has no nice value of
            // a thread with a real-time policy.
            finding.change = Some(Change {
                knob: name.into(),
                target,
                value: format!("{{\"policy\":\"fifo\",\"priority\":{}}}", priority.get()),
                restore: Vec::new(),
            });
        }
        self.findings.push(finding);
    }
}
