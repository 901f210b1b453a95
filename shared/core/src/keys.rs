//! The layout of the run bucket: the one place that knows its keys.

use jiff::Timestamp;

use crate::approval::ApprovalId;
use crate::ids::{ClusterName, RunId, StateStoreUri};

/// Prefix of the runs' index, newest first.
pub const RECENT: &str = "recent/";

/// Milliseconds of 9999-12-31, from which the index counts down so that S3's ascending listing is newest first.
const FAR_FUTURE_MS: i64 = 253_402_214_400_000;

/// A delivery that was seen, and the runs it started.
pub fn delivery(id_digest: &str) -> String {
    format!("deliveries/{id_digest}.json")
}

/// The run's record.
pub fn run(run: &RunId) -> String {
    format!("runs/{run}/run.json")
}

/// A document of the run, such as `plan.json` or `roll/preview.txt`.
pub fn document(run: &RunId, name: &str) -> String {
    format!("runs/{run}/{name}")
}

/// Prefix of the run's audit events.
pub fn events(run: &RunId) -> String {
    format!("runs/{run}/events/")
}

/// One audit event; sorts by time.
pub fn event(run: &RunId, at: Timestamp, name: &str) -> String {
    format!("{}{:015}-{name}.json", events(run), at.as_millisecond())
}

/// An approval.
pub fn approval(id: &ApprovalId) -> String {
    format!("approvals/{id}.json")
}

/// The Step Functions task token that an approval answers; only the `console` function may read it.
pub fn token(id: &ApprovalId) -> String {
    format!("tokens/{id}")
}

/// The task token of a paused rolling update, which the order to resume or to abort answers.
pub fn hold(run: &RunId) -> String {
    format!("tokens/{run}.hold")
}

/// What earlier rolling updates of a cluster took, for forecasts.
pub fn roll_history(store: &StateStoreUri, cluster: &ClusterName) -> String {
    format!("roll-history/{}/{cluster}.json", store.as_one_name())
}

/// A cluster's lock.
pub fn lock(store: &StateStoreUri, cluster: &ClusterName) -> String {
    format!("locks/{}/{cluster}.json", store.as_one_name())
}

/// The run's entry in the index of newest runs.
pub fn recent(run: &RunId, received_at: Timestamp) -> String {
    format!("{RECENT}{:015}-{run}", FAR_FUTURE_MS.saturating_sub(received_at.as_millisecond()).max(0))
}

/// The run behind an entry of the index.
pub fn run_of_recent(key: &str) -> Option<RunId> {
    let (_, run) = key.strip_prefix(RECENT)?.split_once('-')?;
    RunId::new(run).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_runs_list_first() {
        let run = RunId::new("demo-k8s-local-0123").unwrap();
        let early = recent(&run, "2026-01-01T00:00:00Z".parse().unwrap());
        let late = recent(&run, "2026-01-01T00:00:01Z".parse().unwrap());
        assert!(late < early);
        assert_eq!(run_of_recent(&late), Some(run));
        assert_eq!(run_of_recent("recent/nothing"), None);
    }
}
