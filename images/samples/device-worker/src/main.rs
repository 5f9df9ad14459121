//! The sample device worker.
fn main() {}
