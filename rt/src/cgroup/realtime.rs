//! The v1 real-time budget: `cpu.rt_runtime_us` in every `cpu.rt_period_us` (CONFIG_RT_GROUP_SCHED).
//!
//! The kernel holds that the children of a group never have more (runtime ÷ period, summed) than the group itself, and the
//! root group no more than `kernel.sched_rt_runtime_us`, whatever their cpusets: one budget for the node. So a
//! budget is set from the top down, each parent being raised to the sum of its children, and is given back from the
//! bottom up, before `rmdir`, each parent being lowered to the sum of the children that are left. Raising and lowering
//! is done under a lock (flock) on the topmost directory of the path, so two containers cannot take each other's share.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use super::create::parents;
use super::file::{self, FileError};
use super::{Cgroup, Controller, Hierarchy, Missing, RtBudget, Version, remove};

const RUNTIME: &str = "cpu.rt_runtime_us";
const PERIOD: &str = "cpu.rt_period_us";

/// Why a budget could not be given.
#[derive(Debug, Error)]
pub enum BudgetError {
    /// The cpu controller is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The kernel has no budget for groups.
    #[error("this node has no real-time budget for groups: {reason}")]
    NoKnob {
        /// Why.
        reason: &'static str,
    },
    /// The budget is no budget.
    #[error("a real-time budget of {} us in {} us is not possible: 0 < runtime ≤ period is needed", .0.runtime_us, .0.period_us)]
    Invalid(RtBudget),
    /// The kernel refused it: there is not so much left.
    #[error(
        "a real-time budget of {} us in {} us for {} is refused: the node has {} us in {} us for all groups, and {} \
         already held: {}", budget.runtime_us, budget.period_us, group.display(), node.runtime_us, node.period_us,
        if held.is_empty() { "nothing is" } else { "these are" },
        if held.is_empty() { "-".into() } else { held.iter().map(|(path, budget)| format!("{} {}/{} us", path.display(), budget.runtime_us, budget.period_us)).collect::<Vec<_>>().join(", ") }
    )]
    Exhausted {
        /// The group.
        group: PathBuf,
        /// What was asked.
        budget: RtBudget,
        /// The budget of the root group: all there is.
        node: RtBudget,
        /// What the other groups hold: the topmost groups of the hierarchy and the siblings of `group`.
        held: Vec<(PathBuf, RtBudget)>,
    },
    /// A file refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BudgetError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            BudgetError::Missing(missing) => missing.hint(),
            BudgetError::Exhausted { .. } => Some(
                "lower the budget, end one of the holders, or raise kernel.sched_rt_runtime_us (at most \
                 kernel.sched_rt_period_us)"
                    .into(),
            ),
            BudgetError::NoKnob { .. } => {
                Some("leave the group's budget out: here the node's kernel.sched_rt_runtime_us alone limits real time".into())
            }
            BudgetError::File(error) if error.errno() == Some(libc::EBUSY) => {
                Some("real-time threads are still running in the group".into())
            }
            _ => None,
        }
    }
}

/// What the node offers as real-time budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// v1 with CONFIG_RT_GROUP_SCHED: a group needs a budget before a real-time policy is permitted in it; all groups
    /// together have what the root group has.
    PerGroup(RtBudget),
    /// No budget for groups: only `kernel.sched_rt_runtime_us` limits real-time threads; `None` is no limit.
    NodeOnly(Option<RtBudget>),
}

impl Support {
    /// Reads what this node offers: the root group's files where the cpu controller is a v1 one that has them, else
    /// `ROOT/proc/sys/kernel/sched_rt_{runtime,period}_us`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn detect(hierarchy: &Hierarchy) -> Result<Support, FileError> {
        if let Some(tree) = hierarchy.tree(Controller::Cpu)
            && tree.version == Version::V1
            && let Some(budget) = budget_of(&tree.mount)?
        {
            return Ok(Support::PerGroup(budget));
        }
        let sysctl = |name: &str| file::parse::<i64>(&hierarchy.root().join("proc/sys/kernel").join(name));
        let (runtime, period) = (sysctl("sched_rt_runtime_us")?, sysctl("sched_rt_period_us")?);
        Ok(Support::NodeOnly(
            match (u64::try_from(runtime), u64::try_from(period)) {
                (Ok(runtime_us), Ok(period_us)) => Some(RtBudget {
                    runtime_us,
                    period_us,
                }),
                _ => None,
            },
        ))
    }
}

