//! After the end of a container: what its slot wants now, and what the restart policy says.

use berth_documents::RestartPolicy;
use berth_launcher::wire::Refusal;

use super::State;
use super::event::{Effect, NoticeKind};
use super::instance::{Phase, Slot};
use super::report::words;

/// Milliseconds until a launch is tried again that never reached the launcher.
const UNREACHED: u64 = 1_000;

impl State {
    /// Nothing of the container is left. `counted` false: the launcher was never reached.
    pub(super) fn ended(&mut self, id: &str, counted: bool, out: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let slot = instance.slot.clone();
        let told = std::mem::take(&mut instance.told);
        let name = instance.name.clone();
        instance.pid = None;
        instance.start_time = None;
        instance.drift.clear();
        instance.held = None;
        instance.starved.clear();
        // Its interface goes and comes with its containers: what was given up must not begin anew for that. A card
        // that is really plugged again has another index, so another slot.
        let comes_back = instance.device.as_ref().is_some_and(|d| d.interface.is_some());
        out.extend(
            std::mem::take(&mut instance.holds)
                .into_iter()
                .map(Effect::Unhold),
        );
        instance.given.clear();
        let place = instance.place.clone();
        let past = self.history.entry(slot.clone()).or_default();
        past.place = place.or(past.place.take());
        past.exit = instance.exit;
        past.failure.clone_from(&instance.failure);
        let restart = instance.workload.spec.restart;
        let success = instance.failure.is_none() && instance.exit.is_some_and(|e| e.code == Some(0));
        let delay = u64::try_from(restart.delay.std().as_millis()).unwrap_or(u64::MAX);
        let window = u64::try_from(restart.window.std().as_millis()).unwrap_or(u64::MAX);
        self.dirty.insert(slot.clone());
        let Some(want) = self.want(&slot) else {
            self.remove(id);
            return;
        };
        if matches!(slot, Slot::Adopted(_)) {
            self.remove(id);
            return;
        }
        let again = match restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !success,
            RestartPolicy::Never => false,
        };
        let mut gave_up = None;
        let phase = if want.rest {
            Phase::Stopped
        } else if told {
            Phase::Pending
        } else if !counted {
            Phase::Backoff {
                until: self.now + UNREACHED,
                counted: false,
            }
        } else if !again {
            if success { Phase::Completed } else { Phase::Failed }
        } else {
            let past = self.history.entry(slot.clone()).or_default();
            if past.count(self.now, restart.limit, window) {
                past.until = self.now.saturating_add(delay);
                Phase::Backoff {
                    until: past.until,
                    counted: true,
                }
            } else {
                let text = format!(
                    "limit of {} restarts within {} reached",
                    restart.limit, restart.window
                );
                out.push(Effect::note(NoticeKind::GaveUp, &name, text.clone()));
                if comes_back {
                    past.until = self.now.saturating_add(window);
                }
                gave_up = Some(text);
                Phase::Failed
            }
        };
        if let Phase::Backoff { until, counted: true } = phase {
            let text = format!("again in {} ms", until.saturating_sub(self.now));
            out.push(Effect::note(NoticeKind::Backoff, &name, text));
        }
        let keeps = matches!(phase, Phase::Backoff { .. });
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.phase = phase;
        if let Some(text) = gave_up {
            let last = instance
                .failure
                .take()
                .map_or(String::new(), |f| format!("; the last: {}", words(&f)));
            let hint = Some("`berth logs` shows why it ends; `berth start` tries again".to_owned());
            instance.failure = Some(Refusal {
                stage: "restart".to_owned(),
                message: text + &last,
                hint,
            });
        }
        if !keeps {
            self.give_back(id);
        }
        // A container that was armed had another id than the next one of this device will have. No one else
        // has that name (see `enter`).
        if let Some(mut instance) = self.instances.remove(id) {
            instance.id.clone_from(&instance.name);
            self.slots.insert(slot, instance.id.clone());
            self.instances.insert(instance.id.clone(), instance);
        }
    }
}
