//! What a storage must offer to be tested: open it on tables, reopen it, and let a foreign connection write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bourn::access::Rights;
use bourn::databases::Storage;
use bourn::feed::entity::{Columns, EntityType};
use bourn::feed::{Activity, ListQuery, Mutation, Operation, TransactionState, WriteError, Written};
use bourn_protocol::{ClientId, EntityKey, Seq, TransactionId};
use serde_json::Value;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Configures the tables that these statements make, each streamed under its own name.
pub fn entities(tables: &[&str]) -> String {
    let entity = |sql: &&str| {
        let table = sql.split_whitespace().nth(2).unwrap();
        let scope = if table == "pages" { "scope = 'organization_id'\n" } else { "" };
        format!("[[entity]]\ntype = '{table}'\ntable = '{table}'\nprevious_values = true\n{scope}")
    };
    tables.iter().map(entity).collect()
}

pub trait Backend: Sized {
    /// A value of `transactions` that holds no ids.
    const NO_IDS: &str;
    /// The tables of its own that deleted streams leave empty.
    const STREAM_TABLES: &[&str];
    /// SQL after which what happens to `pages` is not captured, until the storage is opened again.
    fn blindfold(&self) -> String;
    /// A row that is not made where its key is taken.
    fn insert_or_ignore(columns: &str, values: &str) -> String;
    /// A row that takes the place of the one with its key, whatever that was.
    fn replace(columns: &str, values: &str) -> String;
    /// A row that takes another key, where that is free.
    fn rekey(from: &str, to: &str) -> String;
    /// Opens a storage on new tables; `more` makes others, which are streamed under their own names.
    async fn open(more: &[&str]) -> Self;
    /// Closes and opens it again; `meanwhile` is run in between, as SQL.
    async fn reopen(self, meanwhile: &str) -> Self;
    fn storage(&self) -> &dyn Storage;
    /// Waits until a table of the storage's own has no rows.
    async fn eventually_empty(&self, table: &str);
    fn entity(&self, table: &str) -> Arc<EntityType>;
    /// Runs SQL on a foreign connection.
    fn sql(&self, sql: &str);

    /// The log, once it has as many activities.
    async fn log(&self, length: usize) -> Vec<Activity> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.storage().follow(Seq::ZERO, 1_000_000, usize::MAX).await.unwrap().activities;
            if log.len() >= length {
                assert_eq!(log.len(), length, "{log:#?}");
                let seqs: Vec<u64> = log.iter().map(|activity| activity.seq.get()).collect();
                // Behind what the database may have lost the log goes on far ahead.
                let follows =
                    |pair: &[u64]| pair[1] == pair[0] + 1 || (pair[1] > pair[0] && pair[1] > 1_000_000);
                assert!(
                    seqs.first().is_none_or(|first| *first == 1) && seqs.windows(2).all(follows),
                    "{seqs:?}"
                );
                return log;
            }
            assert!(Instant::now() < deadline, "only {} of {length} activities came", log.len());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The log in short: action, key, scope and transaction id.
    async fn told(&self, length: usize) -> Vec<String> {
        let dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let log = self.log(length).await;
        log.iter()
            .map(|a| {
                format!(
                    "{} {} {} {}",
                    a.action.as_str(),
                    a.entity_id,
                    dash(&a.organization_id),
                    dash(&a.transaction_id)
                )
            })
            .collect()
    }

    /// What became of a transaction, once it is confirmed or time is up.
    async fn confirmed(&self, id: &TransactionId) -> TransactionState {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let record = self.storage().transaction(id, false).await.unwrap();
            let state = record.state_for(&Rights::everything());
            if matches!(state, TransactionState::Confirmed(_)) || Instant::now() >= deadline {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn write(&self, transaction: &str, operation: Operation) -> Result<Written, WriteError> {
        let client_id = Some(ClientId::new("c1").unwrap());
        self.storage()
            .write(Mutation {
                transaction_id: TransactionId::new(transaction).unwrap(),
                client_id,
                operation,
                permit: Rights::everything().write("any").unwrap(),
            })
            .await
    }

    fn create(&self, table: &str, id: &str, columns: &Value) -> Operation {
        Operation::Create { entity: self.entity(table), key: Some(key(id)), columns: map(columns) }
    }

    fn update(&self, table: &str, id: &str, columns: &Value) -> Operation {
        Operation::Update { entity: self.entity(table), key: key(id), columns: map(columns), expected: None }
    }

    fn delete(&self, table: &str, id: &str) -> Operation {
        Operation::Delete { entity: self.entity(table), key: key(id), expected: None }
    }

    /// The table's living rows.
    async fn rows(&self, table: &str) -> BTreeMap<String, Value> {
        let query = ListQuery { entity: self.entity(table), scope: None, after: None, limit: 10_000 };
        let page = self.storage().list(&Rights::everything().read(query).unwrap()).await.unwrap();
        let rows: Vec<Value> = serde_json::from_slice(&page.rows).unwrap();
        rows.into_iter()
            .map(|row| (row["id"].as_str().map_or_else(|| row["id"].to_string(), str::to_owned), row))
            .collect()
    }
}

pub fn key(id: &str) -> EntityKey {
    EntityKey::new(id).unwrap()
}

fn map(columns: &Value) -> Columns {
    Columns::parse(columns.to_string().as_bytes()).unwrap()
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
