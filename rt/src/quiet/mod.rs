//! What one workload wants of the node's knobs while it runs: idle states, clock and interrupts of its own cores.
//!
//! Files below a folder that all holders share:
//! ```text
//! DIR/lock           flock(2): one process at a time
//! DIR/claims/ID      what ID wants, as JSON
//! DIR/base           the value of every knob before it was first touched, with the boot's id
//! ```
//! Invariants: a claim is written before a knob's first value, that before the knob; what the knobs should be follows from
//! claims and first values alone (`want::knobs`, pure), so that whoever comes next, after any kill, makes it so. A
//! knob that nobody claims any more has its first value again. A boot resets all of it.

mod irq;
mod lacks;
mod share;
mod want;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cpu::CpuSet;
use crate::machine::Machine;
use crate::sched::Scheduler;
use crate::tune::{agrees, put};

pub use irq::{balancer, controller};
pub use lacks::Lack;
pub use share::{Share, available};
use want::Knob;

/// What to do with interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Irqs {
    /// Nothing.
    #[default]
    Leave,
    /// Off the cores.
    Away,
    /// Off the cores but the first, with all its threads: that one takes them for the others.
    First,
    /// Off the cores, and those of the workload's own devices onto them.
    Device,
}

/// The deepest idle state: `pm_qos_resume_latency_us` of a CPU (Documentation/ABI/testing/sysfs-devices-power).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resume {
    /// Any: the file's `0`.
    Any,
    /// Those that are left within so many microseconds; 0 is the file's `n/a`, none but polling.
    Within(u32),
}

impl Resume {
    /// As the file has it.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Resume::Any => "0".into(),
            Resume::Within(0) => "n/a".into(),
            Resume::Within(us) => us.to_string(),
        }
    }
}

/// Pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Huge {
    /// Size of a page in KiB.
    pub size_kib: u64,
    /// How many.
    pub count: u64,
}

/// What a workload wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Wish {
    /// What this node lacks refuses the launch; else it is reported.
    pub strict: bool,
    /// Its cores, its alone.
    pub cpus: CpuSet,
    /// Its memory nodes; empty: all.
    pub mems: CpuSet,
    /// Idle states.
    pub resume: Option<Resume>,
    /// `scaling_governor`.
    pub governor: Option<String>,
    /// `scaling_min_freq`, in kHz.
    pub min_khz: Option<u64>,
    /// `scaling_max_freq`, in kHz.
    pub max_khz: Option<u64>,
    /// Interrupts.
    pub irqs: Irqs,
    /// With [`Irqs::Device`]: folders in /sys of what raises its devices' interrupts.
    pub devices: Vec<String>,
    /// Huge pages that nobody else claims.
    pub hugepages: Vec<Huge>,
    /// Percent of each of its cores that its policy must be able to have, 1 to 100.
    pub share: Option<u8>,
    /// Its policy.
    pub scheduler: Option<Scheduler>,
    /// v1 with RT_GROUP_SCHED: its budget, microseconds of each period.
    pub budget: Option<(u64, u64)>,
}

impl Wish {
    /// The CPUs that interrupts are kept off; none with [`Irqs::Leave`].
    #[must_use]
    pub fn spared(&self, machine: &Machine) -> CpuSet {
        match self.irqs {
            Irqs::Leave => CpuSet::new(),
            Irqs::Away | Irqs::Device => self.cpus.clone(),
            Irqs::First => {
                let first: CpuSet = self.cpus.first().into_iter().collect();
                let siblings = self.cpus.first().and_then(|cpu| {
                    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
                    machine.read(&path)?.parse::<CpuSet>().ok()
                });
                self.cpus.difference(&siblings.unwrap_or_default().union(&first))
            }
        }
    }
}

/// One thing read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Its name.
    pub name: String,
    /// What was promised.
    pub promised: String,
    /// What is.
    pub actual: String,
    /// Where that was read.
    pub source: String,
    /// Whether it is as promised.
    pub holds: bool,
}

/// A knob that was not as it should be, and was put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// Which.
    pub path: String,
    /// Name of its reading.
    pub name: String,
    /// What was found.
    pub found: String,
    /// What it is again.
    pub value: String,
    /// Whether it had been set before; else it is new, such as the interrupt of a device that was plugged.
    pub drift: bool,
}

/// Why a wish cannot be had. Nothing of it is left.
#[derive(Debug, Error)]
pub enum QuietError {
    /// This node lacks it.
    #[error("{}", texts(.0))]
    Lacks(Vec<Lack>),
    /// The kernel took a value, or refused it, and has another one.
    #[error("{}: cannot be `{value}`{}; it is `{actual}`", path, source.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Kept {
        /// The file.
        path: String,
        /// What was written.
        value: String,
        /// What is there.
        actual: String,
        /// The kernel's answer.
        source: Option<io::Error>,
    },
    /// berth's own files.
    #[error("{}: {source}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

