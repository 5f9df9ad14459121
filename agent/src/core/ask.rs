//! Orders of the user: stop, start, restart, kill, freeze, thaw.
//!
//! `stop` is remembered by name, over restarts of agent and node, until `start` or `restart`.

use super::State;
use super::event::Effect;
use super::instance::{Phase, Slot};

/// One order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Stop and stay stopped.
    Stop(Vec<String>),
    /// Stop everything.
    StopAll,
    /// Start what was stopped, failed or completed.
    Start(Vec<String>),
    /// A new container in place of the one that is there.
    Restart(Vec<String>),
    /// A signal to the first process.
    Kill(Vec<String>, i32),
    /// Freeze every task.
    Freeze(Vec<String>),
    /// Thaw.
    Thaw(Vec<String>),
    /// The caller of `berth run` has its answer.
    Forget(String),
}

/// Why an order is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody has that name.
    #[error("there is no workload or container `{0}`")]
    Absent(String),
    /// It is in no state for that.
    #[error("`{name}` is {phase}: {wanted}")]
    Phase {
        /// Its name.
        name: String,
        /// Where it stands.
        phase: &'static str,
        /// What is needed.
        wanted: &'static str,
    },
}

impl AskError {
    /// The setting to change.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            AskError::Absent(_) => Some("`berth ps` lists the names".to_owned()),
            AskError::Phase { .. } => None,
        }
    }
}

impl State {
    /// Ids of the instances that `name` means: one by its name or id, or all of a workload.
    pub(crate) fn resolve(&self, name: &str) -> Result<Vec<String>, AskError> {
        if let Some(one) = self
            .instances
            .values()
            .find(|i| i.name == name)
            .or_else(|| self.instances.get(name))
        {
            return Ok(vec![one.id.clone()]);
        }
        let ids: Vec<String> = self
            .instances
            .values()
            .filter(|i| i.workload.name == name)
            .map(|i| i.id.clone())
            .collect();
        if ids.is_empty() && !self.desired.workloads.contains_key(name) && !self.stopped.contains(name) {
            return Err(AskError::Absent(name.to_owned()));
        }
        Ok(ids)
    }

    pub(super) fn obey(&mut self, ask: Ask, out: &mut Vec<Effect>) -> Result<Vec<String>, AskError> {
        match ask {
            Ask::Stop(names) => {
                let ids = self.all(&names)?;
                let lasting: Vec<String> = names.iter().map(|name| self.lasting(name)).collect();
                self.stopped.extend(lasting);
                self.mark_all();
                Ok(ids)
            }
            Ask::StopAll => {
                self.stopped.extend(self.desired.workloads.keys().cloned());
                self.stopped.extend(self.once.keys().cloned());
                for instance in self.instances.values() {
                    if matches!(instance.slot, Slot::Adopted(_)) {
                        self.stopped.insert(instance.name.clone());
                    }
                }
                self.mark_all();
                Ok(self.instances.keys().cloned().collect())
            }
            Ask::Start(names) => {
                let ids = self.all(&names)?;
                self.wake_up(&names, &ids);
                Ok(ids)
            }
            Ask::Restart(names) => {
                let ids = self.all(&names)?;
                self.wake_up(&names, &ids);
                for id in &ids {
                    self.tell_stop(id, out);
                }
                Ok(ids)
            }
            Ask::Kill(names, signal) => {
                let ids = self.all(&names)?;
                let runs =
                    |p: &Phase| matches!(p, Phase::Running | Phase::Frozen | Phase::Stopping | Phase::Armed);
                self.in_phase(&ids, runs, "a signal needs a container that runs")?;
                out.extend(ids.iter().map(|id| Effect::Signal(id.clone(), signal)));
                Ok(ids)
            }
            Ask::Freeze(names) => {
                let ids = self.all(&names)?;
                self.in_phase(
                    &ids,
                    |p| *p == Phase::Running,
                    "only a running container can be frozen",
                )?;
                out.extend(ids.iter().cloned().map(Effect::Freeze));
                Ok(ids)
            }
            Ask::Thaw(names) => {
                let ids = self.all(&names)?;
                self.in_phase(&ids, |p| *p == Phase::Frozen, "it is not frozen")?;
                out.extend(ids.iter().cloned().map(Effect::Thaw));
                Ok(ids)
            }
            Ask::Forget(name) => {
                self.once
                    .remove(&name)
                    .ok_or_else(|| AskError::Absent(name.clone()))?;
                self.stopped.remove(&name);
                self.dirty.insert(Slot::Once(name));
                Ok(Vec::new())
            }
        }
    }

    fn all(&self, names: &[String]) -> Result<Vec<String>, AskError> {
        let mut ids = Vec::new();
        for name in names {
            ids.extend(self.resolve(name)?);
        }
        Ok(ids)
    }

    /// The name under which a stop is remembered: that of the instance, not a container id.
    fn lasting(&self, name: &str) -> String {
        self.instances
            .get(name)
            .map_or_else(|| name.to_owned(), |i| i.name.clone())
    }

    fn wake_up(&mut self, names: &[String], ids: &[String]) {
        for name in names {
            let lasting = self.lasting(name);
            self.stopped.remove(name);
            self.stopped.remove(&lasting);
        }
        for id in ids {
            if let Some(instance) = self.instances.get(id) {
                // Stopped with its whole workload, or by itself: either way it is to run now.
                let (own, workload) = (instance.name.clone(), instance.workload.name.clone());
                self.stopped.remove(&own);
                self.stopped.remove(&workload);
            }
            self.forgive(id);
            if let Some(instance) = self.instances.get_mut(id)
                && !instance.phase.has_monitor()
                && !matches!(instance.phase, Phase::Waiting { .. })
            {
                instance.phase = Phase::Pending;
            }
        }
        self.mark_all();
    }

    fn in_phase(
        &self,
        ids: &[String],
        fits: impl Fn(&Phase) -> bool,
        wanted: &'static str,
    ) -> Result<(), AskError> {
        for instance in ids.iter().filter_map(|id| self.instances.get(id)) {
            if !fits(&instance.phase) {
                let (name, phase) = (instance.name.clone(), instance.phase.as_str());
                return Err(AskError::Phase { name, phase, wanted });
            }
        }
        Ok(())
    }

    /// Stops by hand that mean nothing any more; the driver keeps the rest in its state file.
    pub(crate) fn tidy_stopped(&mut self) {
        let known = |name: &String| {
            let workload =
                |w: &String| name == w || name.strip_prefix(w.as_str()).is_some_and(|r| r.starts_with('-'));
            self.desired.workloads.keys().any(workload)
                || self.once.contains_key(name)
                || self.instances.values().any(|i| i.name == *name)
        };
        let gone: Vec<String> = self.stopped.iter().filter(|name| !known(name)).cloned().collect();
        for name in gone {
            self.stopped.remove(&name);
        }
    }
}
