//! Real time and its resources on one node: CPU lists, topology, scheduling, cgroups, cpuset partitions and the
//! placement of workloads on cores.
//!
//! Kernel files are read and written below a root that the caller gives. A pure function decides
//! ([`placement`], the BPF program of device rules, the order of writes), a thin driver acts.

pub mod cgroup;
pub mod cmdline;
pub mod cpu;
pub mod ethtool;
pub mod knob;
pub mod latency;
pub mod machine;
pub mod node;
pub mod partition;
pub mod performance_profile;
pub mod placement;
pub mod quiet;
pub mod sched;
pub mod show;
pub mod starved;
pub mod survey;
pub mod threads;
pub mod topology;
pub mod tune;
