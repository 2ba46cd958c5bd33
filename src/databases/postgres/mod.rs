//! PostgreSQL: the application's own database, and any number of servers beside it.
//!
//! [`capture`] follows the database's logical replication and fills the log; one server does that at a time. Every
//! server [`follow`]s the log, [`refresh`]es what it knows of the tables, reads and writes by way of one pool. The
//! forms of values are those of [`value`], wherever a row comes from.

mod admin;
mod capture;
mod connections;
mod error;
mod follow;
mod lag;
mod log;
mod migrate;
mod names;
mod pgoutput;
mod refresh;
mod shared;
mod streams;
mod subscriptions;
mod tables;
mod writes;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{EntityKey, Scope, Selector, Seq, TransactionId};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::OpenError;
use crate::access::{Permitted, Sealed};
use crate::config::{DatabaseUrl, Limits};
use crate::feed::entity::{Catalog, EntityType};
use crate::feed::{
    Activity, ActivityQuery, Capture, CaptureStatus, Gained, ListPage, ListQuery, Log, Mutation, ReadLosses,
    Tables, TransactionRecord, WriteError, Writer, Written,
};
use crate::head::{Head, Version};
use crate::storage_error::StorageError;
use crate::tasks::supervisor::Supervisor;
pub use admin::{check, prepare, prepare_sql, skip};
use connections::{Db, Turns, scalar};
use log::history;
pub use log::history::renew_log;
use shared::ServerState;
use streams::{Queues, Stored};
use tables::catalog::Table;
use tables::rows;
use writes::mutate;

/// How long the background tasks may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request looks again at a table that changes under it.
const LOOKS_MAX: usize = 2;
/// How long a list waits at first for the log to have its rows. Each wait is twice as long as the one before.
const LOGGED_PAUSE_MIN: Duration = Duration::from_millis(2);
/// A list that would have to wait for so long is refused.
const LOGGED_PAUSE_MAX: Duration = Duration::from_millis(1024);

