//! The jobs of the writer thread.

use bourn_protocol::StreamPath;
use tokio::sync::oneshot;

use crate::feed::{Mutation, WriteError, Written};
use crate::storage_error::StorageError;
use crate::streams::{
    AppendError, AppendStream, Appended, CreateError, CreateStream, Created, FindError, Secrets,
    StoredSubscription,
};

pub(super) type AnswerSender = oneshot::Sender<Result<Written, WriteError>>;

/// A job of the writer thread.
pub(super) enum WriterJob {
    /// Do a mutation and answer.
    Write(Box<Mutation>, AnswerSender),
    /// Change stored streams.
    Stream(StreamJob),
    /// Change subscriptions to them.
    Subscription(SubscriptionJob),
    /// Fold marks into the database, as many wait.
    Fold,
    /// Open the file at the path, which is not the one that is open.
    Reopen,
    /// Settle which log this is: it may not be the one that was served.
    Settle,
    /// Try whether the database can be written.
    Probe,
    /// Look at the tables: the database's schema has changed.
    Refresh,
    /// Look for activities that are old.
    Retain,
    /// Do what is queued, then stop.
    Close(oneshot::Sender<()>),
}

/// A job of the writer thread on stored streams.
pub(super) enum StreamJob {
    /// Create one.
    Create(Box<CreateStream>, oneshot::Sender<Result<Created, CreateError>>),
    /// Append to one.
    Append(Box<AppendStream>, oneshot::Sender<Result<Appended, AppendError>>),
    /// Delete one.
    Delete(StreamPath, oneshot::Sender<Result<(), FindError>>),
    /// Note that one was read: it lives until this time.
    Touch(StreamPath, i64),
    /// Remove what has expired and what is left of deleted streams.
    Collect,
}

/// A job of the writer thread on subscriptions.
pub(super) enum SubscriptionJob {
    /// Save one, if the stored version is the one before.
    Save(Box<StoredSubscription>, oneshot::Sender<Result<bool, StorageError>>),
    /// Remove one.
    Delete(String, oneshot::Sender<Result<bool, StorageError>>),
    /// Give the keys; draw them if there are none.
    Secrets(oneshot::Sender<Result<Secrets, StorageError>>),
}
