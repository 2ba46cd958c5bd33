//! A few connections for reading, each used by one blocking task at a time. A pool of our own: a connection belongs to the
//! file that it was opened on, and is dropped once another file stands in its place, which no crate's pool knows of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::file::history::History;
use super::{connect, error};
use crate::storage_error::StorageError;

pub(super) struct ReadPool {
    history: Arc<History>,
    busy: Duration,
    /// One permit for each connection: its holder may take or open one.
    permits: Arc<Semaphore>,
    /// The idle connections, each with the number of the file that it was opened on.
    idle: Arc<Mutex<Vec<(u64, Connection)>>>,
}

impl ReadPool {
    pub(super) fn new(history: Arc<History>, busy: Duration, connections: usize) -> ReadPool {
        ReadPool { history, busy, permits: Arc::new(Semaphore::new(connections)), idle: Arc::default() }
    }

    /// Runs a read on a connection of its own.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StorageError::Closed)?;
        let (idle, history, busy) = (self.idle.clone(), self.history.clone(), self.busy);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            if history.is_gone() {
                return Err(StorageError::Unavailable);
            }
            let file = history.file();
            let pooled = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut connection = match pooled.filter(|(opened, _)| *opened == file) {
                Some((_, connection)) => connection,
                None => connect::reader(&history.path, busy).map_err(|e| error::storage(&e))?,
            };
            let result = work(&mut connection).map_err(|e| error::storage(&e));
            // A connection on which something failed is dropped: the failure may be its own.
            if result.is_ok() {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push((file, connection));
            }
            result
        });
        task.await.unwrap_or(Err(StorageError::Unavailable))
    }
}