impl Cgroup {
    /// Gives the group a real-time budget; the parents are raised to what their children need.
    ///
    /// # Errors
    /// [`BudgetError`]; what was raised is lowered again.
    pub fn set_rt_budget(&self, budget: RtBudget) -> Result<(), BudgetError> {
        if budget.runtime_us == 0
            || budget.runtime_us > budget.period_us
            || budget.period_us > i64::MAX as u64
        {
            return Err(BudgetError::Invalid(budget));
        }
        let (version, dir) = self.need("the real-time budget", Controller::Cpu)?;
        if version == Version::V2 {
            return Err(BudgetError::NoKnob {
                reason: "cgroup v2 has no such setting",
            });
        }
        let mount = &self
            .hierarchy()
            .tree(Controller::Cpu)
            .map(|tree| tree.mount.clone())
            .unwrap_or_default();
        if file::read_if_there(&dir.join(RUNTIME))?.is_none() {
            return Err(BudgetError::NoKnob {
                reason: "the kernel is built without CONFIG_RT_GROUP_SCHED",
            });
        }
        let path = parents(mount, dir);
        let _lock = lock(mount, dir)?;
        let mut raised: Vec<(&Path, RtBudget)> = Vec::new();
        let outcome = raise(&path, dir, budget, &mut raised);
        let Err(error) = outcome else { return Ok(()) };
        for (group, before) in raised.into_iter().rev() {
            // The first error is the one to report; a parent that stays raised is lowered by the next release.
            let _ = write(group, before);
        }
        if error.errno() == Some(libc::EINVAL) {
            let held = held(mount, dir)?;
            let node = budget_of(mount)?.unwrap_or(RtBudget {
                runtime_us: 0,
                period_us: 1,
            });
            return Err(BudgetError::Exhausted {
                group: dir.into(),
                budget,
                node,
                held,
            });
        }
        Err(error.into())
    }

    /// The group's real-time budget, from the kernel; `None` where it has none.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn rt_budget(&self) -> Result<Option<RtBudget>, FileError> {
        self.dir(Controller::Cpu).map_or(Ok(None), budget_of)
    }
}

/// Raises the parents from the top down as far as needed, then sets the group itself.
fn raise<'a>(
    path: &'a [PathBuf],
    dir: &'a Path,
    budget: RtBudget,
    raised: &mut Vec<(&'a Path, RtBudget)>,
) -> Result<(), FileError> {
    let mut changes = vec![(dir, None, budget)];
    let (mut child, mut wanted) = (dir, budget);
    for parent in path.iter().rev() {
        let Some(now) = budget_of(parent)? else { break };
        let mut children = Vec::new();
        for other in remove::children(parent)? {
            children.extend(if other == child {
                Some(wanted)
            } else {
                budget_of(&other)?
            });
        }
        let needed = sum_in(&children, now.period_us);
        if needed <= now.runtime_us {
            break;
        }
        wanted = RtBudget {
            runtime_us: needed,
            period_us: now.period_us,
        };
        changes.push((parent, Some(now), wanted));
        child = parent;
    }
    for (group, before, after) in changes.into_iter().rev() {
        write(group, after)?;
        raised.extend(before.map(|before| (group, before)));
    }
    Ok(())
}

