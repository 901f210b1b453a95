use crate::problem::Problem;

/// A manifest file as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// How messages name it: its path in the repository.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl SourceFile {
    /// # Errors
    /// The bytes are not UTF-8 (kOps would read them as it happens), with the line of the first bad one.
    pub fn from_bytes(path: &str, bytes: Vec<u8>) -> Result<Self, Problem> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { path: path.into(), text }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = error.as_bytes().iter().take(valid);
                Err(Problem {
                    file: path.into(),
                    line: 1 + before.filter(|&&byte| byte == b'\n').count(),
                    what: "the file is not UTF-8 text".into(),
                    remedy: "save it as UTF-8".into(),
                })
            }
        }
    }
}

/// A piece of a file that kOps takes for one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The line of the file where it begins, from 1.
    pub line: usize,
    /// Its text, with line feeds only.
    pub text: String,
}

/// What kOps splits on: exactly these bytes.
pub(crate) const SEPARATOR: &str = "\n---\n";

/// Splits a file exactly as kOps does, which is by bytes and not by YAML (kOps 1.36 util/pkg/text/text.go).
pub fn split(file: &SourceFile) -> Vec<Section> {
    let text = file.text.replace("\r\n", "\n");
    let mut line = 1;
    text.split(SEPARATOR)
        .map(|text| {
            let section = Section { line, text: text.into() };
            line += text.matches('\n').count() + SEPARATOR.matches('\n').count();
            section
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sections(text: &str) -> Vec<(usize, String)> {
        let file = SourceFile { path: "cluster.yml".into(), text: text.into() };
        let sections = split(&file);
        sections.into_iter().map(|s| (s.line, s.text)).collect()
    }

    #[test]
    fn splits_on_the_exact_bytes() {
        for (text, expected) in [
            ("", vec![(1, "")]),
            ("a: 1\n---\nb: 2\n", vec![(1, "a: 1"), (3, "b: 2\n")]),
            ("a: 1\r\n---\r\nb: 2", vec![(1, "a: 1"), (3, "b: 2")]),
            ("a: 1\n--- \nb: 2\n", vec![(1, "a: 1\n--- \nb: 2\n")]),
            ("---\na: 1\n", vec![(1, "---\na: 1\n")]),
            ("a: 1\n\n---\n\nb: 2", vec![(1, "a: 1\n"), (4, "\nb: 2")]),
            ("a: 1\n---\n", vec![(1, "a: 1"), (3, "")]),
            ("a\n---\n---\nb", vec![(1, "a"), (3, "---\nb")]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(l, t)| (l, t.into())).collect();
            assert_eq!(sections(text), expected, "{text:?}");
        }
    }

    #[test]
    fn not_utf8_names_the_line() {
        let problem = SourceFile::from_bytes("a.yml", b"a: 1\nb: \xff\n".to_vec()).unwrap_err();
        assert_eq!((problem.file.as_str(), problem.line), ("a.yml", 2));
    }

    /// Go's bytes.ReplaceAll and bytes.Split, spelled out on bytes.
    fn model(text: &[u8]) -> Vec<Vec<u8>> {
        let mut normal = Vec::new();
        let mut rest = text;
        while let Some((&byte, tail)) = rest.split_first() {
            if rest.starts_with(b"\r\n") {
                normal.push(b'\n');
                rest = &rest[2..];
            } else {
                normal.push(byte);
                rest = tail;
            }
        }
        let (mut pieces, mut piece, mut rest) = (Vec::new(), Vec::new(), normal.as_slice());
        while let Some((&byte, tail)) = rest.split_first() {
            if rest.starts_with(b"\n---\n") {
                pieces.push(std::mem::take(&mut piece));
                rest = &rest[5..];
            } else {
                piece.push(byte);
                rest = tail;
            }
        }
        pieces.push(piece);
        pieces
    }

    proptest! {
        #[test]
        fn splits_as_kops_does(text in "(a|é|-|---|\n|\r| |\n---\n|\r\n){0,30}") {
            let texts: Vec<Vec<u8>> =
                sections(&text).into_iter().map(|(_, t)| t.into_bytes()).collect();
            prop_assert_eq!(texts, model(text.as_bytes()));
        }

        #[test]
        fn a_section_begins_at_its_line(text in "(a|b|\n|\n---\n|\r\n---\r\n){0,30}") {
            let rows: Vec<&str> = text.split('\n').collect();
            for (line, section) in sections(&text) {
                let first = section.split('\n').next().unwrap_or_default();
                prop_assert_eq!(rows[line - 1].trim_end_matches('\r'), first);
            }
        }

        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(file) = SourceFile::from_bytes("x", bytes) {
                split(&file);
            }
        }
    }
}
