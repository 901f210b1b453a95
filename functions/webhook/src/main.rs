//! Receives GitLab's deliveries and starts runs.

fn main() {}
