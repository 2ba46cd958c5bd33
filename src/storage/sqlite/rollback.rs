//! Undoing a transaction: its changes are taken back, newest first, as one new transaction. What later
//! transactions built on the same rows blocks it, or is undone with it.

use bourn_protocol::limits::ROLLBACK_MAX;
use bourn_protocol::{Action, Seq, TransactionId};
use rusqlite::ToSql;
use rusqlite::types::Value as Sql;

use super::error;
use super::log::{COLUMNS, read_activity};
use super::mutate::{Context, Done, bind};
use super::sequencer;
use super::sql::{ident, lossy};
use crate::entity::{Column, Columns, EntityType, Json, TableSchema};
use crate::storage::undo::{self, Need, Plan};
use crate::storage::{Activity, WriteError};

/// Undoes `target`, and with `cascade` whatever depends on it.
pub(super) fn undo(context: &Context<'_>, target: &TransactionId, cascade: bool) -> Result<Done, WriteError> {
    let mut plan = Plan::begin(target, context.transaction_activities(target.as_str())?, cascade)?;
    while let Some(need) = plan.need()? {
        plan.give(match &need {
            Need::Later { entity_type, entity_id, after } => context.select(
                "entity_type = ?1 AND entity_id = ?2 AND seq > ?3",
                &[entity_type, entity_id, &after.as_i64()],
            )?,
            Need::Transaction(txid) => context.transaction_activities(txid)?,
        });
    }
    let undo = plan.finish(context.catalog)?;
    let before = sequencer::head(context.connection).map_err(|e| error::write(&e))?;
    for first in &undo.firsts {
        context.take_back(first)?;
    }
    if !cascade {
        context.check_taken_along(&undo.firsts, before)?;
    }
    let outcome = undo::write_outcome(&undo.undone);
    Ok(Done { undone: undo.undone, outcome, ..Done::default() })
}

impl Context<'_> {
    fn select(&self, condition: &str, values: &[&dyn ToSql]) -> Result<Vec<Activity>, WriteError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM activities WHERE {condition} ORDER BY seq LIMIT {}",
            ROLLBACK_MAX + 1
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.query_map(values, read_activity)?.collect())
            .map_err(|e| error::write(&e))
    }

    /// The activities of a transaction, by the id it gave or by the number that streams show for one that
    /// gave none.
    fn transaction_activities(&self, txid: &str) -> Result<Vec<Activity>, WriteError> {
        let named = self.select("transaction_id = ?1", &[&txid])?;
        match txid.parse::<i64>() {
            Ok(commit) if named.is_empty() => {
                let Some(commit_seq) = Seq::from_i64(commit) else { return Ok(named) };
                // A commit is numbered by its last activity; the ones before it lie next to it.
                let mut found = Vec::new();
                let mut at = commit_seq;
                while let Some(activity) = self
                    .select(
                        "seq = ?1 AND commit_id = ?2 AND transaction_id IS NULL",
                        &[&at.as_i64(), &commit],
                    )?
                    .pop()
                {
                    found.push(activity);
                    if found.len() > ROLLBACK_MAX {
                        return Err(WriteError::TooLarge(ROLLBACK_MAX));
                    }
                    let Some(before) = at.get().checked_sub(1).and_then(Seq::new) else { break };
                    at = before;
                }
                Ok(found)
            }
            _ => Ok(named),
        }
    }

    /// Refuses an undo that has deleted other rows with those that it took back, as `ON DELETE CASCADE` does.
    fn check_taken_along(&self, firsts: &[Activity], before: Seq) -> Result<(), WriteError> {
        let sql = "SELECT DISTINCT entity_type, entity_id FROM activities WHERE seq > ?1 AND action = 'delete' ORDER BY seq";
        let deleted: Vec<(String, String)> = self
            .connection
            .prepare_cached(sql)
            .and_then(|mut select| {
                let text =
                    |row: &rusqlite::Row<'_>, i| Ok::<_, rusqlite::Error>(lossy(row, i)?.unwrap_or_default());
                select.query_map([before.as_i64()], |row| Ok((text(row, 0)?, text(row, 1)?)))?.collect()
            })
            .map_err(|e| error::write(&e))?;
        let mut dependents = Vec::new();
        for (entity_type, entity_id) in deleted {
            let planned = |first: &Activity| first.entity_type == entity_type && first.entity_id == entity_id;
            if firsts.iter().any(planned) {
                continue;
            }
            let built = self.select(
                "entity_type = ?1 AND entity_id = ?2 AND seq <= ?3",
                &[&entity_type, &entity_id, &before.as_i64()],
            )?;
            dependents.extend(built.into_iter().next_back().map(undo::dependent));
        }
        match dependents.is_empty() {
            true => Ok(()),
            false => Err(WriteError::Blocked(dependents)),
        }
    }

    fn take_back(&self, activity: &Activity) -> Result<(), WriteError> {
        let entity = self
            .catalog
            .by_name(&activity.entity_type)
            .ok_or_else(|| undo::not_reversible(activity, "its type is not served any more"))?;
        let schema = entity.schema().map_err(|reason| undo::not_reversible(activity, &reason))?;
        let key = &activity.entity_id;
        if activity.action == Action::Create {
            return self.remove(entity, &schema, key).map(|_| ());
        }
        let previous = undo::previous(activity, &schema)?;
        let mut sets = columns(entity, &schema, &previous, self.transaction.as_str());
        if self.exists(entity, key)? {
            // Only what differs is set: a value that JSON shows the same may be kept in another form.
            let row = self.row(entity, &schema, key)?.unwrap_or_default();
            let now = Columns::parse(&row).unwrap_or_default();
            sets.retain(|(column, _)| {
                now.get(&column.name) != previous.get(&column.name)
                    || schema.kept.transactions.as_ref() == Some(&column.name)
            });
            return self.set(entity, &schema, key, &sets, "update");
        }
        if let (Some(column), Some(value)) = (schema.column(&entity.key), previous.get(&entity.key)) {
            sets.push((column, bind(column, value)));
        }
        let names: Vec<String> = sets.iter().map(|(column, _)| ident(&column.name)).collect();
        let places = vec!["?"; sets.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES ({places})", ident(&entity.table), names.join(", "));
        let values = sets.into_iter().map(|(_, value)| value).collect();
        self.in_context(schema.kept.transactions.is_none(), || self.execute(&sql, values))
    }
}

/// The columns of a row as it was, as SQLite keeps them.
fn columns<'a>(
    entity: &EntityType,
    schema: &'a TableSchema,
    previous: &Columns,
    transaction: &str,
) -> Vec<(&'a Column, Sql)> {
    let columns = undo::previous_columns(entity, schema, previous, transaction);
    columns.into_iter().map(|(column, value)| (column, bind(column, Json::of(value.get())))).collect()
}
