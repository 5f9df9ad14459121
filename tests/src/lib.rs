//! What the integration tests, the benchmarks and the rig share: the built binary, an agent of a test's own, OCI
//! runtimes by their command line,
//! the machine's state before and after, guests under QEMU, and skips with their reasons.

pub mod agent;
pub mod leftovers;
pub mod node;
pub mod runtime;
pub mod skips;
pub mod vm;
