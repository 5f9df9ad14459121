//! The privileged half of berth: the launcher, which checks requests and forks, and the monitors it forks, one
//! for each container. Neither ever starts a thread.

pub mod check;
pub mod client;
mod cni;
pub mod compose;
pub mod conn;
pub mod cri;
pub mod frame;
pub mod harden;
pub mod launcher;
pub mod log;
mod monitor;
pub mod paths;
pub mod policy;
pub mod profile;
pub mod ranges;
mod record;
pub mod recording;
mod relabel;
mod secrets;
mod selinux;
pub mod socket;
mod uevent;
pub mod users;
mod vfio;
pub mod wire;

pub use monitor::wakeups::Wakeups;
