//! Why a stored stream could not be created, appended to, found or read; one kind of error for each operation.

use bourn_protocol::StreamOffset;
use bourn_protocol::stored::NotJson;

use crate::storage_error::StorageError;

/// A stream could not be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// It exists with other properties than the request asks for.
    #[error(
        "a stream exists here with another configuration: {0} differs; read it with HEAD, or choose another path"
    )]
    Exists(&'static str),
    /// A deleted stream is kept here.
    #[error(
        "a stream was deleted here that forks still need; delete the forks first, or choose another path"
    )]
    Blocked,
    /// The stream to fork does not exist.
    #[error("the stream to fork does not exist")]
    SourceMissing,
    /// The stream to fork was deleted.
    #[error("the stream to fork was deleted and is kept for its other forks alone")]
    SourceGone,
    /// The fork is to hold something else than its source.
    #[error("the source's content type is {0}; a fork has the same, leave Content-Type out")]
    ContentType(String),
    /// The place to leave the source is not one in it.
    #[error("{0}")]
    ForkOffset(&'static str),
    /// There are too many forks between it and its root.
    #[error("the fork would be more forks away from its root than the server follows")]
    TooDeep,
    /// The body does not fit the content type.
    #[error(transparent)]
    NotJson(#[from] NotJson),
    /// It would be larger than a stream may be.
    #[error("the stream would have more than {0} bytes")]
    TooLarge(u64),
    /// There are as many streams as there may be.
    #[error("the server has as many streams as it takes; delete some, or try again later")]
    TooMany,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Something could not be appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no such stream.
    #[error("there is no stream here; create it with PUT")]
    Missing,
    /// It was deleted.
    #[error("the stream was deleted and is kept for its forks alone")]
    Gone,
    /// It is closed.
    #[error("the stream is closed: nothing more can be appended")]
    Closed(StreamOffset),
    /// It holds something else.
    #[error("the stream's content type is {0}; send the same")]
    ContentType(String),
    /// The writer's sequence does not go up.
    #[error("Stream-Seq must be above the last one, compared byte by byte")]
    Sequence,
    /// A newer life of the producer has appended.
    #[error("a newer epoch of this producer has appended; its epoch is {0}")]
    StaleEpoch(u64),
    /// A new life does not begin at its beginning.
    #[error("a new epoch begins with Producer-Seq 0")]
    EpochSeq,
    /// Appends are missing before this one.
    #[error("the producer's next Producer-Seq is {expected}, not {received}")]
    Gap {
        /// The number that is expected.
        expected: u64,
        /// The number that was received.
        received: u64,
    },
    /// It would be larger than a stream may be.
    #[error("the stream would have more than {0} bytes")]
    TooLarge(u64),
    /// It remembers as many producers as it may.
    #[error("the stream remembers as many producers as it can; use fewer Producer-Ids")]
    TooManyProducers,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A stream could not be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// There is no such stream.
    #[error("there is no stream here; create it with PUT")]
    Missing,
    /// It was deleted.
    #[error("the stream was deleted and is kept for its forks alone")]
    Gone,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A stream could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// It is not there any more.
    #[error("the stream was deleted")]
    Missing,
    /// The place lies inside an append.
    #[error("the offset is not one that the server gave")]
    Misplaced,
    /// The database could not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
