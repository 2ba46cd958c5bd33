//! Undoing a transaction: its changes are reverted, newest first, as one new transaction. Later transactions on the
//! same rows block it, or are undone with it.

use std::collections::{BTreeMap, BTreeSet};

use bourn_protocol::limits::ROLLBACK_MAX;
use bourn_protocol::{Action, Seq, TransactionId};
use rusqlite::ToSql;
use rusqlite::types::Value as Sql;

use super::{Assignment, WriteContext};
use crate::databases::sqlite::error;
use crate::databases::sqlite::file::sequencer;
use crate::databases::sqlite::ledger::MutationResult;
use crate::databases::sqlite::log::read::{COLUMNS, read_activity};
use crate::databases::sqlite::payload::{self, StoredValue};
use crate::databases::sqlite::sql::{bytes, ident, lossy};
use crate::feed::entity::{ColumnKind, Columns};
use crate::feed::undo::{self, Plan, UndoNeed};
use crate::feed::{Activity, WriteError};

/// Length of the temporary value that a row has until it gets its own.
const PARKED_LENGTH: usize = 21;
/// How often a plan may grow by rows that would be deleted with those that it reverts.
const ROUNDS_MAX: usize = 16;

/// Undoes `target`, and with `cascade` everything that depends on it.
pub(in super::super) fn undo(
    context: &WriteContext<'_>,
    target: &TransactionId,
    cascade: bool,
) -> Result<MutationResult, WriteError> {
    let mut along = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let undo = context.plan(target, cascade, &along)?.finish(context.catalog)?;
        let before = sequencer::head(context.connection).map_err(|e| error::write(&e))?;
        context.execute("SAVEPOINT bourn_undo", Vec::new())?;
        context.take_all_back(&undo.firsts)?;
        let taken = context.taken_along(&undo.firsts, before)?;
        if taken.is_empty() {
            context.execute("RELEASE bourn_undo", Vec::new())?;
            let outcome = undo::write_outcome(&undo.undone);
            return Ok(MutationResult { undone: undo.undone, outcome, ..MutationResult::default() });
        }
        context.execute("ROLLBACK TO bourn_undo", Vec::new())?;
        context.execute("RELEASE bourn_undo", Vec::new())?;
        let new: Vec<_> = taken.iter().filter(|row| !along.contains(*row)).cloned().collect();
        if new.is_empty() {
            return Err(taken.first().map_or(WriteError::NotUnique, undo::would_delete));
        }
        along.extend(new);
    }
    Err(WriteError::TooLarge(ROLLBACK_MAX))
}

