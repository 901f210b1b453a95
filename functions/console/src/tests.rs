//! Questions, answers and ends, with a store in memory and tasks that remember what they were told.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kopsline_core::approval::Gate;
use kopsline_core::lock::{Acquire, Relation};
use kopsline_core::{
    ApprovalId, CommitId, Decision, Failure, FailureKind, Order, RollOrders, Run, RunState, Stage, StageState, keys, orders,
};
use kopsline_lambda::clients::Origin;
use kopsline_rolling::RollOptions;
use kopsline_state::locks::Facts;
use kopsline_state::testing::{Fault, Faults, FaultyStore, MemoryStore};
use kopsline_state::{Documents, LockFile, ObjectStore, Runs, UpdateError};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::tasks::{Taken, Tasks};
use crate::{Console, Request};

/// Remembers what every task was told; a task takes one answer.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, Decision)>>>);

#[async_trait]
impl Tasks for Told {
    async fn answer(&self, token: &SecretString, decision: Decision) -> Result<Taken, Failure> {
        let mut told = self.0.lock().unwrap();
        if told.iter().any(|(known, _)| known == token.expose_secret()) {
            return Ok(Taken::TooLate);
        }
        told.push((token.expose_secret().to_owned(), decision));
        Ok(Taken::Yes)
    }
}

struct Free;

impl Facts for Free {
    type Error = UpdateError;
    async fn alive(&self, _: &str) -> Result<bool, UpdateError> {
        Ok(true)
    }
    async fn relation(&self, _: &CommitId) -> Result<Relation, UpdateError> {
        Ok(Relation::Unrelated)
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn console(store: impl ObjectStore + 'static, told: &Told) -> Console {
    let runs = Runs::new(Documents::new(Arc::new(store)));
    Console { runs, tasks: Box::new(told.clone()), origin: Origin::Folder("/nowhere".into()) }
}

/// A run that holds the lock and whose roll was previewed.
async fn world() -> (MemoryStore, Run) {
    let store = MemoryStore::default();
    let runs = Runs::new(Documents::new(Arc::new(store.clone())));
    let run: Run = serde_json::from_value(json!({
        "id": "demo-1", "delivery": "d", "received_at": at(0), "state": "running",
        "cluster": {"name": "demo.k8s.local", "stateStore": "s3://state", "region": "eu-central-1", "kops": {"version": "1.36.2"}, "sources": ["c.yaml"]},
        "merge": {"project_id": 1, "project": "a/b", "branch": "main", "commit": "1".repeat(40), "before": "0".repeat(40),
                  "title": "t", "user": "ann", "url": "https://gitlab.example.com/x"},
    }))
    .unwrap();
    runs.create(&run).await.unwrap();
    runs.put_text(&run.id, "roll/preview.txt", "NAME STATUS\n".into()).await.unwrap();
    let lock = LockFile::new(runs.documents().clone(), &run.cluster);
    assert!(matches!(lock.acquire(&run.claim(), "arn", at(0), &Free).await.unwrap(), Acquire::Take { .. }));
    (store, run)
}

fn ask(run: &Run, token: &str) -> Request {
    Request::Ask { run: run.id.clone(), gate: Gate::Roll, token: token.into(), timeout_seconds: 100 }
}

fn decide(decision: Decision) -> Request {
    let approval = ApprovalId::new("demo-1.roll.1").unwrap();
    Request::Decide { approval, decision, comment: None, by: Some("ann".into()), execution: "arn".into() }
}

fn finish(result: &str) -> Request {
    serde_json::from_value(json!({"action": "finish", "run": "demo-1", "result": result, "error": null, "cause": null})).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_once_however_often_it_is_said() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store.clone(), &told);
    let asked = console.handle(ask(&run, "token"), at(1)).await.unwrap();
    assert_eq!(asked.approval.unwrap().as_str(), "demo-1.roll.1");
    let record = console.runs.read(&run.id).await.unwrap();
    assert_eq!(record.current().map(|stage| (stage.stage, stage.state)), Some((Stage::ApproveRoll, StageState::Waiting)));

    for _ in 0..2 {
        console.handle(decide(Decision::Approve), at(2)).await.unwrap();
    }
    let refused = console.handle(decide(Decision::Reject), at(3)).await.unwrap_err();
    assert!(refused.kind == FailureKind::BadInput && refused.message.contains("already approved by ann"), "{refused}");
    assert_eq!(*told.0.lock().unwrap(), [("token".to_owned(), Decision::Approve)]);
    assert!(
        !store.snapshot().iter().any(|(key, bytes)| !key.starts_with("tokens/") && String::from_utf8_lossy(bytes).contains("\"token\""))
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_goes_to_the_newest_token_even_if_it_came_first() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store, &told);
    console.handle(ask(&run, "lost"), at(1)).await.unwrap();
    console.handle(decide(Decision::Approve), at(2)).await.unwrap();
    // The state machine did not get it and asks again: the answer stands.
    console.handle(ask(&run, "second"), at(3)).await.unwrap();
    let told: Vec<_> = told.0.lock().unwrap().iter().map(|(token, _)| token.clone()).collect();
    assert_eq!(told, ["lost", "second"]);
}

#[tokio::test(start_paused = true)]
async fn late_and_unknown_answers_are_refused() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store, &told);
    let unknown = console.handle(decide(Decision::Approve), at(1)).await.unwrap_err();
    assert!(unknown.message.contains("there is no approval"), "{unknown}");
    console.handle(ask(&run, "token"), at(1)).await.unwrap();
    let late = console.handle(decide(Decision::Approve), at(101)).await.unwrap_err();
    assert!(late.message.contains("expired"), "{late}");
    console.handle(finish("expired"), at(102)).await.unwrap();
    assert!(console.handle(decide(Decision::Approve), at(50)).await.is_err());
    assert!(told.0.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_end_frees_the_lock_and_withdraws_the_questions() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store.clone(), &told);
    console.handle(ask(&run, "token"), at(1)).await.unwrap();
    for _ in 0..2 {
        console.handle(finish("rejected"), at(2)).await.unwrap();
    }
    let record = console.runs.read(&run.id).await.unwrap();
    assert_eq!((record.state, record.ended_at), (RunState::Rejected, Some(at(2))));
    let lock = LockFile::new(console.runs.documents().clone(), &run.cluster).read().await.unwrap();
    assert_eq!(lock.holder, None);
    assert!(console.runs.approval(&record.approvals[0]).await.unwrap().unwrap().withdrawn);
    assert!(store.text(&keys::document(&run.id, "index.html")).unwrap().contains("demo.k8s.local"));
}

