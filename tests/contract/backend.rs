//! What a storage must offer to be tested: open it on tables, reopen it, and let a foreign connection write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bourn::config::{Config, SettingsLayer};
use bourn::entity::{Catalog, EntityType};
use bourn::storage::sqlite::SqliteStorage;
use bourn::storage::{Activity, ListQuery, Mutation, Operation, Storage, WriteError, Writer, Written};
use bourn_protocol::{ClientId, EntityKey, Seq, TransactionId};
use serde_json::{Map, Value};

const PATIENCE: Duration = Duration::from_secs(20);

/// The tables that every contract may use.
const PAGES: &str = "CREATE TABLE pages (id TEXT PRIMARY KEY, organization_id TEXT, name TEXT, transactions JSON, \
     last_client_id TEXT, modified_at DATETIME, deleted_at DATETIME)";
const NOTES: &str =
    "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT, transactions JSON, last_client_id TEXT)";

pub trait Backend: Sized {
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
                assert_eq!(seqs, (1..=length as u64).collect::<Vec<_>>(), "without gaps");
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

    async fn write(&self, transaction: &str, operation: Operation) -> Result<Written, WriteError> {
        let client_id = Some(ClientId::new("c1").unwrap());
        self.storage()
            .write(Mutation {
                transaction_id: TransactionId::new(transaction).unwrap(),
                client_id,
                operation,
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
        let query = ListQuery { scope: None, after: None, limit: 10_000 };
        let page = self.storage().list(&self.entity(table), &query).await.unwrap();
        let rows: Vec<Value> = serde_json::from_slice(&page.rows).unwrap();
        rows.into_iter()
            .map(|row| (row["id"].as_str().map_or_else(|| row["id"].to_string(), str::to_owned), row))
            .collect()
    }
}

pub fn key(id: &str) -> EntityKey {
    EntityKey::new(id).unwrap()
}

fn map(columns: &Value) -> Map<String, Value> {
    columns.as_object().unwrap().clone()
}

pub struct Sqlite {
    storage: SqliteStorage,
    catalog: Arc<Catalog>,
    config: Config,
    foreign: std::sync::Mutex<rusqlite::Connection>,
    directory: tempfile::TempDir,
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Sqlite {
    /// The one value of a query on the foreign connection, as text.
    pub fn query(&self, sql: &str) -> String {
        let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
        match self.foreign.lock().unwrap().query_row(sql, [], value).unwrap() {
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Integer(number) => number.to_string(),
            other => panic!("{other:?}"),
        }
    }

    async fn start(directory: tempfile::TempDir) -> Sqlite {
        let path = directory.path().join("test.db");
        let foreign = rusqlite::Connection::open(&path).unwrap();
        foreign.busy_timeout(PATIENCE).unwrap();
        let config =
            Config::load(SettingsLayer::default(), Some(&directory.path().join("bourn.toml"))).unwrap();
        let catalog = Arc::new(Catalog::new(&config.entities));
        let storage = SqliteStorage::open(&config.limits, catalog.clone(), false).unwrap();
        let backend = Sqlite { storage, catalog, config, foreign: foreign.into(), directory };
        let deadline = Instant::now() + PATIENCE;
        while !bourn::storage::Capture::status(&backend.storage).reconciling.is_empty() {
            assert!(Instant::now() < deadline, "reconciling never ends");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        backend
    }
}

impl Backend for Sqlite {
    async fn open(more: &[&str]) -> Sqlite {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let mut config = format!("database = 'sqlite:{}'\n", path.display());
        for sql in [PAGES, NOTES].iter().chain(more) {
            connection.execute_batch(sql).unwrap();
            let table = sql.split_whitespace().nth(2).unwrap();
            let scope = if table == "pages" { "scope = 'organization_id'\n" } else { "" };
            config +=
                &format!("[[entity]]\ntype = '{table}'\ntable = '{table}'\nprevious_values = true\n{scope}");
        }
        std::fs::write(directory.path().join("bourn.toml"), config).unwrap();
        Self::start(directory).await
    }

    async fn reopen(self, meanwhile: &str) -> Sqlite {
        self.storage.close().await;
        let Sqlite { storage, config, foreign, directory, .. } = self;
        drop((storage, config));
        foreign.into_inner().unwrap().execute_batch(meanwhile).unwrap();
        Self::start(directory).await
    }

    fn storage(&self) -> &dyn Storage {
        &self.storage
    }

    async fn eventually_empty(&self, table: &str) {
        let count = || self.query(&format!("SELECT count(*) FROM {table}"));
        eventually(&format!("{table} is empty"), || count() == "0").await;
    }

    fn entity(&self, table: &str) -> Arc<EntityType> {
        let _ = &self.config;
        self.catalog.by_table(table).unwrap().clone()
    }

    fn sql(&self, sql: &str) {
        self.foreign.lock().unwrap().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}
