//! PostgreSQL: the application's own database, and any number of servers beside it.
//!
//! [`capture`] follows the database's logical replication and fills the log; one server does that at a time. Every
//! server [`follow`]s the log, [`refresh`]es what it knows of the tables, reads and writes by way of one pool. The
//! forms of values are those of [`value`], wherever a row comes from.

mod admin;
mod capture;
mod catalog;
mod connect;
mod error;
mod follow;
mod layout;
mod ledger;
mod log;
mod mutate;
mod pgoutput;
mod recent;
mod refresh;
mod rollback;
mod rows;
mod shared;
mod sql;
mod streams;
mod subscriptions;
mod value;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{EntityKey, Selector, Seq, TransactionId};
use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{
    Activity, ActivityQuery, Capture, CaptureStatus, Gained, Head, Kept, ListPage, ListQuery, Log, Mutation,
    OpenError, StorageError, Tables, TransactionState, Version, WriteError, Writer, Written,
};
use crate::config::{DatabaseUrl, Limits};
use crate::entity::{Catalog, EntityType};
pub use admin::{check, prepare, prepare_sql};
use catalog::Table;
use connect::Db;
use shared::Shared;
use streams::{Queues, Stored};

/// How long the background may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server's tasks share.
#[derive(Clone)]
struct Inner {
    db: Db,
    limits: Arc<Limits>,
    catalog: Arc<Catalog>,
    shared: Arc<Shared>,
    stored: Arc<Stored>,
}

/// An open PostgreSQL database.
pub struct PostgresStorage {
    db: Db,
    catalog: Arc<Catalog>,
    shared: Arc<Shared>,
    stored: Arc<Stored>,
    queues: Queues,
    ledger_retention: Duration,
    /// Fires when the storage is closed, or dropped.
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for PostgresStorage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl PostgresStorage {
    /// Connects, brings the log's tables up to date, looks at the streamed ones and starts following.
    ///
    /// # Errors
    /// When the database cannot be reached, is too old, or cannot be prepared.
    pub async fn open(
        url: &str,
        limits: &Limits,
        catalog: Arc<Catalog>,
        demo: bool,
    ) -> Result<PostgresStorage, OpenError> {
        let shown = DatabaseUrl::Postgres(url.into()).shown();
        let failed = |e: sqlx::Error| OpenError::new(&shown, &admin::advice(&e));
        let db = Db::new(url, limits).map_err(failed)?;
        let mut connection = db.connect_directly().await.map_err(failed)?;
        if let Some(reason) = connect::unfit(&mut connection).await.map_err(failed)? {
            return Err(OpenError::new(&shown, &reason));
        }
        match connect::migrate(&db, demo).await {
            Ok(()) => {}
            // What there is can be read all the same.
            Err(e)
                if error::storage(&e) == StorageError::ReadOnly
                    && connect::migrated(&mut connection).await.map_err(failed)? > 0 => {}
            Err(e) => return Err(failed(e)),
        }
        if demo {
            admin::prepare_demo(&mut connection, limits, &catalog).await.map_err(failed)?;
        }
        let head = match log::head(&mut connection).await {
            Ok(head) => head,
            Err(sqlx::Error::RowNotFound) => {
                return Err(OpenError::new(
                    &shown,
                    &"the log's own row is missing; restore the schema `bourn` or drop it",
                ));
            }
            Err(e) => return Err(failed(e)),
        };
        let inner = Inner {
            db: db.clone(),
            limits: Arc::new(limits.clone()),
            catalog: catalog.clone(),
            shared: Arc::new(Shared::new(head)),
            stored: Arc::new(Stored::new()),
        };
        inner.stored.begin(&db).await.map_err(failed)?;
        refresh::look(&inner, true).await.map_err(failed)?;
        follow::look(&inner).await.map_err(failed)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (following, follows) = (inner.clone(), stop.clone());
        tasks.spawn(async move { follow::run(&following, &follows).await });
        let (capturing, captures) = (inner.clone(), stop.clone());
        tasks.spawn(async move { capture::run(&capturing, &captures).await });
        let queues = Queues::start(&inner, &stop, &tasks);
        tasks.close();
        let ledger_retention = limits.ledger_retention.get();
        let Inner { shared, stored, .. } = inner;
        Ok(PostgresStorage { db, catalog, shared, stored, queues, ledger_retention, stop, tasks })
    }

    /// What is known of an entity type's table.
    fn table(&self, entity: &EntityType) -> Result<Arc<Table>, StorageError> {
        let known = self.shared.tables().get(&entity.name).cloned();
        let missing = || entity.schema().err().unwrap_or_else(|| "the table is being looked at".into());
        known.ok_or_else(|| StorageError::Entity(missing()))
    }
}

#[async_trait]
impl Log for PostgresStorage {
    async fn bounds(&self) -> Result<Head, StorageError> {
        let mut reading = self.db.single().await.map_err(|e| error::storage(&e))?;
        log::head(reading.connection()).await.map_err(|e| error::storage(&e))
    }

