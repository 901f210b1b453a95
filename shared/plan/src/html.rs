//! The plan as HTML, and the parts of it that the run's page shares.

use askama::Template;

use crate::digest::DigestInputs;
use crate::document::{PlanDocument, Summary};
use crate::model::{Deletion, Field, ModifiedField, Plan};
use crate::normal::{Sides, change};

/// Up to this many changed resources are shown open.
const SHOWN_OPEN: usize = 5;

/// The plan as a page of its own: one file, no scripts, nothing loaded from elsewhere.
pub fn html(document: &PlanDocument) -> String {
    let page = PlanPage {
        inputs: &document.inputs,
        made_at: document.made_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        digest: &document.digest,
        run: &document.run,
        body: body(document),
    };
    finish(page.render())
}

/// Writing to memory does not fail; if it ever did, the page says so instead of being empty.
pub(crate) fn finish(page: askama::Result<String>) -> String {
    page.unwrap_or_else(|error| format!("This page could not be written: {error}"))
}

/// The plan without a page around it.
pub(crate) fn body(document: &PlanDocument) -> String {
    let body = PlanBody {
        summary: document.summary,
        destructive: &document.destructive,
        changed_groups: &document.changed_groups,
        notices: &document.notices,
        sections: sections(&document.plan),
    };
    finish(body.render())
}

#[derive(Template)]
#[template(path = "plan.html")]
struct PlanPage<'a> {
    inputs: &'a DigestInputs,
    made_at: String,
    digest: &'a str,
    run: &'a str,
    body: String,
}

#[derive(Template)]
#[template(path = "plan_body.html")]
struct PlanBody<'a> {
    summary: Summary,
    destructive: &'a [String],
    changed_groups: &'a [String],
    notices: &'a [String],
    sections: Vec<Section<'a>>,
}

struct Section<'a> {
    title: &'static str,
    sign: &'static str,
    class: &'static str,
    count: usize,
    /// Whether resources are put together by kind: a new cluster has hundreds.
    grouped: bool,
    groups: Vec<Group<'a>>,
    items: &'a [Deletion],
}

struct Group<'a> {
    kind: &'a str,
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    kind: &'a str,
    name: &'a str,
    /// What one sees without opening it.
    gist: String,
    open: bool,
    values: Vec<Value<'a>>,
    diffs: Vec<Diff<'a>>,
}

struct Value<'a> {
    name: &'a str,
    old: Option<String>,
    new: String,
    /// How many entries of a map stay the same.
    same: usize,
}

struct Diff<'a> {
    name: &'a str,
    lines: Vec<Line<'a>>,
}

struct Line<'a> {
    class: &'static str,
    text: &'a str,
}

/// What deletes comes first: it is what a reader must not miss.
fn sections(plan: &Plan) -> Vec<Section<'_>> {
    let open = plan.modify.len() <= SHOWN_OPEN;
    let created = plan.create.iter().map(|resource| {
        let (kind, name) = split(&resource.id);
        let values = resource.fields.iter().map(|Field { name, value }| Value { name, old: None, new: value.clone(), same: 0 }).collect();
        Row { kind, name, gist: String::new(), open: false, values, diffs: Vec::new() }
    });
    let modified = plan.modify.iter().map(|resource| {
        let (kind, name) = split(&resource.id);
        let (diffs, values): (Vec<_>, Vec<_>) = resource.fields.iter().partition(|field| field.diff);
        Row {
            kind,
            name,
            gist: gist(&resource.fields),
            open,
            values: values.into_iter().map(scalar).collect(),
            diffs: diffs.into_iter().map(diff).collect(),
        }
    });
    let sections = [
        Section {
            title: "Delete",
            sign: "−",
            class: "del",
            count: plan.delete.len(),
            grouped: false,
            groups: Vec::new(),
            items: &plan.delete,
        },
        Section {
            title: "Modify",
            sign: "~",
            class: "mod",
            count: plan.modify.len(),
            grouped: false,
            groups: vec![Group { kind: "", rows: modified.collect() }],
            items: &[],
        },
        Section { title: "Create", sign: "+", class: "add", count: plan.create.len(), grouped: true, groups: by_kind(created), items: &[] },
        Section {
            title: "Delete only with --prune",
            sign: "·",
            class: "pru",
            count: plan.prune.len(),
            grouped: false,
            groups: Vec::new(),
            items: &plan.prune,
        },
    ];
    sections.into_iter().filter(|section| section.count > 0).collect()
}

fn by_kind<'a>(rows: impl Iterator<Item = Row<'a>>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for row in rows {
        match groups.last_mut().filter(|group| group.kind == row.kind) {
            Some(group) => group.rows.push(row),
            None => groups.push(Group { kind: row.kind, rows: vec![row] }),
        }
    }
    groups
}

fn split(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or(("", id))
}

fn scalar(field: &ModifiedField) -> Value<'_> {
    let text = field.lines.first().map_or("", String::as_str);
    match change(text) {
        Some(Sides { old, new, same }) => Value { name: &field.name, old: Some(old), new, same },
        None => Value { name: &field.name, old: None, new: text.to_owned(), same: 0 },
    }
}

fn diff(field: &ModifiedField) -> Diff<'_> {
    let lines = field.lines.strip_suffix(&[String::new()]).unwrap_or(&field.lines);
    let class = |text: &str| match text.split_at_checked(2) {
        Some(("+ ", _)) => "ins",
        Some(("- ", _)) => "del",
        _ if text == "..." => "gap",
        _ => "ctx",
    };
    let lines = lines.iter().map(|line| Line { class: class(line), text: line.trim_end_matches('\r') }).collect();
    Diff { name: &field.name, lines }
}

/// The changed fields in a few words: short scalars with their values, the rest by name.
fn gist(fields: &[ModifiedField]) -> String {
    let words = fields.iter().map(|field| match scalar(field) {
        Value { name, old: Some(old), new, same: 0 } if !field.diff && old.len() + new.len() <= 40 => {
            format!("{name} {old} → {new}")
        }
        Value { name, .. } => name.to_owned(),
    });
    words.collect::<Vec<_>>().join(", ")
}
