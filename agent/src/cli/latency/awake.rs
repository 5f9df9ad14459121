//! CPUs kept out of idle states that take time to leave, for as long as something is measured: /dev/cpu_dma_latency held open
//! with a bound of 0 us (Documentation/power/pm_qos_interface.rst). It holds for every CPU, so for host and container alike.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// Idle states while it measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdleStates {
    /// Whether they were kept out.
    pub held: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The bound, in force until this is dropped.
#[derive(Debug)]
pub(super) struct Awake(Result<File, String>);

impl Awake {
    /// Holds it, unless idle states are to be left.
    pub(super) fn hold(leave: bool) -> Awake {
        match leave {
            true => Awake(Err("--idle".into())),
            false => Awake::at(Path::new(DEVICE)),
        }
    }

    fn at(device: &Path) -> Awake {
        let open = || {
            let mut file = OpenOptions::new().write(true).open(device)?;
            // Microseconds, 32 bits in the machine's order.
            file.write_all(&0_i32.to_ne_bytes())?;
            Ok(file)
        };
        Awake(open().map_err(|e: std::io::Error| format!("{}: {e}", device.display())))
    }

    pub(super) fn told(&self) -> IdleStates {
        IdleStates {
            held: self.0.is_ok(),
            why: self.0.as_ref().err().cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_of_nothing_is_written_and_what_hinders_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("cpu_dma_latency");
        let told = Awake::at(&device).told();
        assert!(!told.held && told.why.unwrap().contains("cpu_dma_latency: No such file"));
        std::fs::write(&device, "").unwrap();
        let held = Awake::at(&device);
        assert_eq!(
            held.told(),
            IdleStates {
                held: true,
                why: None
            }
        );
        assert_eq!(std::fs::read(&device).unwrap(), [0; 4]);
        let left = Awake::hold(true).told();
        assert_eq!((left.held, left.why.as_deref()), (false, Some("--idle")));
    }
}