    async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError> {
        let read = async {
            let mut reading = self.db.single().await?;
            let seq = log::stream_tail(reading.connection(), stream, i64::MAX).await?;
            Ok(Head { epoch: log::head(reading.connection()).await?.epoch, seq })
        };
        read.await.map_err(|e| error::storage(&e))
    }

    async fn fill(
        &self,
        stream: &Selector,
        chunk: ChunkBuilder,
    ) -> Result<(ChunkBuilder, Kept), StorageError> {
        let read = async {
            let mut reading = self.db.single().await?;
            let chunk = log::fill(reading.connection(), stream, chunk).await?;
            // Afterwards: what has left since then is taken for having left before.
            let kept = log::kept(reading.connection(), stream).await?;
            Ok((chunk, kept))
        };
        read.await.map_err(|e| error::storage(&e))
    }

    async fn follow(&self, after: Seq, rows: usize, bytes: usize) -> Result<Gained, StorageError> {
        if let Some((activities, cut)) = self.shared.recent.after(after, rows, bytes) {
            let epoch = self.shared.head().borrow().epoch;
            return Ok(Gained { activities, cut, epoch, lost: false });
        }
        let read = async {
            let mut reading = self.db.single().await?;
            let (activities, cut) = log::follow(reading.connection(), after, rows, bytes).await?;
            let epoch = log::head(reading.connection()).await?.epoch;
            Ok(Gained { activities, cut, epoch, lost: false })
        };
        read.await.map_err(|e| error::storage(&e))
    }

    async fn activities(&self, query: &ActivityQuery) -> Result<Vec<Activity>, StorageError> {
        let mut reading = self.db.single().await.map_err(|e| error::storage(&e))?;
        log::query(reading.connection(), query).await.map_err(|e| error::storage(&e))
    }

    async fn transaction(&self, id: &TransactionId) -> Result<TransactionState, StorageError> {
        let mut reading = self.db.single().await.map_err(|e| error::storage(&e))?;
        log::transaction(reading.connection(), id).await.map_err(|e| error::storage(&e))
    }
}

#[async_trait]
impl Tables for PostgresStorage {
    async fn list(&self, entity: &Arc<EntityType>, query: &ListQuery) -> Result<ListPage, StorageError> {
        let table = self.table(entity)?;
        let mut snapshot = self.db.snapshot().await.map_err(|e| error::storage(&e))?;
        rows::list(&mut snapshot, entity, &table, query).await.map_err(|e| error::storage(&e))
    }

    async fn row(&self, entity: &Arc<EntityType>, key: &EntityKey) -> Result<Option<Bytes>, StorageError> {
        let table = self.table(entity)?;
        let mut reading = self.db.single().await.map_err(|e| error::storage(&e))?;
        rows::row(reading.connection(), &table, key).await.map_err(|e| error::storage(&e))
    }
}

#[async_trait]
impl Writer for PostgresStorage {
    async fn write(&self, mutation: Mutation) -> Result<Written, WriteError> {
        mutate::apply(self, &mutation).await
    }

    async fn close(&self) {
        self.stop.cancel();
        if tokio::time::timeout(END_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!("capture does not end in time");
        }
        self.db.close().await;
    }
}

impl Capture for PostgresStorage {
    fn head(&self) -> watch::Receiver<Head> {
        self.shared.head()
    }

    fn version(&self) -> watch::Receiver<Version> {
        self.shared.version_of_log()
    }

    fn status(&self) -> CaptureStatus {
        self.shared.status()
    }
}
