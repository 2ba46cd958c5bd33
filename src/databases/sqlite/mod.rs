//! SQLite, the embedded database: one file, any number of processes that write it.
//!
//! Capture is by [`triggers`] inside each writer's transaction; the [`log`]'s sequencer marks where transactions end, in a
//! [`file`] beside the database; the file's history notices a database that is not the one that was served; the [`writer`]
//! thread does our own mutations, many to a commit; the [`watch`] thread notices other processes; a [`pool`] of
//! connections reads.

mod admin;
mod background;
mod connect;
mod error;
mod file;
mod jobs;
mod ledger;
mod log;
mod payload;
mod pool;
mod sql;
mod streams;
mod subscriptions;
mod tables;
mod triggers;
mod watch;
mod writer;
mod writes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{EntityKey, Selector, Seq, TransactionId};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::OpenError;
use crate::access::{Permitted, Sealed};
use crate::config::Limits;
use crate::feed::entity::{Catalog, EntityType, TableSchema};
use crate::feed::retention::Retention;
use crate::feed::{
    Activity, ActivityQuery, Capture, CaptureStatus, Condition, Gained, ListPage, ListQuery, Log, Mutation,
    ReadLosses, Tables, TransactionRecord, WriteError, Writer, Written,
};
use crate::head::{Head, Version};
use crate::storage_error::StorageError;
use crate::tasks::supervisor::Supervisor;
pub use admin::{check, prepare, prepare_sql, renew_log};
use connect::open_error;
use file::history::History;
use file::{events, versions};
use jobs::WriterJob;
use log::read::{self, LogSnapshot};
use pool::ReadPool;
use tables::{introspect, rows};
use writer::WriterThread;

const SHARED_DIFFERENTLY: &str =
    "another server on this file streams the table with another configuration, which stands";
const SAME_CONFIGURATION: &str =
    "give all servers of the file the same version and configuration, and restart them";

/// The state that [`SqliteStorage`] shares with its threads: how capture is doing, and which jobs are queued already.
#[derive(Debug, Default)]
struct StorageState {
    status: Mutex<Status>,
    /// The writer has been asked to fold marks, and has not begun: it is asked once, not at every look.
    fold_asked: AtomicBool,
    /// The tables are to be looked at again, because the last look failed.
    refresh_owed: AtomicBool,
}

#[derive(Debug, Default)]
struct Status {
    /// What is wrong with the file as a whole.
    file: Option<&'static str>,
    /// Why the last write was refused, if the next one would be, too.
    refused: Option<String>,
    /// Why each thread cannot go on.
    writer: Option<String>,
    watcher: Option<String>,
    lag: u64,
    /// Keys compared so far, by the entity type that is being reconciled.
    reconciling: BTreeMap<String, u64>,
    /// Entity types whose triggers another server made for another configuration.
    shared_differently: BTreeSet<String>,
    /// Rows that are left out, by entity type; as text.
    left_out: BTreeMap<String, String>,
}

impl StorageState {
    fn with<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn writer_stands(&self, reason: Option<String>) {
        self.with(|status| status.writer = reason);
    }

    /// Notes how a commit ended. A refusal lasts for the next commit, too, unless it was another process's lock.
    fn committed<T>(&self, result: Result<&T, &StorageError>) {
        let lasting = result.err().filter(|failure| {
            matches!(failure, StorageError::Full | StorageError::ReadOnly | StorageError::Unavailable)
        });
        self.with(|status| status.refused = lasting.map(ToString::to_string));
    }

    /// Notes whether another server's configuration of an entity type stands.
    fn shared_differently(&self, entity: &str, differently: bool) {
        let news = self.with(|status| match differently {
            true => status.shared_differently.insert(entity.to_owned()),
            false => {
                status.shared_differently.remove(entity);
                false
            }
        });
        if news {
            tracing::warn!(entity, "{SHARED_DIFFERENTLY}; {SAME_CONFIGURATION}");
        }
    }

    fn file_stands(&self, reason: Option<&'static str>) {
        self.with(|status| status.file = reason);
    }

    fn watcher_stands(&self, reason: Option<String>) {
        self.with(|status| status.watcher = reason);
    }

    fn lag(&self, lag: u64) {
        self.with(|status| status.lag = lag);
    }

    /// Notes the rows of an entity type that are left out, as text.
    fn left_out(&self, entity: &str, reason: Option<String>) {
        if let Some(reason) = &reason {
            tracing::warn!(entity, reason, remedy = introspect::LEFT_OUT_REMEDY);
        }
        self.with(|status| match reason {
            Some(reason) => {
                status.left_out.insert(entity.to_owned(), reason);
            }
            None => {
                status.left_out.remove(entity);
            }
        });
    }

