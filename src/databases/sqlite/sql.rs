//! SQL text: quoting, and expressions for both the triggers (which run inside any process that writes the file, in
//! whatever SQLite that brings) and our own reads.

use bourn_protocol::Action;
use bourn_protocol::limits::KEY_MAX_BYTES;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::feed::entity::{EntityType, TableSchema};

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `alias.column`, quoted.
pub(super) fn field(alias: &str, column: &str) -> String {
    format!("{alias}.{}", ident(column))
}

/// A finite number as text: the shortest of 15, 16 and 17 digits that gives the number back.
fn real_text(x: &str) -> String {
    let digits = |n: u8| format!("printf('%!.{n}g', {x})");
    format!(
        "CASE WHEN CAST({a} AS REAL) = {x} THEN {a} WHEN CAST({b} AS REAL) = {x} THEN {b} ELSE {c} END",
        a = digits(15),
        b = digits(16),
        c = digits(17)
    )
}

/// The row's key as text. No two keys that are [`nameable`] have the same text.
pub(super) fn key_text(entity: &EntityType, schema: &TableSchema, alias: &str) -> String {
    let x = field(alias, &entity.key);
    match schema.column(&entity.key).is_some_and(|column| column.rowid || column.never_number) {
        // The cast alone would compare under the column's own collation.
        true => format!("(CAST({x} AS TEXT)||'')"),
        false => format!("CASE typeof({x}) WHEN 'real' THEN {} ELSE CAST({x} AS TEXT) END", real_text(&x)),
    }
}

/// Whether the row's key can be written as text and looked up by it: a number, or text in UTF-8 of bounded length.
/// SQLite stores bytes, infinite numbers and broken text in any column; rows with such keys are left out, and counted.
pub(super) fn nameable(entity: &EntityType, alias: &str) -> String {
    let x = field(alias, &entity.key);
    // Text beyond ASCII is compared character by character with its code points written as UTF-8: text that is not
    // UTF-8 differs.
    let utf8 = format!(
        "NOT EXISTS (WITH RECURSIVE at(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM at WHERE i < length({x})) SELECT 1 FROM at \
         WHERE CAST(substr({x}, i, 1) AS BLOB) <> CAST(char(unicode(substr({x}, i, 1))) AS BLOB))"
    );
    format!(
        "CASE typeof({x}) WHEN 'integer' THEN 1 WHEN 'text' THEN length(CAST({x} AS BLOB)) BETWEEN 1 AND {KEY_MAX_BYTES} \
         AND instr(CAST({x} AS BLOB), x'00') = 0 AND (NOT {x} GLOB '*[^ -~]*' OR {utf8}) \
         WHEN 'real' THEN abs({x}) < 9e999 ELSE 0 END"
    )
}

/// The row's scope as text, or NULL; bytes are no scope.
pub(super) fn scope_text(entity: &EntityType, schema: &TableSchema, alias: &str) -> String {
    let Some(column) = &entity.scope else { return "NULL".into() };
    let x = field(alias, column);
    match schema.column(column).is_some_and(|column| column.never_number) {
        true => format!("CASE typeof({x}) WHEN 'text' THEN {x} END"),
        false => format!(
            "CASE typeof({x}) WHEN 'blob' THEN NULL WHEN 'real' THEN {} ELSE CAST({x} AS TEXT) END",
            real_text(&x)
        ),
    }
}

/// Whether the row is visible: its key can be written as text, and it is not deleted softly.
pub(super) fn visible(entity: &EntityType, schema: &TableSchema, alias: &str) -> String {
    let named = match schema.column(&entity.key).is_some_and(|column| column.rowid) {
        true => format!("{} IS NOT NULL", field(alias, &entity.key)),
        false => nameable(entity, alias),
    };
    match schema.kept.deleted_at {
        Some(_) => format!("({named} AND {})", shown(schema, alias)),
        None => format!("({named})"),
    }
}

/// Whether the row is not deleted softly.
pub(super) fn shown(schema: &TableSchema, alias: &str) -> String {
    match &schema.kept.deleted_at {
        Some(column) => format!("{} IS NULL", field(alias, column)),
        None => "1".into(),
    }
}

/// One of the ids in the row's `transactions`, or NULL. Ids have no white space. They are searched for in the text,
/// because the functions for JSON are forbidden to triggers where a writer distrusts the schema, up to SQLite 3.40; an
/// id that JSON would escape is not found.
pub(super) fn transaction_of(schema: &TableSchema, alias: &str, action: Action) -> String {
    let Some(column) = &schema.kept.transactions else { return "NULL".into() };
    let x = field(alias, column);
    format!(
        "(SELECT substr(i, 1, instr(i, '\"') - 1) FROM (SELECT substr(x, instr(x, s) + length(s)) i FROM \
         (SELECT replace({x}, ' ', '') x, '\"{}\":\"' s) WHERE instr(x, s)) WHERE instr(i, '\"') > 1 \
         AND NOT instr(substr(i, 1, instr(i, '\"')), '\\'))",
        action.operation()
    )
}

/// Whether JSON writes the id as it is.
pub(super) fn is_plain(id: &str) -> bool {
    !id.contains(['"', '\\'])
}

/// A column's bytes, as they are.
pub(super) fn bytes<'a>(row: &'a Row<'_>, i: usize) -> rusqlite::Result<Option<&'a [u8]>> {
    Ok(match row.get_ref(i)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
        _ => None,
    })
}

/// A column's text. Another process may have written text that is not UTF-8; the invalid parts are replaced.
pub(super) fn lossy(row: &Row<'_>, i: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(i)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
    })
}

/// The condition that picks a row by its key as text. The second half refuses a text that only the column's affinity
/// makes equal to the key, such as `05` for 5.
pub(super) fn by_key(entity: &EntityType, schema: &TableSchema, place: &str) -> String {
    let table = ident(&entity.table);
    let alias = if place == "?1" { "t" } else { table.as_str() };
    let column = field(alias, &entity.key);
    match place {
        "?1" => format!("{column} = ?1 AND {} = ?1 COLLATE BINARY", key_text(entity, schema, alias)),
        _ => format!("{column} = ? COLLATE BINARY"),
    }
}
