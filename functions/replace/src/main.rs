//! Takes the cluster's lock and commits the manifests to the state store, or puts back what a run committed.

mod commit;
mod lock;
mod restore;

use std::sync::Arc;

use jiff::Timestamp;
use kopsline_core::{Failure, Run, RunId, keys};
use kopsline_kops::KopsBinaries;
use kopsline_lambda::clients::{self, Origin};
use kopsline_lambda::{Deadline, serve, telemetry};
use kopsline_state::{LockFile, Runs, Stores, Transaction};
use serde::{Deserialize, Serialize};

/// What the pipeline asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
enum Request {
    /// Take the lock, check the manifests, commit what changed.
    Commit { run: RunId, execution: String },
    /// Put back what this run committed.
    Restore { run: RunId, reason: String },
}

/// What the function answers.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Answer {
    /// Another run holds the lock; ask again.
    Busy { wait_seconds: u64 },
    /// A newer merge took this one's place.
    Superseded,
    /// The state store has the manifests now.
    Replaced { objects: usize },
    /// It had them before.
    Unchanged,
    /// What was committed is put back.
    Restored { objects: usize },
}

/// The clients behind the requests.
struct Replace {
    runs: Runs,
    origin: Origin,
    stores: Arc<dyn Stores>,
    kops: KopsBinaries,
    executions: aws_sdk_sfn::Client,
}

impl Replace {
    async fn handle(&self, request: Request, deadline: Deadline, now: Timestamp) -> Result<Answer, Failure> {
        match request {
            Request::Commit { run, execution } => self.commit(&run, &execution, deadline, now).await,
            Request::Restore { run, reason } => self.restore(&run, &reason, now).await,
        }
    }

    fn lock(&self, run: &Run) -> LockFile {
        LockFile::new(self.runs.documents().clone(), &run.cluster)
    }

    /// The commit of a run's changes to the live store.
    fn transaction(&self, run: &RunId) -> Transaction {
        Transaction::new(Arc::clone(&self.stores), self.runs.documents().shared(), keys::document(run, "journal.json"))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    telemetry::init();
    let aws = clients::aws().await;
    let replace = Arc::new(Replace {
        runs: clients::runs(&aws)?,
        origin: Origin::from_settings(&aws).await?,
        stores: Arc::new(clients::state_stores(&aws)),
        kops: clients::kops(&aws)?,
        executions: aws_sdk_sfn::Client::new(&aws),
    });
    serve("replace", |request: Request, deadline| {
        let replace = Arc::clone(&replace);
        async move { replace.handle(request, deadline, Timestamp::now()).await }
    })
    .await
}
