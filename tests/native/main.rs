//! Journeys on this machine's kernel.

fn main() {}
