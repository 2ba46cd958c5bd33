//! Undoing a transaction: its changes are taken back, newest first, as one new transaction. What later
//! transactions built on the same rows blocks it, or is undone with it.

use std::collections::{BTreeMap, BTreeSet};

use bourn_protocol::limits::ROLLBACK_MAX;
use bourn_protocol::{Action, Seq, TransactionId};
use rusqlite::ToSql;
use rusqlite::types::Value as Sql;
use serde_json::{Map, Value};

use super::error;
use super::log::{COLUMNS, read_activity};
use super::mutate::{Context, Done, bind, stamp};
use super::sql::ident;
use crate::entity::{Column, EntityType, TableSchema, managed};
use crate::storage::{Activity, Dependent, Undone, WriteError};

/// Undoes `target`, and with `cascade` whatever depends on it.
pub(super) fn undo(context: &Context<'_>, target: &TransactionId, cascade: bool) -> Result<Done, WriteError> {
    let first = context.transaction_activities(target.as_str())?;
    if first.is_empty() {
        return Err(WriteError::UnknownTransaction(target.to_string()));
    }
    let all = context.with_dependents(first, cascade)?;
    for activity in all.values() {
        context.check_reversible(activity)?;
    }
    // A row's state before the first of its changes is all that counts; the rows changed last come first.
    let mut seen = BTreeSet::new();
    let firsts: Vec<&Activity> =
        all.values().filter(|activity| seen.insert((&activity.entity_type, &activity.entity_id))).collect();
    for first in firsts.into_iter().rev() {
        context.take_back(first)?;
    }
    let undone: Vec<Undone> = all
        .values()
        .rev()
        .map(|activity| Undone {
            transaction_id: activity.txid(),
            entity_type: activity.entity_type.clone(),
            entity_id: activity.entity_id.clone(),
            action: activity.action.as_str(),
        })
        .collect();
    let outcome = serde_json::to_string(&undone).ok();
    Ok(Done { undone, outcome, ..Done::default() })
}

