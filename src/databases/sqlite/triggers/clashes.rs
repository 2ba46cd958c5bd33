//! Triggers for rows that are replaced because of a value that must be unique, and not because of their key's text:
//! `INSERT OR REPLACE`, `UPDATE OR REPLACE`, a column that is `UNIQUE ON CONFLICT REPLACE`, keys that differ in case
//! only. SQLite fires no trigger for the row that is removed, unless the writer has `recursive_triggers` on. So the
//! rows that could be removed are noted before the new one is written; after that, the log gets a deletion for those
//! that it has alive and the table has no longer. Tables without such values have no such triggers.

use super::{NOW, Trigger, name};
use crate::databases::sqlite::sql::{field, ident, key_text, literal, visible};
use crate::feed::entity::{EntityType, TableSchema};

/// The triggers, as their names end.
pub(in super::super) const EVENTS: [&str; 4] = ["clash", "ousted", "clash_update", "ousted_update"];

/// The triggers of an entity type; none where the key alone must be unique.
pub(in super::super) fn all(entity: &EntityType, schema: &TableSchema) -> Vec<Trigger> {
    if schema.unique.is_empty() {
        return Vec::new();
    }
    let mut columns: Vec<String> = schema.unique.iter().flatten().map(|column| ident(&column.name)).collect();
    columns.sort_unstable();
    columns.dedup();
    let update = format!("UPDATE OF {}", columns.join(", "));
    let trigger = |event: &str, when: &str, body: &str| {
        let name = name(entity, event);
        let sql = format!(
            "CREATE TRIGGER {} {when} ON {} FOR EACH ROW\nBEGIN\n{body}\nEND",
            ident(&name),
            ident(&entity.table)
        );
        Trigger { name, sql }
    };
    let after = ousted(entity, schema);
    vec![
        trigger("clash", "BEFORE INSERT", &clash(entity, schema, "NEW")),
        trigger("ousted", "AFTER INSERT", &after),
        trigger("clash_update", &format!("BEFORE {update}"), &clash(entity, schema, "OLD")),
        trigger("ousted_update", &format!("AFTER {update}"), &after),
    ]
}

/// Notes the rows that have a value of the new row's; `own` is the row that is changed itself.
fn clash(entity: &EntityType, schema: &TableSchema, own: &str) -> String {
    let (name, table) = (literal(&entity.name), ident(&entity.table));
    let mut body = forget(entity);
    for columns in &schema.unique {
        let equal: Vec<String> = columns
            .iter()
            .map(|column| {
                let (old, new) = (field("t", &column.name), field("NEW", &column.name));
                format!("{old} = {new} COLLATE {}", ident(&column.collation))
            })
            .collect();
        body.push_str(&format!(
            "\nINSERT INTO bourn_clashes (entity_type, entity_id) SELECT {name}, {} FROM {table} t WHERE {} AND {} AND {} IS NOT {};",
            key_text(entity, schema, "t"),
            equal.join(" AND "),
            visible(entity, schema, "t"),
            key_text(entity, schema, "t"),
            key_text(entity, schema, own)
        ));
    }
    body
}

/// Logs the deletion of noted rows that are gone.
fn ousted(entity: &EntityType, schema: &TableSchema) -> String {
    let name = literal(&entity.name);
    let previous = if entity.previous_values { "a.value" } else { "NULL" };
    format!(
        "INSERT INTO activities (action, entity_type, entity_id, feed_id, organization_id, transaction_id, client_id, previous_values, created_at)\n\
         SELECT DISTINCT 'delete', {name}, a.entity_id, a.feed_id, a.organization_id, x.transaction_id, x.client_id, {previous}, {NOW}\n\
         FROM bourn_clashes c JOIN activities a ON a.seq = \
         (SELECT max(seq) FROM activities WHERE entity_id = c.entity_id AND entity_type = {name}), bourn_context x\n\
         WHERE c.entity_type = {name} AND a.action <> 'delete' AND NOT EXISTS \
         (SELECT 1 FROM {table} t WHERE {key} = c.entity_id AND {text} = c.entity_id COLLATE BINARY);\n{}",
        forget(entity),
        table = ident(&entity.table),
        key = field("t", &entity.key),
        text = key_text(entity, schema, "t"),
    )
}

fn forget(entity: &EntityType) -> String {
    format!("DELETE FROM bourn_clashes WHERE entity_type = {};", literal(&entity.name))
}
