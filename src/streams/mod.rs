//! Stored streams, without SQL: any client may create them and append to them. A database is hidden behind [`Streams`]
//! and [`SubscriptionStore`], which it implements; [`rules`] decides what every database must decide the same way. Read
//! [`session`]s are woken by [`bells`]; [`subscriptions`] wake workers.

pub mod beginning;
pub mod bells;
mod error;
pub mod rules;
pub mod session;
pub mod state;
mod subscription;
pub mod subscriptions;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use bourn_protocol::stored::{Lifetime, Payload};
use bourn_protocol::{ContentType, Seq, StreamOffset, StreamPath};
use bytes::Bytes;
use tokio::sync::broadcast;

use crate::storage_error::StorageError;
pub use error::{AppendError, CreateError, FillError, FindError};
pub use subscription::{Secrets, StoredSubscription, SubscriptionStore};

/// The fraction of a lifetime by which a reader saves its deadline later than needed.
const SAVED_LATER: u64 = 16;

/// Now, in Unix milliseconds.
#[must_use]
pub fn unix_millis() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// A stretch of bytes that one stream owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The stream.
    pub stream: u64,
    /// Where its bytes begin.
    pub from: Seq,
    /// Where they end, for the streams that go on from here; [`Seq::MAX`] for the stream itself.
    pub to: Seq,
}

/// A stream as it was at one moment.
#[derive(Debug)]
pub struct StreamInfo {
    /// Its number, never used again.
    pub id: u64,
    /// Its path.
    pub path: StreamPath,
    /// What it holds.
    pub content_type: ContentType,
    /// The stretches of bytes that it is made of: its root's first, its own last.
    pub lineage: Arc<[Segment]>,
    /// How many bytes it has.
    pub tail: Seq,
    /// Nothing more can be appended.
    pub closed: bool,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// When it expires if it is not used before, in Unix milliseconds; [`i64::MAX`] for never. Reading moves it.
    pub deadline: AtomicI64,
    /// The deadline that the database knows.
    pub saved_deadline: AtomicI64,
}

impl StreamInfo {
    /// The token of a place in this stream.
    #[must_use]
    pub fn offset(&self, position: Seq) -> StreamOffset {
        rules::offset(&self.lineage, position)
    }

    /// Whether it has expired by now.
    #[must_use]
    pub fn expired(&self, now: i64) -> bool {
        self.deadline.load(Ordering::Relaxed) <= now
    }

    /// Notes that it was read. Where the database's deadline is too early then, one of the readers gets that deadline
    /// and the one to save, on behalf of all.
    #[must_use]
    pub fn read_at(&self, now: i64) -> Option<(i64, i64)> {
        let Lifetime::Idle(ttl) = self.lifetime else { return None };
        let deadline = self.lifetime.deadline(now).unwrap_or(i64::MAX);
        self.deadline.fetch_max(deadline, Ordering::Relaxed);
        let saved = self.saved_deadline.load(Ordering::Relaxed);
        if deadline <= saved {
            return None;
        }
        // Later than needed, so that not every read is a write.
        let slack = i64::try_from(ttl.saturating_mul(1_000) / SAVED_LATER).unwrap_or(i64::MAX);
        let wanted = deadline.saturating_add(slack);
        let mine = self.saved_deadline.compare_exchange(saved, wanted, Ordering::Relaxed, Ordering::Relaxed);
        mine.is_ok().then_some((saved, wanted))
    }
}

/// Where a new stream leaves the stream it begins as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// That stream.
    pub source: StreamPath,
    /// The place; its tail where none is given.
    pub offset: Option<StreamOffset>,
    /// Bytes, or of JSON messages, past that place.
    pub sub: u64,
}

/// A stream to be created.
#[derive(Debug, Clone)]
pub struct CreateStream {
    /// Its path.
    pub path: StreamPath,
    /// Its content type; `None` leaves it to the source, or the default.
    pub content_type: Option<ContentType>,
    /// How long it is to live.
    pub lifetime: Lifetime,
    /// Whether it is closed at once, complete with its body.
    pub closed: bool,
    /// The stream that it is forked from, if any.
    pub fork: Option<Fork>,
    /// The body of the request: its first content.
    pub body: Bytes,
}

/// The result of creating a stream.
#[derive(Debug, Clone)]
pub struct Created {
    /// The stream.
    pub stream: Arc<StreamInfo>,
    /// It is new; otherwise it was there as asked.
    pub new: bool,
}

/// The producer of an append, and which of its appends it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    /// The producer's own name.
    pub id: String,
    /// The producer's epoch: a new one for each of its lives.
    pub epoch: u64,
    /// The number of the append within that epoch.
    pub seq: u64,
}

/// An append to be done.
#[derive(Debug, Clone)]
pub struct AppendStream {
    /// The path of the stream.
    pub path: StreamPath,
    /// The content type that the request gives; `None` where nothing is appended.
    pub content_type: Option<ContentType>,
    /// The bytes.
    pub payload: Payload,
    /// Close the stream with it.
    pub close: bool,
    /// The writer's own sequence.
    pub seq: Option<String>,
    /// The producer, for retries.
    pub producer: Option<Producer>,
}

/// The result of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The stream's tail.
    pub tail: StreamOffset,
    /// The stream is closed.
    pub closed: bool,
    /// It had been done before.
    pub duplicate: bool,
    /// The producer's last append that was taken.
    pub producer_seq: Option<u64>,
}

/// A change of a stream, reported after its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamChange {
    /// It was created, appended to or closed.
    Moved {
        /// The stream.
        id: u64,
        /// Its path.
        path: StreamPath,
        /// Its tail.
        tail: Seq,
        /// It is closed.
        closed: bool,
        /// The last appends, up to the tail, if they are in memory and small. A reader that waits where they begin need
        /// not ask the database.
        fresh: Arc<[Payload]>,
    },
    /// It was deleted, or has expired.
    Deleted {
        /// The stream.
        id: u64,
        /// The path that it had.
        path: StreamPath,
    },
    /// Another server has written; to which streams is not known.
    Unknown,
}

/// Stored streams. None of the writes is answered before it is durable; concurrent ones share a commit.
#[async_trait]
pub trait Streams: Send + Sync {
    /// Creates a stream, or finds it there as asked.
    async fn create_stream(&self, create: CreateStream) -> Result<Created, CreateError>;

    /// Appends, closes, or both; with the producer's state in the same transaction.
    async fn append(&self, append: AppendStream) -> Result<Appended, AppendError>;

    /// Deletes a stream; softly while forks need it.
    async fn delete_stream(&self, path: &StreamPath) -> Result<(), FindError>;

    /// A stream as it is now.
    async fn find_stream(&self, path: &StreamPath) -> Result<Arc<StreamInfo>, FindError>;

    /// Notes that a stream was read, for those that expire when they are not. Never waits.
    fn touch_stream(&self, stream: &StreamInfo);

    /// Fills the chunk with what follows its position, until it is done or the stream ends; returns whether the stream
    /// is closed, as of the same moment.
    async fn fill_stream(
        &self,
        stream: &StreamInfo,
        chunk: StoredChunkBuilder,
    ) -> Result<(StoredChunkBuilder, bool), FillError>;

    /// Paths of streams in order, after one of them.
    async fn list_streams(
        &self,
        after: Option<&StreamPath>,
        limit: usize,
    ) -> Result<Vec<StreamPath>, StorageError>;

    /// What happens to streams from now on, one list a commit.
    fn stream_changes(&self) -> broadcast::Receiver<Arc<[StreamChange]>>;
}
