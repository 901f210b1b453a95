//! YAML as kOps reads it.
//!
//! kOps decodes manifests through sigs.k8s.io/yaml, that is go.yaml.in/yaml/v2 (YAML 1.1 scalars) into JSON. What that
//! reader takes silently and a person would not expect (a second document, a duplicate key, a key `on` that becomes
//! `true`) is a [`Fault`] here, with its line. The event parser is the one under serde-saphyr; serde-saphyr itself
//! resolves scalars in its own way and keeps no place of a value inside a dynamic document.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, Span, StructureStyle};

use crate::path::{FieldPath, Step};

/// Values in one document, aliases expanded. kOps manifests have some hundreds; more is an attack with aliases.
const MAX_VALUES: usize = 100_000;

/// What is wrong with a text, by its line from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub(crate) line: usize,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Fault {
    fn new(line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line, what: what.into(), remedy: remedy.into() }
    }
}

/// One document, read.
#[derive(Clone, Debug)]
pub(crate) struct Yaml {
    pub(crate) value: Value,
    pub(crate) places: BTreeMap<FieldPath, Place>,
    pub(crate) root: Node,
}

/// Where a value is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    /// The text of an unquoted scalar, which may say more than its value: `1.30` is the number 1.3.
    pub(crate) plain: Option<String>,
}

/// A node of the text, with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) bytes: Range<usize>,
    anchor: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Scalar { text: String, style: ScalarStyle },
    Sequence(Vec<Node>),
    Mapping(Mapping),
    Alias(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) flow: bool,
    pub(crate) entries: Vec<(Node, Node)>,
}

impl Node {
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &self.kind {
            NodeKind::Mapping(mapping) => Some(mapping),
            _ => None,
        }
    }

    fn is_merge_key(&self) -> bool {
        matches!(&self.kind, NodeKind::Scalar { text, style: ScalarStyle::Plain } if text == "<<")
    }
}

/// Reads a text that is to hold exactly one document.
pub(crate) fn read(text: &str) -> Result<Yaml, Vec<Fault>> {
    let mut faults = invisible_line_breaks(text);
    let root = match compose(text) {
        Ok(root) => root,
        Err(fault) => {
            faults.push(fault);
            return Err(faults);
        }
    };
    let mut anchors = HashMap::new();
    collect_anchors(&root, &mut anchors);
    let mut resolver = Resolver { anchors, open: Vec::new(), places: BTreeMap::new(), faults, values: 0 };
    let value = resolver.value(&root, &FieldPath::default());
    let Resolver { places, mut faults, .. } = resolver;
    // An anchor's faults come once more with each alias.
    faults.sort();
    faults.dedup();
    if faults.is_empty() { Ok(Yaml { value, places, root }) } else { Err(faults) }
}

/// YAML 1.1 ends a line, and so a comment, at these characters; YAML 1.2 and editors do not.
fn invisible_line_breaks(text: &str) -> Vec<Fault> {
    text.split('\n')
        .zip(1..)
        .filter_map(|(row, line)| {
            let found = row.chars().find(|c| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}'))?;
            Some(Fault::new(
                line,
                format!("the invisible character U+{:04X} is a line break for kops", u32::from(found)),
                "remove it, or write it as an escape in double quotes",
            ))
        })
        .collect()
}

/// Builds the tree of the only document.
fn compose(text: &str) -> Result<Node, Fault> {
    let options = granit_parser::options! {
        emit_comments: false,
        block_scalar_eof_without_line_feed: true,
    };
    let mut composer = Composer::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let marker = error.marker();
            Fault::new(marker.line(), format!("this is not YAML: {}, at column {}", error.info(), marker.col() + 1), "correct the syntax")
        })?;
        composer.take(event, span)?;
    }
    composer.root.ok_or_else(|| Fault::new(1, "there is no document here", "remove the separator `---` beside it, or the file"))
}

#[derive(Default)]
struct Composer {
    root: Option<Node>,
    /// Collections not yet closed; the second element is a mapping's key that waits for its value.
    open: Vec<(Node, Option<Node>)>,
    documents: usize,
}

