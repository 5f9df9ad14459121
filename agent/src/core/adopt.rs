//! A monitor found at start: its container becomes an instance again, from the notes it was launched with.

use std::sync::Arc;

use berth_documents::{Document, WorkloadSpec};
use berth_launcher::wire::{Phase as Wire, Status};
use berth_rt::cpu::CpuSet;
use berth_rt::placement::Placement;

use super::State;
use super::desired::Workload;
use super::device::{Facts, Present};
use super::event::{Effect, NoticeKind, Report};
use super::instance::{Instance, Phase, Slot};
use super::launch::notes;

/// The slot a container was launched for; [`Slot::Adopted`] where its notes do not say.
pub(crate) fn slot_of(status: &Status) -> Slot {
    let noted = status
        .request
        .notes
        .get(notes::SLOT)
        .and_then(|text| serde_json::from_str(text).ok());
    noted.unwrap_or_else(|| Slot::Adopted(status.request.id.clone()))
}

impl State {
    pub(super) fn adopt(&mut self, status: Status, out: &mut Vec<Effect>) {
        let request = &status.request;
        let id = request.id.clone();
        let note = |key: &str| request.notes.get(key).map(String::as_str);
        let mut slot = slot_of(&status);
        if self.slots.contains_key(&slot) {
            slot = Slot::Adopted(id.clone());
        }
        let workload = self.workload_of(&status);
        if let Slot::Once(name) = &slot {
            self.once.insert(name.clone(), workload.clone());
        }
        let mut instance = Instance::new(&id, slot.clone(), workload, Phase::Launching);
        instance.name = note(notes::NAME).unwrap_or(&id).to_owned();
        instance.made_of = note(notes::MADE_OF).unwrap_or_default().to_owned();
        instance.launched = self.now;
        instance.pid = status.pid;
        instance.start_time = status.start_time;
        instance.started_at = status.started_at;
        instance.dropped = status.dropped_bytes;
        instance.timing.clone_from(&status.timing);
        instance.drift = status.drift.iter().map(|f| f.name.clone()).collect();
        instance.place = place_of(&status);
        instance.phase = match status.phase {
            Wire::Creating => Phase::Launching,
            Wire::Armed => Phase::Armed,
            Wire::Running => Phase::Running,
            Wire::Frozen => Phase::Frozen,
            Wire::Stopping => Phase::Stopping,
            // The report that follows says how.
            Wire::Exited | Wire::Failed => Phase::Running,
        };
        instance.told = status.phase == Wire::Stopping;
        let facts: Option<Arc<Facts>> = note(notes::DEVICE)
            .and_then(|text| serde_json::from_str(text).ok())
            .map(Arc::new);
        if let Some(facts) = facts {
            if !request.interfaces.is_empty() {
                // Not to be seen on the host: present because the container has it.
                instance.holds = Some(facts.key.clone());
                out.push(Effect::Hold {
                    device: facts.clone(),
                    owner: id.clone(),
                });
                let rule = slot.rule().unwrap_or_default().to_owned();
                let matches = vec![super::device::RuleMatch {
                    rule,
                    ..Default::default()
                }];
                let present = Present {
                    facts: facts.clone(),
                    matches,
                    heard: 0,
                };
                self.devices.entry(facts.key.clone()).or_insert(present);
            }
            instance.device = Some(facts);
        }
        let text = format!("{} since {}", instance.phase.as_str(), status.created_at);
        out.push(Effect::note(NoticeKind::Adopted, &instance.name, text));
        self.slots.insert(slot.clone(), id.clone());
        self.instances.insert(id.clone(), instance);
        self.dirty.insert(slot);
        if let Some(exit) = status.exit {
            self.report(&id, Report::Exited(exit), out);
        } else if let Some(refusal) = status.failure {
            self.report(&id, Report::Failed(refusal), out);
        }
    }

    /// The workload as declared, else as the notes have it, else a bare one.
    fn workload_of(&self, status: &Status) -> Arc<Workload> {
        let request = &status.request;
        if let Some(workload) = self.desired.workloads.get(&request.workload) {
            return workload.clone();
        }
        let document: Option<Document<WorkloadSpec>> = request
            .notes
            .get(notes::WORKLOAD)
            .and_then(|text| serde_json::from_str(text).ok());
        Arc::new(match document {
            Some(document) => Workload::of(&document, ""),
            None => Workload::bare(&request.workload, &request.image),
        })
    }
}

/// What it has of cores and budget.
fn place_of(status: &Status) -> Option<Placement> {
    let set = |text: &str| text.parse::<CpuSet>().ok();
    let placement = &status.request.placement;
    Some(Placement {
        cpus: set(&placement.cpus)?,
        mems: set(&placement.mems)?,
        shared: placement.shared,
        rt_runtime_us: status.request.rt_budget.map_or(0, |b| {
            let share = u128::from(b.runtime_us) * 1_000_000;
            u64::try_from(share.div_ceil(u128::from(b.period_us.max(1)))).unwrap_or(u64::MAX)
        }),
    })
}
