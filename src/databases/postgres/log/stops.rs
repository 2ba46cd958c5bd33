//! Entity types whose capture has stopped because the log refuses one of their rows, and the rows that an operator has
//! ordered capture to pass over. Capture notes them in the database; every server reads them there, `bourn check` shows
//! them and `bourn skip` ends a stop.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{PgConnection, Row};

use crate::databases::postgres::connections::{scalar, statement};
use crate::feed::Condition;
use crate::feed::entity::Catalog;

/// The migration that began to note stops.
pub(in super::super) const SINCE: i64 = 6;
/// Rows to be passed over that are kept in memory, at most.
const SKIPPED_MAX: i64 = 100_000;

/// An entity type that has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Stop {
    pub(in super::super) entity_type: Arc<str>,
    /// The row that the log refuses.
    pub(in super::super) key: String,
    pub(in super::super) reason: String,
}

impl Stop {
    /// The stop as an operator sees it.
    pub(in super::super) fn condition(&self) -> Condition {
        Condition {
            entity_type: self.entity_type.to_string(),
            stopped: true,
            key: Some(self.key.clone()),
            reason: self.reason.clone(),
            remedy: format!(
                "change or delete the row, or remove what refuses it, and run `bourn skip {}`: the table is compared with the log, \
                 and the row is passed over for as long as the log refuses it",
                self.entity_type
            ),
        }
    }
}

/// The message for a client whose read would reach the end of a stopped stream.
const STOPPED: &str = "its changes are not captured at the moment; an operator has to act, see `/ready`";

/// The entity types that have stopped.
pub(in super::super) async fn read(connection: &mut PgConnection) -> Result<Vec<Stop>, sqlx::Error> {
    let rows = statement(
        "SELECT entity_type, coalesce(stopped_key, ''), coalesce(stopped_reason, '') FROM bourn.entities WHERE stopped_at IS NOT NULL \
         ORDER BY entity_type",
    )
    .fetch_all(connection)
    .await?;
    let stop = |row: &sqlx::postgres::PgRow| {
        let entity_type: String = row.try_get(0)?;
        Ok(Stop { entity_type: entity_type.into(), key: row.try_get(1)?, reason: row.try_get(2)? })
    };
    rows.iter().map(stop).collect()
}

/// The rows to be passed over, by entity type and key.
pub(in super::super) async fn skipped(
    connection: &mut PgConnection,
) -> Result<HashSet<(Arc<str>, String)>, sqlx::Error> {
    let rows =
        statement("SELECT entity_type, entity_id FROM bourn.skipped ORDER BY skipped_at DESC LIMIT $1")
            .bind(SKIPPED_MAX)
            .fetch_all(connection)
            .await?;
    let name = |row: &sqlx::postgres::PgRow| Ok((row.try_get::<String, _>(0)?.into(), row.try_get(1)?));
    rows.iter().map(name).collect()
}

/// Notes stops durably; their tables are to be compared from the beginning.
pub(in super::super) async fn note(connection: &mut PgConnection, stops: &[Stop]) -> Result<(), sqlx::Error> {
    let column = |pick: fn(&Stop) -> &str| stops.iter().map(|stop| pick(stop).to_owned()).collect::<Vec<_>>();
    statement(
        "INSERT INTO bourn.entities (entity_type, signature, stopped_at, stopped_key, stopped_reason) \
         SELECT entity_type, '', clock_timestamp(), key, reason FROM unnest($1::text[], $2::text[], $3::text[]) s (entity_type, key, reason) \
         ON CONFLICT (entity_type) DO UPDATE SET signature = '', reconciled = false, whole = false, stopped_at = excluded.stopped_at, \
         stopped_key = excluded.stopped_key, stopped_reason = excluded.stopped_reason",
    )
    .bind(column(|stop| &stop.entity_type))
    .bind(column(|stop| &stop.key))
    .bind(column(|stop| &stop.reason))
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets a stopped entity type go on without the row that stopped it; returns that row's key, or `None` if the type has
/// not stopped.
pub(in super::super) async fn skip(
    connection: &mut PgConnection,
    entity_type: &str,
) -> Result<Option<String>, sqlx::Error> {
    scalar(
        "WITH stopped AS (SELECT entity_type, stopped_key, stopped_reason FROM bourn.entities WHERE entity_type = $1 AND stopped_at IS NOT NULL FOR UPDATE), \
         noted AS (INSERT INTO bourn.skipped (entity_type, entity_id, reason) \
           SELECT entity_type, stopped_key, stopped_reason FROM stopped s WHERE NOT EXISTS ( \
             SELECT 1 FROM bourn.skipped k WHERE k.entity_type = s.entity_type AND k.entity_id = s.stopped_key)), \
         cleared AS (UPDATE bourn.entities e SET stopped_at = NULL, stopped_key = NULL, stopped_reason = NULL FROM stopped s \
           WHERE e.entity_type = s.entity_type) \
         SELECT stopped_key FROM stopped",
    )
    .bind(entity_type)
    .fetch_optional(connection)
    .await
}

/// Marks which entity types have stopped.
pub(in super::super) fn mark(catalog: &Catalog, stops: &[Stop]) {
    for entity in catalog.iter() {
        let stopped = stops.iter().any(|stop| stop.entity_type == entity.name);
        entity.set_stopped(stopped.then(|| format!("{}: {STOPPED}", entity.name)));
    }
}
