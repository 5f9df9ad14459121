//! berth's OCI runtime as a library: OCI configuration and a few plain extensions in, a running process and its
//! proof out.
//!
//! ```text
//! Plan::prepare      checks, refusals by name, the recipe of the new process and the promise
//! Plan::create       state folder, cgroup, clone3; the child sets itself up and waits       (create, child, rootfs, dev)
//! Container::start   policy from outside, traced to the exec stop, proven, released         (start, proof)
//! Container::…       signal, freeze, devices, interfaces, exec, delete                      (container, exec, net)
//! oci::main          the OCI command line over all of it                                    (oci, state)
//! ```
//!
//! Invariants: the caller has one thread (it clones without exec, and enters namespaces for a moment); no thread is
//! ever started here; what is made is undone when a later step fails.

mod child;
pub mod console;
mod container;
mod copyup;
mod create;
mod dev;
mod dump;
mod exec;
pub mod fields;
pub mod hooks;
mod joined;
pub mod landlock;
mod net;
mod network;
mod notify;
mod numa;
pub mod oci;
mod options;
mod over;
mod overlay;
mod plan;
mod prepare;
pub mod proof;
mod recipe;
mod report;
mod rootfs;
pub mod seccomp;
mod start;
pub mod state;
mod sys;
mod timing;
pub mod trace;
mod users;

pub use container::{Container, ContainerError, DeleteError, Device, FILESYSTEMS, Filesystem, OpenError};
pub use create::{CreateCause, CreateError, Stdio};
pub use dump::DumpError;
pub use exec::{Exec, ExecError, ExecRequest, ExecUser};
pub use net::NetError;
pub use network::Network;
pub use options::OptionError;
pub use plan::{Bundle, Context, Extensions, Hooks, Interface, Plan, PlanError, load};
pub use report::Failure;
pub use start::{ProveError, StartArgs, StartCause, StartError};

/// Has the node core scheduling (PR_SCHED_CORE, cores of more than one thread)?
pub fn core_scheduling() -> bool {
    sys::process::core_cookie(0).is_ok()
}
