//! SQL text: quoting, and the expressions that turn a row into its one JSON form. The same expressions stand
//! in the triggers (which run inside any process that writes the file, in whatever SQLite that brings) and in
//! our own reads, so list, row and stream agree to the byte.

use bourn_protocol::limits::KEY_MAX_BYTES;
use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::entity::{Column, ColumnKind, EntityType, TableSchema};

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

/// The row as a JSON object. `alias` is `NEW`, `OLD` or a table's alias.
pub(super) fn row_json(schema: &TableSchema, alias: &str) -> String {
    let mut separator = "{";
    let mut parts = Vec::new();
    for column in &schema.columns {
        let name = serde_json::Value::String(column.name.clone()).to_string();
        parts.push(format!("{} || {}", literal(&format!("{separator}{name}:")), column_json(column, alias)));
        separator = ",";
    }
    // Grouped, because SQLite bounds the depth of an expression and a chain of `||` is as deep as it is long.
    let groups: Vec<String> = parts.chunks(20).map(|group| format!("({})", group.join(" || "))).collect();
    format!("{} || '}}'", groups.join("\n || "))
}

/// One column's value as JSON text. SQLite types values, not columns, so every type can turn up anywhere.
fn column_json(column: &Column, alias: &str) -> String {
    let x = field(alias, &column.name);
    let integer = match column.kind {
        ColumnKind::Boolean => format!("CASE {x} WHEN 1 THEN 'true' WHEN 0 THEN 'false' ELSE {x} END"),
        _ => x.clone(),
    };
    let text = match column.kind {
        ColumnKind::Json => format!("CASE WHEN json_valid({x}) THEN json({x}) ELSE json_quote({x}) END"),
        ColumnKind::Timestamp => format!(
            "CASE WHEN {x} GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9]*' \
             THEN json_quote(substr({x}, 1, 10) || 'T' || substr({x}, 12)) ELSE json_quote({x}) END"
        ),
        _ => format!("json_quote({x})"),
    };
    let real = format!(
        "CASE WHEN {x} = 9e999 THEN '\"Infinity\"' WHEN {x} = -9e999 THEN '\"-Infinity\"' ELSE {} END",
        real_text(&x)
    );
    format!(
        "CASE typeof({x}) WHEN 'text' THEN {text} WHEN 'integer' THEN {integer} WHEN 'null' THEN 'null' \
         WHEN 'real' THEN {real} ELSE '\"\\\\x' || lower(hex({x})) || '\"' END"
    )
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

/// The row's key as text. Of the keys that are [`nameable`] no two have the same text.
pub(super) fn key_text(entity: &EntityType, alias: &str) -> String {
    let x = field(alias, &entity.key);
    format!("CASE typeof({x}) WHEN 'real' THEN {} ELSE CAST({x} AS TEXT) END", real_text(&x))
}

/// Whether the row's key can be told as text and asked for by it: a number, or text in UTF-8 of bounded length. SQLite
/// keeps bytes, infinite numbers and broken text in any column; the rows of such keys are left out, and counted.
pub(super) fn nameable(entity: &EntityType, alias: &str) -> String {
    let x = field(alias, &entity.key);
    // Text beyond ASCII is compared character by character with what its code points give: what is not UTF-8 differs.
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
pub(super) fn scope_text(entity: &EntityType, alias: &str) -> String {
    let Some(column) = &entity.scope else { return "NULL".into() };
    let x = field(alias, column);
    format!(
        "CASE typeof({x}) WHEN 'blob' THEN NULL WHEN 'real' THEN {} ELSE CAST({x} AS TEXT) END",
        real_text(&x)
    )
}

/// Whether the row is to be seen: it has a key that can be told, and is not deleted softly.
pub(super) fn visible(entity: &EntityType, schema: &TableSchema, alias: &str) -> String {
    let named = match schema.column(&entity.key).is_some_and(|column| column.rowid) {
        true => format!("{} IS NOT NULL", field(alias, &entity.key)),
        false => nameable(entity, alias),
    };
    match &schema.kept.deleted_at {
        Some(column) => format!("({named} AND {} IS NULL)", field(alias, column)),
        None => format!("({named})"),
    }
}

/// One of the ids in the row's `transactions`, or NULL.
pub(super) fn transaction_of(schema: &TableSchema, alias: &str, action: &str) -> String {
    let Some(column) = &schema.kept.transactions else { return "NULL".into() };
    let x = field(alias, column);
    format!("CASE WHEN json_valid({x}) THEN CAST(json_extract({x}, '$.{action}') AS TEXT) END")
}

/// A column's text; what is not UTF-8 in it (another process may have written anything) is shown as far as it can
/// be.
pub(super) fn lossy(row: &Row<'_>, i: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(i)? {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
    })
}
