//! Applies the approved plan.

fn main() {}
