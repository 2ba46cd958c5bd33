//! Read sessions: the one way out of the log. A session stands at a place in a stream and is given batch after
//! batch: from the chunk cache and the log while it catches up, from the live tail when it has. Catch-up,
//! long-poll and SSE only render what it yields.

mod chunks;
mod log;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::stored::Form;
use bourn_protocol::{ContentType, Epoch, Offset, Place, ReadFrom, Selector, Seq, StreamOffset, StreamPath};
use bytes::Bytes;
use tokio::sync::watch;

use crate::config::Limits;
use crate::storage::streams::{FillError, FindError};
use crate::storage::{Head, Storage, StorageError, Version};
use crate::tail::{Bells, LiveBatch, Tail};
pub use chunks::CachedChunk;
use chunks::ChunkCache;
use log::{Follower, LogSession};
use stored::StoredSession;

/// A read could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The offset is not one that can be read from.
    #[error("{}", .0.explain())]
    Gone(Gone),
    /// There is no such stored stream.
    #[error(transparent)]
    Find(FindError),
    /// The offset was made up.
    #[error("{}", bourn_protocol::offset::InvalidOffset)]
    Misplaced,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<FindError> for ReadError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Storage(error) => ReadError::Storage(error),
            other => ReadError::Find(other),
        }
    }
}

impl From<FillError> for ReadError {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Missing => ReadError::Find(FindError::Missing),
            FillError::Misplaced => ReadError::Misplaced,
            FillError::Storage(error) => ReadError::Storage(error),
        }
    }
}

/// Why an offset is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It belongs to another log.
    OtherLog,
    /// It lies past the end of the log.
    PastTail,
    /// It lies in a part of the log that the database has lost.
    Lost,
    /// What followed it is not kept any more.
    BehindHorizon,
    /// It belongs to a stream that was at this path before.
    OtherStream,
}

impl Gone {
    const fn explain(self) -> &'static str {
        match self {
            Gone::OtherLog => {
                "the offset belongs to another log: the database was replaced or restored; start again from -1 or from the list"
            }
            Gone::Lost => {
                "the offset lies in a part of the log that the database has lost; start again from -1 or from the list"
            }
            Gone::PastTail => {
                "the offset lies past the end of the log: the database has lost changes; start again from -1 or from the list"
            }
            Gone::OtherStream => {
                "the offset belongs to an earlier stream at this path: the stream was recreated; start again from -1"
            }
            Gone::BehindHorizon => {
                "what followed the offset is not kept any more; start again from -1 or from the list"
            }
        }
    }
}

/// Reads streams.
pub struct Reader {
    storage: Arc<dyn Storage>,
    chunks: ChunkCache,
    limits: ChunkLimits,
    tail: Arc<Tail>,
    bells: Arc<Bells>,
    head: watch::Receiver<Head>,
    version: watch::Receiver<Version>,
}

impl Reader {
    /// A reader of the storage's log and of its stored streams.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, tail: Arc<Tail>, bells: Arc<Bells>, limits: &Limits) -> Reader {
        let (head, version) = (storage.head(), storage.version());
        let chunks = ChunkCache::new(limits.chunk_cache.get() / 2);
        Reader { storage, chunks, limits: chunk_limits(limits), tail, bells, head, version }
    }

    /// The mark of the log as it is now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.head.borrow().epoch
    }

    /// The token of a place in the log as it is now.
    #[must_use]
    pub fn offset(&self, seq: Seq) -> Offset {
        Offset::new(self.epoch(), seq)
    }

    /// The tail of a stream, as the database has it.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn stream_tail(&self, stream: &Selector) -> Result<Head, StorageError> {
        self.storage.stream_tail(stream).await
    }

    /// Opens a session; `live` when it is to be followed past the tail.
    ///
    /// # Errors
    /// When the offset is gone, or the database cannot be asked.
    pub async fn open(
        self: &Arc<Self>,
        stream: Selector,
        from: ReadFrom,
        live: bool,
    ) -> Result<Session, ReadError> {
        // The channel first: what is committed from here on is in the log when it is read, or in the channel.
        let channel = live.then(|| self.tail.channel(&stream));
        let mut since = None;
        let Head { epoch, seq: position } = match from {
            ReadFrom::Start => Head { epoch: self.epoch(), seq: Seq::ZERO },
            ReadFrom::Now => self.storage.stream_tail(&stream).await?,
            ReadFrom::At(offset) => {
                self.check(offset).await?;
                since = offset.since;
                Head { epoch: offset.epoch, seq: offset.seq }
            }
        };
        if channel.as_ref().is_some_and(|channel| channel.epoch() != epoch) {
            // The log was replaced a moment ago.
            return Err(ReadError::Gone(Gone::OtherLog));
        }
        let follower = channel.map(|channel| Follower { bell: channel.bell(), channel });
        Ok(Session::Log(LogSession {
            reader: self.clone(),
            stream,
            epoch,
            position,
            covered: position,
            since,
            follower,
            begun: false,
        }))
    }

    /// Opens a session on a stored stream; a read counts as a use of it.
    ///
    /// # Errors
    /// When there is no such stream, the offset is none of its own, or the database cannot be asked.
    pub async fn open_stored(
        self: &Arc<Self>,
        path: &StreamPath,
        from: ReadFrom<StreamOffset>,
        live: bool,
    ) -> Result<Session, ReadError> {
        StoredSession::open(self.clone(), path, from, live).await.map(Session::Stored)
    }

    async fn check(&self, offset: Offset) -> Result<(), ReadError> {
        let known = *self.head.borrow();
        if offset.epoch == known.epoch && offset.seq <= known.seq {
            return Ok(());
        }
        // This server may be a moment behind another one: the database decides.
        let head = self.storage.bounds().await?;
        match offset {
            offset if offset.epoch != head.epoch => Err(ReadError::Gone(Gone::OtherLog)),
            offset if offset.seq > head.seq => Err(ReadError::Gone(Gone::PastTail)),
            _ => Ok(()),
        }
    }
}