impl Composer {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Fault> {
        let line = span.start.line();
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Fault::new(
                        line,
                        "a document begins here where kops does not split: it would drop it without a word",
                        "separate documents by a line of exactly `---`, without spaces or a comment, and end the file without one",
                    ));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                // `!` and `!!str` make any scalar a string, as quotes do.
                let style = match tag {
                    None => style,
                    Some(tag) => string_tag(&tag, style, line)?,
                };
                let kind = NodeKind::Scalar { text: text.into_owned(), style };
                self.add(node(kind, span, anchor));
            }
            Event::SequenceStart(_, anchor, tag) => {
                no_tag(tag.as_deref(), line)?;
                self.open.push((node(NodeKind::Sequence(Vec::new()), span, anchor), None));
            }
            Event::MappingStart(style, anchor, tag) => {
                no_tag(tag.as_deref(), line)?;
                let mapping = Mapping { flow: style == StructureStyle::Flow, entries: Vec::new() };
                self.open.push((node(NodeKind::Mapping(mapping), span, anchor), None));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((mut collection, _)) = self.open.pop() {
                    collection.bytes.end = byte_range(span).end;
                    self.add(collection);
                }
            }
            Event::Alias(target) => self.add(node(NodeKind::Alias(target), span, 0)),
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((parent, key)) => match &mut parent.kind {
                NodeKind::Mapping(mapping) => match key.take() {
                    None => *key = Some(node),
                    Some(key) => mapping.entries.push((key, node)),
                },
                NodeKind::Sequence(items) => items.push(node),
                NodeKind::Scalar { .. } | NodeKind::Alias(_) => {}
            },
        }
    }
}

fn string_tag(tag: &granit_parser::Tag, style: ScalarStyle, line: usize) -> Result<ScalarStyle, Fault> {
    if !tag.is_yaml_core_schema_tag("str") && tag.original() != "!" {
        no_tag(Some(tag), line)?;
    }
    Ok(match style {
        ScalarStyle::Plain => ScalarStyle::DoubleQuoted,
        quoted => quoted,
    })
}

fn no_tag(tag: Option<&granit_parser::Tag>, line: usize) -> Result<(), Fault> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema_tag("map") || tag.is_yaml_core_schema_tag("seq") => Ok(()),
        Some(tag) => Err(Fault::new(
            line,
            format!("the YAML tag {} has no meaning for kops", tag.original()),
            "remove it; quote the value if it is to be a string",
        )),
    }
}

fn node(kind: NodeKind, span: Span, anchor: usize) -> Node {
    Node { kind, line: span.start.line(), column: span.start.col(), bytes: byte_range(span), anchor }
}

/// Spans of text input always carry offsets; an empty range only makes an edit fail its own check.
fn byte_range(span: Span) -> Range<usize> {
    span.byte_range().unwrap_or_default()
}

fn collect_anchors<'n>(node: &'n Node, anchors: &mut HashMap<usize, &'n Node>) {
    if node.anchor != 0 {
        anchors.insert(node.anchor, node);
    }
    match &node.kind {
        NodeKind::Sequence(items) => {
            for item in items {
                collect_anchors(item, anchors);
            }
        }
        NodeKind::Mapping(mapping) => {
            for (key, value) in &mapping.entries {
                collect_anchors(key, anchors);
                collect_anchors(value, anchors);
            }
        }
        NodeKind::Scalar { .. } | NodeKind::Alias(_) => {}
    }
}

struct Resolver<'n> {
    anchors: HashMap<usize, &'n Node>,
    /// Anchors being expanded, against one that contains itself.
    open: Vec<usize>,
    places: BTreeMap<FieldPath, Place>,
    faults: Vec<Fault>,
    values: usize,
}

impl<'n> Resolver<'n> {
    fn fault(&mut self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.faults.push(Fault::new(line, what, remedy));
    }

