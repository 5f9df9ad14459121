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
            FreezeError::Timeout { frozen: false, .. } => Some("a parent cgroup is frozen".into()),
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
