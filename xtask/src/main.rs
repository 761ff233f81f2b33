//! Repository tasks: setup, test, demo, bench, lint.
fn main() {}
