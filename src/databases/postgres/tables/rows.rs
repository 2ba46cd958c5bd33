//! Reading the application's tables: lists and single rows, straight from the table.

use bourn_protocol::limits::ANSWER_MAX_BYTES;
use bourn_protocol::{EntityKey, Seq};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio_stream::StreamExt as _;

use super::catalog::Table;
use super::layout::Piece;
use super::sql::{by_key, text_of, texts, typed, visible};
use crate::access::Sealed;
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::error;
use crate::databases::postgres::log::read;
use crate::databases::postgres::log::walk::Walk;
use crate::databases::postgres::names::field;
use crate::feed::entity::EntityType;
use crate::feed::{ListPage, ListQuery};
use crate::head::Head;

/// How far behind the log's head a change may lie that the tables do not show yet: the log learns of a commit before
/// other readers do.
const UNSEEN_MAX: i64 = 10_000;

/// A page of living rows, by key, and a place in their stream from which everything it lacks still follows. In one
/// snapshot.
pub(in super::super) async fn list(
    snapshot: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    query: &ListQuery,
) -> Result<ListPage, sqlx::Error> {
    let followed = must_be_followable(snapshot, entity, table, query).await?;
    // A change may be in the log before the tables show it: the replication stream carries a commit before the commit
    // is visible. The place is before the first such change.
    let unseen: Option<i64> = scalar(
        "SELECT min(a.seq) FROM bourn.activities a, bourn.log l WHERE a.seq > l.head - $1 AND a.seq > l.foreign_until \
         AND a.commit_id >= pg_snapshot_xmin(pg_current_snapshot())::text::int8 \
         AND NOT pg_visible_in_snapshot(a.commit_id::text::xid8, pg_current_snapshot())",
    )
    .bind(UNSEEN_MAX)
    .fetch_one(&mut *snapshot)
    .await?;
    let before = unseen.map_or(i64::MAX, |seq| seq);
    let tail = read::stream_tail(snapshot, &entity.stream(query.scope.clone()), before).await?;
    let epoch = read::head(snapshot).await?.epoch;
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
    let mut listed = Vec::new();
    let mut bytes = 0;
    let mut next_after = None;
    let mut rows = select.fetch(&mut *snapshot);
    loop {
        let row = match rows.try_next().await {
            Ok(Some(row)) => row,
            Ok(None) => break,
            // No row can have this scope, or this key to begin after.
            Err(failure) if listed.is_empty() && !values.is_empty() && error::names_nothing(&failure) => {
                break;
            }
            Err(failure) => return Err(failure),
        };
        let row = ListedRow { key: row.try_get(table.layout.key)?, json: checked_json(table, &row)? };
        bytes += row.json.len() + 1;
        listed.push(row);
        if listed.len() == query.limit || bytes >= ANSWER_MAX_BYTES {
            next_after = listed.last().map(|row| row.key.clone());
            break;
        }
    }
    drop(rows);
    if (followed.scope_is_logged || followed.skips) && !listed.is_empty() {
        keep_followable(snapshot, entity, table, query, before, &mut listed).await?;
    }
    let rows: Vec<String> = listed.into_iter().map(|row| row.json).collect();
    Ok(ListPage {
        rows: Bytes::from(format!("[{}]", rows.join(","))),
        next_after,
        tail: Head { epoch, seq: tail.min(unseen.map_or(tail, just_before)) },
    })
}

/// A row of a list.
struct ListedRow {
    key: String,
    json: String,
}

/// What a list has to look up in the log.
struct Followed {
    /// The stream does not send the scope of a deleted row: only the log has it.
    scope_is_logged: bool,
    /// Capture passes over some rows of the table.
    skips: bool,
}

