//! Reading the application's tables: lists and single rows, straight from the table.

use bourn_protocol::EntityKey;
use bourn_protocol::limits::ANSWER_MAX_BYTES;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use crate::access::Sealed;
use crate::databases::sqlite::log::read;
use crate::databases::sqlite::payload;
use crate::databases::sqlite::sql::{by_key, field, ident, key_text, lossy, scope_text, visible};
use crate::feed::entity::{EntityType, TableSchema};
use crate::feed::{ListPage, ListQuery};
use crate::head::Head;

/// A page of living rows, by key, and the tail of their stream in the same snapshot.
pub(in super::super) fn list(
    view: &read::LogSnapshot<'_>,
    entity: &EntityType,
    schema: &TableSchema,
    query: &ListQuery,
) -> rusqlite::Result<ListPage> {
    let snapshot = view.snapshot;
    let tail = Head { seq: read::stream_tail(view, &entity.stream(query.scope.clone()))?, ..view.head() };
    let mut conditions = vec![visible(entity, schema, "t")];
    let mut values = Vec::new();
    if let (Some(scope), Some(column)) = (&query.scope, &entity.scope) {
        values.push(scope.to_string());
        // The bare comparison uses an index; the text decides.
        conditions.push(format!(
            "{} = ?{n} AND {} = ?{n} COLLATE BINARY",
            field("t", column),
            scope_text(entity, schema, "t"),
            n = values.len()
        ));
    }
    if let Some(after) = &query.after {
        values.push(after.to_string());
        conditions.push(format!("{} > ?{}", field("t", &entity.key), values.len()));
    }
    let sql = format!(
        "SELECT {}, {} FROM {} t WHERE {} ORDER BY {} LIMIT {}",
        key_text(entity, schema, "t"),
        payload::row(schema, "t"),
        ident(&entity.table),
        conditions.join(" AND "),
        field("t", &entity.key),
        query.limit
    );
    let mut body = vec![b'['];
    let mut count = 0;
    let mut last = None;
    {
        let mut statement = snapshot.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            if count > 0 {
                body.push(b',');
            }
            count += 1;
            body.extend_from_slice(payload::json(row.get_ref(1)?.as_bytes().unwrap_or(b"null")).as_bytes());
            if count == query.limit || body.len() > ANSWER_MAX_BYTES {
                last = row.get(0)?;
                break;
            }
        }
    }
    body.push(b']');
    Ok(ListPage { rows: Bytes::from(body), next_after: last, tail })
}

/// One living row.
pub(in super::super) fn row(
    connection: &Connection,
    entity: &EntityType,
    schema: &TableSchema,
    key: &EntityKey,
) -> rusqlite::Result<Option<Sealed<Bytes>>> {
    let sql = format!(
        "SELECT {}, {} FROM {} t WHERE {} AND {}",
        payload::row(schema, "t"),
        scope_text(entity, schema, "t"),
        ident(&entity.table),
        by_key(entity, schema, "?1"),
        visible(entity, schema, "t")
    );
    let row = connection
        .prepare_cached(&sql)?
        .query_row([key.as_str()], |row| Ok((payload::row_json(row, 0)?, lossy(row, 1)?)))
        .optional()?;
    let Some((Some(json), scope)) = row else { return Ok(None) };
    Ok(Some(Sealed::new(entity.name.clone(), scope, Bytes::from(json))))
}
