//! What every function shares on Lambda: settings, clients, logs, metrics, errors.
//!
//! A function's `main` is three lines: [`telemetry::init`], a context of the clients it needs, [`serve`] with its handler.

pub mod clients;
pub mod dry_run;
pub mod metrics;
mod serve;
pub mod settings;
pub mod telemetry;

pub use serve::{Deadline, serve};
