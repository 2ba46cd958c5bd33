//! Reading any kind of stream: a session stands at a place and reads batch after batch. The feed and the stored streams
//! both provide sessions, and the HTTP renderers take any of them; one cache keeps the chunks of both.

mod batch;
mod chunks;

use std::time::Duration;

use bourn_protocol::chunk::ChunkLimits;
use bourn_protocol::stored::Form;
use bourn_protocol::{ContentType, Place};

use crate::config::Limits;
pub use batch::{Batch, LiveBatch};
pub use chunks::{CachedChunk, ChunkCache, ChunkKey, StreamKey};

/// A place in a stream that moves as batches are taken.
pub trait Session: Send + 'static {
    /// Why a read cannot be done.
    type Error: std::error::Error + Send;

    /// The token of the place where the session stands.
    fn place(&self) -> Place;

    /// What the stream holds.
    fn content_type(&self) -> ContentType;

    /// How the stream's bytes are sent.
    fn form(&self) -> Form;

    /// How long a cache may keep what is read, where that ends with the stream.
    fn lifetime_left(&self) -> Option<Duration>;

    /// Whether the stream has, or will have, all that was committed.
    fn is_complete(&self) -> bool;

    /// The entity tag of a batch of this session's.
    fn entity_tag(&self, batch: &Batch) -> String;

    /// Takes what follows, at once; it is empty at the tail.
    ///
    /// # Errors
    /// When the database cannot be read, or the place is gone.
    fn read(&mut self) -> impl Future<Output = Result<Batch, Self::Error>> + Send;

    /// Waits until the stream may have gained something since the last [`Session::read`]. Never ends for a
    /// session that was not opened live.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
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