fn texts(lacks: &[Lack]) -> String {
    let texts: Vec<String> = lacks.iter().map(|l| format!("{}: {}", l.name, l.why)).collect();
    texts.join("; ")
}

impl QuietError {
    /// What helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            QuietError::Lacks(lacks) => {
                let hints: Vec<&str> = lacks.iter().map(|l| l.hint.as_str()).collect();
                Some(format!(
                    "{}; with `class: soft` it is reported instead",
                    hints.join("; ")
                ))
            }
            QuietError::Kept { .. } => Some("leave it out, or write `class: soft`".into()),
            QuietError::State { .. } => Some("the launcher's --run-dir must be writable for root".into()),
        }
    }
}

/// A claim as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    /// Without what this node lacks.
    wish: Wish,
    lacks: Vec<Lack>,
}

/// The first values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Base {
    boot: String,
    values: BTreeMap<String, String>,
    /// Interrupts that the kernel does not move, and its answer.
    kept: BTreeMap<String, String>,
}

/// Holds the knobs for all workloads of a node.
#[derive(Clone, Debug)]
pub struct Keeper {
    machine: Machine,
    dir: PathBuf,
}

impl Keeper {
    /// Over `/sys` and `/proc` below `root`, with its files in `dir`.
    #[must_use]
    pub fn new(root: &Path, dir: &Path) -> Keeper {
        Keeper {
            machine: Machine::bare(root),
            dir: dir.into(),
        }
    }

    /// Claims `wish` for `id`, in place of what it had, and makes it so.
    ///
    /// # Errors
    /// [`QuietError`]; then nothing of it is left.
    pub fn hold(&self, id: &str, wish: &Wish) -> Result<Vec<Reading>, QuietError> {
        let _lock = self.lock()?;
        let mut claims = self.claims();
        claims.remove(id);
        let (kept, lacks) = lacks::split(&self.machine, wish, &claims);
        if wish.strict && !lacks.is_empty() {
            return Err(QuietError::Lacks(lacks));
        }
        let claim = Claim { wish: kept, lacks };
        self.save(&self.claim(id), &claim)?;
        claims.insert(id.to_owned(), claim);
        let settled = self.settle(&claims, None).and_then(|(_, failed)| {
            let mine = failed.into_iter().find(|(knob, _)| knob.owner == id);
            match mine {
                Some((knob, source)) if !knob.path.starts_with("/proc/irq/") => Err(self.kept(&knob, source)),
                _ => Ok(()),
            }
        });
        if let Err(error) = settled {
            self.drop_claim(id)?;
            claims.remove(id);
            self.settle(&claims, None)?;
            return Err(error);
        }
        Ok(self.readings(id, &claims))
    }

    /// What `id` was promised beside what is; nothing where it claims nothing.
    ///
    /// # Errors
    /// [`QuietError::State`].
    pub fn read(&self, id: &str) -> Result<Vec<Reading>, QuietError> {
        let _lock = self.lock()?;
        Ok(self.readings(id, &self.claims()))
    }

    /// Puts right what is not as `id` was promised, interrupts of devices plugged since too, and says what it was.
    ///
    /// # Errors
    /// [`QuietError::State`].
    pub fn mend(&self, id: &str) -> Result<Vec<Mended>, QuietError> {
        let _lock = self.lock()?;
        let claims = self.claims();
        if !claims.contains_key(id) {
            return Ok(Vec::new());
        }
        Ok(self.settle(&claims, Some(id))?.0)
    }

    /// `id` claims nothing any more: what was its alone is as it was before.
    ///
    /// # Errors
    /// [`QuietError`]: what could not be put back is tried again by whoever settles next.
    pub fn release(&self, id: &str) -> Result<(), QuietError> {
        if !self.dir.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.drop_claim(id)?;
        let (_, failed) = self.settle(&self.claims(), None)?;
        match failed.into_iter().find(|(knob, _)| knob.owner.is_empty()) {
            Some((knob, source)) => Err(self.kept(&knob, source)),
            None => Ok(()),
        }
    }