    fn reconciling(&self, entity: &str, looked_at: Option<u64>) {
        self.with(|status| match looked_at {
            Some(keys) => {
                status.reconciling.insert(entity.to_owned(), keys);
            }
            None => {
                status.reconciling.remove(entity);
            }
        });
    }
}

/// An open SQLite database.
pub struct SqliteStorage {
    pool: ReadPool,
    history: Arc<History>,
    jobs: mpsc::Sender<WriterJob>,
    head: tokio::sync::watch::Receiver<Head>,
    version: tokio::sync::watch::Receiver<Version>,
    shared: Arc<StorageState>,
    streams: Arc<streams::StreamsState>,
    /// Dropped with the storage, which ends the watcher.
    _watcher: events::StopOnDrop,
}

impl SqliteStorage {
    /// Opens the file, makes it if it is missing, brings the log's tables and the triggers up to date and
    /// starts the threads.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or cannot be prepared.
    pub fn open(
        path: &Path,
        limits: &Limits,
        catalog: Arc<Catalog>,
        demo: bool,
        supervisor: &Supervisor,
    ) -> Result<SqliteStorage, OpenError> {
        if let Some(error) = admin::missing_file(path, demo) {
            return Err(error);
        }
        let busy = limits.busy_timeout.get();
        let failed = |e: rusqlite::Error| open_error(path, &e);
        let (connection, new) = admin::open(path, busy, demo)?;
        let history = Arc::new(History::begin(path, &connection, new).map_err(failed)?);
        // Activities that were committed while no server ran are in the log before the first read.
        let sealed = history.number(&connection).map_err(failed)?;
        let (head, _) = tokio::sync::watch::channel(Head { epoch: history.served().epoch, seq: sealed });
        let (version, _) = tokio::sync::watch::channel(versions::of_log(&connection).map_err(failed)?);
        let (jobs, queue) = mpsc::channel(limits.write_queue);
        let shared = Arc::new(StorageState::default());
        let stored = Arc::new(streams::StreamsState::new());
        let stream_version = Arc::new(AtomicI64::new(versions::of_streams(&connection).map_err(failed)?));
        let (watcher, events) = events::Events::new(path).map_err(|e| OpenError::new(&path.display(), &e))?;
        let watching = watch::Watcher {
            connection: connect::reader(path, busy).map_err(failed)?,
            file: history.file(),
            busy,
            history: history.clone(),
            jobs: jobs.clone(),
            head: head.clone(),
            version: version.clone(),
            shared: shared.clone(),
            streams: stored.clone(),
            stream_version: stream_version.clone(),
            schema_version: connect::schema_version(&connection).map_err(failed)?,
            data_version: -1,
            interval: limits.poll_interval.get(),
            retain_every: Retention::of(limits).map(|retention| retention.interval),
            events,
        };
        let writing = WriterThread {
            connection,
            catalog,
            history: history.clone(),
            jobs: queue,
            shared: shared.clone(),
            head: head.clone(),
            version: version.clone(),
            batch: limits.write_batch,
            ledger_retention: limits.ledger_retention.get(),
            retention: Retention::of(limits),
            busy,
            streams: streams::StreamWriter::new(limits, history.clone(), stored.clone(), stream_version),
        };
        // Done here, so that the tables are known once the storage is open.
        let reconciles = writing.refresh(VecDeque::new());
        let failed = |error: &std::io::Error| OpenError::new(&path.display(), error);
        supervisor.thread("bourn-writer", move || writing.run(reconciles)).map_err(|e| failed(&e))?;
        supervisor.thread("bourn-watcher", move || watching.run()).map_err(|e| failed(&e))?;
        Ok(SqliteStorage {
            pool: ReadPool::new(history.clone(), busy, limits.read_connections),
            history,
            jobs,
            head: head.subscribe(),
            version: version.subscribe(),
            shared,
            streams: stored,
            _watcher: watcher,
        })
    }

    /// Runs a read in one snapshot, after it was verified to be of the log that is served.
    async fn view<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce(&LogSnapshot<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let history = self.history.clone();
        let read = self.pool.read(move |connection| {
            let snapshot = connection.transaction()?;
            work(&LogSnapshot::of(&snapshot, &history)?)
        });
        read.await
    }

