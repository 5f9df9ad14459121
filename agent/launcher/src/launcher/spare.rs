//! Network namespaces kept ready for the next launches.
//!
//! Invariants: each is handed out once; they are made only while nothing is asked of the launcher; a monitor that is forked
//! keeps none but its own container's. One that cannot be made is no fault: the clone makes it then, and says why it
//! cannot.

use std::time::Duration;

use berth_runtime::Network;

/// How many are kept: launches that follow each other closer than they are made get theirs by clone(2).
const KEPT: usize = 3;

/// How long nothing must have been asked before one is made.
pub(super) const QUIET: Duration = Duration::from_millis(40);

/// Those that are ready.
#[derive(Debug, Default)]
pub(super) struct Spare {
    ready: Vec<Network>,
    /// The last try failed: none is made before the next launch.
    rests: bool,
}

impl Spare {
    /// Should one be made?
    pub(super) fn lacks(&self) -> bool {
        self.ready.len() < KEPT && !self.rests
    }

    /// One for a launch.
    pub(super) fn take(&mut self) -> Option<Network> {
        self.rests = false;
        self.ready.pop()
    }

    /// Makes one.
    pub(super) fn fill(&mut self) {
        match Network::make() {
            Ok(network) => self.ready.push(network),
            Err(error) => {
                eprintln!("berth launcher: no network namespace can be made beforehand: {error}");
                self.rests = true;
            }
        }
    }
}
