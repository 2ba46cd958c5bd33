//! SQL text: a column's value as the text that its type's output function gives, which is also what the replication
//! stream carries.

use super::catalog::{PgColumn, Table, TextBy};
use crate::databases::postgres::names::{field, shape_of};

/// The column's value as text, or NULL.
pub(in super::super) fn text_of(column: &PgColumn) -> String {
    let x = field(&column.name);
    match column.text {
        TextBy::Cast => format!("{x}::text"),
        TextBy::Output => format!("CASE WHEN {x} IS NOT NULL THEN format('%s', {x}) END"),
        TextBy::Json => format!("to_jsonb({x}) #>> '{{}}'"),
    }
}

/// All columns as text, in their order, and behind them the mark of the table's shape.
pub(in super::super) fn texts(table: &Table) -> String {
    let columns = table.columns.iter().map(text_of);
    columns.chain([shape_of(&table.relations)]).collect::<Vec<_>>().join(", ")
}

/// A parameter that holds text, as a value of the column's type.
pub(in super::super) fn typed(place: usize, column: &PgColumn) -> String {
    format!("${place}::text::{}", column.type_name)
}

/// The condition that picks a row by its key as text. The second half refuses a text that the type takes for the same
/// key though it is written otherwise, such as `05` for 5.
pub(in super::super) fn by_key(table: &Table, place: usize) -> String {
    let key = table.key();
    format!("{} = {} AND {} = ${place}", field(&key.name), typed(place, key), text_of(key))
}

/// Whether the row is visible: it is not deleted softly.
pub(in super::super) fn visible(table: &Table) -> String {
    match &table.checked.kept.deleted_at {
        Some(column) => format!("{} IS NULL", field(column)),
        None => "true".into(),
    }
}