/// The longest pause between two attempts to reach the database at a start.
const START_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Does a part of the start. What may succeed a moment later, because the database is away or another session holds a
/// lock, is tried again until the deadline.
async fn patiently<T>(
    deadline: Instant,
    mut part: impl AsyncFnMut() -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut pause = Duration::from_millis(100);
    loop {
        match part().await {
            Err(failure) if error::may_pass(&failure) && Instant::now() + pause < deadline => {
                let reason = error::advice(&failure);
                tracing::warn!(reason, "the database cannot be opened yet; it is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(START_PAUSE_MAX);
            }
            done => return done,
        }
    }
}

/// What the server's tasks share.
#[derive(Clone)]
struct Inner {
    db: Db,
    limits: Arc<Limits>,
    catalog: Arc<Catalog>,
    shared: Arc<ServerState>,
    stored: Arc<Stored>,
    supervisor: Supervisor,
}

/// An open PostgreSQL database.
pub struct PostgresStorage {
    inner: Inner,
    queues: Queues,
    turns: Turns,
    /// The database's encoding has every character.
    unicode: bool,
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
        supervisor: &Supervisor,
    ) -> Result<PostgresStorage, OpenError> {
        let shown = DatabaseUrl::Postgres(url.into()).shown();
        let failed = |e: sqlx::Error| OpenError::new(&shown, &error::advice(&e));
        let db = Db::new(url, limits).map_err(failed)?;
        let limits = &admin::named(limits, &db);
        let deadline = Instant::now() + limits.startup_timeout.get();
        let mut connection =
            patiently(deadline, async || db.connect_directly().await).await.map_err(failed)?;
        if let Some(reason) = migrate::unfit(&mut connection).await.map_err(failed)? {
            return Err(OpenError::new(&shown, &reason));
        }
        match patiently(deadline, async || migrate::migrate(&db, demo).await).await {
            Ok(()) => {}
            // The log can be read all the same.
            Err(e)
                if error::code(&e).as_deref() == Some("25006")
                    && migrate::migrated(&mut connection).await.map_err(failed)? > 0 => {}
            Err(e) => return Err(failed(e)),
        }
        if demo {
            admin::prepare_demo(&mut connection, limits, &catalog).await.map_err(failed)?;
        }
        if let Some(forbidden) = history::forbidden(&mut connection).await.map_err(failed)? {
            return Err(OpenError::new(&shown, &forbidden));
        }
        let head = match patiently(deadline, async || log::read::head(&mut connection).await).await {
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
            shared: Arc::new(ServerState::new(head)),
            stored: Arc::new(Stored::new()),
            supervisor: supervisor.clone(),
        };
        patiently(deadline, async || history::settle_at_start(&inner).await).await.map_err(failed)?;
        patiently(deadline, async || inner.stored.begin(&db).await).await.map_err(failed)?;
        patiently(deadline, async || refresh::look(&inner, true).await).await.map_err(failed)?;
        patiently(deadline, async || follow::look(&inner).await).await.map_err(failed)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let following = Inner { db: db.watching(), ..inner.clone() };
        let follows = stop.clone();
        tasks.spawn(supervisor.watch("follow", async move { follow::run(&following, &follows).await }));
        let capturing = Inner { db: db.capturing(), ..inner.clone() };
        let captures = stop.clone();
        tasks.spawn(supervisor.watch("capture", async move { capture::run(&capturing, &captures).await }));
        let queues = Queues::start(&inner, &stop, &tasks);
        tasks.close();
        let turns = Turns::new(limits, &catalog);
        let unicode = scalar("SELECT current_setting('server_encoding') = 'UTF8'").fetch_one(&mut connection);
        let unicode = unicode.await.map_err(failed)?;
        Ok(PostgresStorage { inner, queues, turns, unicode, stop, tasks })
    }

    /// What is known of an entity type's table.
    fn table(&self, entity: &EntityType) -> Result<Arc<Table>, StorageError> {
        let known = self.inner.shared.tables().get(&entity.name).cloned();
        let missing = || entity.schema().err().unwrap_or_else(|| "the table is being looked at".into());
        known.ok_or_else(|| StorageError::Entity(missing()))
    }

    /// Does a piece of work within the time that a request has for it.
    async fn serve<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StorageError> {
        self.inner.db.within(work).await.map_err(|e| error::storage(&e))
    }

    /// Whether the database's encoding can write a scope; if not, no row has it.
    async fn can_write(&self, scope: Option<&Scope>) -> Result<bool, StorageError> {
        // No encoding has a text with NUL.
        if scope.is_some_and(|scope| scope.as_str().contains('\0')) {
            return Ok(false);
        }
        let Some(scope) = scope.filter(|scope| !self.unicode && !scope.as_str().is_ascii()) else {
            return Ok(true);
        };
        self.serve(async {
            let mut reading = self.inner.db.single().await?;
            let asked = scalar::<String>("SELECT $1::text").bind(scope.as_str());
            match asked.fetch_one(reading.connection()).await {
                Ok(_) => Ok(true),
                Err(failure) if error::names_nothing(&failure) => Ok(false),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    /// Looks at the tables again: one of them has changed.
    async fn look_again(&self) -> Result<(), StorageError> {
        refresh::look(&self.inner, true).await.map_err(|e| error::storage(&e))
    }
}

#[async_trait]
impl Log for PostgresStorage {
    async fn bounds(&self) -> Result<Head, StorageError> {
        // By way of the connections for watching: requests that wait for a lock do not hold those.
        self.serve(async {
            let mut reading = self.inner.db.watching().single().await?;
            let head = log::read::head(reading.connection()).await?;
            reading.commit().await?;
            Ok(head)
        })
        .await
    }

    async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError> {
        let nothing = !self.can_write(stream.scope.as_ref()).await?;
        let read = async {
            let mut reading = self.inner.db.single().await?;
            let seq = match nothing {
                true => Seq::default(),
                false => log::read::stream_tail(reading.connection(), stream, i64::MAX).await?,
            };
            let epoch = log::read::head(reading.connection()).await?.epoch;
            reading.commit().await?;
            Ok(Head { epoch, seq })
        };
        self.serve(read).await
    }

    async fn fill(
        &self,
        stream: &Selector,
        chunk: ChunkBuilder,
    ) -> Result<(ChunkBuilder, ReadLosses), StorageError> {
        let nothing = !self.can_write(stream.scope.as_ref()).await?;
        // Before the database is read, which has all that this server has published, unless it went back in time.
        let published = *self.inner.shared.head().borrow();
        let start = chunk.position();
        let read = async {
            let mut reading = self.inner.db.single().await?;
            if nothing {
                let everything = Selector { scope: None, ..stream.clone() };
                let kept =
                    log::read::kept(reading.connection(), &everything, published, (start, start)).await?;
                return Ok((chunk, kept));
            }
            let (chunk, seen) = log::read::fill(reading.connection(), stream, chunk).await?;
            // After the read: activities that have left since then count as having left before it.
            let kept = log::read::kept(reading.connection(), stream, published, (start, seen)).await?;
            reading.commit().await?;
            Ok((chunk, kept))
        };
        self.serve(read).await
    }

    async fn follow(&self, after: Seq, rows: usize, bytes: usize) -> Result<Gained, StorageError> {
        if let Some((activities, cut)) = self.inner.shared.recent.after(after, rows, bytes) {
            let epoch = self.inner.shared.head().borrow().epoch;
            return Ok(Gained { activities, cut, epoch, lost: false });
        }
        let published = *self.inner.shared.head().borrow();
        let read = async {
            let mut reading = self.inner.db.single().await?;
            let (activities, cut) = log::read::follow(reading.connection(), after, rows, bytes).await?;
            let (epoch, lost) = log::read::reaches(reading.connection(), published, after).await?;
            reading.commit().await?;
            Ok(Gained { activities, cut, epoch, lost })
        };
        self.serve(read).await
    }

    async fn activities(&self, query: &Permitted<ActivityQuery>) -> Result<Vec<Activity>, StorageError> {
        self.serve(async {
            let mut reading = self.inner.db.single().await?;
            match log::read::query(reading.connection(), query).await {
                // The database's encoding has no such text, so nothing in the log can have it.
                Err(failure) if error::names_nothing(&failure) => Ok(Vec::new()),
                found => found,
            }
        })
        .await
    }

    async fn transaction(
        &self,
        id: &TransactionId,
        with_owner: bool,
    ) -> Result<TransactionRecord, StorageError> {
        self.serve(async {
            let mut reading = self.inner.db.single().await?;
            let record = log::read::transaction(reading.connection(), id, with_owner).await?;
            reading.commit().await?;
            Ok(record)
        })
        .await
    }
}

#[async_trait]
impl Tables for PostgresStorage {
    async fn list(&self, query: &Permitted<ListQuery>) -> Result<ListPage, StorageError> {
        let entity = &query.entity;
        if !self.can_write(query.scope.as_ref()).await? {
            let tail = *self.inner.shared.head().borrow();
            return Ok(ListPage { rows: Bytes::from_static(b"[]"), next_after: None, tail });
        }
        let mut looks = 0;
        let mut pause = LOGGED_PAUSE_MIN;
        loop {
            let turn = self.turns.read(&entity.name).await?;
            let table = self.table(entity)?;
            let list = async {
                // Locked before the snapshot is taken: a rewrite of the table does not respect snapshots.
                let mut snapshot = self.inner.db.snapshot_of(&[&table.sql]).await?;
                let page = rows::list(&mut snapshot, entity, &table, query).await?;
                snapshot.commit().await?;
                Ok(page)
            };
            match self.inner.db.within(list).await {
                Ok(page) => return Ok(page),
                Err(failure) if error::not_logged(&failure) && pause < LOGGED_PAUSE_MAX => {
                    drop(turn);
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(failure) if error::table_changed(&failure) && looks < LOOKS_MAX => {
                    looks += 1;
                    self.look_again().await?;
                }
                Err(failure) if connections::broken(&failure) && looks < LOOKS_MAX => looks += 1,
                Err(failure) => return Err(error::storage(&failure)),
            }
        }
    }

    async fn row(
        &self,
        entity: &Arc<EntityType>,
        key: &EntityKey,
    ) -> Result<Option<Sealed<Bytes>>, StorageError> {
        let _turn = self.turns.read(&entity.name).await?;
        let mut looks = 0;
        loop {
            let table = self.table(entity)?;
            let read = async {
                let mut reading = self.inner.db.single().await?;
                let row = rows::row(reading.connection(), entity, &table, key).await?;
                reading.commit().await?;
                Ok(row)
            };
            match self.inner.db.within(read).await {
                Ok(row) => return Ok(row),
                Err(failure) if error::table_changed(&failure) && looks < LOOKS_MAX => {
                    looks += 1;
                    self.look_again().await?;
                }
                Err(failure) if connections::broken(&failure) && looks < LOOKS_MAX => looks += 1,
                Err(failure) => return Err(error::storage(&failure)),
            }
        }
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
        self.inner.db.close();
    }
}

impl Capture for PostgresStorage {
    fn head(&self) -> watch::Receiver<Head> {
        self.inner.shared.head()
    }

    fn version(&self) -> watch::Receiver<Version> {
        self.inner.shared.version_of_log()
    }

    fn status(&self) -> CaptureStatus {
        self.inner.shared.status()
    }
}
