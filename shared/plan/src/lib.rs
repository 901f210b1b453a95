//! The plan: kOps' dry run parsed, made stable, redacted, digested and reported.
//!
//! `kops update cluster` says what it would do as text for people, in an order that changes from run to run (maps, and `+` before `-`
//! in diffs). [`parse`] reads that text without losing a line, [`Plan::normal_form`] is equal for equal changes, [`digest`] binds it
//! to everything else that an approval is for, and [`scrub`] takes secrets out before anything is shown.

mod digest;
mod document;
mod html;
mod markdown;
mod model;
mod normal;
mod page;
mod parse;
mod redact;

pub use digest::{DigestInputs, digest};
pub use document::{PlanDocument, Summary};
pub use html::html;
pub use markdown::markdown;
pub use model::{Created, Deletion, Field, Modified, ModifiedField, Plan};
pub use normal::normalise;
pub use page::{
    ApprovalView, EventView, PreviewRowView, RollSpan, RollSpanKind, RollStepView, RunOutcome, RunView, StageOutcome, StageView, run_page,
};
pub use parse::{ParseError, parse};
pub use redact::{redact, scrub};
