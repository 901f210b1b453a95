//! Structured logs: one JSON object a line, with the spans' run, cluster and stage, as `CloudWatch` Logs Insights reads them.

use tracing_subscriber::EnvFilter;

use crate::settings;

/// Starts logging. `KOPSLINE_LOG` is a `tracing` filter such as `info,kopsline_state=debug`; `info` by default.
pub fn init() {
    let filter = settings::optional("KOPSLINE_LOG").unwrap_or_else(|| "info".to_owned());
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_env_filter(EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info")))
        .finish();
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
