//! SQLite, and another connection to its file as the foreign writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bourn::config::{Config, SettingsLayer};
use bourn::databases::Storage;
use bourn::databases::sqlite::SqliteStorage;
use bourn::feed::Writer;
use bourn::feed::entity::{Catalog, EntityType};
use bourn::tasks::supervisor::Supervisor;

use crate::backend::{Backend, PATIENCE, entities, eventually};

/// The tables that every contract may use.
const PAGES: &str = "CREATE TABLE pages (id TEXT PRIMARY KEY, organization_id TEXT, name TEXT, transactions JSON, \
     last_client_id TEXT, modified_at DATETIME, deleted_at DATETIME)";
const NOTES: &str =
    "CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT, transactions JSON, last_client_id TEXT)";

pub struct Sqlite {
    storage: SqliteStorage,
    catalog: Arc<Catalog>,
    config: Config,
    foreign: std::sync::Mutex<rusqlite::Connection>,
    directory: tempfile::TempDir,
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

    /// Gives the log a new epoch, as an operator does it while the server runs.
    pub fn renew(&self) {
        bourn::databases::sqlite::renew_log(&self.directory.path().join("test.db"), &self.config.limits)
            .unwrap();
    }

    async fn start(directory: tempfile::TempDir) -> Sqlite {
        let path = directory.path().join("test.db");
        let foreign = rusqlite::Connection::open(&path).unwrap();
        foreign.busy_timeout(PATIENCE).unwrap();
        let config =
            Config::load(SettingsLayer::default(), Some(&directory.path().join("bourn.toml"))).unwrap();
        let catalog = Arc::new(Catalog::new(&config.entities));
        let storage =
            SqliteStorage::open(&path, &config.limits, catalog.clone(), false, &Supervisor::default())
                .unwrap();
        let backend = Sqlite { storage, catalog, config, foreign: foreign.into(), directory };
        let deadline = Instant::now() + PATIENCE;
        while !bourn::feed::Capture::status(&backend.storage).reconciling.is_empty() {
            assert!(Instant::now() < deadline, "reconciling never ends");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        backend
    }
}

impl Backend for Sqlite {
    const NO_IDS: &str = "this is no JSON";
    const STREAM_TABLES: &[&str] = &["bourn_stream_data", "bourn_stream_large", "bourn_streams"];

    fn blindfold(&self) -> String {
        let drop = ["insert", "update", "delete"].map(|event| format!("DROP TRIGGER bourn_pages__{event};"));
        drop.concat()
    }

    fn insert_or_ignore(columns: &str, values: &str) -> String {
        format!("INSERT OR IGNORE INTO pages ({columns}) VALUES ({values})")
    }

    fn replace(columns: &str, values: &str) -> String {
        format!("PRAGMA recursive_triggers = OFF; INSERT OR REPLACE INTO pages ({columns}) VALUES ({values})")
    }

    fn rekey(from: &str, to: &str) -> String {
        format!("UPDATE OR IGNORE pages SET id = '{to}' WHERE id = '{from}'")
    }

    async fn open(more: &[&str]) -> Sqlite {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let tables = [&[PAGES, NOTES], more].concat();
        for sql in &tables {
            connection.execute_batch(sql).unwrap();
        }
        let config = format!("database = 'sqlite:{}'\n{}", path.display(), entities(&tables));
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
