//! Security profiles: what a container may do, written once, resolved to one set of OCI fields.
//!
//! ```text
//! kind: SecurityProfile --serde--> ProfileSpec --resolve (extends, shipped ones)--> Profile --apply--> OCI Spec
//! ```
//!
//! Invariants: a profile that names anything unknown, contradicts itself or extends in a circle is refused, never
//! weakened; `apply` overwrites every security field of the document, so nothing an image or a request wrote there
//! survives. Pure, but for two things when it is applied: a limit marked `upTo` is cut to the node's own hard limit, and a
//! filter with `minKernel` asks for the kernel's release.

mod apply;
mod errno;
mod error;
mod filter;
pub mod generate;
mod names;
mod origin;
mod profile;
mod resolve;
mod seccomp;
mod spec;
mod syscalls;

pub use error::{Problem, ProfileError};
pub use filter::{ArchLine, Argument, Condition, Entry, Filter, Judge};
pub use origin::Line;
pub use profile::{DeviceRule, Limit, OnDrift, Profile, Seccomp, Sets};
pub use resolve::{is_loud, resolve, shipped, shipped_names};
pub use spec::{
    CapabilitiesSpec, LandlockPath, LandlockSpec, LimitSpec, LimitValue, ListSpec, Mechanism, OnMissing,
    ProfileSpec, SeccompEdit, SeccompFile, SeccompSpec, UserNamespace,
};

/// The profile of a workload that names none.
pub const DEFAULT: &str = "strict";
