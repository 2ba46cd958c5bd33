//! SQL text: quoting, and the expressions that turn a row into its one JSON form. The same expressions stand
//! in the triggers (which run inside any process that writes the file, in whatever SQLite that brings) and in
//! our own reads, so list, row and stream agree to the byte.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::entity::{Column, ColumnKind, EntityType, TableSchema, managed};

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
    // The shortest of 15, 16 and 17 digits that gives the number back.
    let digits = |n: u8| format!("printf('%!.{n}g', {x})");
    let real = format!(
        "CASE WHEN {x} = 9e999 THEN '\"Infinity\"' WHEN {x} = -9e999 THEN '\"-Infinity\"' \
         WHEN CAST({a} AS REAL) = {x} THEN {a} WHEN CAST({b} AS REAL) = {x} THEN {b} ELSE {c} END",
        a = digits(15),
        b = digits(16),
        c = digits(17)
    );
    format!(
        "CASE typeof({x}) WHEN 'text' THEN {text} WHEN 'integer' THEN {integer} WHEN 'null' THEN 'null' \
         WHEN 'real' THEN {real} ELSE '\"\\\\x' || lower(hex({x})) || '\"' END"
    )
}

/// The row's key as text.
pub(super) fn key_text(entity: &EntityType, alias: &str) -> String {
    format!("CAST({} AS TEXT)", field(alias, &entity.key))
}

/// The row's scope as text, or NULL.
pub(super) fn scope_text(entity: &EntityType, alias: &str) -> String {
    match &entity.scope {
        Some(column) => format!("CAST({} AS TEXT)", field(alias, column)),
        None => "NULL".into(),
    }
}

/// Whether the row is to be seen: it has a key (a primary key of SQLite's may be NULL) and is not deleted softly.
pub(super) fn visible(entity: &EntityType, schema: &TableSchema, alias: &str) -> String {
    let has_key = format!("{} IS NOT NULL", field(alias, &entity.key));
    match schema.has(managed::DELETED_AT) {
        true => format!("({has_key} AND {} IS NULL)", field(alias, managed::DELETED_AT)),
        false => format!("({has_key})"),
    }
}

/// One of the ids in the row's `transactions`, or NULL.
pub(super) fn transaction_of(schema: &TableSchema, alias: &str, action: &str) -> String {
    match schema.has(managed::TRANSACTIONS) {
        true => {
            let x = field(alias, managed::TRANSACTIONS);
            format!("CASE WHEN json_valid({x}) THEN CAST(json_extract({x}, '$.{action}') AS TEXT) END")
        }
        false => "NULL".into(),
    }
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
