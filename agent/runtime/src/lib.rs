//! berth's OCI runtime as a library: OCI configuration and a few plain extensions in, a running process and its
//! proof out. Single-threaded callers only: it clones.

pub mod proof;
