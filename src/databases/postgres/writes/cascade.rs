//! The further effects of a deletion: the rows that refer to it by `ON DELETE CASCADE`, however indirectly. The log has
//! their deletion only after the commit, so an undo has to look for them before it.

use std::collections::BTreeSet;

use bourn_protocol::limits::ROLLBACK_MAX;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::databases::postgres::PostgresStorage;
use crate::databases::postgres::connections::{scalar, statement};
use crate::databases::postgres::names::field;
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::tables::sql::{by_key, text_of, visible};

/// How far references are followed.
const DEPTH_MAX: usize = 32;

/// Rows of a table, as a condition on `t` whose only parameter is the key of the first row.
struct ReferringRows {
    table: i64,
    sql: String,
    condition: String,
    depth: usize,
}

/// A foreign key whose rows are deleted with the rows that they refer to.
struct Reference {
    table: i64,
    sql: String,
    columns: Vec<String>,
    referred: Vec<String>,
}

/// The rows of streamed tables that would be deleted with a row of this key: entity types and keys.
pub(in super::super) async fn deleted_along(
    storage: &PostgresStorage,
    connection: &mut PgConnection,
    table: &Table,
    key: &str,
) -> Result<BTreeSet<(String, String)>, sqlx::Error> {
    let mut found = BTreeSet::new();
    let first = ReferringRows {
        table: i64::from(table.id),
        sql: table.sql.clone(),
        condition: by_key(table, 1),
        depth: 0,
    };
    let mut waiting = vec![first];
    while let Some(rows) = waiting.pop() {
        for reference in references(connection, rows.table).await? {
            let condition = format!(
                "({}) IN (SELECT {} FROM {} t WHERE {})",
                fields(&reference.columns),
                fields(&reference.referred),
                rows.sql,
                rows.condition
            );
            let exists = format!("SELECT EXISTS (SELECT 1 FROM {} t WHERE {condition})", reference.sql);
            let exists: bool = scalar(AssertSqlSafe(exists)).bind(key).fetch_one(&mut *connection).await?;
            if !exists {
                continue;
            }
            let streamed =
                storage.inner.catalog.iter().filter_map(|entity| Some((entity, storage.table(entity).ok()?)));
            for (entity, table) in streamed.filter(|(_, table)| i64::from(table.id) == reference.table) {
                let sql = format!(
                    "SELECT {} FROM {} t WHERE {condition} AND {} LIMIT {}",
                    text_of(table.key()),
                    reference.sql,
                    visible(&table),
                    ROLLBACK_MAX + 1
                );
                let keys: Vec<Option<String>> =
                    scalar(AssertSqlSafe(sql)).bind(key).fetch_all(&mut *connection).await?;
                found.extend(keys.into_iter().flatten().map(|key| (entity.name.to_string(), key)));
            }
            if rows.depth < DEPTH_MAX && found.len() <= ROLLBACK_MAX {
                let depth = rows.depth + 1;
                waiting.push(ReferringRows { table: reference.table, sql: reference.sql, condition, depth });
            }
        }
    }
    Ok(found)
}

async fn references(connection: &mut PgConnection, table: i64) -> Result<Vec<Reference>, sqlx::Error> {
    let names = |table: &str, columns: &str| {
        format!(
            "(SELECT array_agg(a.attname::text ORDER BY k.place) FROM unnest(f.{columns}) WITH ORDINALITY k (number, place) \
             JOIN pg_attribute a ON a.attrelid = f.{table} AND a.attnum = k.number)"
        )
    };
    let sql = format!(
        "SELECT f.conrelid::int8, quote_ident(s.nspname) || '.' || quote_ident(c.relname), {}, {} FROM pg_constraint f \
         JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace s ON s.oid = c.relnamespace \
         WHERE f.contype = 'f' AND f.confdeltype = 'c' AND f.confrelid = $1::int8::oid AND f.conparentid = 0",
        names("conrelid", "conkey"),
        names("confrelid", "confkey")
    );
    let rows = statement(AssertSqlSafe(sql)).bind(table).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Reference {
                table: row.try_get(0)?,
                sql: row.try_get(1)?,
                columns: row.try_get(2)?,
                referred: row.try_get(3)?,
            })
        })
        .collect()
}

fn fields(names: &[String]) -> String {
    names.iter().map(|name| field(name)).collect::<Vec<_>>().join(", ")
}

/// A column of a unique index that may have another value for a moment, and whether it may have none.
pub(in super::super) async fn movable(
    connection: &mut PgConnection,
    table: &Table,
    fixed: &[&str],
) -> Result<Vec<(String, bool)>, sqlx::Error> {
    let rows = statement(
        "SELECT DISTINCT ON (i.indexrelid) a.attname::text, NOT a.attnotnull FROM pg_index i \
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND a.attgenerated = '' \
         WHERE i.indrelid = $1::int8::oid AND i.indisunique AND a.attname::text <> ALL ($2) \
         ORDER BY i.indexrelid, a.attnotnull",
    )
    .bind(i64::from(table.id))
    .bind(fixed.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// A statement that sets a savepoint, or rolls back to it.
pub(in super::super) async fn mark(
    connection: &mut PgConnection,
    what: &'static str,
) -> Result<(), sqlx::Error> {
    statement(what).execute(connection).await.map(|_| ())
}
