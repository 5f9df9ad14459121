//! The privileged half of berth: the launcher, which checks requests and forks, and the monitors it forks, one
//! for each container. Neither ever starts a thread.

pub mod wire;
