//! Optimistic locks: which transaction the client expects to have changed a row last.

use bourn_protocol::{Action, EntityKey, TransactionId};
use rusqlite::OptionalExtension;

use super::WriteContext;
use crate::databases::sqlite::error;
use crate::databases::sqlite::sql::{by_key, ident, lossy, scope_text, transaction_of, visible};
use crate::feed::entity::{EntityType, TableSchema};
use crate::feed::{WriteError, mutation};

impl WriteContext<'_> {
    /// Checks that a living row is there that the caller may change, and that it is in the version the client expects.
    pub(in super::super) fn expect(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        key: &EntityKey,
        expected: Option<&TransactionId>,
    ) -> Result<(), WriteError> {
        let stamp = format!(
            "coalesce({}, {})",
            transaction_of(schema, "t", Action::Update),
            transaction_of(schema, "t", Action::Create)
        );
        let sql = format!(
            "SELECT {stamp}, {} FROM {} t WHERE {} AND {}",
            scope_text(entity, schema, "t"),
            ident(&entity.table),
            by_key(entity, schema, "?1"),
            visible(entity, schema, "t")
        );
        let found = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                let read = |row: &rusqlite::Row<'_>| Ok((lossy(row, 0)?, lossy(row, 1)?));
                statement.query_row([key.as_str()], read).optional()
            })
            .map_err(|e| error::write(&e))?;
        let Some((stamp, scope)) = found else { return Err(WriteError::NotFound(key.to_string())) };
        mutation::may_change(self.permit, entity, scope.as_deref(), key.as_str())?;
        let Some(expected) = mutation::expectation(entity, expected)? else { return Ok(()) };
        let ids = self.current_ids(entity, key, stamp).map_err(|e| error::write(&e))?;
        if ids.iter().any(|id| id == expected.as_str()) {
            return Ok(());
        }
        let row = self.row(entity, schema, key.as_str())?.unwrap_or_default();
        Err(WriteError::Conflict { row, expected: expected.to_string(), actual: ids.into_iter().next() })
    }

    /// The ids by which clients may know the transaction that last changed a row, the best first. The row's own stamp
    /// counts only if its last writer has set it: one in SQL may have left it alone.
    fn current_ids(
        &self,
        entity: &EntityType,
        key: &EntityKey,
        stamp: Option<String>,
    ) -> rusqlite::Result<Vec<String>> {
        let last: Option<(String, Option<String>, Option<i64>)> = self
            .connection
            .prepare_cached(
                "SELECT action, transaction_id, commit_id FROM activities WHERE entity_id = ?1 AND entity_type = ?2 \
                 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row([key.as_str(), &entity.name], |row| Ok((row.get(0)?, lossy(row, 1)?, row.get(2)?)))
            .optional()?;
        let Some((action, named, commit)) = last else { return Ok(stamp.into_iter().collect()) };
        if let Some(id) = named {
            return Ok(vec![id]);
        }
        let mut ids: Vec<String> = commit.map(|commit| commit.to_string()).into_iter().collect();
        // A row that was found by comparing: its stamp, which the log has never seen, is what lists show.
        if let Some(stamp) = stamp.filter(|_| action == "create") {
            let known = self
                .connection
                .prepare_cached(
                    "SELECT 1 FROM activities WHERE transaction_id = ?1 AND entity_id = ?2 AND entity_type = ?3",
                )?
                .exists([stamp.as_str(), key.as_str(), &entity.name])?;
            if !known {
                ids.insert(0, stamp);
            }
        }
        Ok(ids)
    }
}
