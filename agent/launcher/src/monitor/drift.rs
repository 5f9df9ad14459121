//! The running proof again and again, and what is done about a fact that does not hold any more.
//!
//! Invariants: a drift is told once, and so is its end; what is told holds what was found before anything was set again.

use std::collections::BTreeSet;

use berth_audit::Entry;
use berth_policies::OnDrift;
use berth_runtime::proof::Fact;
use serde_json::json;

use super::Monitor;
use crate::compose::chain;
use crate::record;
use crate::wire::{Event, Phase};

/// Behind what drifted and was set again.
pub(super) const PUT_BACK: &str = ", and put back";

impl Monitor<'_> {
    /// The cheap half of the proof, again and again.
    pub(super) fn watch(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        let mut drifted = self.look();
        self.reap();
        if self.phase != Phase::Running {
            // It ended while it was looked at: that is no drift.
            return;
        }
        let names = |facts: &[Fact]| facts.iter().map(|f| f.name.clone()).collect::<BTreeSet<_>>();
        let (before, now) = (names(&self.drift), names(&drifted));
        let left = match self.on_drift {
            OnDrift::Repair if !drifted.is_empty() => Some(self.repair(&mut drifted)),
            _ => None,
        };
        self.drift = drifted;
        if !now.is_subset(&before) {
            self.answer_drift();
        }
        let holds = left.as_ref().map_or(now.is_empty(), Vec::is_empty);
        if let Some(left) = left {
            self.drift = left;
        }
        if holds && !(before.is_empty() && now.is_empty()) {
            self.tell(&Event::Restored);
            self.note(Entry::new("restored", &self.request.id, "every fact holds again"));
        }
    }

    /// Sets again what can be set again, and marks what holds then; what still does not.
    fn repair(&mut self, drifted: &mut [Fact]) -> Vec<Fact> {
        self.send_strangers_off();
        let failed = self.container.as_ref().map(berth_runtime::Container::repair);
        for failure in failed.iter().flatten() {
            eprintln!("berth monitor of {}: {failure}", self.request.id);
        }
        let left = self.look();
        for fact in drifted {
            if !left.iter().any(|l| l.name == fact.name) && !fact.actual.ends_with(PUT_BACK) {
                fact.actual.push_str(PUT_BACK);
            }
        }
        left
    }

    /// What does not hold now, of all that is looked at again and again.
    fn look(&mut self) -> Vec<Fact> {
        let Some(container) = &self.container else {
            return Vec::new();
        };
        let mut drifted: Vec<Fact> = match container.prove_cheap() {
            Ok(proof) => proof.failures().cloned().collect(),
            Err(e) => vec![Fact {
                name: "proof".into(),
                promised: "can be read".into(),
                actual: chain(&e),
                source: "/proc".into(),
                holds: false,
            }],
        };
        drifted.extend(self.quiet_drift());
        drifted.extend(self.cores_drift());
        drifted
    }

    /// New drift: what was promised for it, done, told and recorded.
    fn answer_drift(&mut self) {
        let words: Vec<&str> = self.drift.iter().map(|f| f.name.as_str()).collect();
        let words = words.join(", ");
        let facts = record::facts(self.drift.iter());
        let wanted = self.on_drift;
        let mut done = Ok(());
        match wanted {
            OnDrift::Report | OnDrift::Repair => {}
            OnDrift::Freeze => done = self.freeze(),
            OnDrift::Stop => self.stop(),
        }
        // What cannot be frozen must not go on.
        let answer = match &done {
            Ok(()) => wanted,
            Err(refusal) => {
                eprintln!("berth monitor of {}: {}", self.request.id, refusal.message);
                self.kill();
                OnDrift::Stop
            }
        };
        self.tell(&Event::Drift {
            facts: self.drift.clone(),
            answer,
        });
        let entry = Entry::new("drift", &self.request.id, words)
            .result("failed")
            .detail(json!({"facts": facts, "answer": answer}));
        self.recorder.note_safely(entry);
    }
}
