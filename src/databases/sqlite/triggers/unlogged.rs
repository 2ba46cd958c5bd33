//! Triggers for the time until the log has a table as it is. A row that is changed before the comparison has reached it
//! is logged first as it was, so that a reader from the start never gets a change of a row that it does not have, and
//! an undo of the change does not take the row for a new one. They are dropped when the comparison has ended.

use super::{ActivitySql, Maker, Trigger, name};
use crate::databases::sqlite::sql::{ident, visible};
use crate::feed::entity::EntityType;

/// The triggers, as their names end.
pub(in super::super) const EVENTS: [&str; 2] = ["first_update", "first_delete"];

/// The triggers of an entity type.
pub(in super::super) fn all(maker: &Maker<'_>) -> [Trigger; 2] {
    EVENTS.map(|event| {
        let name = name(maker.entity, event);
        let (verb, body) = match event {
            "first_update" => ("UPDATE", [log_as_it_is(maker), clear_the_place(maker)].join("\n")),
            _ => ("DELETE", log_as_it_is(maker)),
        };
        let sql = format!(
            "CREATE TRIGGER {} BEFORE {verb} ON {} FOR EACH ROW\nBEGIN\n{body}\nEND",
            ident(&name),
            ident(&maker.entity.table),
        );
        Trigger { name, sql }
    })
}

/// Whether a trigger of this entity type is one of these.
pub(in super::super) fn is_one(entity: &EntityType, trigger: &str) -> bool {
    EVENTS.iter().any(|event| name(entity, event) == trigger)
}

/// Logs the row as it is before the change, unless the log has it alive in its place.
fn log_as_it_is(maker: &Maker<'_>) -> String {
    let visible = visible(maker.entity, maker.schema, "OLD");
    let elsewhere = format!("{visible} AND a.organization_id IS NOT {}", maker.scope("OLD"));
    let left = maker.left_behind("OLD", 'n', &elsewhere);
    let alive = maker.logged("OLD", "a.action <> 'delete'");
    let entered = maker.entry(&ActivitySql {
        action: "'create'".into(),
        row: "OLD",
        how: 'n',
        changed_keys: "NULL".into(),
        previous: None,
        from: format!("WHERE {visible} AND NOT EXISTS (SELECT 1 FROM {alive})"),
    });
    [left, entered].join("\n")
}

/// Logs a deletion of what the log has alive in the place that the changed row moves to: such an entry is out of date.
fn clear_the_place(maker: &Maker<'_>) -> String {
    let (entity, schema) = (maker.entity, maker.schema);
    let (old, new) = (visible(entity, schema, "OLD"), visible(entity, schema, "NEW"));
    let comes = format!("{new} AND ({} OR NOT {old})", Maker::differs(&entity.key));
    maker.left_behind("NEW", 'n', &comes)
}
