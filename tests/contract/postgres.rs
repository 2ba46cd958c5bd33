//! PostgreSQL, in a cluster of the tests' own, and `psql` as the foreign writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bourn::config::{Config, SettingsLayer};
use bourn::databases::Storage;
use bourn::databases::postgres::PostgresStorage;
use bourn::feed::Writer;
use bourn::feed::entity::{Catalog, EntityType};
use bourn::tasks::supervisor::Supervisor;
use bourn_testkit::{Cluster, Database};

use crate::backend::{Backend, PATIENCE, entities, eventually};

const PAGES: &str = "CREATE TABLE pages (id text PRIMARY KEY, organization_id text, name text, transactions jsonb, \
     last_client_id text, modified_at timestamptz, deleted_at timestamptz)";
const NOTES: &str =
    "CREATE TABLE notes (id text PRIMARY KEY, body text, transactions jsonb, last_client_id text)";

pub struct Postgres {
    storage: PostgresStorage,
    catalog: Arc<Catalog>,
    config: Config,
    pub database: Database,
}

impl Postgres {
    /// Opens a storage on tables of the test's own.
    pub async fn open_on(tables: &[&str]) -> Postgres {
        let database = Cluster::shared().database();
        for sql in tables {
            database.psql(sql);
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("bourn.toml");
        let url = database.url();
        let config = format!(
            "database = '{url}'\nslot = 'slot_{}'\nfollow_interval = '200ms'\n{}",
            database.name(),
            entities(tables)
        );
        std::fs::write(&file, config).unwrap();
        let config = Config::load(SettingsLayer::default(), Some(&file)).unwrap();
        bourn::databases::prepare(&config).await.unwrap();
        Self::start(database, config).await
    }

    async fn start(database: Database, config: Config) -> Postgres {
        let catalog = Arc::new(Catalog::new(&config.entities));
        let storage = PostgresStorage::open(
            &database.url(),
            &config.limits,
            catalog.clone(),
            false,
            &Supervisor::default(),
        )
        .await
        .unwrap();
        let backend = Postgres { storage, catalog, config, database };
        let wanted = backend.config.entities.len().to_string();
        let deadline = Instant::now() + PATIENCE;
        while backend.query("SELECT count(*) FROM bourn.entities WHERE reconciled") != wanted {
            let status = bourn::feed::Capture::status(&backend.storage);
            assert!(Instant::now() < deadline, "the tables are never compared: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        backend
    }

    /// What a query gives, as `psql` prints it.
    pub fn query(&self, sql: &str) -> String {
        self.database.psql(sql)
    }
}

impl Backend for Postgres {
    const NO_IDS: &str = "[17]";
    const STREAM_TABLES: &[&str] = &["bourn_stream_data", "bourn_streams"];

    fn blindfold(&self) -> String {
        format!("SELECT pg_drop_replication_slot('{}');", self.config.limits.slot)
    }

    fn insert_or_ignore(columns: &str, values: &str) -> String {
        format!("INSERT INTO pages ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING")
    }

    fn replace(columns: &str, values: &str) -> String {
        let set: Vec<String> =
            ["organization_id", "name", "transactions", "last_client_id", "modified_at", "deleted_at"]
                .map(|column| format!("{column} = excluded.{column}"))
                .into();
        format!(
            "INSERT INTO pages ({columns}) VALUES ({values}) ON CONFLICT (id) DO UPDATE SET {}",
            set.join(", ")
        )
    }

    fn rekey(from: &str, to: &str) -> String {
        format!(
            "UPDATE pages SET id = '{to}' WHERE id = '{from}' AND NOT EXISTS (SELECT 1 FROM pages WHERE id = '{to}')"
        )
    }

    async fn open(more: &[&str]) -> Postgres {
        Self::open_on(&[&[PAGES, NOTES], more].concat()).await
    }

    async fn reopen(self, meanwhile: &str) -> Postgres {
        self.storage.close().await;
        let Postgres { storage, config, database, .. } = self;
        drop(storage);
        if !meanwhile.is_empty() {
            database.psql(meanwhile);
        }
        Self::start(database, config).await
    }

    fn storage(&self) -> &dyn Storage {
        &self.storage
    }

    async fn eventually_empty(&self, table: &str) {
        // There, the schema has the name that is the prefix here.
        let sql = format!("SELECT count(*) FROM {}", table.replacen("bourn_", "bourn.", 1));
        eventually(&format!("{table} is empty"), || self.query(&sql) == "0").await;
    }

    fn entity(&self, table: &str) -> Arc<EntityType> {
        self.catalog.by_table(table).unwrap().clone()
    }

    fn sql(&self, sql: &str) {
        self.database.psql(sql);
    }
}