/// Gives back the budget of `dir` and of the groups below it, and lowers the parents to what their children hold.
/// Does nothing where there is no budget.
pub(crate) fn release(mount: &Path, dir: &Path) -> Result<(), FileError> {
    match budget_of(dir)? {
        Some(budget) if budget.runtime_us > 0 => {}
        _ => return Ok(()),
    }
    let _lock = lock(mount, dir)?;
    for group in remove::subtree(dir)?.iter().rev() {
        if budget_of(group)?.is_some_and(|budget| budget.runtime_us > 0) {
            file::write(&group.join(RUNTIME), "0")?;
        }
    }
    for parent in parents(mount, dir).iter().rev() {
        let Some(now) = budget_of(parent)? else {
            return Ok(());
        };
        let mut children = Vec::new();
        for child in remove::children(parent)? {
            children.extend(budget_of(&child)?);
        }
        let needed = sum_in(&children, now.period_us);
        if needed < now.runtime_us {
            file::write(&parent.join(RUNTIME), &needed.to_string())?;
        }
    }
    Ok(())
}

/// An exclusive lock on the topmost directory of the path below the mount point.
fn lock(mount: &Path, dir: &Path) -> Result<Flock<File>, FileError> {
    let top = parents(mount, dir)
        .into_iter()
        .next()
        .unwrap_or_else(|| dir.to_path_buf());
    let file = File::open(&top).map_err(|source| FileError::new("open", &top, source))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| FileError::new("lock", &top, io::Error::from_raw_os_error(errno as i32)))
}

/// The budget of one group directory; `None` where the kernel has none, or no limit (-1), or the group is gone.
fn budget_of(dir: &Path) -> Result<Option<RtBudget>, FileError> {
    let Some(runtime) = file::read_if_there(&dir.join(RUNTIME))? else {
        return Ok(None);
    };
    let Ok(runtime_us) = runtime.parse() else {
        return Ok(None);
    };
    if runtime_us == 0 {
        return Ok(Some(RtBudget {
            runtime_us,
            period_us: 1_000_000,
        }));
    }
    Ok(Some(RtBudget {
        runtime_us,
        period_us: file::parse(&dir.join(PERIOD))?,
    }))
}

/// Sets both files in the order that keeps the budget small in between.
fn write(dir: &Path, budget: RtBudget) -> Result<(), FileError> {
    let (runtime, period) = (dir.join(RUNTIME), dir.join(PERIOD));
    let before: u64 = file::parse(&period)?;
    let set_runtime = || file::write(&runtime, &budget.runtime_us.to_string());
    if before == budget.period_us {
        return set_runtime();
    }
    if before < budget.period_us {
        file::write(&period, &budget.period_us.to_string())?;
        return set_runtime();
    }
    // A shorter period with the old runtime could be more than there is: the runtime first, where it shrinks.
    let now: i64 = file::parse(&runtime)?;
    if i64::try_from(budget.runtime_us).is_ok_and(|wanted| wanted < now) {
        set_runtime()?;
        return file::write(&period, &budget.period_us.to_string());
    }
    file::write(&period, &budget.period_us.to_string())?;
    set_runtime()
}

/// The least runtime in `period_us` that covers all of `children`, each rounded up.
fn sum_in(children: &[RtBudget], period_us: u64) -> u64 {
    let share = |child: &RtBudget| {
        (u128::from(child.runtime_us) * u128::from(period_us)).div_ceil(u128::from(child.period_us.max(1)))
    };
    u64::try_from(children.iter().map(share).sum::<u128>()).unwrap_or(u64::MAX)
}

/// Who holds budget besides `dir`: the topmost groups of the hierarchy, and the siblings of `dir`.
fn held(mount: &Path, dir: &Path) -> Result<Vec<(PathBuf, RtBudget)>, FileError> {
    let mut groups = remove::children(mount)?;
    if let Some(parent) = dir.parent().filter(|parent| *parent != mount) {
        groups.extend(remove::children(parent)?);
    }
    let mut held = Vec::new();
    for group in groups.into_iter().filter(|group| group != dir) {
        if let Some(budget) = budget_of(&group)?.filter(|budget| budget.runtime_us > 0) {
            held.push((group, budget));
        }
    }
    Ok(held)
}
