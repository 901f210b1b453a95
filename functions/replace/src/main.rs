//! Takes the cluster's lock and commits the manifests to the state store.

fn main() {}
