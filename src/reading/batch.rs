//! What a session yields: a chunk that was read, or a batch of the live tail.

use std::sync::{Arc, OnceLock};

use bourn_protocol::Seq;
use bytes::Bytes;

use super::CachedChunk;

/// What one stream gained at once: whole transactions, encoded once for every reader.
#[derive(Debug)]
pub struct LiveBatch {
    /// The first message's place.
    pub first: Seq,
    /// The last message's place: where reading continues.
    pub next: Seq,
    /// How many messages it holds.
    pub messages: usize,
    /// A JSON array of messages.
    pub body: Bytes,
    /// The batch as a renderer puts it on the wire, made by the first reader that needs it.
    frame: OnceLock<Bytes>,
}

impl LiveBatch {
    /// A batch of the messages between these places.
    #[must_use]
    pub fn new(first: Seq, next: Seq, messages: usize, body: Bytes) -> LiveBatch {
        LiveBatch { first, next, messages, body, frame: OnceLock::new() }
    }

    /// The batch rendered, once for all readers.
    pub fn frame(&self, render: impl FnOnce() -> Bytes) -> Bytes {
        self.frame.get_or_init(render).clone()
    }

    /// What it costs to keep, a rendered frame included.
    #[must_use]
    pub fn cost(&self) -> usize {
        2 * self.body.len() + 256
    }
}

/// What a session yields.
#[derive(Debug, Clone)]
pub enum Batch {
    /// A chunk of the log; it may be empty.
    Chunk(Arc<CachedChunk>),
    /// Fresh from the tail.
    Live {
        /// The batch.
        batch: Arc<LiveBatch>,
        /// The stream has nothing more, as far as the server knows.
        last: bool,
    },
    /// Nothing: the session is at the tail.
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
