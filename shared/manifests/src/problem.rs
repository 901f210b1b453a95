use std::fmt;

use serde::{Deserialize, Serialize};

/// Something wrong with the manifests, told to the person who wrote them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file, as it was named in [`SourceFile::path`](crate::SourceFile::path).
    pub file: String,
    /// The line in the file, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, remedy } = self;
        write!(f, "{file}:{line}: {what} ({remedy})")
    }
}
