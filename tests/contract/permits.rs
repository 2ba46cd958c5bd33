//! Writes under access control: where a row was and where it ends, whose a transaction is, and nothing told before that is
//! known.

use std::sync::Arc;

use bourn::access::{Access, Denied, Rights};
use bourn::config::Config;
use bourn::feed::{Mutation, Operation, TransactionState, WriteError, Written};
use bourn_protocol::TransactionId;
use serde_json::{Value, json};

use crate::backend::{Backend, entities, key};
use crate::tokens::{issuer_with_secret, token};

const ROLES: &str = "[[access.role]]\nname = 'member'\nread = ['pages']\nwrite = ['pages']\nundo = 'own'\n\
     [[access.role]]\nname = 'auditor'\nread = ['pages']\nwrite = ['pages']\nhistory = true\nundo = 'scope'\n";

/// The rights of a token with these claims.
async fn rights(sub: &str, role: &str, scopes: &[&str]) -> Arc<Rights> {
    let directory = tempfile::tempdir().unwrap();
    let tables = entities(&["CREATE TABLE pages ()"]);
    let config = Config::from_toml(&(tables + &issuer_with_secret(directory.path()) + ROLES)).unwrap();
    let access = Access::open(&config.access, &config.entities).unwrap();
    access.verify(&token(&json!({ "sub": sub, "role": role, "scopes": scopes }))).await.unwrap()
}

async fn write<B: Backend>(
    db: &B,
    rights: &Arc<Rights>,
    transaction: &str,
    operation: Operation,
) -> Result<Written, WriteError> {
    let permit = match &operation {
        Operation::Rollback { .. } => rights.undo(),
        _ => rights.write("pages"),
    };
    let transaction_id = TransactionId::new(transaction).unwrap();
    let permit = permit.unwrap();
    db.storage().write(Mutation { transaction_id, client_id: None, operation, permit }).await
}

fn row(scope: &str) -> Value {
    json!({ "organization_id": scope, "name": "n" })
}

pub async fn a_row_is_written_by_those_who_may_write_where_it_was_and_where_it_ends<B: Backend>() {
    let db = B::open(&[]).await;
    let alice = rights("alice", "member", &["acme"]).await;
    let bob = rights("bob", "member", &["globex"]).await;
    let both = rights("carol", "member", &["acme", "globex"]).await;
    let refused = WriteError::Denied(Denied::ScopeForbidden);
    let absent = |id: &str| WriteError::NotFound(id.to_owned());
    let moved = |to: &str| db.update("pages", "a1", &json!({ "organization_id": to }));
    write(&db, &alice, "t1", db.create("pages", "a1", &row("acme"))).await.unwrap();
    write(&db, &bob, "t2", db.create("pages", "g1", &row("globex"))).await.unwrap();
    for (transaction, operation, error) in [
        ("r1", db.create("pages", "a2", &row("globex")), &refused),
        ("r2", db.create("pages", "a2", &json!({ "organization_id": null, "name": "n" })), &refused),
        ("r3", db.create("pages", "g1", &row("globex")), &refused),
        ("r4", db.update("pages", "g1", &json!({ "name": "x" })), &absent("g1")),
        ("r5", db.delete("pages", "g1"), &absent("g1")),
        ("r6", moved("globex"), &refused),
    ] {
        assert_eq!(write(&db, &alice, transaction, operation).await.unwrap_err(), *error, "{transaction}");
    }
    let expecting_another = Operation::Update {
        entity: db.entity("pages"),
        key: key("g1"),
        columns: bourn::feed::entity::Columns::parse(b"{\"name\":\"x\"}").unwrap(),
        expected: Some(TransactionId::new("other").unwrap()),
    };
    assert_eq!(
        write(&db, &alice, "r7", expecting_another).await.unwrap_err(),
        absent("g1"),
        "nothing of the row"
    );
    write(&db, &both, "t3", moved("globex")).await.unwrap();
    assert_eq!(write(&db, &alice, "r8", moved("acme")).await.unwrap_err(), absent("a1"));
    // A retry of one's own tells nothing of a row that has left one's scopes.
    let again = write(&db, &alice, "t1", db.create("pages", "a1", &row("acme"))).await;
    assert_eq!(again.unwrap_err(), absent("a1"));
    write(&db, &both, "t4", moved("acme")).await.unwrap();
    assert!(write(&db, &alice, "t1", db.create("pages", "a1", &row("acme"))).await.unwrap().repeated);
    let foreign = write(&db, &both, "t1", db.create("pages", "a1", &row("acme"))).await;
    assert_eq!(foreign.unwrap_err(), WriteError::Reused, "an id is its caller's");
    let log = db.log(6).await;
    let subjects: Vec<&str> = log.iter().map(|activity| activity.subject.as_deref().unwrap()).collect();
    assert_eq!(subjects, ["alice", "bob", "carol", "carol", "carol", "carol"], "nothing of what was refused");
    assert!(db.rows("pages").await.keys().eq(["a1", "g1"]));
}

pub async fn a_transaction_is_known_to_its_caller_and_to_those_who_see_its_history<B: Backend>() {
    let db = B::open(&[]).await;
    let alice = rights("alice", "member", &["acme"]).await;
    let carol = rights("carol", "member", &["acme"]).await;
    let auditor = rights("audit", "auditor", &["acme"]).await;
    let elsewhere = rights("audit", "auditor", &["globex"]).await;
    write(&db, &alice, "t1", db.create("pages", "a1", &row("acme"))).await.unwrap();
    write(&db, &alice, "t2", db.update("pages", "a1", &json!({ "name": "b" }))).await.unwrap();
    let seq = db.log(2).await[1].seq;
    let id = TransactionId::new("t2").unwrap();
    for (rights, state) in [
        (&alice, TransactionState::Confirmed(seq)),
        (&auditor, TransactionState::Confirmed(seq)),
        (&carol, TransactionState::Unknown),
        (&elsewhere, TransactionState::Unknown),
    ] {
        assert_eq!(db.storage().transaction(&id, true).await.unwrap().state_for(rights), state);
    }
    let undo = |cascade| Operation::Rollback { target: id.clone(), cascade };
    assert!(matches!(
        write(&db, &elsewhere, "u1", undo(true)).await.unwrap_err(),
        WriteError::UnknownTransaction(_)
    ));
    let others = write(&db, &carol, "u2", undo(false)).await.unwrap_err();
    assert!(matches!(others, WriteError::Denied(Denied::RightMissing(_))), "{others:?}");
    write(&db, &alice, "u3", undo(false)).await.unwrap();
    write(&db, &alice, "t3", db.update("pages", "a1", &json!({ "name": "c" }))).await.unwrap();
    db.log(4).await;
    let target = TransactionId::new("t3").unwrap();
    write(&db, &auditor, "u4", Operation::Rollback { target, cascade: false }).await.unwrap();
    assert_eq!(db.rows("pages").await["a1"]["name"], "n");
}
