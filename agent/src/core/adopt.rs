//! A monitor found at start: its container becomes an instance again, from the notes it was launched with.

use std::sync::Arc;

use berth_documents::{Document, WorkloadSpec};
use berth_launcher::wire::{Phase as Wire, Status};
use berth_rt::cpu::CpuSet;
use berth_rt::placement::Placement;

use super::State;
use super::desired::Workload;
use super::device::Facts;
use super::event::{Effect, NoticeKind, Report};
use super::instance::{Given, Instance, Phase, Slot};
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
        instance.takes = status.takes;
        instance.given = given_of(&status);
        let rule = slot.rule().unwrap_or_default().to_owned();
        for given in instance.given.iter().filter(|given| given.moves()) {
            // Not to be seen on the host: present because the container has it.
            let facts = given.facts.clone();
            instance.holds.push(facts.key.clone());
            out.push(Effect::Hold {
                device: facts.clone(),
                owner: id.clone(),
            });
            if self.devices.contains_key(&facts.key) {
                continue;
            }
            let key = match &slot {
                Slot::Device { key, .. } if *key != facts.key => key.clone(),
                _ => String::new(),
            };
            let matched = super::device::RuleMatch {
                rule: rule.clone(),
                slot: key,
                offers: vec![berth_hotplug::rule::Offer {
                    member: given.member,
                    ..Default::default()
                }],
                ..Default::default()
            };
            let now = std::mem::replace(&mut self.now, 0);
            self.put_device(facts, vec![matched]);
            self.now = now;
        }
        let facts: Option<Facts> = note(notes::DEVICE).and_then(|text| serde_json::from_str(text).ok());
        instance.device = facts.map(Arc::new);
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

/// The devices it has: those of its notes, each with what the monitor says was granted of it.
fn given_of(status: &Status) -> Vec<Given> {
    let request = &status.request;
    let note = |key: &str| request.notes.get(key).map(String::as_str);
    let many: Option<Vec<(usize, Facts)>> =
        note(notes::DEVICES).and_then(|text| serde_json::from_str(text).ok());
    let one = || {
        let facts: Option<Facts> = note(notes::DEVICE).and_then(|text| serde_json::from_str(text).ok());
        facts.map(|facts| (0, facts)).into_iter().collect()
    };
    let given = many.unwrap_or_else(one).into_iter().map(|(member, facts)| Given {
        member,
        devices: (request.devices.iter())
            .filter(|d| facts.devnum == Some((d.block, d.major, d.minor)))
            .cloned()
            .collect(),
        interfaces: (request.interfaces.iter())
            .filter(|i| facts.ifindex == Some(i.index))
            .cloned()
            .collect(),
        functions: (request.vfio.iter())
            .filter(|f| facts.subsystem == "pci" && facts.sysname == f.address)
            .cloned()
            .collect(),
        facts: Arc::new(facts),
        taken: false,
    });
    given.collect()
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
