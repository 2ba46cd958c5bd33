//! Sessions on stored streams. All that readers at one place wait for is read once, into the chunk cache, by the first
//! that is woken; a bell says how far the stream has come, so that nobody asks the database in vain.

use std::sync::{Arc, OnceLock};

use bourn_protocol::chunk::Feed;
use bourn_protocol::stored::Payload;
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use bourn_protocol::{ContentType, ReadFrom, Seq, StreamOffset, StreamPath};
use tokio::sync::watch;

use super::chunks::{CachedChunk, Key, StreamKey};
use super::{Batch, Gone, ReadError, Reader};
use crate::storage::streams::rules::after;
use crate::storage::streams::{FillError, FindError, StreamInfo};
use crate::tail::Mark;

/// A place in a stored stream that moves as batches are taken.
pub struct StoredSession {
    reader: Arc<Reader>,
    stream: Arc<StreamInfo>,
    position: StreamOffset,
    bell: Option<watch::Receiver<Mark>>,
    /// The bell's doubts that were followed up.
    doubts: u64,
}

impl StoredSession {
    pub(super) async fn open(
        reader: Arc<Reader>,
        path: &StreamPath,
        from: ReadFrom<StreamOffset>,
        live: bool,
    ) -> Result<StoredSession, ReadError> {
        let mut stream = reader.storage.find_stream(path).await?;
        let bell = live.then(|| reader.bells.bell(&stream));
        let doubts = bell.as_ref().map_or(0, |bell| bell.borrow().doubts);
        if live {
            // What was committed before the bell hung is known to the directory by now.
            stream = reader.storage.find_stream(path).await?;
        }
        reader.storage.touch_stream(&stream);
        let position = match from {
            ReadFrom::Start => StreamOffset::START,
            ReadFrom::Now => stream.offset(stream.tail),
            ReadFrom::At(offset) => {
                if stream.offset(offset.position) != offset {
                    return Err(ReadError::Gone(Gone::OtherStream));
                }
                if offset.position > stream.tail {
                    return Err(ReadError::Gone(Gone::PastTail));
                }
                offset
            }
        };
        Ok(StoredSession { reader, stream, position, bell, doubts })
    }

    pub(super) fn offset(&self) -> StreamOffset {
        self.position
    }

    /// How long what is read may be kept at most, in milliseconds; none where the stream lives for ever.
    pub(super) fn lifetime_left(&self) -> Option<i64> {
        let deadline = self.stream.deadline.load(std::sync::atomic::Ordering::Relaxed);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        (deadline != i64::MAX).then(|| deadline.saturating_sub(now).max(0))
    }

    pub(super) fn content_type(&self) -> &ContentType {
        &self.stream.content_type
    }

    /// How far the stream reaches and whether it is closed, as it is known here; and what the bell says, if it says as
    /// much.
    async fn mark(&mut self) -> Result<(Seq, bool, Option<Mark>), ReadError> {
        loop {
            let Some(bell) = &mut self.bell else { return Ok((self.stream.tail, self.stream.closed, None)) };
            let mark = bell.borrow_and_update().clone();
            if mark.gone || mark.doubts != self.doubts {
                self.doubts = mark.doubts;
                if self.find_again().await? {
                    continue;
                }
                if mark.gone {
                    return Err(ReadError::Find(FindError::Missing));
                }
            }
            let (tail, closed) = (self.stream.tail.max(mark.tail), self.stream.closed || mark.closed);
            return Ok((tail, closed, Some(mark).filter(|mark| mark.tail == tail)));
        }
    }

    /// Looks up what the stream is now. Whether it goes on under another number, as streams do where the database may have
    /// lost appends: then the session goes on with it if all that it has read is there.
    async fn find_again(&mut self) -> Result<bool, ReadError> {
        let (reader, path) = (&self.reader, &self.stream.path);
        let mut found = reader.storage.find_stream(path).await?;
        let renumbered = found.id != self.stream.id;
        if renumbered {
            if self.bell.is_some() {
                let bell = reader.bells.bell(&found);
                self.doubts = bell.borrow().doubts;
                self.bell = Some(bell);
                // What was committed before the bell hung.
                found = reader.storage.find_stream(path).await?;
            }
            let read = self.position.position;
            if found.content_type != self.stream.content_type
                || found.offset(read) != self.position
                || read > found.tail
            {
                return Err(ReadError::Find(FindError::Missing));
            }
        }
        self.stream = found;
        Ok(renumbered)
    }

    pub(super) async fn read(&mut self) -> Result<Batch, ReadError> {
        match self.read_once().await {
            // It may have been renumbered since it was found.
            Err(ReadError::Find(FindError::Missing)) if self.find_again().await? => self.read_once().await,
            read => read,
        }
    }

    async fn read_once(&mut self) -> Result<Batch, ReadError> {
        let (tail, known_closed, mark) = self.mark().await?;
        if self.bell.is_some() && self.position.position >= tail {
            return Ok(Batch::Nothing { closed: known_closed, more: false });
        }
        let (stream, reader, start) = (&self.stream, &self.reader, self.position.position);
        let fresh = mark.as_ref().and_then(|mark| mark.since(start));
        let load = load(reader, stream, start, fresh.map(|fresh| (fresh, known_closed)));
        // Boxed: an event stream is in memory for a minute and reads seldom.
        let chunk = Box::pin(reader.chunks.get(key(stream, start), (tail, known_closed), load)).await?;
        self.position = self.stream.offset(chunk.next);
        Ok(Batch::Chunk(chunk))
    }

    pub(super) async fn changed(&mut self) {
        let rung = match &mut self.bell {
            Some(bell) => bell.changed().await.is_ok(),
            None => false,
        };
        if !rung {
            std::future::pending::<()>().await;
        }
    }
}

fn key(stream: &StreamInfo, start: Seq) -> Key {
    Key { stream: StreamKey::Stored(stream.id), start, head: None }
}

/// Reads the chunk that begins at a place: from the appends that are at hand, which reach the tail, together with whether the
/// stream is closed there; else from the database.
async fn load(
    reader: &Reader,
    stream: &StreamInfo,
    start: Seq,
    fresh: Option<(&[Payload], bool)>,
) -> Result<CachedChunk, FillError> {
    let mut builder = StoredChunkBuilder::new(stream.content_type.form(), start, reader.limits.bytes);
    let (builder, closed) = match fresh {
        Some((fresh, closed)) => {
            for Payload { data, messages } in fresh {
                let Some(end) = after(builder.position(), data.len()) else { break };
                if builder.push(data, *messages, end) == Feed::Done {
                    break;
                }
            }
            (builder, closed)
        }
        None => reader.storage.fill_stream(stream, builder).await?,
    };
    let chunk = builder.finish();
    let closed = closed && !chunk.sealed;
    let (first, next) = (stream.offset(start), stream.offset(chunk.next));
    let state = if chunk.sealed { "s" } else { "t" };
    let end = if closed { ":c" } else { "" };
    Ok(CachedChunk {
        version: None,
        horizon: Seq::ZERO,
        gap: None,
        spans_gap: false,
        body: chunk.body.into_boxed_slice().into(),
        messages: chunk.messages,
        start,
        next: chunk.next,
        offset: next.into(),
        sealed: chunk.sealed,
        closed,
        etag: format!("\"{}:{first}:{next}:{state}{end}\"", stream.id),
        frame: OnceLock::new(),
    })
}
