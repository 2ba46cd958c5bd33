//! What a database must do for Bourn: be read as tables, be written, be captured into a log, and the log be
//! read. The traits are narrow, speak the protocol's types, and know nothing of HTTP. Everything behind them
//! may be SQL; nothing in front of them is.

mod compare;
mod error;
mod mutation;
mod open;
pub mod postgres;
mod retention;
pub mod sqlite;
pub mod streams;
mod undo;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bourn_protocol::chunk::ChunkBuilder;
use bourn_protocol::{
    Action, ActivityRef, ClientId, EntityKey, Epoch, Last, Offset, Scope, Selector, Seq, TransactionId,
};
use bytes::Bytes;
use tokio::sync::watch;

use crate::entity::EntityType;
pub use error::{OpenError, StorageError};
pub use mutation::{Dependent, Fingerprint, Mutation, Operation, Undone, WriteError, Written};
pub use open::{Finding, check, open, prepare, prepare_sql, renew_log, skip};

/// A place in a log, with the log that it is a place of. As the head it is the last activity; its seq is zero where
/// there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The log's own mark. A log whose database went back in time gets another one.
    pub epoch: Epoch,
    /// The place.
    pub seq: Seq,
}

impl Head {
    /// The token of this place, as clients keep it.
    #[must_use]
    pub fn offset(self) -> Offset {
        Offset::new(self.epoch, self.seq)
    }

    /// Takes a newer head: one of another log, or a later one of the same. Says whether it was newer.
    pub fn advance(&mut self, to: Head) -> bool {
        let newer = to.epoch != self.epoch || to.seq > self.seq;
        if newer {
            *self = to;
        }
        newer
    }
}

/// Which content of the log something was read from: it changes whenever something leaves the log, and with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// The log's own mark.
    pub epoch: Epoch,
    /// Grows whenever something leaves the log.
    pub generation: u64,
}

/// What a stream did not keep when it was read, as of the read's own snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The content of the log that was read.
    pub version: Version,
    /// Offsets below this one are gone: a deletion that followed them is not kept any more. The start is not.
    pub horizon: Seq,
    /// The place where the read began lies in a part of the log that the database has lost.
    pub lost: bool,
    /// What was read spans such a part: another body may have been given out under the same address before.
    pub spans: bool,
    /// Where the newest such part ends, if it lies ahead of the place where the read began.
    pub gap: Option<Seq>,
}

/// One activity, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "field by field the same as ActivityRef, where each is described")]
pub struct Activity {
    pub seq: Seq,
    pub action: Action,
    pub entity_type: String,
    pub entity_id: String,
    pub organization_id: Option<String>,
    pub transaction_id: Option<String>,
    pub client_id: Option<String>,
    pub changed_keys: Option<String>,
    pub value: Option<String>,
    pub previous_values: Option<String>,
    pub commit_id: i64,
    pub last: Last,
    pub created_at: String,
}

impl Activity {
    /// A copy of a borrowed one.
    #[must_use]
    pub fn of(activity: &ActivityRef<'_>) -> Activity {
        Activity {
            seq: activity.seq,
            action: activity.action,
            entity_type: activity.entity_type.into(),
            entity_id: activity.entity_id.into(),
            organization_id: activity.organization_id.map(Into::into),
            transaction_id: activity.transaction_id.map(Into::into),
            client_id: activity.client_id.map(Into::into),
            changed_keys: activity.changed_keys.map(Into::into),
            value: activity.value.map(Into::into),
            previous_values: activity.previous_values.map(Into::into),
            commit_id: activity.commit_id,
            last: activity.last,
            created_at: activity.created_at.into(),
        }
    }

    /// The bytes of its rows, the one after the change and the one before.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        length(&self.value) + length(&self.previous_values)
    }

    /// The same activity, borrowed, as the encoders take it.
    #[must_use]
    pub fn as_ref(&self) -> ActivityRef<'_> {
        ActivityRef {
            seq: self.seq,
            action: self.action,
            entity_type: &self.entity_type,
            entity_id: &self.entity_id,
            organization_id: self.organization_id.as_deref(),
            transaction_id: self.transaction_id.as_deref(),
            client_id: self.client_id.as_deref(),
            changed_keys: self.changed_keys.as_deref(),
            value: self.value.as_deref(),
            previous_values: self.previous_values.as_deref(),
            commit_id: self.commit_id,
            last: self.last,
            created_at: &self.created_at,
        }
    }

    /// The id that a stream calls this activity's transaction by.
    #[must_use]
    pub fn txid(&self) -> String {
        self.transaction_id.clone().unwrap_or_else(|| self.commit_id.to_string())
    }
}

/// What the log has gained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gained {
    /// In the order of the log.
    pub activities: Vec<Activity>,
    /// A limit was reached: there may be more, and the last transaction may go on.
    pub cut: bool,
    /// The log that was read.
    pub epoch: Epoch,
    /// The place lies in a part of the log that the database has lost, or past its head: nothing follows it.
    pub lost: bool,
}

