//! What undoing a transaction takes, whatever the database: which later changes stand in the way or go with it,
//! in which order rows are taken back, and to what. The storage answers what the plan asks of the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bourn_protocol::limits::ROLLBACK_MAX;
use bourn_protocol::{Action, Seq, TransactionId};
use serde_json::Value;
use serde_json::value::RawValue;

use super::entity::{Catalog, Column, Columns, EntityType, Json, TableSchema};
use super::{Activity, Dependent, Undone, WriteError};
use crate::access::{Denied, WritePermit};

/// What the plan must know of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UndoNeed {
    /// The changes of a row after a place.
    Later { entity_type: String, entity_id: String, after: Seq },
    /// The changes of a transaction, by the id that streams show for it.
    Transaction(String),
}

/// The changes to undo, as far as they are known.
#[derive(Debug)]
pub(crate) struct Plan {
    permit: WritePermit,
    cascade: bool,
    all: BTreeMap<Seq, Activity>,
    transactions: BTreeSet<String>,
    blocking: BTreeMap<Seq, Activity>,
    waiting: Vec<Activity>,
    needs: VecDeque<UndoNeed>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Undo {
    /// The first change of each row, which is reset to its state before it; the rows changed last come first.
    pub(crate) firsts: Vec<Activity>,
    /// Every change that is undone, newest first.
    pub(crate) undone: Vec<Undone>,
}

impl Plan {
    /// Begins with the changes of the transaction itself.
    pub(crate) fn begin(
        target: &TransactionId,
        first: Vec<Activity>,
        cascade: bool,
        permit: &WritePermit,
    ) -> Result<Plan, WriteError> {
        let seen =
            |activity: &Activity| permit.may_see(&activity.entity_type, activity.organization_id.as_deref());
        // Nothing of a row that the caller may not see is disclosed.
        if !first.iter().any(seen) {
            return Err(WriteError::UnknownTransaction(target.to_string()));
        }
        Ok(Plan {
            permit: permit.clone(),
            cascade,
            all: BTreeMap::new(),
            transactions: first.iter().map(Activity::txid).collect(),
            blocking: BTreeMap::new(),
            waiting: first,
            needs: VecDeque::new(),
        })
    }

    /// Adds rows that `ON DELETE CASCADE` would delete with those that are undone: later changes of them block the
    /// undo, or are undone first.
    pub(crate) fn take_along<'r>(&mut self, rows: impl IntoIterator<Item = &'r (String, String)>) {
        let Some(after) = self.waiting.iter().map(|activity| activity.seq).min() else { return };
        for (entity_type, entity_id) in rows {
            let (entity_type, entity_id) = (entity_type.clone(), entity_id.clone());
            self.needs.push_back(UndoNeed::Later { entity_type, entity_id, after });
        }
    }

    /// What must be known next; `None` when the plan is complete.
    pub(crate) fn need(&mut self) -> Result<Option<UndoNeed>, WriteError> {
        while self.needs.is_empty() {
            let Some(activity) = self.waiting.pop() else { return Ok(None) };
            if self.all.contains_key(&activity.seq) {
                continue;
            }
            self.needs.push_back(UndoNeed::Later {
                entity_type: activity.entity_type.clone(),
                entity_id: activity.entity_id.clone(),
                after: activity.seq,
            });
            self.all.insert(activity.seq, activity);
        }
        if self.all.len() > ROLLBACK_MAX || self.blocking.len() > ROLLBACK_MAX {
            return Err(WriteError::TooLarge(ROLLBACK_MAX));
        }
        Ok(self.needs.front().cloned())
    }

    /// Takes the answer to what was needed.
    pub(crate) fn give(&mut self, found: Vec<Activity>) {
        match self.needs.pop_front() {
            Some(UndoNeed::Later { .. }) => {
                for dependent in found {
                    let txid = dependent.txid();
                    if self.transactions.contains(&txid) {
                        continue;
                    }
                    if self.cascade {
                        self.transactions.insert(txid.clone());
                        self.needs.push_back(UndoNeed::Transaction(txid));
                    } else {
                        self.blocking.insert(dependent.seq, dependent);
                    }
                }
            }
            Some(UndoNeed::Transaction(_)) => self.waiting.extend(found),
            None => {}
        }
    }

    /// The rows that are touched, as far as they are known: entity type and key.
    pub(crate) fn rows(&self) -> BTreeSet<(String, String)> {
        self.all.values().map(|activity| (activity.entity_type.clone(), activity.entity_id.clone())).collect()
    }

    /// The rows that would be deleted, because their creation is undone.
    pub(crate) fn removed(&self) -> Vec<(String, String)> {
        let mut seen = BTreeSet::new();
        let row = |activity: &Activity| (activity.entity_type.clone(), activity.entity_id.clone());
        let firsts = self.all.values().filter(|activity| seen.insert(row(activity)));
        firsts.filter(|activity| activity.action == Action::Create).map(row).collect()
    }

