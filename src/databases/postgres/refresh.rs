//! Looking at the streamed tables: cheaply every second, and closely when the catalogue has changed. Columns may come
//! and go without a restart; a table that does not fit any more stops its own entity type alone.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::time::Instant;

use super::connections::{scalar, statement, timed_out};
use super::names::{NAMED, configured, ident};
use super::tables::catalog::{self, Identity, LEAVES, Table};
use super::{Inner, shared};
use crate::feed::entity::{EntityType, TableState};

/// How long a look may take, waiting for another one included.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);
/// After how long the tables are looked at closely, whatever the catalogue says.
const CLOSELY: Duration = Duration::from_secs(30);

/// Looks at the tables if the catalogue has changed, or in any case; [`shared::ServerState::tables_version`] tells whether they
/// look different.
pub(super) async fn look(inner: &Inner, in_any_case: bool) -> Result<(), sqlx::Error> {
    let looking = tokio::time::timeout(LOOK_TIMEOUT, try_look(inner, in_any_case)).await;
    looking.unwrap_or_else(|_| Err(timed_out("the database's catalogue cannot be read in time")))
}

async fn try_look(inner: &Inner, in_any_case: bool) -> Result<(), sqlx::Error> {
    let mut looked = inner.shared.looked.lock().await;
    // One snapshot, so that what is known of a table fits together.
    let mut snapshot = inner.db.watching().snapshot().await?;
    let connection = snapshot.connection();
    let signature = signature(connection, inner).await?;
    let known = looked.as_ref().is_some_and(|(known, at)| *known == signature && at.elapsed() < CLOSELY);
    if known && !in_any_case {
        return snapshot.commit().await;
    }
    let mut tables = shared::Tables::new();
    for entity in inner.catalog.iter() {
        let found = match catalog::table(connection, entity, &inner.limits.publication).await? {
            Ok(mut table) => {
                let mut reasons = unfit(connection, entity, &inner.limits.publication, &table).await?;
                reasons.extend(taken(&table, tables.iter().map(|(name, table)| (&**name, table.id))));
                match reasons.into_iter().next() {
                    None => {
                        table.signature += &publishing(connection, &inner.limits.publication, &table).await?;
                        Ok(table)
                    }
                    Some(reason) => Err(reason),
                }
            }
            Err(reason) => Err(reason),
        };
        match found {
            Ok(table) => {
                let before = inner.shared.tables().get(&entity.name).cloned();
                let table = before.filter(|before| **before == table).unwrap_or_else(|| Arc::new(table));
                entity.set_state(TableState::Ready(table.checked.clone()));
                tables.insert(entity.name.clone(), table);
            }
            Err(reason) => {
                if entity.schema().err().as_ref() != Some(&reason) {
                    tracing::warn!(entity = &*entity.name, reason, "the entity type cannot be served");
                }
                entity.set_state(TableState::Unavailable(reason));
            }
        }
    }
    let before = inner.shared.tables();
    if tables.len() != before.len() || tables.iter().any(|(name, table)| before.get(name) != Some(table)) {
        inner.shared.set_tables(tables);
    }
    *looked = Some((signature, Instant::now()));
    snapshot.commit().await
}

/// Why a table cannot be served as another entity type: one of `others` is the same table under another name.
pub(super) fn taken<'a>(table: &Table, others: impl IntoIterator<Item = (&'a str, u32)>) -> Option<String> {
    let (other, _) = others.into_iter().find(|(_, id)| *id == table.id)?;
    Some(format!(
        "table {} is streamed as entity type `{other}` already; a table has one entity type",
        table.sql
    ))
}

/// Why a table cannot be served, if it cannot: each reason with its remedy.
pub(super) async fn unfit(
    connection: &mut PgConnection,
    entity: &EntityType,
    publication: &str,
    table: &Table,
) -> Result<Vec<String>, sqlx::Error> {
    let mut reasons = Vec::new();
    reasons.extend(unreadable(connection, table).await?);
    if let Some(reason) = catalog::unpublished(connection, publication, table).await? {
        reasons.push(format!("{reason}; `bourn prepare --apply` fixes it"));
    }
    if table.full_is_refused && table.identity == Identity::Full {
        reasons.push(format!(
            "table {} has generated columns, and with its replica identity this PostgreSQL refuses to update it once it is \
             published; ALTER TABLE {} REPLICA IDENTITY DEFAULT",
            table.sql, table.sql
        ));
    }
    if table.identity == Identity::Missing {
        reasons.push(format!(
            "the replica identity of table {} does not have its key `{}`; ALTER TABLE {} REPLICA IDENTITY FULL",
            table.sql, entity.key, table.sql
        ));
    }
    Ok(reasons)
}

/// Why the server's role cannot read all of a table's rows, if it cannot; with the remedy.
pub(super) async fn unreadable(
    connection: &mut PgConnection,
    table: &Table,
) -> Result<Option<String>, sqlx::Error> {
    let row = statement(
        "SELECT current_user::text, has_schema_privilege(c.relnamespace, 'USAGE') AND NOT EXISTS (SELECT 1 FROM pg_attribute a \
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')), \
         row_security_active(c.oid) FROM pg_class c WHERE c.oid = $1::int8::oid",
    )
    .bind(i64::from(table.id))
    .fetch_one(connection)
    .await?;
    let role: String = row.try_get(0)?;
    if !row.try_get::<bool, _>(1)? {
        let grant = format!("GRANT SELECT ON {} TO {}", table.sql, ident(&role));
        return Ok(Some(format!("role `{role}` may not read it: {grant}")));
    }
    Ok(row.try_get::<bool, _>(2)?.then(|| {
        format!(
            "row-level security hides rows of table {} from role `{role}`: ALTER ROLE {} BYPASSRLS",
            table.sql,
            ident(&role)
        )
    }))
}

