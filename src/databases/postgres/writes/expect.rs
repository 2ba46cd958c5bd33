//! Expectations: whether a row is in the version that a client expects before it changes the row. The client knows a
//! version by the transaction that the stream shows last, so the log has to be asked; it lags behind the tables, so it
//! may have to be waited for.

use std::time::Duration;

use bourn_protocol::{EntityKey, TransactionId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{WriteContext, json, locked, stamps_of};
use crate::databases::postgres::connections::{Db, scalar, statement};
use crate::databases::postgres::error;
use crate::databases::postgres::log::walk::{END, Walk};
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::tables::layout::Stamps;
use crate::databases::postgres::tables::rows::scope_of;
use crate::databases::postgres::tables::sql::{by_key, visible};
use crate::feed::entity::EntityType;
use crate::feed::{WriteError, mutation};
use crate::storage_error::StorageError;

/// How long an optimistic lock waits for capture to log the row's last change.
const LOCK_PATIENCE: CaptureWait =
    CaptureWait { most: Duration::from_secs(2), between: Duration::from_millis(5) };

impl WriteContext<'_> {
    /// Locks a living row and checks that the caller may change it, and that it is in the version the client expects; gives
    /// its ids.
    pub(in super::super) async fn expect(
        &self,
        connection: &mut PgConnection,
        entity: &EntityType,
        table: &Table,
        key: &EntityKey,
        expected: Option<&TransactionId>,
    ) -> Result<Stamps, WriteError> {
        let row = locked(connection, table, key.as_str(), &visible(table)).await?;
        let Some(row) = row else { return Err(WriteError::NotFound(key.to_string())) };
        let scope = scope_of(table, &row).map_err(|e| error::write(&e))?;
        mutation::may_change(self.permit, entity, scope.as_deref(), key.as_str())?;
        let stamps = stamps_of(table, &row);
        let Some(expected) = mutation::expectation(entity, expected)? else { return Ok(stamps) };
        let actual = self.current_id(connection, entity, table, key, &stamps).await?;
        if actual.as_deref() == Some(expected.as_str()) {
            return Ok(stamps);
        }
        Err(WriteError::Conflict { row: json(table, &row)?, expected: expected.to_string(), actual })
    }

    /// The id of the transaction that last changed a locked row, as clients see it in the stream. The row's own stamp
    /// counts only if its last writer has set it: one in SQL may have left it alone.
    async fn current_id(
        &self,
        connection: &mut PgConnection,
        entity: &EntityType,
        table: &Table,
        key: &EntityKey,
        stamps: &Stamps,
    ) -> Result<Option<String>, WriteError> {
        let stamp = stamps.update.clone().or_else(|| stamps.insert.clone());
        let failed = |e: sqlx::Error| error::write(&e);
        // The ledger's row was written by the same database transaction as the row's version, if that is the stamp's.
        let sql = format!(
            "SELECT (t.xmin::text::int8) AS writer, EXISTS (SELECT 1 FROM bourn.ledger l WHERE l.transaction_id = $2 AND l.xmin = t.xmin) \
             FROM {} t WHERE {}",
            table.sql,
            by_key(table, 1)
        );
        let row = statement(AssertSqlSafe(sql)).bind(key.as_str()).bind(&stamp).fetch_one(&mut *connection);
        let row = row.await.map_err(failed)?;
        let (writer, stamped): (i64, bool) =
            (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        if stamped {
            return Ok(stamp);
        }
        let mut last = last_change(connection, &entity.name, key.as_str()).await.map_err(failed)?;
        let logged = |last: &Option<LastChange>| {
            last.as_ref().is_some_and(|last| last.commit_id & i64::from(u32::MAX) == writer)
        };
        if !logged(&last) {
            // Capture is behind, or the log has nothing of the row's last version. The row is locked, so once the log
            // has caught up it has the last change, if there is one.
            let db = &self.storage.inner.db;
            if !caught_up(db, connection, LOCK_PATIENCE).await.map_err(failed)? {
                return Err(WriteError::Storage(StorageError::Slow));
            }
            last = last_change(connection, &entity.name, key.as_str()).await.map_err(failed)?;
        }
        Ok(match last {
            None => stamp,
            Some(last) => match last.transaction_id {
                Some(id) => Some(id),
                // The row was found by comparing, not captured: clients may know only the stamp.
                None if last.created && stamp.is_some() => stamp,
                None => Some(last.commit_id.to_string()),
            },
        })
    }
}

/// The last change of a row that the log has.
struct LastChange {
    transaction_id: Option<String>,
    commit_id: i64,
    created: bool,
}

async fn last_change(
    connection: &mut PgConnection,
    entity_type: &str,
    key: &str,
) -> Result<Option<LastChange>, sqlx::Error> {
    let sql = Walk::of_row("a", "$1", "$2").newest("a.transaction_id, a.commit_id, a.action = 'create'", END);
    let row = statement(AssertSqlSafe(sql)).bind(entity_type).bind(key).fetch_optional(connection).await?;
    let read = |row: PgRow| {
        Ok(LastChange {
            transaction_id: row.try_get(0)?,
            commit_id: row.try_get(1)?,
            created: row.try_get(2)?,
        })
    };
    row.map(read).transpose()
}

/// How long to wait for capture, and how often to look.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct CaptureWait {
    pub(in super::super) most: Duration,
    pub(in super::super) between: Duration,
}

/// Waits until everything that is committed now is in the log; returns whether it is. The caller's own transaction
/// looks: each of its statements sees what is committed by then.
pub(in super::super) async fn caught_up(
    db: &Db,
    connection: &mut PgConnection,
    patience: CaptureWait,
) -> Result<bool, sqlx::Error> {
    let deadline = tokio::time::Instant::now() + patience.most;
    let mark = db.mark().await?.to_pg_string();
    loop {
        let there: bool = scalar("SELECT coalesce(position > $1::text::pg_lsn, false) FROM bourn.log")
            .bind(&mark)
            .fetch_one(&mut *connection)
            .await?;
        if there || tokio::time::Instant::now() >= deadline {
            return Ok(there);
        }
        tokio::time::sleep(patience.between).await;
    }
}
