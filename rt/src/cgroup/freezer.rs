//! Freezing and thawing: `freezer.state` (v1), `cgroup.freeze` with `cgroup.events` (v2).
//!
//! A write only asks; what counts is what the kernel says afterwards, so both directions wait for it.

use std::time::{Duration, Instant};

use thiserror::Error;

use super::file::{self, FileError};
use super::{Cgroup, Controller, Missing, Version};

/// How long the kernel may take: a task in an uninterruptible wait cannot be frozen.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_micros(500);

/// Why a cgroup could not be frozen or thawed.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// The freezer is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// It cannot be thawed: a cgroup above it is frozen.
    #[error("the cgroup `{path}` stays frozen: `{above}` above it is frozen")]
    Above {
        /// The cgroup.
        path: String,
        /// The directory of the one that is frozen.
        above: String,
    },
    /// The kernel took the write, but the state did not come.
    #[error("the cgroup `{path}` is not {} after {PATIENCE:?}: the kernel says `{state}`", if *frozen { "frozen" } else { "thawed" })]
    Timeout {
        /// The cgroup.
        path: String,
        /// Whether it was to be frozen.
        frozen: bool,
        /// What the kernel says.
        state: String,
    },
}

impl FreezeError {
    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            FreezeError::Missing(missing) => missing.hint(),
            FreezeError::Timeout { frozen: true, .. } => {
                Some("a task of it is in an uninterruptible wait (state D in ps): look at its wchan".into())
            }
            FreezeError::Timeout { frozen: false, .. } => None,
            FreezeError::Above { above, .. } => Some(format!("thaw `{above}`")),
            FreezeError::File(_) => None,
        }
    }
}

impl Cgroup {
    /// Stops every process of the cgroup and waits until all of them have stopped.
    ///
    /// # Errors
    /// [`FreezeError`]; after a timeout the cgroup is thawed again.
    pub fn freeze(&self) -> Result<(), FreezeError> {
        let outcome = self.set_frozen(true);
        if matches!(outcome, Err(FreezeError::Timeout { .. })) {
            self.ask(false)?;
        }
        outcome
    }

    /// Lets the processes of the cgroup run again.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn thaw(&self) -> Result<(), FreezeError> {
        self.set_frozen(false)
    }

    /// Lets its processes end: as [`Cgroup::thaw_if_frozen`] on v1. v2 kills what is frozen.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn thaw_to_kill(&self) -> Result<(), FreezeError> {
        match self.need("freeze", Controller::Freezer) {
            Ok((Version::V1, _)) => self.thaw_if_frozen(),
            _ => Ok(()),
        }
    }

    /// Thaws it where it is frozen or about to be, whoever asked for that. Where there is no freezer, nothing is frozen;
    /// a cgroup that went with its last process is not either.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn thaw_if_frozen(&self) -> Result<(), FreezeError> {
        let Ok((version, dir)) = self.need("freeze", Controller::Freezer) else {
            return Ok(());
        };
        let (file, thawed) = match version {
            Version::V1 => ("freezer.state", "THAWED"),
            Version::V2 => ("cgroup.freeze", "0"),
        };
        let outcome = match file::read(&dir.join(file)) {
            Ok(state) if state == thawed => Ok(()),
            Ok(_) => self.thaw(),
            Err(error) => Err(error.into()),
        };
        match outcome {
            Err(FreezeError::File(error)) if error.is_gone() => Ok(()),
            other => other,
        }
    }

    /// Whether every process of the cgroup is stopped by the freezer, its own or a parent's, as the kernel says.
    ///
    /// # Errors
    /// [`FreezeError`].
    pub fn frozen(&self) -> Result<bool, FreezeError> {
        Ok(self.freezer_state()?.0)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), FreezeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // v1 wants the write repeated while it is FREEZING: a task that forked meanwhile is caught then.
            self.ask(frozen)?;
            let (now, state) = self.freezer_state()?;
            if now == frozen && (frozen || state != "FREEZING") {
                return Ok(());
            }
            if !frozen && let Some(above) = self.frozen_above() {
                return Err(FreezeError::Above {
                    path: self.path().into(),
                    above,
                });
            }
            if Instant::now() > deadline {
                return Err(FreezeError::Timeout {
                    path: self.path().into(),
                    frozen,
                    state,
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub(crate) fn ask(&self, frozen: bool) -> Result<(), FreezeError> {
        let (version, dir) = self.need("freeze", Controller::Freezer)?;
        match (version, frozen) {
            (Version::V1, true) => file::write(&dir.join("freezer.state"), "FROZEN"),
            (Version::V1, false) => file::write(&dir.join("freezer.state"), "THAWED"),
            (Version::V2, true) => file::write(&dir.join("cgroup.freeze"), "1"),
            (Version::V2, false) => file::write(&dir.join("cgroup.freeze"), "0"),
        }?;
        Ok(())
    }

    /// The directory of the nearest cgroup above this one that is frozen itself.
    #[must_use]
    pub fn frozen_above(&self) -> Option<String> {
        let (version, dir) = self.need("freeze", Controller::Freezer).ok()?;
        let (file, frozen) = match version {
            Version::V1 => ("freezer.self_freezing", "1"),
            Version::V2 => ("cgroup.freeze", "1"),
        };
        // The root of a hierarchy has no such file.
        dir.ancestors()
            .skip(1)
            .map_while(|above| Some((above, file::read(&above.join(file)).ok()?)))
            .find(|(_, state)| state == frozen)
            .map(|(above, _)| above.display().to_string())
    }

    fn freezer_state(&self) -> Result<(bool, String), FreezeError> {
        let (version, dir) = self.need("freeze", Controller::Freezer)?;
        match version {
            Version::V1 => {
                let state = file::read(&dir.join("freezer.state"))?;
                Ok((state == "FROZEN", state))
            }
            Version::V2 => {
                let events = file::read(&dir.join("cgroup.events"))?;
                Ok((
                    file::keyed(&events, "frozen") == Some(1),
                    events.replace('\n', ", "),
                ))
            }
        }
    }
}