/// A short text that changes whenever the publication's entry for a table changes: a table that was removed and added
/// again between two looks may have changed meanwhile.
async fn publishing(
    connection: &mut PgConnection,
    publication: &str,
    table: &Table,
) -> Result<String, sqlx::Error> {
    scalar(
        "SELECT concat_ws(' ', '', p.oid, p.xmin, r.oid, r.xmin, s.oid, s.xmin) FROM pg_publication p \
         LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = $2::int8::oid \
         LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid AND s.pnnspid = (SELECT relnamespace FROM pg_class WHERE oid = $2::int8::oid) \
         WHERE p.pubname = $1",
    )
    .bind(publication)
    .bind(i64::from(table.id))
    .fetch_one(connection)
    .await
}

/// A short text that changes with whatever the catalogue says of the tables.
async fn signature(connection: &mut PgConnection, inner: &Inner) -> Result<String, sqlx::Error> {
    let names = inner.catalog.iter().map(|entity| configured(&entity.table));
    let (schemas, names): (Vec<Option<&str>>, Vec<&str>) = names.unzip();
    let sql = format!(
        "WITH named AS MATERIALIZED (SELECT concat_ws('.', n.schema, n.name) AS n, {NAMED} AS oid FROM unnest($3::text[], $1::text[]) n (schema, name)), \
         facts AS (SELECT n || coalesce(oid::text, '') AS fact FROM named \
           UNION ALL SELECT concat_ws(' ', 'r', named.n, c.relacl, s.nspacl, row_security_active(c.oid), r.rolsuper, r.rolbypassrls, has_table_privilege(c.oid, 'SELECT')) \
             FROM named JOIN pg_class c ON c.oid = named.oid JOIN pg_namespace s ON s.oid = c.relnamespace JOIN pg_roles r ON r.rolname = current_user \
           UNION ALL SELECT concat_ws(' ', 't', a.attrelid, a.attnum, a.attname, a.atttypid, a.attisdropped) \
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relkind = 'c' AND a.attnum > 0 \
           UNION ALL SELECT concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity, a.attisdropped) \
             FROM pg_attribute a JOIN named ON a.attrelid = named.oid WHERE a.attnum > 0 \
           UNION ALL SELECT concat_ws(' ', c.oid, c.relname, c.relnamespace, c.relkind, c.relreplident, c.relhasindex, c.relfilenode) FROM pg_class c JOIN named ON c.oid = named.oid \
           UNION ALL SELECT concat_ws(' ', p.relid::oid, c.relfilenode, c.relreplident) FROM named CROSS JOIN LATERAL pg_partition_tree(named.oid::regclass) p JOIN pg_class c ON c.oid = p.relid \
           UNION ALL SELECT concat_ws(' ', 'e', e.oid, e.enumlabel) FROM pg_enum e WHERE e.enumtypid IN \
             (SELECT a.atttypid FROM pg_attribute a JOIN named ON a.attrelid = named.oid WHERE a.attnum > 0) \
           UNION ALL SELECT concat_ws(' ', i.indexrelid, i.indisunique, i.indisvalid, i.indisreplident) FROM pg_index i JOIN named ON i.indrelid = named.oid \
           UNION ALL SELECT concat_ws(' ', r.prrelid, r.xmin, r.prattrs, pg_get_expr(r.prqual, r.prrelid) IS NULL) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $2 \
           UNION ALL SELECT concat_ws(' ', s.pnnspid, s.xmin) FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = $2 \
           UNION ALL SELECT concat_ws(' ', p.oid, p.xmin, p.puballtables, p.pubviaroot) FROM pg_publication p WHERE p.pubname = $2) \
         SELECT md5(coalesce(string_agg(fact, ',' ORDER BY fact), '')) FROM facts"
    );
    scalar(AssertSqlSafe(sql))
        .bind(names)
        .bind(&inner.limits.publication)
        .bind(schemas)
        .fetch_one(connection)
        .await
}

/// The statements that make the stream carry a table's changes: its replica identity, and its place in the publication.
pub(super) async fn mending(
    connection: &mut PgConnection,
    publication: &str,
    table: &Table,
) -> Result<Vec<String>, sqlx::Error> {
    let mut statements = Vec::new();
    let (wrong, right) = match table.full_is_refused {
        true => ("=", "DEFAULT"),
        false => ("<>", "FULL"),
    };
    if (table.identity == Identity::Full) == table.full_is_refused {
        let sql = format!(
            "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM ({LEAVES}) p JOIN pg_class c ON c.oid = p.relid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relreplident {wrong} 'f' ORDER BY 1"
        );
        let leaves: Vec<String> =
            scalar(AssertSqlSafe(sql)).bind(i64::from(table.id)).fetch_all(&mut *connection).await?;
        statements.extend(leaves.iter().map(|leaf| format!("ALTER TABLE {leaf} REPLICA IDENTITY {right};")));
    }
    if catalog::unpublished(connection, publication, table).await?.is_some() {
        statements.push(format!("ALTER PUBLICATION {} ADD TABLE {};", ident(publication), table.sql));
    }
    Ok(statements)
}
