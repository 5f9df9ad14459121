//! The launcher's and the monitors' own audit log: what they were asked to do and did, kept apart from the agent's
//! record of the same, so that an agent that was taken over cannot say otherwise.
//!
//! Invariants: no argument, no environment and no content of a secret is written, their names and numbers are;
//! what cannot be written is said on standard error and counted, and keeps nothing from running unless the policy
//! says so (`audit.required`).

use std::cell::Cell;
use std::path::Path;

use berth_audit::{AuditError, Chain, Entry, Head, Limits, Sink, Who};
use berth_runtime::proof::{Fact, Proof};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::wire::{DeviceGrant, LaunchRequest, Refusal};

/// The log, shared by launcher and monitors through its folder.
#[derive(Debug)]
pub(crate) struct Recorder {
    chain: Chain,
    /// Something was appended since the last [`Recorder::rest`].
    fresh: Cell<bool>,
    /// The last seal of the agent's chain.
    sealed: Cell<u64>,
}

impl Recorder {
    pub(crate) fn open(folder: &Path, bytes: u64, sink: Sink) -> Result<Recorder, AuditError> {
        Ok(Recorder {
            chain: Chain::open(folder, Limits { bytes }, sink)?,
            fresh: Cell::new(false),
            sealed: Cell::new(0),
        })
    }

    /// Keeps an entry; a failure is told, and given back.
    pub(crate) fn note(&self, entry: Entry) -> Result<(), Refusal> {
        self.fresh.set(true);
        match self.chain.append(entry) {
            Ok(_) => Ok(()),
            Err(e) => {
                eprintln!("berth launcher: not recorded: {e}");
                Err(Refusal {
                    stage: "audit".into(),
                    message: e.to_string(),
                    hint: e.hint(),
                })
            }
        }
    }

    /// As [`Recorder::note`], and on the disk before this returns.
    pub(crate) fn note_safely(&self, entry: Entry) {
        if self.note(entry).is_ok() {
            self.sync();
        }
    }

    fn sync(&self) {
        if let Err(e) = self.chain.sync() {
            eprintln!("berth launcher: {e}");
        }
    }

    /// Nothing happens just now: the records go to the disk, and the agent's chain is sealed where it went on.
    pub(crate) fn rest(&self, agents: &Path) {
        if let Ok(Some(head)) = Head::of(agents)
            && head.seq != self.sealed.get()
            && self.note(Entry::seal("agent", &head)).is_ok()
        {
            self.sealed.set(head.seq);
        }
        if self.fresh.replace(false) {
            self.sync();
        }
    }
}

/// A refusal.
pub(crate) fn refused(kind: &str, subject: &str, refusal: &Refusal, who: Option<Who>) -> Entry {
    let detail = json!({"stage": refusal.stage, "hint": refusal.hint});
    Entry::new(kind, subject, refusal.message.clone())
        .result("refused")
        .who(who)
        .detail(detail)
}

/// What a launch request asked for, without what may be secret.
pub(crate) fn asked(request: &LaunchRequest) -> Value {
    let mounts = request.mounts.iter().map(|m| {
        let access = if m.read_only { "ro" } else { "rw" };
        format!("{} {} {access}", m.source.display(), m.destination.display())
    });
    let interfaces = request.interfaces.iter().map(|i| match i.vlan {
        Some(id) => format!("{} {} vlan {id}", i.index, i.name),
        None => format!("{} {}", i.index, i.name),
    });
    json!({
        "workload": request.workload,
        "image": request.image,
        "profile": request.profile,
        "cpus": request.placement.cpus,
        "shared": request.placement.shared,
        "scheduler": request.scheduler.map(|s| s.to_string()),
        "network": request.network,
        "devices": devices(&request.devices),
        "interfaces": interfaces.collect::<Vec<_>>(),
        "mounts": mounts.collect::<Vec<_>>(),
        "secrets": request.secrets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        "armed": request.armed,
    })
}

/// Devices in words.
pub(crate) fn devices(devices: &[DeviceGrant]) -> Vec<String> {
    let word = |d: &DeviceGrant| {
        let kind = if d.block { 'b' } else { 'c' };
        let what = if d.mount.is_some() { "mounted at " } else { "" };
        format!("{kind} {}:{} {} {what}{}", d.major, d.minor, d.access, d.path)
    };
    devices.iter().map(word).collect()
}

/// A proof: its digest (SHA-256 of its JSON), how many facts, and those that fail in full.
pub(crate) fn proof(proof: &Proof) -> Value {
    let text = serde_json::to_vec(proof).unwrap_or_default();
    let digest: String = Sha256::digest(&text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({
        "digest": format!("sha256:{digest}"),
        "at": proof.at,
        "stage": proof.stage,
        "facts": proof.facts.len(),
        "holds": proof.holds(),
        "failing": facts(proof.failures()),
    })
}

/// Facts in full.
pub(crate) fn facts<'a>(facts: impl Iterator<Item = &'a Fact>) -> Vec<Value> {
    facts
        .map(|f| json!({"fact": f.name, "promised": f.promised, "actual": f.actual, "source": f.source}))
        .collect()
}
