//! Reading a table's columns from the database.

use bourn_protocol::limits::KEY_MAX_BYTES;
use rusqlite::{Connection, OptionalExtension};

use crate::databases::sqlite::sql::{field, ident, nameable};
use crate::feed::entity::{Column, ColumnKind, EntityType, TableSchema, UniqueColumn};

/// Most columns of a table: SQLite bounds the expressions that our triggers are made of.
const COLUMNS_MAX: usize = 500;

/// The table's columns, or the reason why it cannot be streamed, as text.
pub(in super::super) fn table(
    connection: &Connection,
    entity: &EntityType,
) -> rusqlite::Result<Result<TableSchema, String>> {
    let name = &entity.table;
    let kind: Option<String> = connection
        .prepare_cached("SELECT type FROM sqlite_master WHERE name = ?1 AND type IN ('table', 'view')")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    match kind.as_deref() {
        Some("table") => {}
        Some(_) => return Ok(Err(format!("`{name}` is a view; only tables can be streamed"))),
        None => return Ok(Err(format!("the database has no table `{name}`"))),
    }
    // A rowid has no index of its own; a primary key that has one may hold anything.
    let has_key_index: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk')")?
        .query_row([name], |row| row.get(0))?;
    let mut statement = connection.prepare_cached(
        "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1)",
    )?;
    let mut key_is_unique = false;
    let mut key_columns = 0;
    let columns: Vec<Column> = statement
        .query_map([name], |row| {
            let column: String = row.get(0)?;
            let declared: String = row.get(1)?;
            let (not_null, pk, hidden): (bool, i64, i64) = (row.get(2)?, row.get(4)?, row.get(5)?);
            key_columns += i64::from(pk > 0);
            key_is_unique |= pk == 1 && column == entity.key;
            // An INTEGER PRIMARY KEY fills itself in.
            let rowid = pk == 1 && declared.eq_ignore_ascii_case("integer") && !has_key_index;
            Ok(Column {
                kind: kind_of(&declared),
                name: column,
                required: not_null || pk > 0,
                has_default: row.get::<_, bool>(3)? || rowid,
                generated: hidden == 2 || hidden == 3,
                rowid,
                never_number: has_text_affinity(&declared),
            })
        })?
        .collect::<Result<_, _>>()?;
    key_is_unique = (key_is_unique && key_columns == 1) || has_unique_index(connection, entity)?;
    let mut schema = match TableSchema::new(entity, columns) {
        Ok(schema) => schema,
        Err(reason) => return Ok(Err(reason)),
    };
    schema.unique = unique(connection, entity)?;
    let problem = entity.unfit(&schema, key_is_unique).or_else(|| {
        (schema.columns.len() > COLUMNS_MAX)
            .then(|| format!("table `{name}` has more than {COLUMNS_MAX} columns"))
    });
    Ok(match problem {
        Some(problem) => Err(problem),
        None => Ok(schema),
    })
}

/// What the operator should know of rows that are left out, if there are any.
pub(in super::super) fn left_out(
    connection: &Connection,
    entity: &EntityType,
    schema: &TableSchema,
) -> rusqlite::Result<Option<String>> {
    if schema.column(&entity.key).is_some_and(|column| column.rowid) {
        return Ok(None);
    }
    let sql = format!(
        "SELECT count(*) FROM {} t WHERE {} IS NOT NULL AND NOT {}",
        ident(&entity.table),
        field("t", &entity.key),
        nameable(entity, "t")
    );
    let count: i64 = connection.prepare(&sql)?.query_row([], |row| row.get(0))?;
    Ok((count > 0).then(|| {
        format!(
            "{count} rows are left out of lists and streams: their key `{}` is neither a number nor UTF-8 text of 1 to \
             {KEY_MAX_BYTES} bytes without NUL",
            entity.key
        )
    }))
}

/// What to do about rows that are left out.
pub(in super::super) const LEFT_OUT_REMEDY: &str =
    "give these rows other keys; every row whose key is changed so appears at once";

/// The sets of columns in which no two rows may be equal, except the key as its text is compared; an index over an
/// expression is not one of them.
fn unique(connection: &Connection, entity: &EntityType) -> rusqlite::Result<Vec<Vec<UniqueColumn>>> {
    let mut indexes =
        connection.prepare_cached("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" ORDER BY name")?;
    let names: Vec<String> =
        indexes.query_map([&entity.table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut sets = Vec::new();
    for name in names {
        let columns: Vec<Option<UniqueColumn>> = connection
            .prepare(&format!(
                "SELECT name, coll FROM pragma_index_xinfo({}) WHERE key ORDER BY seqno",
                ident(&name)
            ))?
            .query_map([], |row| {
                let name: Option<String> = row.get(0)?;
                let collation = row.get(1)?;
                Ok(name.map(|name| UniqueColumn { name, collation }))
            })?
            .collect::<Result<_, _>>()?;
        let Some(columns) = columns.into_iter().collect::<Option<Vec<_>>>() else { continue };
        let is_key = |column: &UniqueColumn| {
            column.name == entity.key && column.collation.eq_ignore_ascii_case("binary")
        };
        if !matches!(columns.as_slice(), [only] if is_key(only)) {
            sets.push(columns);
        }
    }
    Ok(sets)
}

fn has_unique_index(connection: &Connection, entity: &EntityType) -> rusqlite::Result<bool> {
    let mut indexes = connection
        .prepare_cached("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND NOT partial")?;
    let names: Vec<String> =
        indexes.query_map([&entity.table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in names {
        let columns: Vec<Option<String>> = connection
            .prepare(&format!("SELECT name FROM pragma_index_info({})", ident(&name)))?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        if columns == [Some(entity.key.clone())] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// SQLite's rule for the types whose columns keep numbers as text.
fn has_text_affinity(declared: &str) -> bool {
    let declared = declared.to_ascii_uppercase();
    !declared.contains("INT") && ["CHAR", "CLOB", "TEXT"].iter().any(|word| declared.contains(word))
}

/// The kind of a declared type: JSON, booleans and times by their names, then SQLite's own rules.
fn kind_of(declared: &str) -> ColumnKind {
    let declared = declared.to_ascii_uppercase();
    let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    if has(&["JSON"]) {
        ColumnKind::Json
    } else if has(&["BOOL"]) {
        ColumnKind::Boolean
    } else if has(&["DATE", "TIME"]) {
        ColumnKind::Timestamp
    } else if has(&["INT"]) {
        ColumnKind::Integer
    } else if has(&["CHAR", "CLOB", "TEXT", "UUID"]) {
        ColumnKind::Text
    } else if has(&["BLOB", "BYTEA", "BINARY"]) {
        ColumnKind::Blob
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        ColumnKind::Real
    } else if declared.is_empty() {
        ColumnKind::Any
    } else {
        ColumnKind::Numeric
    }
}
