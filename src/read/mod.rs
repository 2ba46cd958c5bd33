//! Read sessions: the one way out of the log. A session stands at a place in a stream and is given batch after
//! batch: from the chunk cache and the log while it catches up, from the live tail when it has. Catch-up,
//! long-poll and SSE only render what it yields.

mod chunks;

use std::sync::Arc;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::{Epoch, Offset, ReadFrom, Selector, Seq};
use bytes::Bytes;
use tokio::sync::watch;

use crate::config::Limits;
use crate::storage::{LogBounds, Storage, StorageError};
use crate::tail::{Channel, LiveBatch, Place, Tail};
pub use chunks::CachedChunk;
use chunks::ChunkCache;

/// A read could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The offset is not one that can be read from.
    #[error("{}", .0.explain())]
    Gone(Gone),
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why an offset is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It belongs to another log.
    OtherLog,
    /// It lies past the end of the log.
    PastTail,
    /// What followed it is not kept any more.
    BehindHorizon,
}

impl Gone {
    const fn explain(self) -> &'static str {
        match self {
            Gone::OtherLog => {
                "the offset belongs to another log: the database was made anew; start again from -1 or from the list"
            }
            Gone::PastTail => {
                "the offset lies past the end of the log: the database has lost changes; start again from -1 or from the list"
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
    tail: Arc<Tail>,
    identity: LogBounds,
    head: watch::Receiver<Seq>,
}

impl Reader {
    /// A reader of the storage's log.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>, tail: Arc<Tail>, identity: LogBounds, limits: &Limits) -> Reader {
        let head = storage.head();
        let chunks = ChunkCache::new(
            storage.clone(),
            identity.epoch,
            chunk_limits(limits),
            limits.chunk_cache.get() / 2,
        );
        Reader { storage, chunks, tail, identity, head }
    }

    /// The log's own mark.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.identity.epoch
    }

    /// The token of a place.
    #[must_use]
    pub fn offset(&self, seq: Seq) -> Offset {
        Offset { epoch: self.identity.epoch, seq }
    }

    /// The tail of a stream, as the database has it.
    ///
    /// # Errors
    /// When the database cannot say.
    pub async fn stream_tail(&self, stream: &Selector) -> Result<Seq, StorageError> {
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
        let position = match from {
            ReadFrom::Start => Seq::ZERO,
            ReadFrom::Now => self.storage.stream_tail(&stream).await?,
            ReadFrom::At(offset) => {
                self.check(offset).await?;
                offset.seq
            }
        };
        let follower = channel.map(|channel| Follower { bell: channel.bell(), channel });
        Ok(Session { reader: self.clone(), stream, position, covered: position, follower })
    }

    async fn check(&self, offset: Offset) -> Result<(), ReadError> {
        if offset.epoch != self.identity.epoch {
            return Err(ReadError::Gone(Gone::OtherLog));
        }
        if offset.seq != Seq::ZERO && offset.seq < self.identity.horizon {
            return Err(ReadError::Gone(Gone::BehindHorizon));
        }
        // This server may be a moment behind another one: the database decides.
        if offset.seq > *self.head.borrow() && offset.seq > self.storage.bounds().await?.head {
            return Err(ReadError::Gone(Gone::PastTail));
        }
        Ok(())
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

struct Follower {
    channel: Arc<Channel>,
    bell: watch::Receiver<Seq>,
}

/// A place in a stream that moves as batches are taken.
pub struct Session {
    reader: Arc<Reader>,
    stream: Selector,
    position: Seq,
    /// Nothing of the stream lies between the position and here: a quiet stream's reader stands far behind the
    /// log's head, and still lacks nothing.
    covered: Seq,
    follower: Option<Follower>,
}

/// What a session yields.
#[derive(Debug, Clone)]
pub enum Batch {
    /// A chunk of the log; it may be empty.
    Chunk(Arc<CachedChunk>),
    /// Fresh from the tail.
    Live(Arc<LiveBatch>),
    /// Nothing: the session is at the tail.
    Nothing,
}

impl Batch {
    /// A JSON array of messages.
    #[must_use]
    pub fn body(&self) -> Bytes {
        match self {
            Batch::Chunk(chunk) => chunk.body.clone(),
            Batch::Live(batch) => batch.body.clone(),
            Batch::Nothing => Bytes::from_static(b"[]"),
        }
    }

    /// How many messages it holds.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Batch::Chunk(chunk) => chunk.messages,
            Batch::Live(batch) => batch.messages,
            Batch::Nothing => 0,
        }
    }

    /// Whether it reaches the tail.
    #[must_use]
    pub fn up_to_date(&self) -> bool {
        match self {
            Batch::Chunk(chunk) => !chunk.sealed,
            Batch::Live(_) | Batch::Nothing => true,
        }
    }
}

impl Session {
    /// Where the session stands.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// The stream it reads.
    #[must_use]
    pub fn stream(&self) -> &Selector {
        &self.stream
    }

    /// The token of the place where the session stands.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.reader.offset(self.position)
    }

    /// Takes what follows, at once; it is empty at the tail.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read(&mut self) -> Result<Batch, ReadError> {
        if let Some(follower) = &mut self.follower {
            // What is rung for from here on is news.
            follower.bell.mark_unchanged();
            match follower.channel.after(self.covered) {
                Place::Next(batch) => {
                    self.position = batch.next;
                    self.covered = batch.next;
                    return Ok(Batch::Live(batch));
                }
                Place::CaughtUp => return Ok(Batch::Nothing),
                Place::Behind => {}
            }
        }
        // The tail may have come further than this server knew when it looked at the log's head.
        let rung = self.follower.as_ref().map_or(Seq::ZERO, |follower| *follower.bell.borrow());
        let known = (*self.reader.head.borrow()).max(rung);
        // Boxed: an event stream is in memory for a minute and reads the log once or twice.
        let chunk = Box::pin(self.reader.chunks.get(&self.stream, self.position, known)).await?;
        self.position = chunk.next;
        self.covered = if chunk.sealed { chunk.next } else { self.covered.max(known).max(chunk.next) };
        Ok(Batch::Chunk(chunk))
    }

    /// Waits until the stream may have gained something since the last [`Session::read`]. Never ends for a
    /// session that was not opened live.
    pub async fn changed(&mut self) {
        let rung = match &mut self.follower {
            Some(follower) => follower.bell.changed().await.is_ok(),
            None => false,
        };
        if !rung {
            std::future::pending::<()>().await;
        }
    }
}
