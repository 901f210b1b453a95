//! Sources against real git repositories.

// `cfg(test)` tells clippy that helpers outside of test functions are tests too.
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod repository;
