//! Looks, while a container with a real-time policy runs, for kernel threads that do not get its CPUs.
//!
//! Invariant: on a node where no such container runs nothing wakes up for this.

use std::path::Path;
use std::time::{Duration, Instant};

use berth_rt::cpu::CpuSet;
use berth_rt::starved::Watch;

use crate::core::instance::{Instance, Phase};
use crate::core::{Event, Report};

use super::Agent;

/// Between two looks. What waits that long at a CPU is starved.
const EVERY: Duration = Duration::from_secs(2);

/// The looks so far.
pub(super) struct Starving {
    watch: Watch,
    begun: Instant,
    next: Instant,
}

impl Starving {
    pub(super) fn new() -> Starving {
        Starving {
            watch: Watch::new(Path::new("/proc")),
            begun: Instant::now(),
            next: Instant::now(),
        }
    }
}

/// Can it keep its CPUs for itself as long as it likes?
fn may_hog(instance: &Instance) -> bool {
    let scheduler = (instance.workload.spec.realtime.as_ref()).and_then(|r| r.scheduler.as_ref());
    instance.phase == Phase::Running
        && scheduler.is_some_and(|s| matches!(s.policy.as_str(), "fifo" | "rr" | "deadline"))
}

impl Agent {
    /// When the next look is due.
    pub(super) fn starving_at(&self) -> Option<Instant> {
        let hogs = self.state.instances.values().any(may_hog);
        hogs.then_some(self.starving.next)
    }

    pub(super) fn look_for_starved(&mut self) {
        if self.starving_at().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.starving.next = Instant::now() + EVERY;
        let places: Vec<(String, CpuSet, bool)> = (self.state.instances.values())
            .filter(|i| may_hog(i))
            .filter_map(|i| {
                Some((
                    i.id.clone(),
                    i.place.as_ref()?.cpus.clone(),
                    !i.starved.is_empty(),
                ))
            })
            .collect();
        let all = places
            .iter()
            .fold(CpuSet::new(), |sum, (_, cpus, _)| sum.union(cpus));
        let now = u64::try_from(self.starving.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let found = self.starving.watch.look(&all, now);
        for (id, cpus, before) in places {
            let its: Vec<_> = found.iter().filter(|s| cpus.contains(s.cpu)).cloned().collect();
            if before || !its.is_empty() {
                self.feed(Event::Report {
                    id,
                    report: Report::Starved(its),
                });
            }
        }
    }
}
