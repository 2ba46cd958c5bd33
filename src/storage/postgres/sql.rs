//! SQL text: quoting, and a column's value as the text that its type's output function gives, which is what the
//! replication stream carries.

use super::catalog::{PgColumn, Table};
use crate::entity::managed;

/// A name, quoted.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name as SQL, from the name in the configuration: `pages`, or `app.pages`.
pub(super) fn configured(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, name)) => format!("{}.{}", ident(schema), ident(name)),
        None => ident(table),
    }
}

/// `t.column`, quoted.
pub(super) fn field(column: &str) -> String {
    format!("t.{}", ident(column))
}

/// The column's value as text, or NULL.
pub(super) fn text_of(column: &PgColumn) -> String {
    let x = field(&column.name);
    match column.casts_plainly {
        true => format!("{x}::text"),
        // The cast of some types says another thing than their output function: `inet`, `char(n)`.
        false => format!("CASE WHEN {x} IS NOT NULL THEN format('%s', {x}) END"),
    }
}

/// All columns as text, in their order.
pub(super) fn texts(table: &Table) -> String {
    table.columns.iter().map(text_of).collect::<Vec<_>>().join(", ")
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
    match table.column(managed::DELETED_AT) {
        Some(_) => format!("{} IS NULL", field(managed::DELETED_AT)),
        None => "true".into(),
    }
}
