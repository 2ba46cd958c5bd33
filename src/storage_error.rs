//! Why a database did not do its work. The database's own words are logged where they arise and go no further.

/// A database could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Another process holds the database.
    #[error("another process holds the database; try again")]
    Busy,
    /// Another session of the database holds a lock on the row or the table.
    #[error("another session of the database holds a lock on the row or the table; try again")]
    Locked,
    /// The database did not answer in time.
    #[error(
        "the database did not answer in time; try again, with the same transaction id if this was a write"
    )]
    Slow,
    /// The disk is full; nothing was written.
    #[error("the database's disk is full; nothing was written")]
    Full,
    /// The database cannot be written.
    #[error("the database can be read but not written")]
    ReadOnly,
    /// The database went back in time, and no server has settled yet what that means for the log.
    #[error(
        "the database went back in time or was replaced; its log cannot be used before that is settled; try again"
    )]
    Unsettled,
    /// The database is damaged or out of reach.
    #[error("the database is damaged or out of reach; see the server's log")]
    Unavailable,
    /// An entity type's table is missing or does not fit; the text is the server's own.
    #[error("{0}")]
    Entity(String),
    /// More work is waiting than is queued.
    #[error("more writes are waiting than the server queues; try again")]
    Overloaded,
    /// The server is stopping.
    #[error("the server is about to stop")]
    Closed,
}
