//! Turns for the connections of the serving pool: requests that wait for a lock in the database hold their connections
//! meanwhile, so one table may have no more than half of them, writes no more than half, and one row two. A request
//! that waits for a turn holds no connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::feed::Operation;
use crate::feed::entity::Catalog;
use crate::storage_error::StorageError;

/// Writes of one row that are under way at once: the one that holds the row, and the next.
const ROW_WRITES: usize = 2;

/// The turns of one server.
#[derive(Debug)]
pub(in super::super) struct Turns {
    writes: Arc<Semaphore>,
    tables: HashMap<Arc<str>, Arc<Semaphore>>,
    rows: Mutex<HashMap<RowKey, RowTurns>>,
    acquire: Duration,
    lock: Duration,
}

/// A row by the name of its entity type and its key.
type RowKey = (Arc<str>, String);

/// The turns of one row, and how many requests have or want one.
#[derive(Debug)]
struct RowTurns {
    turns: Arc<Semaphore>,
    requests: usize,
}

/// A turn; it ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub(in super::super) struct Turn<'a> {
    _permits: Vec<OwnedSemaphorePermit>,
    _row: Option<RowTurn<'a>>,
}

#[derive(Debug)]
struct RowTurn<'a> {
    turns: &'a Turns,
    name: RowKey,
}

impl Drop for RowTurn<'_> {
    fn drop(&mut self) {
        let mut rows = self.turns.rows();
        if let Some(row) = rows.get_mut(&self.name) {
            row.requests -= 1;
            if row.requests == 0 {
                rows.remove(&self.name);
            }
        }
    }
}

impl Turns {
    pub(in super::super) fn new(limits: &Limits, catalog: &Catalog) -> Turns {
        let half = limits.database_connections.div_ceil(2).max(1);
        let of_table = || Arc::new(Semaphore::new(half));
        Turns {
            writes: of_table(),
            tables: catalog.iter().map(|entity| (entity.name.clone(), of_table())).collect(),
            rows: Mutex::default(),
            acquire: limits.acquire_timeout.get(),
            lock: limits.lock_timeout.get(),
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<RowKey, RowTurns>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to read a table.
    pub(in super::super) async fn read(&self, entity_type: &Arc<str>) -> Result<Turn<'_>, StorageError> {
        let permits = self.table(entity_type).await?.into_iter().collect();
        Ok(Turn { _permits: permits, _row: None })
    }

    /// A turn to write.
    pub(in super::super) async fn write(&self, operation: &Operation) -> Result<Turn<'_>, StorageError> {
        let (entity, key) = match operation {
            Operation::Create { entity, key, .. } => (Some(entity), key.as_ref()),
            Operation::Update { entity, key, .. } | Operation::Delete { entity, key, .. } => {
                (Some(entity), Some(key))
            }
            Operation::Rollback { .. } => (None, None),
        };
        let mut permits = Vec::with_capacity(3);
        let mut row = None;
        // The narrowest first: what waits here takes nothing from others.
        if let (Some(entity), Some(key)) = (entity, key) {
            let name = (entity.name.clone(), key.to_string());
            let turns = {
                let mut rows = self.rows();
                let row = rows
                    .entry(name.clone())
                    .or_insert_with(|| RowTurns { turns: Arc::new(Semaphore::new(ROW_WRITES)), requests: 0 });
                row.requests += 1;
                row.turns.clone()
            };
            row = Some(RowTurn { turns: self, name });
            permits.push(turn(turns, self.lock, StorageError::Locked).await?);
        }
        if let Some(entity) = entity {
            permits.extend(self.table(&entity.name).await?);
        }
        permits.push(turn(self.writes.clone(), self.acquire, StorageError::Slow).await?);
        Ok(Turn { _permits: permits, _row: row })
    }

    async fn table(&self, entity_type: &Arc<str>) -> Result<Option<OwnedSemaphorePermit>, StorageError> {
        match self.tables.get(entity_type) {
            Some(turns) => turn(turns.clone(), self.acquire, StorageError::Slow).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn turn(
    turns: Arc<Semaphore>,
    most: Duration,
    late: StorageError,
) -> Result<OwnedSemaphorePermit, StorageError> {
    match tokio::time::timeout(most, turns.acquire_owned()).await {
        Ok(turn) => turn.map_err(|_| StorageError::Closed),
        Err(_) => Err(late),
    }
}
