//! SQL text: quoting, and a column's value as the text that its type's output function gives, which is what the
//! replication stream carries.

use super::catalog::{PgColumn, Table, TextBy};

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The schema and the name of a table, from its name in the configuration: `pages`, or `app.pages`.
pub(super) fn configured(table: &str) -> (Option<&str>, &str) {
    match table.split_once('.') {
        Some((schema, name)) => (Some(schema), name),
        None => (None, table),
    }
}

/// The number of the table that `n.schema` and `n.name` call, as a subquery: with no schema, the first one on the search
/// path. The server's own schema is left out, even where a role of its name puts it on the path.
pub(super) const NAMED: &str = "(SELECT c.oid FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace \
     LEFT JOIN unnest(current_schemas(true)) WITH ORDINALITY p (name, place) ON p.name = s.nspname \
     WHERE c.relname = n.name AND s.nspname <> 'bourn' AND CASE WHEN n.schema IS NULL THEN p.place IS NOT NULL ELSE s.nspname = n.schema END \
     ORDER BY p.place LIMIT 1)";

/// `t.column`, quoted.
pub(super) fn field(column: &str) -> String {
    format!("t.{}", ident(column))
}

/// The column's value as text, or NULL.
pub(super) fn text_of(column: &PgColumn) -> String {
    let x = field(&column.name);
    match column.text {
        TextBy::Cast => format!("{x}::text"),
        TextBy::Output => format!("CASE WHEN {x} IS NOT NULL THEN format('%s', {x}) END"),
        TextBy::Json => format!("to_jsonb({x}) #>> '{{}}'"),
    }
}

/// All columns as text, in their order, and behind them the mark of the table's shape.
pub(super) fn texts(table: &Table) -> String {
    let columns = table.columns.iter().map(text_of);
    columns.chain([shape_of(&table.relations)]).collect::<Vec<_>>().join(", ")
}

/// A number that changes with the columns and types of a table, as the statement's snapshot has them. `relations` are
/// the table and the composite types in it.
pub(super) fn shape_of(relations: &[u32]) -> String {
    let relations: Vec<String> = relations.iter().map(ToString::to_string).collect();
    format!(
        "(SELECT hashtextextended(string_agg(concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, \
         a.attisdropped), ',' ORDER BY a.attrelid, a.attnum), 0) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = ANY ('{{{}}}'::oid[]) AND a.attnum > 0)",
        relations.join(",")
    )
}

/// A parameter that holds text, as a value of the column's type.
pub(super) fn typed(place: usize, column: &PgColumn) -> String {
    format!("${place}::text::{}", column.type_name)
}

/// The condition that picks a row by its key as text. The second half refuses what the type takes for the same
/// key though it is written otherwise, such as `05` for 5.
pub(super) fn by_key(table: &Table, place: usize) -> String {
    let key = table.key();
    format!("{} = {} AND {} = ${place}", field(&key.name), typed(place, key), text_of(key))
}

/// Whether the row is to be seen: it is not deleted softly.
pub(super) fn visible(table: &Table) -> String {
    match &table.checked.kept.deleted_at {
        Some(column) => format!("{} IS NULL", field(column)),
        None => "true".into(),
    }
}