impl WriteContext<'_> {
    fn plan(
        &self,
        target: &TransactionId,
        cascade: bool,
        along: &[(String, String)],
    ) -> Result<Plan, WriteError> {
        let mut plan =
            Plan::begin(target, self.transaction_activities(target.as_str())?, cascade, self.permit)?;
        plan.take_along(along);
        while let Some(need) = plan.need()? {
            plan.give(match &need {
                UndoNeed::Later { entity_type, entity_id, after } => self.select(
                    "entity_type = ?1 AND entity_id = ?2 AND seq > ?3",
                    &[entity_type, entity_id, &after.as_i64()],
                )?,
                UndoNeed::Transaction(txid) => self.transaction_activities(txid)?,
            });
        }
        Ok(plan)
    }

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

    /// The activities of a transaction, by the id it gave or, if it gave none, by the number that streams show for it.
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

    /// The rows that `ON DELETE CASCADE` has deleted with those that were reverted.
    fn taken_along(&self, firsts: &[Activity], before: Seq) -> Result<Vec<(String, String)>, WriteError> {
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
        let planned = |(entity_type, entity_id): &(String, String)| {
            firsts.iter().any(|first| first.entity_type == *entity_type && first.entity_id == *entity_id)
        };
        Ok(deleted.into_iter().filter(|row| !planned(row)).collect())
    }

    /// Reverts all; rows that wait for another row to give up a unique value come after it.
    fn take_all_back(&self, firsts: &[Activity]) -> Result<(), WriteError> {
        let mut left: Vec<&Activity> = firsts.iter().collect();
        let mut parked = BTreeSet::new();
        while !left.is_empty() {
            let mut refused = Vec::new();
            for first in &left {
                match self.take_back(first) {
                    Err(WriteError::NotUnique) => refused.push(*first),
                    done => done?,
                }
            }
            if refused.len() == left.len() {
                // The rows have each other's values, or another row has one.
                let mut candidates = refused.iter().filter(|first| parked.insert(first.seq));
                let first = candidates.next().ok_or(WriteError::NotUnique)?;
                self.park(first)?;
            }
            left = refused;
        }
        Ok(())
    }

    /// Replaces the unique values of a row that is about to get its earlier ones.
    fn park(&self, activity: &Activity) -> Result<(), WriteError> {
        let Some(entity) = self.catalog.by_name(&activity.entity_type) else { return Ok(()) };
        let schema = entity.schema().map_err(|reason| undo::not_reversible(activity, &reason))?;
        let mut sets: Vec<Assignment<'_>> = Vec::new();
        for unique in &schema.unique {
            let movable = |name: &str| name != entity.key && entity.scope.as_deref() != Some(name);
            let columns = unique.iter().filter_map(|column| schema.column(&column.name));
            let columns = columns.filter(|column| !column.generated && movable(&column.name));
            let Some(column) = columns.min_by_key(|column| column.required) else { continue };
            let value = match column.kind {
                _ if !column.required => Sql::Null,
                ColumnKind::Integer => Sql::Integer(rand::random_range(i64::MIN..-(1 << 60))),
                _ => Sql::Text(bourn_protocol::ids::random_text(PARKED_LENGTH)),
            };
            if sets.iter().all(|set| set.column.name != column.name) {
                sets.push(Assignment::new(column, value));
            }
        }
        if sets.is_empty() || !self.exists(entity, &schema, &activity.entity_id)? {
            return Ok(());
        }
        match self.set(entity, &schema, &activity.entity_id, &sets, Action::Update) {
            // If such a value breaks a rule, the first refusal stands.
            Err(WriteError::Constraint(_)) => Err(WriteError::NotUnique),
            done => done,
        }
    }

    /// The row before a change, as the database had it.
    fn previous(&self, activity: &Activity) -> Result<BTreeMap<String, StoredValue>, WriteError> {
        let payload = self
            .connection
            .prepare_cached("SELECT previous_values FROM activities WHERE seq = ?1")
            .and_then(|mut select| {
                select.query_row([activity.seq.as_i64()], |row| Ok(bytes(row, 0)?.map(<[u8]>::to_vec)))
            })
            .map_err(|e| error::write(&e))?;
        let held = payload.as_deref().and_then(payload::held);
        held.map(BTreeMap::from_iter)
            .ok_or_else(|| undo::not_reversible(activity, "its previous values cannot be read"))
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
        let row = self.payload(entity, &schema, key)?;
        let shown = undo::previous(activity, &schema, row.is_some())?;
        let held = self.previous(activity)?;
        let ids = schema.kept.transactions.as_deref();
        let mut sets = Vec::new();
        for (column, json) in undo::previous_columns(entity, &schema, &shown, self.transaction.as_str()) {
            let held = held.get(&column.name).filter(|_| ids != Some(&column.name));
            let json = StoredValue::Json(json.get().to_owned());
            let (source, value) = held.unwrap_or(&json).bind(column);
            sets.push(Assignment { column, source, value });
        }
        if let Some(row) = row {
            // Sets only what differs. An older version of the server kept values as JSON shows them.
            let shown_now = Columns::parse(payload::json(&row).as_bytes()).unwrap_or_default();
            let held_now: BTreeMap<String, StoredValue> =
                payload::held(&row).unwrap_or_default().into_iter().collect();
            sets.retain(|Assignment { column, .. }| {
                let name = &column.name;
                let same = held.get(name) == held_now.get(name)
                    || (matches!(held.get(name), Some(StoredValue::Json(_)))
                        && shown.get(name) == shown_now.get(name));
                !same || ids == Some(name)
            });
            self.set(entity, &schema, key, &sets, Action::Update)?;
            return self.may_have(entity, &schema, key);
        }
        if let (Some(column), Some(value)) = (schema.column(&entity.key), held.get(&entity.key)) {
            let (source, value) = value.bind(column);
            sets.push(Assignment { column, source, value });
        }
        let names: Vec<String> = sets.iter().map(|set| ident(&set.column.name)).collect();
        let places: Vec<&str> = sets.iter().map(|set| set.source).collect();
        let sql = format!(
            "INSERT INTO {} ({}) VALUES ({})",
            ident(&entity.table),
            names.join(", "),
            places.join(", ")
        );
        let values = sets.into_iter().map(|set| set.value).collect();
        self.in_context(self.needs_context(&schema), || self.execute(&sql, values))?;
        self.may_have(entity, &schema, key)
    }
}
