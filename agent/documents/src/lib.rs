//! berth's documents: YAML (`apiVersion: berth/v1`) in, typed and checked specs out, and what would change.
//!
//! The way of a document: text → spanned tree (`tree`) → typed spec with every fault collected (`de`,
//! `recover`) → what its fields say about each other (`workload_check` and the leaf crates' own `validate`) →
//! what the documents say about each other (`cross`) → [`Set`]. All of it is pure but [`load()`] and
//! [`check`], which read files.
//!
//! Invariants: a [`Report`] names every fault of every document in one run, each with file, line and column;
//! a [`Set`] out of a report without faults is consistent; no input of any kind panics or takes more memory
//! than a small multiple of [`MAX_BYTES`].

mod cross;
mod de;
mod diff;
mod document;
mod fault;
mod ghost;
mod load;
mod realtime;
mod recover;
mod set;
mod signal;
mod single;
mod specs;
mod state;
mod tree;
mod values;
mod workload;
mod workload_check;
mod write;

pub use berth_policies::OnDrift;
pub use diff::{Action, Change, FieldChange, diff};
pub use document::{API_VERSION, Document, Kind, Metadata, Origin};
pub use fault::{Fault, Problem, Severity};
pub use load::{Against, Report, Source, check, check_sources, load};
pub use realtime::{CStates, Class, Clock, HugePages, Irqs};
pub use set::{Set, SetError};
pub use signal::Signal;
pub use single::read_single;
pub use specs::{NodeSpec, ProfileSpec, RuleSpec};
pub use state::{STATE_VERSION, StateError};
pub use tree::{MAX_BYTES, MAX_DEPTH, MAX_NODES};
pub use values::{AbsolutePath, Duration, Name, Size, ValueError};
pub use workload::{
    Budget, Cni, CpuRequest, DEFAULT_PROFILE, EnvVar, Isolation, Mount, Network, Policy, Port, Protocol,
    Realtime, Relabel, Restart, RestartPolicy, Run, Scheduling, Secret, Stop, Wakeups, WorkloadSpec,
};
pub use write::{WriteError, to_yaml};
