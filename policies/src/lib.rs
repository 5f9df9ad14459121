//! Security profiles: what a container may do, written once, resolved to one set of OCI fields.
//!
//! ```text
//! kind: SecurityProfile --serde--> ProfileSpec --resolve (extends, shipped ones)--> Profile --apply--> OCI Spec
//! ```
//!
//! Invariants: a profile that names anything unknown, contradicts itself or extends in a circle is refused, never
//! weakened; `apply` overwrites every security field of the document, so nothing an image or a request wrote there
//! survives. Pure, but for one thing: a limit marked `upTo` is cut to the node's own hard limit when it is applied.

mod apply;
mod error;
mod names;
mod profile;
mod resolve;
mod seccomp;
mod spec;
mod syscalls;

pub use error::{Problem, ProfileError};
pub use profile::{DeviceRule, Limit, Profile, Seccomp};
pub use resolve::{resolve, shipped, shipped_names};
pub use spec::{
    CapabilitiesSpec, LimitSpec, LimitValue, ListSpec, ProfileSpec, SeccompEdit, SeccompSpec, UserNamespace,
};

/// The profile of a workload that names none.
pub const DEFAULT: &str = "strict";