    /// Everybody who claims something.
    #[must_use]
    pub fn holders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("claims")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with('~')).collect();
        names.sort();
        names
    }

    fn kept(&self, knob: &Knob, source: Option<io::Error>) -> QuietError {
        QuietError::Kept {
            actual: self.machine.read(&knob.path).unwrap_or_else(|| "absent".into()),
            path: knob.path.clone(),
            value: knob.value.clone(),
            source,
        }
    }

    /// Makes every knob what claims and first values say; with `only` those of one claim, and puts nothing back.
    /// Gives what was changed, and what the kernel did not take.
    #[allow(clippy::type_complexity)]
    fn settle(
        &self,
        claims: &BTreeMap<String, Claim>,
        only: Option<&str>,
    ) -> Result<(Vec<Mended>, Vec<(Knob, Option<io::Error>)>), QuietError> {
        let before = self.base();
        let mut base = before.clone();
        let knobs = want::knobs(&self.machine, claims, &base.values);
        for knob in &knobs {
            if !base.values.contains_key(&knob.path)
                && let Some(first) = self.machine.read(&knob.path)
            {
                base.values.insert(knob.path.clone(), first);
            }
        }
        // Before any knob is touched.
        if base != before {
            self.save(&self.dir.join("base"), &base)?;
        }
        let mut todo: Vec<Knob> = match only {
            Some(id) => knobs.iter().filter(|k| k.touches(id)).cloned().collect(),
            None => knobs.clone(),
        };
        if only.is_none() {
            todo.extend(
                base.values
                    .iter()
                    .filter(|(path, _)| !knobs.iter().any(|k| k.path == **path))
                    .map(|(path, first)| Knob::back(path, first)),
            );
        }
        let (mended, failed) = self.write(&todo, &before);
        let saved = base.clone();
        base.kept.retain(|path, _| !todo.iter().any(|k| k.path == *path));
        for (knob, source) in &failed {
            if let (true, Some(error)) = (knob.path.starts_with("/proc/irq/"), source) {
                base.kept.insert(knob.path.clone(), error.to_string());
            }
        }
        if only.is_none() {
            let done = |path: &String| {
                !knobs.iter().any(|k| k.path == *path) && !failed.iter().any(|(k, _)| k.path == *path)
            };
            base.values.retain(|path, _| !done(path));
        }
        if base != saved {
            self.save(&self.dir.join("base"), &base)?;
        }
        Ok((mended, failed))
    }

    /// Writes what is not so. Twice where it must be: a lowest clock above the highest is refused until that is raised.
    #[allow(clippy::type_complexity)]
    fn write(&self, todo: &[Knob], before: &Base) -> (Vec<Mended>, Vec<(Knob, Option<io::Error>)>) {
        let mut mended = Vec::new();
        let mut left: Vec<(Knob, Option<io::Error>)> = todo.iter().map(|k| (k.clone(), None)).collect();
        for _ in 0..2 {
            let mut failed = Vec::new();
            for (knob, _) in left {
                let Some(found) = self.machine.read(&knob.path) else {
                    continue; // it went with its device
                };
                if agrees(&found, &knob.value) {
                    continue;
                }
                let answer = put(&self.machine.path(&knob.path), &knob.value).err();
                match self.machine.read(&knob.path) {
                    Some(now) if agrees(&now, &knob.value) => mended.push(Mended {
                        drift: before.values.contains_key(&knob.path),
                        path: knob.path,
                        name: knob.name,
                        found,
                        value: knob.value,
                    }),
                    Some(_) => failed.push((knob, answer)),
                    None => {}
                }
            }
            left = failed;
        }
        (mended, left)
    }

    fn readings(&self, id: &str, claims: &BTreeMap<String, Claim>) -> Vec<Reading> {
        let base = self.base();
        want::readings(&self.machine, id, claims, &base)
    }

    fn claim(&self, id: &str) -> PathBuf {
        self.dir.join("claims").join(id)
    }

    fn drop_claim(&self, id: &str) -> Result<(), QuietError> {
        let path = self.claim(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(QuietError::State { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Of this boot; what cannot be read claims nothing.
    fn claims(&self) -> BTreeMap<String, Claim> {
        if self.base().boot != self.boot() {
            return BTreeMap::new();
        }
        let read = |id: String| {
            let text = fs::read(self.claim(&id)).ok()?;
            Some((id, serde_json::from_slice(&text).ok()?))
        };
        self.holders().into_iter().filter_map(read).collect()
    }

    fn base(&self) -> Base {
        let boot = self.boot();
        let kept = fs::read(self.dir.join("base")).ok();
        let base: Option<Base> = kept.and_then(|text| serde_json::from_slice(&text).ok());
        base.filter(|base| base.boot == boot).unwrap_or(Base {
            boot,
            ..Base::default()
        })
    }

    fn boot(&self) -> String {
        self.machine
            .read("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
    }

    fn lock(&self) -> Result<Flock<fs::File>, QuietError> {
        let path = self.dir.join("lock");
        let failed = |source| QuietError::State {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(self.dir.join("claims")).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
        // Claims of another boot go with its knobs.
        let base = self.dir.join("base");
        let old = fs::read(&base).ok().is_none_or(|text| {
            serde_json::from_slice::<Base>(&text).is_ok_and(|base| base.boot != self.boot())
        });
        if old {
            for id in self.holders() {
                self.drop_claim(&id)?;
            }
            self.save(&base, &self.base())?;
        }
        Ok(lock)
    }

    /// The old or the new text is there, never a part.
    fn save<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), QuietError> {
        let failed = |source| QuietError::State {
            path: path.into(),
            source,
        };
        let mut aside = path.as_os_str().to_owned();
        aside.push("~");
        let text = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
        let mut file = fs::File::create(&aside).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        fs::rename(&aside, path).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
