//! The command line of Kopsline.

fn main() {}
