//! Triggers for the time until the log has a table as it is. A row that is changed before the comparison has come to it is
//! logged first as it was, so that a reader from the start is never told of the change of a row that it has not got, and an
//! undo of the change does not take the row for a new one. Afterwards they do nothing.

use super::sql::{ident, literal, visible};
use super::triggers::{Entry, Maker, Trigger, name};
use crate::entity::EntityType;

/// The triggers, as their names end.
pub(super) const EVENTS: [&str; 2] = ["first_update", "first_delete"];

/// The triggers of an entity type.
pub(super) fn all(maker: &Maker<'_>) -> [Trigger; 2] {
    EVENTS.map(|event| {
        let name = name(maker.entity, event);
        let verb = if event == "first_update" { "UPDATE" } else { "DELETE" };
        let sql = format!(
            "CREATE TRIGGER {} BEFORE {verb} ON {} FOR EACH ROW WHEN {} AND {}\nBEGIN\n{}\nEND",
            ident(&name),
            ident(&maker.entity.table),
            not_compared(maker.entity),
            visible(maker.entity, maker.schema, "OLD"),
            log_as_it_is(maker)
        );
        Trigger { name, sql }
    })
}

/// Whether the table was not compared with the log yet, as an SQL expression.
pub(super) fn not_compared(entity: &EntityType) -> String {
    let name = literal(&entity.name);
    format!("NOT (SELECT reconciled FROM bourn_entities WHERE entity_type = {name})")
}

/// Logs the row as it is before the change, if the log does not have it alive where it is.
fn log_as_it_is(maker: &Maker<'_>) -> String {
    let elsewhere = format!("a.organization_id IS NOT {}", maker.scope("OLD"));
    let left = maker.left_behind("OLD", 'n', &elsewhere);
    let alive = maker.logged("OLD", "a.action <> 'delete'");
    let entered = maker.entry(&Entry {
        action: "'create'".into(),
        row: "OLD",
        how: 'n',
        changed_keys: "NULL".into(),
        previous: None,
        from: format!("WHERE NOT EXISTS (SELECT 1 FROM {alive})"),
    });
    [left, entered].join("\n")
}
