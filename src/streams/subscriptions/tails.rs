//! Where linked streams end, and which streams own their bytes. A place that a subscription holds may be one of another
//! stream: of one that was at the path before, or of the part that the database lost when it went back in time. Such a
//! place is never compared with a tail; the bytes that it still has in common with the stream count instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use bourn_protocol::{StreamOffset, StreamPath};

use super::Subscriptions;
use crate::storage_error::StorageError;
use crate::streams::{FindError, Segment, StreamInfo, rules};

/// Where the linked streams end.
pub(super) type Tails = BTreeMap<StreamPath, StreamTail>;

/// The end of a stream as it is now; that of a stream which is missing is its start.
#[derive(Debug, Clone, Default)]
pub struct StreamTail {
    /// The place.
    pub end: StreamOffset,
    lineage: Arc<[Segment]>,
}

impl StreamTail {
    pub(super) fn of(stream: &StreamInfo) -> StreamTail {
        StreamTail::new(stream.lineage.clone(), stream.offset(stream.tail))
    }

    pub(super) fn new(lineage: Arc<[Segment]>, end: StreamOffset) -> StreamTail {
        StreamTail { end, lineage }
    }

    /// Whether a place is one of this stream.
    #[must_use]
    pub fn owns(&self, place: StreamOffset) -> bool {
        rules::offset(&self.lineage, place.position) == place
    }

    /// How far the bytes before a place of any stream are also those of this one.
    #[must_use]
    pub fn common(&self, place: StreamOffset) -> StreamOffset {
        match self.lineage.iter().find(|segment| segment.stream == place.owner) {
            Some(segment) => rules::offset(&self.lineage, place.position.min(segment.to)),
            None => StreamOffset::START,
        }
    }

    /// Whether the stream exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        !self.lineage.is_empty()
    }
}

impl Subscriptions {
    pub(super) async fn tail(&self, path: &StreamPath) -> Result<StreamTail, StorageError> {
        match self.streams.find_stream(path).await {
            Ok(stream) => Ok(StreamTail::of(&stream)),
            Err(FindError::Missing | FindError::Gone) => Ok(StreamTail::default()),
            Err(FindError::Storage(error)) => Err(error),
        }
    }

    pub(super) async fn tails(&self, links: impl Iterator<Item = StreamPath>) -> Result<Tails, StorageError> {
        let mut tails = Tails::new();
        for path in links {
            tails.insert(path.clone(), self.tail(&path).await?);
        }
        Ok(tails)
    }
}
