//! Our own writes: once, whole, and answered with what was written.

use bourn::access::Rights;
use bourn::feed::{Operation, TransactionState, WriteError};
use bourn_protocol::{Last, TransactionId};
use serde_json::{Value, json};

use crate::backend::{Backend, key};

const BOTH: Last = Last { of_type: true, of_scope: true };

pub async fn a_mutation_is_in_the_log_with_its_ids<B: Backend>() {
    let db = B::open(&[]).await;
    let made = db
        .write("t1", db.create("pages", "p1", &json!({ "organization_id": "acme", "name": "a" })))
        .await
        .unwrap();
    db.write("t2", db.update("pages", "p1", &json!({ "name": "b" }))).await.unwrap();
    db.write("t3", db.delete("pages", "p1")).await.unwrap();
    db.write("t4", db.create("notes", "n1", &json!({ "body": "x" }))).await.unwrap();
    db.write("t5", db.delete("notes", "n1")).await.unwrap();
    assert_eq!(
        db.told(5).await,
        ["create p1 acme t1", "update p1 acme t2", "delete p1 acme t3", "create n1 - t4", "delete n1 - t5"]
    );
    let log = db.log(5).await;
    assert!(log.iter().all(|activity| activity.client_id.as_deref() == Some("c1") && activity.last == BOTH));
    assert_eq!(log[0].value.as_deref().map(str::as_bytes), made.row.as_deref());
    assert_eq!(log[1].changed_keys.as_deref(), Some(r#"["name"]"#));
    assert_eq!(log[1].previous_values, log[0].value);
    for (i, id) in ["t1", "t2", "t3", "t4", "t5"].into_iter().enumerate() {
        let record = db.storage().transaction(&TransactionId::new(id).unwrap(), true).await.unwrap();
        assert_eq!(record.state_for(&Rights::everything()), TransactionState::Confirmed(log[i].seq));
    }
}

pub async fn a_repeated_mutation_is_not_done_again<B: Backend>() {
    let db = B::open(&[]).await;
    let operation = db.create("pages", "p1", &json!({ "name": "a" }));
    let first = db.write("t1", operation.clone()).await.unwrap();
    let again = db.write("t1", operation).await.unwrap();
    assert!(!first.repeated && again.repeated);
    assert_eq!((first.row, first.key), (again.row, again.key));
    let other = db.write("t1", db.create("pages", "p1", &json!({ "name": "b" }))).await;
    assert_eq!(other.unwrap_err(), WriteError::Reused);
    // Across a restart, too.
    let db = db.reopen("").await;
    assert!(db.write("t1", db.create("pages", "p1", &json!({ "name": "a" }))).await.unwrap().repeated);
    db.log(1).await;
}

pub async fn concurrent_repeats_are_done_once<B: Backend>() {
    let db = B::open(&[]).await;
    let attempts = (0..24).map(|_| db.write("t1", db.create("pages", "p1", &json!({ "name": "a" }))));
    let mut fresh = 0;
    let mut waiting: Vec<_> = attempts.map(Box::pin).collect();
    let results = std::future::poll_fn(move |cx| {
        waiting.retain_mut(|attempt| match attempt.as_mut().poll(cx) {
            std::task::Poll::Ready(result) => {
                fresh += usize::from(!result.unwrap().repeated);
                false
            }
            std::task::Poll::Pending => true,
        });
        if waiting.is_empty() { std::task::Poll::Ready(fresh) } else { std::task::Poll::Pending }
    });
    assert_eq!(results.await, 1);
    db.log(1).await;
}

pub async fn a_refused_mutation_leaves_no_trace<B: Backend>() {
    let db = B::open(&["CREATE TABLE users (id TEXT PRIMARY KEY, mail TEXT UNIQUE, age INTEGER CHECK (age > 0), boss TEXT REFERENCES users)"]).await;
    db.write("t1", db.create("users", "u1", &json!({ "mail": "a@x" }))).await.unwrap();
    let refused = async |id: &str, operation: Operation| db.write(id, operation).await.unwrap_err();
    assert_eq!(
        refused("t2", db.create("users", "u1", &json!({}))).await,
        WriteError::AlreadyExists("u1".into())
    );
    assert_eq!(
        refused("t3", db.create("users", "u2", &json!({ "mail": "a@x" }))).await,
        WriteError::NotUnique
    );
    assert!(matches!(
        refused("t4", db.create("users", "u2", &json!({ "age": -1 }))).await,
        WriteError::Constraint(_)
    ));
    assert!(matches!(
        refused("t5", db.create("users", "u2", &json!({ "boss": "u9" }))).await,
        WriteError::Constraint(_)
    ));
    assert_eq!(refused("t6", db.update("users", "u2", &json!({}))).await, WriteError::NotFound("u2".into()));
    let expecting = Operation::Delete {
        entity: db.entity("users"),
        key: key("u1"),
        expected: Some(TransactionId::new("t0").unwrap()),
    };
    // The table keeps no ids, and the log does.
    let conflict = refused("t7", expecting).await;
    assert!(matches!(&conflict, WriteError::Conflict { actual: Some(id), .. } if id == "t1"), "{conflict:?}");
    // The id of a refused mutation is free for another try.
    db.write("t3", db.create("users", "u2", &json!({ "mail": "b@x" }))).await.unwrap();
    assert_eq!(db.told(2).await, ["create u1 - t1", "create u2 - t3"]);
}

pub async fn mutations_that_share_a_commit_are_transactions_of_their_own<B: Backend>() {
    let db = B::open(&[]).await;
    let mut writes: Vec<_> = (0..50)
        .map(|i| {
            let db = &db;
            Box::pin(async move {
                db.write(&format!("t{i}"), db.create("notes", &format!("n{i}"), &json!({}))).await.unwrap()
            })
        })
        .collect();
    std::future::poll_fn(move |cx| {
        writes.retain_mut(|write| write.as_mut().poll(cx).is_pending());
        if writes.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    let log = db.log(50).await;
    let commits: std::collections::BTreeSet<i64> = log.iter().map(|activity| activity.commit_id).collect();
    assert_eq!(commits.len(), 50);
    assert!(log.iter().all(|activity| activity.last == BOTH));
}

pub async fn a_cascade_undoes_what_was_built_on_top<B: Backend>() {
    let db = B::open(&[]).await;
    db.write("t1", db.create("pages", "p1", &json!({ "organization_id": "acme", "name": "a" })))
        .await
        .unwrap();
    db.write("t2", db.create("pages", "p2", &json!({ "organization_id": "acme", "name": "b" })))
        .await
        .unwrap();
    let before = db.rows("pages").await;
    // One foreign transaction changes both rows; then p2 is changed, moved and deleted.
    db.sql("BEGIN; UPDATE pages SET name = 'x'; COMMIT");
    db.log(4).await;
    db.write("t3", db.update("pages", "p2", &json!({ "name": "c" }))).await.unwrap();
    db.write("t4", db.update("pages", "p2", &json!({ "organization_id": "beta" }))).await.unwrap();
    db.write("t5", db.delete("pages", "p2")).await.unwrap();
    let foreign = db.log(8).await[2].txid();
    let rollback = |cascade| Operation::Rollback { target: TransactionId::new(&foreign).unwrap(), cascade };
    let Err(WriteError::Blocked(dependents)) = db.write("u0", rollback(false)).await else {
        panic!("not blocked")
    };
    assert_eq!(
        dependents.iter().map(|d| d.transaction_id.as_str()).collect::<Vec<_>>(),
        ["t3", "t4", "t4", "t5"]
    );
    let undone = db.write("u1", rollback(true)).await.unwrap();
    assert_eq!(undone.undone.len(), 6);
    let strip = |rows: std::collections::BTreeMap<String, Value>| -> Vec<(String, Value, Value)> {
        rows.into_iter().map(|(id, row)| (id, row["name"].clone(), row["organization_id"].clone())).collect()
    };
    assert_eq!(strip(db.rows("pages").await), strip(before));
    let eighth = bourn_protocol::Seq::new(8).unwrap();
    let undoing = TransactionId::new("u1").unwrap();
    let TransactionState::Confirmed(_) = db.confirmed(&undoing).await else { panic!("not confirmed") };
    let log = db.storage().follow(eighth, 100, usize::MAX).await.unwrap().activities;
    assert!(log.iter().all(|activity| activity.transaction_id.as_deref() == Some("u1")), "{log:#?}");
    assert_eq!(
        log.iter().map(|activity| activity.commit_id).collect::<std::collections::BTreeSet<_>>().len(),
        1
    );
}
