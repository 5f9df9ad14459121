//! The knobs of the node that this container has while it runs ([`berth_rt::quiet`]): claimed before it is made, read
//! back before its first instruction and with every running proof, put right when they drift, released with it.
//!
//! A container that asks for none costs nothing here.

use std::path::{Path, PathBuf};

use berth_rt::cpu::CpuSet;
use berth_rt::machine::Machine;
use berth_rt::quiet::{self, Irqs, Keeper, QuietError, Reading, Wish};
use berth_runtime::proof::Fact;

use super::Monitor;
use crate::paths::Paths;
use crate::wire::{DeviceGrant, InterfaceGrant, LaunchRequest, Refusal};

/// The keeper of this node's knobs, with its files in the launcher's run folder.
pub(crate) fn keeper(paths: &Paths) -> Keeper {
    Keeper::new(Path::new("/"), &paths.run.join("quiet"))
}

fn refusal(error: &QuietError) -> Refusal {
    Refusal {
        stage: "quiet".into(),
        message: error.to_string(),
        hint: error.hint(),
    }
}

fn fact(reading: Reading) -> Fact {
    Fact {
        name: reading.name,
        promised: reading.promised,
        actual: reading.actual,
        source: reading.source,
        holds: reading.holds,
    }
}

/// What raises the interrupts of these devices, as folders of /sys.
fn controllers(devices: &[DeviceGrant], interfaces: &[InterfaceGrant]) -> Vec<String> {
    let machine = Machine::bare(Path::new("/"));
    let nodes = devices.iter().map(|device| {
        let kind = if device.block { "block" } else { "char" };
        PathBuf::from(format!("/sys/dev/{kind}/{}:{}", device.major, device.minor))
    });
    let links = interfaces
        .iter()
        .map(|interface| Path::new("/sys/class/net").join(&interface.name));
    let mut all: Vec<String> = nodes
        .chain(links)
        .filter_map(|link| quiet::controller(&machine, link.canonicalize().ok()?.to_str()?))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// The request's wish; `None` where it has none.
fn wish(request: &LaunchRequest, controllers: &[String]) -> Option<Wish> {
    let asked = request.quiet.as_ref()?;
    let list = |text: &str| text.parse::<CpuSet>().unwrap_or_default();
    Some(Wish {
        strict: asked.strict,
        cpus: list(&request.placement.cpus),
        mems: list(&request.placement.mems),
        resume: asked.resume,
        governor: asked.governor.clone(),
        min_khz: asked.min_khz,
        max_khz: asked.max_khz,
        irqs: asked.irqs,
        devices: controllers.to_vec(),
        hugepages: asked.hugepages.clone(),
        share: asked.share,
        scheduler: request.scheduler,
        budget: request.rt_budget.map(|b| (b.runtime_us, b.period_us)),
    })
}

impl Monitor<'_> {
    /// Claims what the request asks for, with the interrupts of these devices.
    pub(super) fn hush(
        &mut self,
        devices: &[DeviceGrant],
        interfaces: &[InterfaceGrant],
    ) -> Result<(), Refusal> {
        let Some(asked) = &self.request.quiet else {
            return Ok(());
        };
        if asked.irqs == Irqs::Device {
            // An interface is in sight only as long as it is not inside.
            self.controllers.extend(controllers(devices, interfaces));
            self.controllers.sort();
            self.controllers.dedup();
        }
        let Some(wish) = wish(&self.request, &self.controllers) else {
            return Ok(());
        };
        keeper(&self.paths)
            .hold(&self.request.id, &wish)
            .map_err(|e| refusal(&e))?;
        self.mark("quiet");
        Ok(())
    }

    /// Just before the first instruction: what came since is put right too, and everything is read back.
    pub(super) fn hushed(&mut self) -> Result<Vec<Fact>, Refusal> {
        if self.request.quiet.is_none() {
            return Ok(Vec::new());
        }
        let keeper = keeper(&self.paths);
        keeper.mend(&self.request.id).map_err(|e| refusal(&e))?;
        let facts = self.quiet_facts()?;
        let broken: Vec<String> = facts
            .iter()
            .filter(|fact| !fact.holds)
            .map(|f| {
                format!(
                    "{}: promised {}, is {} ({})",
                    f.name, f.promised, f.actual, f.source
                )
            })
            .collect();
        self.mark("quiet");
        match &broken[..] {
            [] => Ok(facts),
            broken => Err(Refusal {
                stage: "prove".into(),
                message: broken.join("; "),
                hint: None,
            }),
        }
    }

    /// What is of all that was promised.
    pub(super) fn quiet_facts(&self) -> Result<Vec<Fact>, Refusal> {
        if self.request.quiet.is_none() {
            return Ok(Vec::new());
        }
        let readings = keeper(&self.paths)
            .read(&self.request.id)
            .map_err(|e| refusal(&e))?;
        Ok(readings.into_iter().map(fact).collect())
    }

    /// Puts right what drifted, and says what it was: each is right again when it is told.
    pub(super) fn quiet_drift(&self) -> Vec<Fact> {
        if self.request.quiet.is_none() {
            return Vec::new();
        }
        let failed = |e: &QuietError| Fact {
            name: "quiet".into(),
            promised: "can be read".into(),
            actual: e.to_string(),
            source: self.paths.run.join("quiet").display().to_string(),
            holds: false,
        };
        let keeper = keeper(&self.paths);
        let mended = match keeper.mend(&self.request.id) {
            Ok(mended) => mended,
            Err(e) => return vec![failed(&e)],
        };
        let told = mended.into_iter().map(|m| Fact {
            actual: if m.drift {
                format!("{}{}", m.found, super::drift::PUT_BACK)
            } else {
                format!("{} since its device came, and moved", m.found)
            },
            name: m.name,
            promised: m.value,
            source: m.path,
            holds: false,
        });
        let told = told.collect::<Vec<_>>();
        match keeper.read(&self.request.id) {
            Ok(readings) => {
                let broken = readings.into_iter().filter(|r| !r.holds).map(fact);
                told.into_iter().chain(broken).collect()
            }
            Err(e) => told.into_iter().chain([failed(&e)]).collect(),
        }
    }

    /// Nothing is claimed any more.
    pub(super) fn unhush(&self) {
        if self.request.quiet.is_none() {
            return;
        }
        // What fails stays on record, and is tried again by whoever settles next.
        if let Err(e) = keeper(&self.paths).release(&self.request.id) {
            eprintln!("berth monitor of {}: {e}", self.request.id);
        }
    }
}