/// The limits of chunks, as configured.
#[must_use]
pub fn chunk_limits(limits: &Limits) -> ChunkLimits {
    ChunkLimits {
        messages: limits.chunk_messages,
        bytes: limits.chunk_bytes.bytes(),
        transaction_bytes: limits.transaction_bytes.bytes(),
    }
}

/// A place in a stream that moves as batches are taken.
pub enum Session {
    /// On the log.
    Log(LogSession),
    /// On a stored stream.
    Stored(StoredSession),
}

impl Session {
    /// The token of the place where the session stands.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Session::Log(session) => session.offset().into(),
            Session::Stored(session) => session.offset().into(),
        }
    }

    /// The entity type whose changes the stream holds, where it is the stream of one.
    #[must_use]
    pub fn entity_type(&self) -> Option<&str> {
        match self {
            Session::Log(session) => session.stream.entity_type.as_deref(),
            Session::Stored(_) => None,
        }
    }

    /// What the stream holds.
    #[must_use]
    pub fn content_type(&self) -> ContentType {
        match self {
            Session::Log(_) => ContentType::json(),
            Session::Stored(session) => session.content_type().clone(),
        }
    }

    /// How long a cache may keep what is read, where that ends with the stream.
    #[must_use]
    pub fn lifetime_left(&self) -> Option<Duration> {
        match self {
            Session::Log(_) => None,
            Session::Stored(session) => {
                session.lifetime_left().map(|millis| Duration::from_millis(millis.unsigned_abs()))
            }
        }
    }

    /// How the stream's bytes are given out.
    #[must_use]
    pub fn form(&self) -> Form {
        match self {
            Session::Log(_) => Form::Json,
            Session::Stored(session) => session.content_type().form(),
        }
    }

    /// Takes what follows, at once; it is empty at the tail.
    ///
    /// # Errors
    /// When the database cannot be read, or the stream is not there any more.
    pub async fn read(&mut self) -> Result<Batch, ReadError> {
        match self {
            Session::Log(session) => session.read().await,
            Session::Stored(session) => session.read().await,
        }
    }

    /// Waits until the stream may have gained something since the last [`Session::read`]. Never ends for a
    /// session that was not opened live.
    pub async fn changed(&mut self) {
        match self {
            Session::Log(session) => session.changed().await,
            Session::Stored(session) => session.changed().await,
        }
    }

    /// The entity tag of a batch of this session's.
    #[must_use]
    pub fn entity_tag(&self, batch: &Batch) -> String {
        match (self, batch) {
            (_, Batch::Chunk(chunk)) => chunk.etag.clone(),
            (Session::Log(session), batch) => session.entity_tag(batch),
            // A stored stream's batches are chunks, or nothing.
            (Session::Stored(_), _) => String::new(),
        }
    }
}

/// What a session yields.
#[derive(Debug, Clone)]
pub enum Batch {
    /// A chunk of the log; it may be empty.
    Chunk(Arc<CachedChunk>),
    /// Fresh from the tail.
    Live {
        /// What came.
        batch: Arc<LiveBatch>,
        /// The stream has nothing more, as far as the server knows.
        last: bool,
    },
    /// Nothing: the session is at the tail; and whether there will never be more.
    Nothing {
        /// The stream is closed.
        closed: bool,
        /// The tail has not reached the end of the log as it knows it: there may be more.
        more: bool,
    },
}

impl Batch {
    /// Its bytes: of JSON an array of messages.
    #[must_use]
    pub fn body(&self) -> Bytes {
        match self {
            Batch::Chunk(chunk) => chunk.body.clone(),
            Batch::Live { batch, .. } => batch.body.clone(),
            Batch::Nothing { .. } => Bytes::new(),
        }
    }

    /// How many messages it holds.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Batch::Chunk(chunk) => chunk.messages,
            Batch::Live { batch, .. } => batch.messages,
            Batch::Nothing { .. } => 0,
        }
    }

    /// Whether it reaches the tail.
    #[must_use]
    pub fn up_to_date(&self) -> bool {
        match self {
            Batch::Chunk(chunk) => !chunk.sealed,
            Batch::Live { last, .. } => *last,
            Batch::Nothing { more, .. } => !more,
        }
    }

    /// Whether the stream ends with it for good.
    #[must_use]
    pub fn closed(&self) -> bool {
        match self {
            Batch::Chunk(chunk) => chunk.closed,
            Batch::Live { .. } => false,
            Batch::Nothing { closed, .. } => *closed,
        }
    }
}
