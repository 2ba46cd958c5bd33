//! A worker that creates and removes streams, one after the other, and notifies the other servers of its commits.

use super::news::Counter;
use crate::databases::postgres::Inner;
use crate::databases::postgres::connections::Session;
use crate::streams::StreamChange;

/// Does one job after the other.
pub(super) struct Worker {
    pub(super) inner: Inner,
    pub(super) counter: Counter,
}

impl Worker {
    pub(super) fn new(inner: Inner) -> Worker {
        let counter = inner.stored.writer();
        Worker { inner, counter }
    }

    /// Commits, and notifies readers and servers.
    pub(super) async fn commit(
        &mut self,
        transaction: Session,
        changes: Vec<StreamChange>,
    ) -> Result<(), sqlx::Error> {
        let done = transaction.commit().await;
        match &done {
            Ok(()) => self.inner.stored.committed(&mut self.counter, changes),
            Err(error) if error.as_database_error().is_some() => {}
            Err(_) => self.inner.stored.unsure(&mut self.counter),
        }
        done
    }

    /// The result of a piece of work. One that was given up may have been done all the same.
    pub(super) fn known<T>(
        &mut self,
        tried: Result<Result<T, sqlx::Error>, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        tried.unwrap_or_else(|late| {
            self.inner.stored.unsure(&mut self.counter);
            Err(late)
        })
    }
}
