//! Reading the application's tables: lists and single rows, straight from the table.

use bourn_protocol::limits::ANSWER_MAX_BYTES;
use bourn_protocol::{EntityKey, Seq};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio_stream::StreamExt as _;

use super::catalog::Table;
use super::layout::Piece;
use super::sql::{by_key, field, text_of, texts, typed, visible};
use super::{error, log};
use crate::entity::EntityType;
use crate::storage::postgres::connect::{scalar, statement};
use crate::storage::{Head, ListPage, ListQuery};

/// How far behind the log's head a change may lie that the tables do not show yet: the log is told of a commit
/// before other readers are.
const UNSEEN_MAX: i64 = 10_000;

/// A page of living rows, by key, and a place in their stream from which everything it lacks still follows. In one
/// snapshot.
pub(super) async fn list(
    snapshot: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    query: &ListQuery,
) -> Result<ListPage, sqlx::Error> {
    must_be_followable(snapshot, entity, table, query).await?;
    // A change may be in the log before the tables show it: the replication stream is told of a commit before
    // the commit is visible. The place is before the first such change.
    let unseen: Option<i64> = scalar(
        "SELECT min(a.seq) FROM bourn.activities a, bourn.log l WHERE a.seq > l.head - $1 AND a.seq > l.foreign_until \
         AND a.commit_id >= pg_snapshot_xmin(pg_current_snapshot())::text::int8 \
         AND NOT pg_visible_in_snapshot(a.commit_id::text::xid8, pg_current_snapshot())",
    )
    .bind(UNSEEN_MAX)
    .fetch_one(&mut *snapshot)
    .await?;
    let before = unseen.map_or(i64::MAX, |seq| seq);
    let tail = log::stream_tail(snapshot, &entity.stream(query.scope.clone()), before).await?;
    let epoch = log::head(snapshot).await?.epoch;
    let mut conditions = vec![visible(table)];
    let mut values = Vec::new();
    if let (Some(scope), Some(column)) = (&query.scope, table.layout.scope) {
        let column = &table.columns[column];
        values.push(scope.to_string());
        conditions.push(format!("{} = {}", field(&column.name), typed(values.len(), column)));
        conditions.push(format!("{} = ${}", text_of(column), values.len()));
    }
    if let Some(after) = &query.after {
        values.push(after.to_string());
        conditions.push(format!("{} > {}", field(&entity.key), typed(values.len(), table.key())));
    }
    let sql = format!(
        "SELECT {} FROM {} t WHERE {} ORDER BY {} LIMIT {}",
        texts(table),
        table.sql,
        conditions.join(" AND "),
        field(&entity.key),
        query.limit
    );
    let mut select = statement(AssertSqlSafe(sql));
    for value in &values {
        select = select.bind(value);
    }
    let mut body = vec![b'['];
    let mut count = 0;
    let mut last = None;
    let mut rows = select.fetch(snapshot);
    loop {
        let row = match rows.try_next().await {
            Ok(Some(row)) => row,
            Ok(None) => break,
            // No row has this scope, or this key to begin after.
            Err(failure) if count == 0 && !values.is_empty() && names_nothing(&failure) => break,
            Err(failure) => return Err(failure),
        };
        if count > 0 {
            body.push(b',');
        }
        count += 1;
        body.extend_from_slice(checked_json(table, &row)?.as_bytes());
        if count == query.limit || body.len() > ANSWER_MAX_BYTES {
            last = row.try_get(table.layout.key)?;
            break;
        }
    }
    body.push(b']');
    Ok(ListPage {
        rows: Bytes::from(body),
        next_after: last,
        tail: Head { epoch, seq: tail.min(unseen.map_or(tail, just_before)) },
    })
}

/// A list has rows whose end the stream would not tell, so that its reader would keep them for ever.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotFollowable(pub(super) String);

/// Fails where rows that the log does not have yet could leave the list unnoticed: no change is told yet, or a row's scope is
/// not told when it goes.
async fn must_be_followable(
    snapshot: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    query: &ListQuery,
) -> Result<(), sqlx::Error> {
    let row = statement(
        "SELECT l.position IS NOT NULL, coalesce((SELECT e.whole FROM bourn.entities e WHERE e.entity_type = $1), false) FROM bourn.log l",
    )
    .bind(&*entity.name)
    .fetch_one(snapshot)
    .await?;
    let (begun, whole): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !begun && !whole {
        let reason = "no server captures changes of the database yet, so that a list could not be followed; `/ready` says why";
        return Err(sqlx::Error::AnyDriverError(Box::new(NotFollowable(reason.into()))));
    }
    if !whole && query.scope.is_some() && !table.old_scope {
        let reason = format!(
            "the table is compared with the log for the first time or after changes were lost, and its replica identity does not \
             have its scope; try again later, or list without a scope; ALTER TABLE {} REPLICA IDENTITY FULL lets such lists be served meanwhile",
            table.sql
        );
        return Err(sqlx::Error::AnyDriverError(Box::new(NotFollowable(reason))));
    }
    Ok(())
}

fn just_before(seq: i64) -> Seq {
    Seq::from_i64(seq.saturating_sub(1)).unwrap_or_default()
}

/// One living row.
pub(super) async fn row(
    connection: &mut PgConnection,
    table: &Table,
    key: &EntityKey,
) -> Result<Option<Bytes>, sqlx::Error> {
    let sql = format!(
        "SELECT {} FROM {} t WHERE {} AND {}",
        texts(table),
        table.sql,
        by_key(table, 1),
        visible(table)
    );
    match statement(AssertSqlSafe(sql)).bind(key.as_str()).fetch_optional(connection).await {
        Ok(row) => row.map(|row| checked_json(table, &row).map(Into::into)).transpose(),
        Err(failure) if names_nothing(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Whether a statement failed because a text is no value of the type it is compared with, breaks a rule of its domain,
/// or has characters that the database's encoding lacks: then nothing has it.
pub(super) fn names_nothing(failure: &sqlx::Error) -> bool {
    error::code(failure).is_some_and(|code| code.starts_with("22") || code == "23514")
}

/// A row does not have the columns that its table had when it was looked at.
#[derive(Debug, thiserror::Error)]
#[error("the table has changed since it was looked at")]
struct TableChanged;

/// Whether a statement failed because the table is not what it was when it was looked at.
pub(super) fn table_changed(failure: &sqlx::Error) -> bool {
    match failure {
        sqlx::Error::Decode(reason) => reason.is::<TableChanged>(),
        failure => {
            matches!(error::code(failure).as_deref(), Some("42P01" | "42703" | "42704" | "42804" | "0A000"))
        }
    }
}

/// The row as JSON, if it has the columns and types that the table is known to have.
pub(super) fn checked_json(table: &Table, row: &PgRow) -> Result<String, sqlx::Error> {
    match row.try_get::<Option<i64>, _>(table.columns.len())? {
        Some(shape) if shape == table.shape => Ok(json(table, row)),
        _ => Err(sqlx::Error::Decode(Box::new(TableChanged))),
    }
}

/// A row that was selected by [`texts`], as JSON.
pub(super) fn json(table: &Table, row: &PgRow) -> String {
    table.layout.json(|i| Piece::of(row.try_get::<Option<&str>, _>(i).ok().flatten()))
}
