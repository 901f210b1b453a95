//! Previews and rolls, one bounded step an invocation.

fn main() {}
