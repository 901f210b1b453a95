//! Asks for approvals, takes decisions and closes runs.

fn main() {}
