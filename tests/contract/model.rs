//! Whatever is written, by any writer and in any order: the messages that a reader gets add up to the table.

use std::collections::BTreeMap;

use bourn::feed::{Activity, WriteError};
use bourn_protocol::{Action, Seq};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::backend::Backend;

const RUNS: usize = 12;
const STEPS: usize = 60;

#[derive(Debug, Clone)]
enum Step {
    Rest { verb: u8, row: u8, scope: u8, name: u8 },
    Sql(Vec<Change>, bool),
    Undo(u8),
    Reopen,
}

#[derive(Debug, Clone)]
enum Change {
    Insert { row: u8, scope: u8 },
    Replace { row: u8, scope: u8 },
    Name { row: u8, name: u8 },
    Move { row: u8, scope: u8 },
    Rekey { row: u8, to: u8 },
    Hide { row: u8 },
    Show { row: u8 },
    Remove { row: u8 },
    Everything { name: u8 },
}

impl Change {
    fn sql<B: Backend>(&self) -> String {
        const COLUMNS: &str = "id, organization_id, name";
        match self {
            Change::Insert { row, scope } => {
                B::insert_or_ignore(COLUMNS, &format!("'p{row}', 'o{scope}', 'new'"))
            }
            Change::Replace { row, scope } => {
                B::replace(COLUMNS, &format!("'p{row}', 'o{scope}', 'replaced'"))
            }
            Change::Name { row, name } => format!("UPDATE pages SET name = 'n{name}' WHERE id = 'p{row}'"),
            Change::Move { row, scope } => {
                format!("UPDATE pages SET organization_id = 'o{scope}' WHERE id = 'p{row}'")
            }
            Change::Rekey { row, to } => B::rekey(&format!("p{row}"), &format!("p{to}")),
            Change::Hide { row } => format!("UPDATE pages SET deleted_at = '2026-01-15' WHERE id = 'p{row}'"),
            Change::Show { row } => format!("UPDATE pages SET deleted_at = NULL WHERE id = 'p{row}'"),
            Change::Remove { row } => format!("DELETE FROM pages WHERE id = 'p{row}'"),
            Change::Everything { name } => format!("UPDATE pages SET name = 'all{name}'"),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let (row, scope, name) = (0_u8..6, 0_u8..3, 0_u8..3);
    prop_oneof![
        3 => (row.clone(), scope.clone()).prop_map(|(row, scope)| Change::Insert { row, scope }),
        1 => (row.clone(), scope.clone()).prop_map(|(row, scope)| Change::Replace { row, scope }),
        3 => (row.clone(), name.clone()).prop_map(|(row, name)| Change::Name { row, name }),
        1 => (row.clone(), scope).prop_map(|(row, scope)| Change::Move { row, scope }),
        1 => (row.clone(), row.clone()).prop_map(|(row, to)| Change::Rekey { row, to }),
        1 => row.clone().prop_map(|row| Change::Hide { row }),
        1 => row.clone().prop_map(|row| Change::Show { row }),
        1 => row.prop_map(|row| Change::Remove { row }),
        1 => name.prop_map(|name| Change::Everything { name }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0_u8..3, 0_u8..6, 0_u8..3, 0_u8..3).prop_map(|(verb, row, scope, name)| Step::Rest { verb, row, scope, name }),
        10 => (prop::collection::vec(change(), 1..5), prop::bool::weighted(0.8)).prop_map(|(changes, commit)| Step::Sql(changes, commit)),
        2 => any::<u8>().prop_map(Step::Undo),
        1 => Just(Step::Reopen),
    ]
}

/// What the log tells of one stream: the state, and nothing told that cannot be.
fn add_up<'a>(log: impl Iterator<Item = &'a Activity>) -> BTreeMap<String, Value> {
    let mut state = BTreeMap::new();
    for activity in log {
        let key = activity.entity_id.clone();
        let value = activity.value.as_deref().map(|json| serde_json::from_str(json).unwrap());
        match activity.action {
            Action::Create => {
                assert!(state.insert(key, value.unwrap()).is_none(), "made twice: {activity:?}")
            }
            Action::Update => assert!(
                state.insert(key, value.unwrap()).is_some(),
                "changed before it was there: {activity:?}"
            ),
            Action::Delete => assert!(state.remove(&key).is_some(), "gone before it was there: {activity:?}"),
        }
    }
    state
}

pub async fn a_stream_adds_up_to_the_table_whatever_happens<B: Backend>() {
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..RUNS {
        let steps = prop::collection::vec(step(), STEPS).new_tree(&mut runner).unwrap().current();
        let _shown = Shown(format!("{steps:#?}"));
        run::<B>(steps).await;
    }
}

/// Shows the steps of a run that fails.
struct Shown(String);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("after these steps: {}", self.0);
        }
    }
}

async fn run<B: Backend>(steps: Vec<Step>) {
    let mut db = B::open(&[]).await;
    let mut done = Vec::new();
    for (i, step) in steps.into_iter().enumerate() {
        match step {
            Step::Rest { verb, row, scope, name } => {
                let (id, row) = (format!("t{i}"), format!("p{row}"));
                let operation = match verb {
                    0 => db.create(
                        "pages",
                        &row,
                        &json!({ "organization_id": format!("o{scope}"), "name": format!("n{name}") }),
                    ),
                    1 => db.update("pages", &row, &json!({ "name": format!("n{name}") })),
                    _ => db.delete("pages", &row),
                };
                match db.write(&id, operation).await {
                    Ok(_) => done.push(id),
                    Err(WriteError::NotFound(_) | WriteError::AlreadyExists(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Sql(changes, commit) => {
                let changes: Vec<String> = changes.iter().map(Change::sql::<B>).collect();
                let end = if commit { "COMMIT" } else { "ROLLBACK" };
                db.sql(&format!("BEGIN; {}; {end}", changes.join("; ")));
            }
            Step::Undo(which) => {
                let Some(target) = done.get(usize::from(which) % done.len().max(1)) else { continue };
                let target = bourn_protocol::TransactionId::new(target).unwrap();
                let undo = bourn::feed::Operation::Rollback { target, cascade: true };
                match db.write(&format!("u{i}"), undo).await {
                    // A replaced row has no earlier version to go back to.
                    Ok(_) | Err(WriteError::NotReversible(_) | WriteError::UnknownTransaction(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Reopen => db = db.reopen("").await,
        }
    }
    db.sql("INSERT INTO notes (id) VALUES ('end')");
    let log = loop {
        let log = db.storage().follow(Seq::ZERO, 1_000_000, usize::MAX).await.unwrap().activities;
        if log.last().is_some_and(|activity| activity.entity_id == "end") {
            break log;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    };
    let seqs: Vec<u64> = log.iter().map(|activity| activity.seq.get()).collect();
    assert_eq!(seqs, (1..=log.len() as u64).collect::<Vec<_>>());
    let pages = || log.iter().filter(|activity| activity.entity_type == "pages");
    let table = db.rows("pages").await;
    assert_eq!(add_up(pages()), table);
    for scope in ["o0", "o1", "o2"] {
        let told = add_up(pages().filter(|activity| activity.organization_id.as_deref() == Some(scope)));
        let rows: BTreeMap<_, _> =
            table.clone().into_iter().filter(|(_, row)| row["organization_id"] == scope).collect();
        assert_eq!(told, rows, "in scope {scope}");
    }
}
