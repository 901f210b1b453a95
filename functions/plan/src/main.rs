//! Runs kops' dry run and makes the plan that is approved.

fn main() {}
