//! What the writer thread is asked to do.

use bourn_protocol::StreamPath;
use tokio::sync::oneshot;

use crate::feed::{Mutation, WriteError, Written};
use crate::storage_error::StorageError;
use crate::streams::{
    AppendError, AppendStream, Appended, CreateError, CreateStream, Created, FindError, Secrets,
    StoredSubscription,
};

pub(super) type Sender = oneshot::Sender<Result<Written, WriteError>>;

/// What the thread is asked to do.
pub(super) enum Job {
    /// Do a mutation and answer.
    Write(Box<Mutation>, Sender),
    /// Something about stored streams.
    Stream(StreamJob),
    /// Something about subscriptions to them.
    Subscription(SubscriptionJob),
    /// Many marks wait to be folded into the database.
    Fold,
    /// The file at the path is not the one that is open.
    Reopen,
    /// The log may not be the one that was served.
    Settle,
    /// Try whether the database can be written.
    Probe,
    /// The database's schema has changed.
    Refresh,
    /// It is time to look for what is old.
    Retain,
    /// Do what is queued, then stop.
    Close(oneshot::Sender<()>),
}

/// What the writer thread is asked to do with stored streams.
pub(super) enum StreamJob {
    /// Create one.
    Create(Box<CreateStream>, oneshot::Sender<Result<Created, CreateError>>),
    /// Append to one.
    Append(Box<AppendStream>, oneshot::Sender<Result<Appended, AppendError>>),
    /// Delete one.
    Delete(StreamPath, oneshot::Sender<Result<(), FindError>>),
    /// One was read: it lives until this time.
    Touch(StreamPath, i64),
    /// Remove what has expired and what is left of deleted streams.
    Collect,
}

/// What the writer thread is asked to do with subscriptions.
pub(super) enum SubscriptionJob {
    /// Save one, if its version is the one before.
    Save(Box<StoredSubscription>, oneshot::Sender<Result<bool, StorageError>>),
    /// Remove one.
    Delete(String, oneshot::Sender<Result<bool, StorageError>>),
    /// Give the keys; draw them if there are none.
    Secrets(oneshot::Sender<Result<Secrets, StorageError>>),
}