    fn schema(entity: &EntityType) -> Result<Arc<TableSchema>, StorageError> {
        entity.schema().map_err(StorageError::Entity)
    }
}

/// Publishes that the log reaches this far; within an epoch it never goes back, and another epoch is published by
/// [`WriterThread::settle`] alone.
fn advance(head: &tokio::sync::watch::Sender<Head>, to: Head) {
    head.send_if_modified(|known| known.epoch == to.epoch && known.advance(to));
}

#[async_trait]
impl Log for SqliteStorage {
    async fn bounds(&self) -> Result<Head, StorageError> {
        let history = self.history.clone();
        // Another server may have numbered more than this one has seen: the file beside the database decides.
        self.pool
            .read(move |connection| {
                let served = history.served();
                Ok(Head { epoch: served.epoch, seq: history.number(connection)? })
            })
            .await
    }

    async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError> {
        let stream = stream.clone();
        self.view(move |view| Ok(Head { seq: read::stream_tail(view, &stream)?, ..view.head() })).await
    }

    async fn fill(
        &self,
        stream: &Selector,
        chunk: ChunkBuilder,
    ) -> Result<(ChunkBuilder, ReadLosses), StorageError> {
        let stream = stream.clone();
        self.view(move |view| Ok((read::fill(view, &stream, chunk)?, read::kept(view, &stream)?))).await
    }

    async fn follow(&self, after: Seq, rows: usize, bytes: usize) -> Result<Gained, StorageError> {
        self.view(move |view| read::follow(view, after, rows, bytes)).await
    }

    async fn activities(&self, query: &Permitted<ActivityQuery>) -> Result<Vec<Activity>, StorageError> {
        let query = query.clone();
        self.view(move |view| read::query(view, &query)).await
    }

    async fn transaction(
        &self,
        id: &TransactionId,
        with_owner: bool,
    ) -> Result<TransactionRecord, StorageError> {
        let id = id.clone();
        self.view(move |view| read::transaction(view, &id, with_owner)).await
    }
}

#[async_trait]
impl Tables for SqliteStorage {
    async fn list(&self, query: &Permitted<ListQuery>) -> Result<ListPage, StorageError> {
        let (schema, query) = (Self::schema(&query.entity)?, query.clone());
        self.view(move |view| rows::list(view, &query.entity, &schema, &query)).await
    }

    async fn row(
        &self,
        entity: &Arc<EntityType>,
        key: &EntityKey,
    ) -> Result<Option<Sealed<Bytes>>, StorageError> {
        let (entity, schema, key) = (entity.clone(), Self::schema(entity)?, key.clone());
        self.view(move |view| rows::row(view.snapshot, &entity, &schema, &key)).await
    }
}

#[async_trait]
impl Writer for SqliteStorage {
    async fn write(&self, mutation: Mutation) -> Result<Written, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(WriterJob::Write(Box::new(mutation), answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Storage(StorageError::Overloaded),
            mpsc::error::TrySendError::Closed(_) => WriteError::Storage(StorageError::Closed),
        })?;
        answered.await.unwrap_or(Err(WriteError::Storage(StorageError::Closed)))
    }

    async fn close(&self) {
        let (done, finished) = oneshot::channel();
        if self.jobs.send(WriterJob::Close(done)).await.is_ok() {
            let _ = finished.await;
        }
    }
}

impl Capture for SqliteStorage {
    fn head(&self) -> tokio::sync::watch::Receiver<Head> {
        self.head.clone()
    }

    fn version(&self) -> tokio::sync::watch::Receiver<Version> {
        self.version.clone()
    }

    fn status(&self) -> CaptureStatus {
        self.shared.with(|status| CaptureStatus {
            stalled: status
                .file
                .or(status.refused.as_deref())
                .map(str::to_owned)
                .or_else(|| status.writer.clone().or_else(|| status.watcher.clone())),
            lag: Some(status.lag),
            reconciling: status.reconciling.clone(),
            conditions: status
                .shared_differently
                .iter()
                .map(|entity_type| Condition {
                    entity_type: entity_type.clone(),
                    stopped: false,
                    key: None,
                    reason: SHARED_DIFFERENTLY.into(),
                    remedy: SAME_CONFIGURATION.into(),
                })
                .chain(status.left_out.iter().map(|(entity_type, reason)| Condition {
                    entity_type: entity_type.clone(),
                    stopped: false,
                    key: None,
                    reason: reason.clone(),
                    remedy: introspect::LEFT_OUT_REMEDY.into(),
                }))
                .collect(),
            ..CaptureStatus::default()
        })
    }
}