/// Reads back what [`undo`] noted in the ledger.
pub(super) fn parse_outcome(json: &str) -> Vec<Undone> {
    let text =
        |item: &Value, name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let items: Vec<Value> = serde_json::from_str(json).unwrap_or_default();
    items
        .iter()
        .map(|item| Undone {
            transaction_id: text(item, "transactionId"),
            entity_type: text(item, "entityType"),
            entity_id: text(item, "entityId"),
            action: Action::from_log(&text(item, "action")).map_or("", Action::as_str),
        })
        .collect()
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

    /// The activities to undo, by their place in the log: those given and, with `cascade`, all transactions
    /// that changed the same rows later, and what depends on those in turn.
    fn with_dependents(
        &self,
        first: Vec<Activity>,
        cascade: bool,
    ) -> Result<BTreeMap<Seq, Activity>, WriteError> {
        let mut all = BTreeMap::new();
        let mut transactions: BTreeSet<String> = first.iter().map(Activity::txid).collect();
        let mut blocking = BTreeMap::new();
        let mut waiting = first;
        while let Some(activity) = waiting.pop() {
            if all.contains_key(&activity.seq) {
                continue;
            }
            let later = self.select(
                "entity_type = ?1 AND entity_id = ?2 AND seq > ?3",
                &[&activity.entity_type, &activity.entity_id, &activity.seq.as_i64()],
            )?;
            for dependent in later {
                let txid = dependent.txid();
                if transactions.contains(&txid) {
                    continue;
                }
                if cascade {
                    waiting.extend(self.transaction_activities(&txid)?);
                    transactions.insert(txid);
                } else {
                    blocking.insert(dependent.seq, dependent);
                }
            }
            all.insert(activity.seq, activity);
            if all.len() > ROLLBACK_MAX || blocking.len() > ROLLBACK_MAX {
                return Err(WriteError::TooLarge(ROLLBACK_MAX));
            }
        }
        if blocking.is_empty() {
            return Ok(all);
        }
        let dependents = blocking.into_values().map(|activity| Dependent {
            transaction_id: activity.txid(),
            seq: activity.seq.get(),
            action: activity.action.as_str(),
            entity_type: activity.entity_type,
            entity_id: activity.entity_id,
        });
        Err(WriteError::Blocked(dependents.collect()))
    }

    fn check_reversible(&self, activity: &Activity) -> Result<(), WriteError> {
        let name = &activity.entity_type;
        let keeps = self.catalog.by_name(name).is_some_and(|entity| entity.previous_values);
        if !keeps {
            let text =
                format!("entity type `{name}` keeps no previous values; set previous_values = true for it");
            return Err(WriteError::NotReversible(text));
        }
        if activity.action != Action::Create && activity.previous_values.is_none() {
            let text = format!(
                "the change of {name} `{}` was captured before previous values were kept, or without them",
                activity.entity_id
            );
            return Err(WriteError::NotReversible(text));
        }
        Ok(())
    }

    fn take_back(&self, activity: &Activity) -> Result<(), WriteError> {
        let not_reversible = |why: &str| {
            WriteError::NotReversible(format!("{} `{}`: {why}", activity.entity_type, activity.entity_id))
        };
        let entity = self
            .catalog
            .by_name(&activity.entity_type)
            .ok_or_else(|| not_reversible("its type is not served any more"))?;
        let schema = entity.schema().map_err(|reason| not_reversible(&reason))?;
        let key = &activity.entity_id;
        if activity.action == Action::Create {
            return self.remove(entity, &schema, key).map(|_| ());
        }
        let previous: Map<String, Value> = activity
            .previous_values
            .as_deref()
            .and_then(|json| serde_json::from_str(json).ok())
            .ok_or_else(|| not_reversible("its previous values cannot be read"))?;
        if self.exists(entity, key)? {
            // Only what differs is set: a value that JSON shows the same may be kept in another form.
            let row = self.row(entity, &schema, key)?.unwrap_or_default();
            let now: Map<String, Value> = serde_json::from_slice(&row).unwrap_or_default();
            let mut sets = previous_columns(entity, &schema, &previous, self.transaction.as_str());
            sets.retain(|(column, _)| {
                now.get(&column.name) != previous.get(&column.name) || column.name == managed::TRANSACTIONS
            });
            return self.set(entity, &schema, key, &sets, "update");
        }
        self.insert_again(entity, &schema, &previous)
    }

    fn insert_again(
        &self,
        entity: &EntityType,
        schema: &TableSchema,
        previous: &Map<String, Value>,
    ) -> Result<(), WriteError> {
        let mut sets = previous_columns(entity, schema, previous, self.transaction.as_str());
        if let (Some(column), Some(value)) = (schema.column(&entity.key), previous.get(&entity.key)) {
            sets.push((column, bind(column, value)));
        }
        let names: Vec<String> = sets.iter().map(|(column, _)| ident(&column.name)).collect();
        let places = vec!["?"; sets.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES ({places})", ident(&entity.table), names.join(", "));
        let values = sets.into_iter().map(|(_, value)| value).collect();
        self.in_context(!schema.has(managed::TRANSACTIONS), || self.execute(&sql, values))
    }
}

/// The columns of a row as it was, but for its key, stamped as changed by `transaction`. A row that capture
/// sees appear takes its transaction from `insert` or `update`, whichever the log does not know yet.
fn previous_columns<'a>(
    entity: &EntityType,
    schema: &'a TableSchema,
    previous: &Map<String, Value>,
    transaction: &str,
) -> Vec<(&'a Column, Sql)> {
    let skipped = [managed::LAST_CLIENT_ID, managed::MODIFIED_AT];
    schema
        .columns
        .iter()
        .filter(|column| {
            !column.generated && column.name != entity.key && !skipped.contains(&column.name.as_str())
        })
        .filter_map(|column| {
            let value = previous.get(&column.name)?;
            let value = match column.name == managed::TRANSACTIONS {
                true => Sql::Text(stamp(value.get("insert").and_then(Value::as_str), Some(transaction))),
                false => bind(column, value),
            };
            Some((column, value))
        })
        .collect()
}