    /// Checks that each row that would be deleted along is undone itself, or blocks the undo.
    pub(crate) fn check_along<'r>(
        &self,
        mut rows: impl Iterator<Item = &'r (String, String)>,
    ) -> Result<(), WriteError> {
        let planned = self.rows();
        match rows.find(|row| self.blocking.is_empty() && !planned.contains(row)) {
            Some(row) => Err(would_delete(row)),
            None => Ok(()),
        }
    }

    /// What is to be done, if no later change blocks it.
    pub(crate) fn finish(self, catalog: &Catalog) -> Result<Undo, WriteError> {
        let permit = &self.permit;
        for activity in self.all.values() {
            let scope = activity.organization_id.as_deref();
            permit.check_undo(&activity.entity_type, scope, activity.subject.as_deref())?;
        }
        // The changes in the way are listed to the caller.
        let seen =
            |activity: &Activity| permit.may_see(&activity.entity_type, activity.organization_id.as_deref());
        if !self.blocking.values().all(seen) {
            return Err(WriteError::Denied(Denied::ScopeForbidden));
        }
        if !self.blocking.is_empty() {
            return Err(WriteError::Blocked(self.blocking.into_values().map(dependent).collect()));
        }
        for activity in self.all.values() {
            check_reversible(catalog, activity)?;
        }
        let undone = self.all.values().rev().map(|activity| Undone {
            transaction_id: activity.txid(),
            entity_type: activity.entity_type.clone(),
            entity_id: activity.entity_id.clone(),
            action: activity.action.as_str(),
        });
        let undone = undone.collect();
        let mut seen = BTreeSet::new();
        let mut firsts: Vec<Activity> = self
            .all
            .into_values()
            .filter(|activity| seen.insert((activity.entity_type.clone(), activity.entity_id.clone())))
            .collect();
        firsts.reverse();
        Ok(Undo { firsts, undone })
    }
}

/// A later change, as it is reported.
pub(crate) fn dependent(activity: Activity) -> Dependent {
    Dependent {
        transaction_id: activity.txid(),
        seq: activity.seq.get(),
        action: activity.action.as_str(),
        entity_type: activity.entity_type,
        entity_id: activity.entity_id,
    }
}

fn check_reversible(catalog: &Catalog, activity: &Activity) -> Result<(), WriteError> {
    let name = &activity.entity_type;
    let keeps = catalog.by_name(name).is_some_and(|entity| entity.previous_values);
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

/// The undo would delete a row that nothing in the log connects with what is undone.
pub(crate) fn would_delete((entity_type, entity_id): &(String, String)) -> WriteError {
    WriteError::NotReversible(format!(
        "{entity_type} `{entity_id}` refers to a row that would be deleted, and would be deleted with it; delete or change it first"
    ))
}

/// A change cannot be taken back, for this reason.
pub(crate) fn not_reversible(activity: &Activity, why: &str) -> WriteError {
    WriteError::NotReversible(format!("{} `{}`: {why}", activity.entity_type, activity.entity_id))
}

/// The row as it was before a change that is no creation. Each of its values must still have its column: if that was
/// renamed, the value would be lost silently.
pub(crate) fn previous(
    activity: &Activity,
    schema: &TableSchema,
    alive: bool,
) -> Result<Columns, WriteError> {
    let previous = activity.previous_values.as_deref().and_then(|json| Columns::parse(json.as_bytes()).ok());
    let previous = previous.ok_or_else(|| not_reversible(activity, "its previous values cannot be read"))?;
    // A row that is `alive` may have a value now where it had none then: in a renamed column, which counts as another
    // one.
    let renamed =
        alive && schema.columns.iter().any(|column| !column.generated && !previous.has(&column.name));
    let lost = |(name, value): &(&str, Json<'_>)| !schema.has(name) && (renamed || !value.is_null());
    if let Some((name, value)) = previous.iter().find(lost) {
        if value.is_null() {
            let why = format!("its column `{name}` is missing in the table, or has another name there");
            return Err(not_reversible(activity, &why));
        }
        let why = format!("it had a value in column `{name}`, which the table does not have any more");
        return Err(not_reversible(activity, &why));
    }
    Ok(previous)
}

/// The columns of a row as it was, but for its key and for its transactions, which are stamped as changed by
/// `transaction`. A row that capture sees appear takes its transaction from `insert` or `update`, whichever the log does not
/// know yet.
pub(crate) fn previous_columns<'a>(
    entity: &EntityType,
    schema: &'a TableSchema,
    previous: &Columns,
    transaction: &str,
) -> Vec<(&'a Column, Box<RawValue>)> {
    let kept = &schema.kept;
    let skipped = |name: &String| {
        *name == entity.key || [&kept.last_client_id, &kept.modified_at].contains(&&Some(name.clone()))
    };
    let restored = schema.columns.iter().filter(|column| !column.generated && !skipped(&column.name));
    restored
        .filter_map(|column| {
            let value = previous.get(&column.name)?;
            let text = match kept.transactions.as_ref() == Some(&column.name) {
                true => stamp(inserted_by(value).as_deref(), Some(transaction), None),
                false => value.text().to_owned(),
            };
            Some((column, RawValue::from_string(text).ok()?))
        })
        .collect()
}

/// The `insert` of a row's transactions.
fn inserted_by(transactions: Json<'_>) -> Option<String> {
    let ids = Columns::parse(transactions.text().as_bytes()).ok()?;
    ids.get("insert")?.as_text().map(Into::into)
}

/// The `transactions` of a row, as JSON.
pub(crate) fn stamp(insert: Option<&str>, update: Option<&str>, delete: Option<&str>) -> String {
    serde_json::json!({ "insert": insert, "update": update, "delete": delete }).to_string()
}

/// What a rollback undid, as the ledger keeps it.
pub(crate) fn write_outcome(undone: &[Undone]) -> Option<String> {
    serde_json::to_string(undone).ok()
}

/// Reads back what [`write_outcome`] wrote.
pub(crate) fn read_outcome(json: &str) -> Vec<Undone> {
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