/// A question to the history: every given field must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActivityQuery {
    /// The mutation's id.
    pub transaction_id: Option<TransactionId>,
    /// The device.
    pub client_id: Option<ClientId>,
    /// The entity type's name.
    pub entity_type: Option<String>,
    /// The row's key.
    pub entity_id: Option<EntityKey>,
    /// The scope.
    pub organization_id: Option<Scope>,
    /// Only activities before this place; for the next page.
    pub before: Option<Seq>,
    /// Most activities in the answer.
    pub limit: usize,
}

/// Which rows a list asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Only rows of this scope.
    pub scope: Option<Scope>,
    /// Only rows after this key.
    pub after: Option<EntityKey>,
    /// Most rows in the answer.
    pub limit: usize,
}

/// A page of a table and the place in its stream from which everything it lacks still follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// A JSON array of rows, by key.
    pub rows: Bytes,
    /// The key of the last row, when there may be more rows.
    pub next_after: Option<String>,
    /// The tail of the list's stream, seen no later than the rows.
    pub tail: Head,
}

/// What the server knows of a transaction id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionState {
    /// Nothing.
    Unknown,
    /// It is committed, but not yet in the log.
    Accepted,
    /// It is in the log; the place is that of its last activity.
    Confirmed(Seq),
}

/// The log, for reading.
#[async_trait]
pub trait Log: Send + Sync {
    /// How far the log reaches, as the database has it now.
    async fn bounds(&self) -> Result<Head, StorageError>;

    /// The place of the last activity in a stream, or its horizon where that is further; zero when it has neither.
    async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError>;

    /// Gives the chunk what follows its position, until it is done or the log ends; and says what the stream did not
    /// keep then, or a moment later.
    async fn fill(
        &self,
        stream: &Selector,
        chunk: ChunkBuilder,
    ) -> Result<(ChunkBuilder, Kept), StorageError>;

    /// The activities after a place, in order: at most `rows`, and no more once their rows have `bytes`.
    async fn follow(&self, after: Seq, rows: usize, bytes: usize) -> Result<Gained, StorageError>;

    /// The activities that match, newest first.
    async fn activities(&self, query: &ActivityQuery) -> Result<Vec<Activity>, StorageError>;

    /// What became of a transaction.
    async fn transaction(&self, id: &TransactionId) -> Result<TransactionState, StorageError>;
}

/// The application's tables, for reading: a writer reads its own writes.
#[async_trait]
pub trait Tables: Send + Sync {
    /// A page of living rows.
    async fn list(&self, entity: &Arc<EntityType>, query: &ListQuery) -> Result<ListPage, StorageError>;

    /// One living row as JSON.
    async fn row(&self, entity: &Arc<EntityType>, key: &EntityKey) -> Result<Option<Bytes>, StorageError>;
}

/// The application's tables, for writing. Concurrent writes may share a commit; each has its own answer, and
/// none is answered before it is durable.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Does one mutation, once.
    async fn write(&self, mutation: Mutation) -> Result<Written, WriteError>;

    /// Does what is queued; later writes are refused.
    async fn close(&self);
}

/// How capture is doing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CaptureStatus {
    /// Why capture has stopped, if it has; in words of our own.
    pub stalled: Option<String>,
    /// Committed changes that are not in the log yet, where they can be counted.
    pub lag: Option<u64>,
    /// Bytes of the source's own log that are not in ours yet, where there is such a log.
    pub lag_bytes: Option<u64>,
    /// How old the oldest change is that is not in the log yet, where that is known; zero when there is none.
    pub lag_seconds: Option<f64>,
    /// Keys compared so far, by the entity type whose table is being compared with the log.
    pub reconciling: BTreeMap<String, u64>,
    /// What an operator should know of single entity types.
    pub conditions: Vec<Condition>,
    /// The replication slot, where capture has one.
    pub slot: Option<SlotStatus>,
}

/// Something about one entity type that an operator should know, and may have to fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The entity type's name.
    pub entity_type: String,
    /// Its streams are not complete for as long as this stands; they are not served.
    pub stopped: bool,
    /// The row that it is about, if it is about one.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// The replication slot by which a server captures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotStatus {
    /// This server holds it: it captures.
    pub leader: bool,
    /// Bytes of write-ahead log that the database keeps for it.
    pub retained_bytes: Option<u64>,
    /// The database's own word for how safe that log is: `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How often this server has connected to the replication stream.
    pub connects: u64,
}

/// What fills the log. It runs by itself once the storage is open; this is what others may see of it.
pub trait Capture: Send + Sync {
    /// The head of the log as this process knows it; changes with every commit that reaches the log. Within one epoch
    /// it never goes back.
    fn head(&self) -> watch::Receiver<Head>;

    /// The version of the log as this process knows it: it changes when something has left the log.
    fn version(&self) -> watch::Receiver<Version>;

    /// How capture is doing.
    fn status(&self) -> CaptureStatus;
}

/// A database that does all of it.
pub trait Storage: Log + Tables + Writer + Capture + streams::Streams + streams::Subscriptions {}
impl<T: Log + Tables + Writer + Capture + streams::Streams + streams::Subscriptions> Storage for T {}