    fn value(&mut self, node: &'n Node, path: &FieldPath) -> Value {
        self.values += 1;
        if self.values >= MAX_VALUES {
            if self.values == MAX_VALUES {
                self.fault(node.line, format!("the document has more than {MAX_VALUES} values"), "use fewer YAML aliases, or split it");
            }
            return Value::Null;
        }
        let plain = match &node.kind {
            NodeKind::Scalar { text, style: ScalarStyle::Plain } => Some(text.clone()),
            _ => None,
        };
        let line = node.line;
        self.places.insert(path.clone(), Place { line, plain });
        match &node.kind {
            NodeKind::Scalar { text, style } => self.scalar(text, *style, line),
            NodeKind::Sequence(items) => {
                items.iter().enumerate().map(|(index, item)| self.value(item, &path.child(Step::Index(index)))).collect()
            }
            NodeKind::Mapping(mapping) => Value::Object(self.mapping(mapping, path)),
            NodeKind::Alias(target) => self.alias(*target, line, path, Self::value),
        }
    }

    fn alias<T: Default>(
        &mut self,
        target: usize,
        line: usize,
        path: &FieldPath,
        expand: impl FnOnce(&mut Self, &'n Node, &FieldPath) -> T,
    ) -> T {
        let Some(node) = self.anchors.get(&target).copied() else {
            self.fault(line, "the alias has no anchor", "define the anchor before it");
            return T::default();
        };
        if self.open.contains(&target) {
            self.fault(line, "the anchor contains itself", "write the value out");
            return T::default();
        }
        self.open.push(target);
        let expanded = expand(self, node, path);
        self.open.pop();
        expanded
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, line: usize) -> Value {
        if style != ScalarStyle::Plain {
            return Value::String(text.into());
        }
        resolve_plain(text).unwrap_or_else(|| {
            self.fault(line, format!("`{text}` is not a number that JSON, and so kops, can hold"), "quote it if it is to be a string");
            Value::Null
        })
    }

    /// As go.yaml.in/yaml/v2 `decoder.mapping`: entries in their order, a merge where it stands.
    fn mapping(&mut self, mapping: &'n Mapping, path: &FieldPath) -> Map<String, Value> {
        let mut map = Map::new();
        // The line of each key that is written in this very mapping.
        let mut own: HashMap<String, usize> = HashMap::new();
        for (key, value) in &mapping.entries {
            if key.is_merge_key() {
                for (merged, value) in self.merged(value, path) {
                    if let Some(line) = own.get(&merged) {
                        let line = *line;
                        self.fault(
                            line,
                            format!("kops lets the merge (`<<`) below override `{merged}`"),
                            "put the merge first in the mapping",
                        );
                    }
                    map.insert(merged, value);
                }
                continue;
            }
            let Some(name) = self.key(key) else { continue };
            if let Some(first) = own.insert(name.clone(), key.line) {
                self.fault(
                    key.line,
                    format!("the key `{name}` is already at line {first}: kops would keep only the last"),
                    "remove one of them, or put the separator `---` between two documents",
                );
            }
            let child = path.child(Step::Key(name.clone()));
            let resolved = self.value(value, &child);
            // A person looks for a field where its key is, not where its value begins.
            if let Some(place) = self.places.get_mut(&child) {
                place.line = key.line;
            }
            map.insert(name, resolved);
        }
        map
    }

    fn merged(&mut self, node: &'n Node, path: &FieldPath) -> Map<String, Value> {
        match &node.kind {
            NodeKind::Mapping(mapping) => self.mapping(mapping, path),
            NodeKind::Alias(target) => self.alias(*target, node.line, path, |this, node, path| match node.mapping() {
                Some(mapping) => this.mapping(mapping, path),
                None => this.not_a_mapping(node.line),
            }),
            // Earlier mappings of the list win.
            NodeKind::Sequence(items) => {
                let mut map = Map::new();
                for item in items.iter().rev() {
                    match item.kind {
                        NodeKind::Sequence(_) => _ = self.not_a_mapping(item.line),
                        _ => map.extend(self.merged(item, path)),
                    }
                }
                map
            }
            NodeKind::Scalar { .. } => self.not_a_mapping(node.line),
        }
    }

    fn not_a_mapping(&mut self, line: usize) -> Map<String, Value> {
        self.fault(line, "a merge (`<<`) needs a mapping", "give it an alias of a mapping");
        Map::new()
    }

    fn key(&mut self, node: &'n Node) -> Option<String> {
        let (text, style) = match &node.kind {
            NodeKind::Scalar { text, style } => (text, *style),
            NodeKind::Alias(target) => match self.anchors.get(target).map(|node| &node.kind) {
                Some(NodeKind::Scalar { text, style }) => (text, *style),
                _ => return self.bad_key(node.line, "a key must be a string"),
            },
            _ => return self.bad_key(node.line, "a key must be a string"),
        };
        if style != ScalarStyle::Plain {
            return Some(text.clone());
        }
        let name: Cow<'_, str> = match resolve_plain(text) {
            Some(Value::String(name)) => name.into(),
            Some(Value::Bool(flag)) => if flag { "true" } else { "false" }.into(),
            Some(Value::Number(number)) => number.to_string().into(),
            _ => return self.bad_key(node.line, &format!("kops cannot read the key `{text}`")),
        };
        if name == text.as_str() {
            Some(text.clone())
        } else {
            self.bad_key(node.line, &format!("kops reads the key `{text}` as `{name}`"))
        }
    }