/// Fails where rows that the log does not have yet could leave the list unnoticed: changes are not captured yet, or the
/// stream does not send the scope of a deleted row.
async fn must_be_followable(
    snapshot: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    query: &ListQuery,
) -> Result<Followed, sqlx::Error> {
    let row = statement(
        "SELECT l.position IS NOT NULL, coalesce((SELECT e.whole FROM bourn.entities e WHERE e.entity_type = $1), false), \
         EXISTS (SELECT FROM bourn.skipped s WHERE s.entity_type = $1) FROM bourn.log l",
    )
    .bind(&*entity.name)
    .fetch_one(snapshot)
    .await?;
    let (begun, whole): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !begun && !whole {
        return Err(error::NotFollowable::NotCaptured.into());
    }
    let scope_is_logged = query.scope.is_some() && !table.old_scope;
    if !whole && scope_is_logged {
        return Err(error::NotFollowable::Comparing(table.sql.clone()).into());
    }
    Ok(Followed { scope_is_logged, skips: row.try_get(2)? })
}

/// Leaves out the rows that capture passes over, which the stream does not report. Fails where only the log has the
/// scope of a deleted row, and has the row in another scope or not at all: changes may be lost before the log has them.
async fn keep_followable(
    snapshot: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    query: &ListQuery,
    before: i64,
    rows: &mut Vec<ListedRow>,
) -> Result<(), sqlx::Error> {
    let keys: Vec<&str> = rows.iter().map(|row| &*row.key).collect();
    let logged = "coalesce(a.action <> 'delete' AND ($4::text IS NULL OR a.organization_id IS NOT DISTINCT FROM $4), false)";
    let sql = format!(
        "SELECT k.place, EXISTS (SELECT FROM bourn.skipped s WHERE s.entity_type = $1 AND s.entity_id = k.entity_id) \
         FROM unnest($2::text[]) WITH ORDINALITY AS k (entity_id, place) \
         WHERE NOT coalesce(({}), false) ORDER BY k.place DESC",
        Walk::of_row("a", "$1", "k.entity_id").newest(logged, "$3"),
    );
    let unlogged = statement(AssertSqlSafe(sql))
        .bind(&*entity.name)
        .bind(keys)
        .bind(before)
        .bind(query.scope.as_ref().map(ToString::to_string))
        .fetch_all(snapshot)
        .await?;
    for row in unlogged {
        let (place, skipped): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        match usize::try_from(place - 1) {
            Ok(place) if skipped && place < rows.len() => drop(rows.remove(place)),
            _ if query.scope.is_some() && !table.old_scope => {
                return Err(error::NotFollowable::NotLogged(table.sql.clone()).into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn just_before(seq: i64) -> Seq {
    Seq::from_i64(seq.saturating_sub(1)).unwrap_or_default()
}

/// One living row.
pub(in super::super) async fn row(
    connection: &mut PgConnection,
    entity: &EntityType,
    table: &Table,
    key: &EntityKey,
) -> Result<Option<Sealed<Bytes>>, sqlx::Error> {
    let sql = format!(
        "SELECT {} FROM {} t WHERE {} AND {}",
        texts(table),
        table.sql,
        by_key(table, 1),
        visible(table)
    );
    match statement(AssertSqlSafe(sql)).bind(key.as_str()).fetch_optional(connection).await {
        Ok(Some(row)) => {
            let json = checked_json(table, &row)?.into();
            Ok(Some(Sealed::new(entity.name.clone(), scope_of(table, &row)?, json)))
        }
        Ok(None) => Ok(None),
        Err(failure) if error::names_nothing(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// The scope of a row that was selected by [`texts`], as the log would have it.
pub(in super::super) fn scope_of(table: &Table, row: &PgRow) -> Result<Option<String>, sqlx::Error> {
    table.layout.scope.map_or(Ok(None), |at| row.try_get(at))
}

/// The row as JSON, if it still has the columns and types of the last look.
pub(in super::super) fn checked_json(table: &Table, row: &PgRow) -> Result<String, sqlx::Error> {
    match row.try_get::<Option<i64>, _>(table.columns.len())? {
        Some(shape) if shape == table.shape => Ok(json(table, row)),
        _ => Err(sqlx::Error::Decode(Box::new(error::TableChanged))),
    }
}

/// A row that was selected by [`texts`], as JSON.
pub(in super::super) fn json(table: &Table, row: &PgRow) -> String {
    table.layout.json(|i| Piece::of(row.try_get::<Option<&str>, _>(i).ok().flatten()))
}
