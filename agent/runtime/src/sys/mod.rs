//! The system calls that neither the standard library nor nix offers, one safe function each. Everything unsafe
//! of this crate outside the seccomp compiler is below this folder.
//!
//! Invariants: a function takes borrowed descriptors and gives owned ones back; every descriptor it makes is
//! close-on-exec; a path with a NUL byte is EINVAL.

pub(crate) mod fds;
pub(crate) mod mount;
pub(crate) mod ns;
pub(crate) mod own;
pub(crate) mod process;