/// Killed at any call to the store and called again, asking, deciding and finishing come to the same end.
#[tokio::test(start_paused = true)]
async fn killed_anywhere_and_repeated_it_ends_the_same() {
    for kill in 0..40 {
        for fate in [Fault::NotApplied, Fault::AnswerLost] {
            let ((store, run), told) = (world().await, Told::default());
            let sound = console(store.clone(), &told);
            let dies = |fate| console(FaultyStore::new(store.clone(), Faults::killing(kill, fate)), &told);
            let _ = dies(fate).handle(ask(&run, "first"), at(1)).await;
            sound.handle(ask(&run, "second"), at(2)).await.unwrap();
            let _ = dies(fate).handle(decide(Decision::Approve), at(3)).await;
            sound.handle(decide(Decision::Approve), at(4)).await.unwrap();
            let _ = dies(fate).handle(finish("succeeded"), at(5)).await;
            sound.handle(finish("succeeded"), at(6)).await.unwrap();

            let record = sound.runs.read(&run.id).await.unwrap();
            assert_eq!((record.state, record.approvals.len()), (RunState::Succeeded, 1), "killed at {kill}");
            assert_eq!(record.stage(Stage::ApproveRoll).map(|stage| stage.state), Some(StageState::Succeeded), "killed at {kill}");
            assert_eq!(*told.0.lock().unwrap(), [("second".to_owned(), Decision::Approve)], "killed at {kill}");
        }
    }
}

#[tokio::test]
async fn a_run_that_lost_the_lock_asks_nothing() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store, &told);
    let lock = LockFile::new(console.runs.documents().clone(), &run.cluster);
    lock.release(&run.id).await.unwrap();
    let lost = console.handle(ask(&run, "token"), at(0).saturating_add(SignedDuration::from_secs(1)).unwrap()).await.unwrap_err();
    assert_eq!(lost.kind, FailureKind::LockLost);
}

fn order(order: Order) -> Request {
    Request::Order { run: "demo-1".parse().unwrap(), order, comment: None, by: Some("ann".into()), execution: "arn".into() }
}

fn hold(run: &Run, token: &str) -> Request {
    Request::Hold { run: run.id.clone(), token: token.into() }
}