    fn bad_key(&mut self, line: usize, what: &str) -> Option<String> {
        self.fault(line, what, "quote the key");
        None
    }
}

/// The value of an unquoted scalar as go.yaml.in/yaml/v2 `resolve` and then Go's JSON have it; none for infinities and
/// not-a-number, which JSON has not. Timestamps stay strings.
fn resolve_plain(text: &str) -> Option<Value> {
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" => return None,
        _ => match text.as_bytes().first() {
            Some(b'.') if is_float(text) => float(text)?,
            Some(b'+' | b'-' | b'0'..=b'9') if !is_timestamp(text) => {
                let digits = text.replace('_', "");
                match integer(&digits) {
                    Some(number) => Value::Number(number),
                    None if is_float(&digits) => float(&digits)?,
                    None => Value::String(text.into()),
                }
            }
            _ => Value::String(text.into()),
        },
    })
}

/// Go's `strconv.ParseInt(text, 0, 64)`, then `ParseUint`: `0x`, `0o`, `0b` and a leading zero give the base.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match prefix.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        0_i64.checked_sub_unsigned(magnitude).map(Number::from)
    } else {
        // `ParseUint` takes no sign: a signed number is at most i64::MAX.
        (!text.starts_with('+') || i64::try_from(magnitude).is_ok()).then(|| Number::from(magnitude))
    }
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`
fn is_float(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa && exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)))
}

fn float(text: &str) -> Option<Value> {
    let number: f64 = text.parse().ok()?;
    // Go's JSON writes 1.0 as 1, which then fits an integer field. Below 2^53 the conversion is exact.
    #[expect(clippy::cast_possible_truncation, reason = "exact below 2^53")]
    if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 {
        return Some(Value::from(number as i64));
    }
    Number::from_f64(number).map(Value::Number)
}

/// Whether Go takes it for a timestamp, of which only the beginning matters here: nothing else that starts with four
/// digits and a minus is a number.
fn is_timestamp(text: &str) -> bool {
    text.find(|c: char| !c.is_ascii_digit()) == Some(4) && text.as_bytes().get(4) == Some(&b'-')
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(text: &str) -> Value {
        read(text).unwrap().value
    }

    fn faults(text: &str) -> Vec<(usize, String)> {
        let faults = read(text).unwrap_err();
        faults.into_iter().map(|f| (f.line, f.what)).collect()
    }

    #[test]
    fn scalars_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("a", json!("a")),
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("~", json!(null)),
            ("1.30", json!(1.3)),
            ("1.0", json!(1)),
            ("1e3", json!(1000)),
            (".5", json!(0.5)),
            ("0644", json!(420)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("-0b11", json!(-3)),
            ("08", json!(8)),
            ("1_000", json!(1000)),
            ("+5", json!(5)),
            ("18446744073709551615", json!(u64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.31.0", json!("1.31.0")),
            ("v1.31", json!("v1.31")),
            ("12:30:00", json!("12:30:00")),
            ("2024-01-02", json!("2024-01-02")),
            ("2017-01-01T00:00:00Z", json!("2017-01-01T00:00:00Z")),
            ("100m", json!("100m")),
            ("-", json!([null])),
            ("'1'", json!("1")),
            ("!!str 1", json!("1")),
            ("0.0.0.0/0", json!("0.0.0.0/0")),
            ("+", json!("+")),
            ("0x", json!("0x")),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert!(read(".inf").is_err());
    }

    #[test]
    fn block_scalar_at_the_end_without_line_feed() {
        // A section that kops cuts off before `\n---\n` has lost its last line feed.
        assert_eq!(value("a: |\n  x"), json!({"a": "x"}));
        assert_eq!(value("a: |\n  x\n"), json!({"a": "x\n"}));
    }

    #[test]
    fn places_are_kept() {
        let yaml = read("a: 1\nb:\n- c: 1.30\n- d:\n    e: x\n").unwrap();
        let path = FieldPath(vec![Step::Key("b".into()), Step::Index(1), Step::Key("d".into())]);
        assert_eq!(yaml.places[&path].line, 4);
        let path = FieldPath(vec![Step::Key("b".into()), Step::Index(0), Step::Key("c".into())]);
        assert_eq!(yaml.places[&path].plain.as_deref(), Some("1.30"));
    }

    #[test]
    fn anchors_and_merges() {
        let text = "a: &a {v: 1, w: 2}\nb:\n  <<: *a\n  v: 3\nc:\n  <<: [*a, {w: 4, x: 5}]\nd: *a\n";
        let expected = json!({
            "a": {"v": 1, "w": 2},
            "b": {"v": 3, "w": 2},
            "c": {"v": 1, "w": 2, "x": 5},
            "d": {"v": 1, "w": 2},
        });
        assert_eq!(value(text), expected);
    }

    #[test]
    fn faults_name_their_line() {
        for (text, line, part) in [
            ("a: 1\nb: 2\na: 3\n", 3, "already at line 1"),
            ("a: 1\n--- \nb: 2\n", 2, "does not split"),
            ("a: 1\n--- # next\nb: 2\n", 2, "does not split"),
            ("a: 1\n---", 2, "does not split"),
            ("a: 1\n...\nb: 2\n", 3, "does not split"),
            ("a: [1\nb: 2\n", 2, "not YAML"),
            ("on: 1\n", 1, "as `true`"),
            ("0x10: 1\n", 1, "as `16`"),
            ("~: 1\n", 1, "cannot read the key"),
            ("? [a]\n: 1\n", 1, "must be a string"),
            ("a: &a [*a]\n", 1, "contains itself"),
            ("a: *b\n", 1, "not YAML"),
            ("a: !secret x\n", 1, "tag !secret"),
            ("a: x # \u{2028}b: 1\n", 1, "U+2028"),
            ("x: &x {a: 1}\nb:\n  a: 2\n  <<: *x\n", 3, "override `a`"),
            ("<<: 1\n", 1, "needs a mapping"),
            ("", 1, "no document"),
            ("# only a comment\n", 1, "no document"),
        ] {
            let found = faults(text);
            assert!(found.iter().any(|(l, what)| *l == line && what.contains(part)), "{text:?} gave {found:?}");
        }
    }

    #[test]
    fn aliases_cannot_explode() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let alias = format!("*a{}", level - 1);
            writeln!(text, "a{level}: &a{level} [{}]", vec![alias; 10].join(", ")).unwrap();
        }
        assert!(faults(&text)[0].1.contains("more than"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ \\-a-z:\\[\\]{}&*!|>'\"#%@,?~<.0-9\n\t\r]{0,80}") {
            let _ = read(&text);
        }

        #[test]
        fn json_is_read_back(number in any::<i64>(), text in "\\PC{0,20}", flag in any::<bool>()) {
            prop_assume!(!text.contains(['\u{85}', '\u{2028}', '\u{2029}', '\u{feff}']));
            let document = json!({"a": number, "b": text, "c": [flag, null]});
            prop_assert_eq!(read(&document.to_string()).unwrap().value, document);
        }
    }
}
