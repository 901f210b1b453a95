//! Prints the normal form of kops' dry run on standard input: two dry runs of one change print the same.
//!
//! `diff <(kops update cluster ... | normal-form) <(kops update cluster ... | normal-form)` shows what really differs.

use std::io::{Read as _, stdin};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    stdin().read_to_string(&mut text)?;
    print!("{}", kopsline_plan::parse(&text)?.normal_form());
    Ok(())
}