#[tokio::test(start_paused = true)]
async fn a_paused_roll_is_woken_by_the_order_to_resume() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store.clone(), &told);
    console.handle(order(Order::Pause), at(1)).await.unwrap();
    console.handle(hold(&run, "pause"), at(2)).await.unwrap();
    assert!(told.0.lock().unwrap().is_empty(), "it stays paused");
    for _ in 0..2 {
        console.handle(order(Order::Resume), at(3)).await.unwrap();
    }
    assert_eq!(*told.0.lock().unwrap(), [("pause".to_owned(), Decision::Approve)]);
    // The order came before the roll had stopped: it does not wait at all.
    console.handle(hold(&run, "late"), at(4)).await.unwrap();
    assert_eq!(told.0.lock().unwrap().last(), Some(&("late".to_owned(), Decision::Approve)));
    let orders: RollOrders = console.runs.document(&run.id, orders::DOCUMENT).await.unwrap().unwrap();
    assert_eq!(orders.history.iter().map(|ordered| ordered.order).collect::<Vec<_>>(), [Order::Pause, Order::Resume]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_wakes_a_paused_roll_and_is_for_good() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store, &told);
    console.handle(order(Order::Pause), at(1)).await.unwrap();
    console.handle(hold(&run, "pause"), at(2)).await.unwrap();
    console.handle(order(Order::Abort), at(3)).await.unwrap();
    console.handle(order(Order::Resume), at(4)).await.unwrap();
    let orders: RollOrders = console.runs.document(&run.id, orders::DOCUMENT).await.unwrap().unwrap();
    assert!(orders.aborted);
    assert_eq!(*told.0.lock().unwrap(), [("pause".to_owned(), Decision::Abort)]);
    console.handle(finish("failed"), at(5)).await.unwrap();
    let over = console.handle(order(Order::Pause), at(6)).await.unwrap_err();
    assert!(over.kind == FailureKind::BadInput && over.message.contains("is over"), "{over}");
}

/// A roll that asks these questions.
async fn asking(runs: &Runs, run: &Run, questions: serde_json::Value) {
    let roll = json!({
        "version": 2, "cluster": "demo.k8s.local", "options": RollOptions::default(), "started": at(0), "finished": null,
        "outcome": {"outcome": "running"}, "groups": [], "questions": questions,
    });
    runs.put_document(&run.id, "roll/checkpoint.json", &roll).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_question_of_the_roll_stands_until_it_is_answered_or_solves_itself() {
    let ((store, run), told) = (world().await, Told::default());
    let console = console(store, &told);
    let drain = |id: &str| {
        json!({"id": id, "asked": at(1), "deadline": at(900), "default": "fail", "group": "nodes", "about": "stuck_drain",
               "instance": "i-1", "node": "node-1", "pod": "shop/db-0", "budget": "shop/db", "remaining": 1, "hopeless": null})
    };
    let ask = |token: &str| Request::Ask { run: run.id.clone(), gate: Gate::Drain, token: token.into(), timeout_seconds: 900 };
    let tell = || Request::Tell { run: run.id.clone() };
    let withdrawn = async |id: &str| console.runs.approval(&ApprovalId::new(id).unwrap()).await.unwrap().unwrap().withdrawn;
    let asked = async || console.runs.events(&run.id).await.unwrap().iter().filter(|event| event.what == "asked").count();

    asking(&console.runs, &run, json!([drain("drain-i-1-1")])).await;
    // The state machine looks from time to time whether the question still stands.
    for (token, second) in [("first", 1), ("second", 120), ("third", 240)] {
        console.handle(ask(token), at(second)).await.unwrap();
    }
    assert_eq!(asked().await, 1, "it is news once");
    console.handle(tell(), at(250)).await.unwrap();
    assert!(!withdrawn("demo-1.drain.1").await);

    asking(&console.runs, &run, json!([])).await;
    console.handle(tell(), at(260)).await.unwrap();
    assert!(withdrawn("demo-1.drain.1").await, "the drain got through");

    asking(&console.runs, &run, json!([drain("drain-i-1-2")])).await;
    console.handle(ask("fourth"), at(300)).await.unwrap();
    let approval = ApprovalId::new("demo-1.drain.2").unwrap();
    let force = Request::Decide { approval, decision: Decision::Force, comment: None, by: Some("ann".into()), execution: "arn".into() };
    console.handle(force, at(310)).await.unwrap();
    let orders: RollOrders = console.runs.document(&run.id, orders::DOCUMENT).await.unwrap().unwrap();
    let answer = &orders.answers["drain-i-1-2"];
    assert_eq!((answer.decision, answer.by.as_deref()), (Decision::Force, Some("ann")));
    assert_eq!(*told.0.lock().unwrap(), [("fourth".to_owned(), Decision::Force)]);
}
