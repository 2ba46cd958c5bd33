//! Undoing a transaction: its changes are reverted, newest first, as one new transaction. The log lags behind the
//! tables, so the rows are locked first, and then the undo waits until the log has all changes of them.

use std::collections::BTreeSet;
use std::time::Duration;

use bourn_protocol::limits::ROLLBACK_MAX;
use bourn_protocol::{Action, TransactionId};
use sqlx::{AssertSqlSafe, PgConnection};

use super::expect::{CaptureWait, caught_up};
use super::record::json_value;
use super::{MutationResult, Sets, WriteContext, cascade, locked, stamps_of};
use crate::databases::postgres::connections::statement;
use crate::databases::postgres::error;
use crate::databases::postgres::log::read::{COLUMNS, read_activity};
use crate::databases::postgres::log::walk::{END, Walk};
use crate::databases::postgres::tables::rows;
use crate::feed::entity::{ColumnKind, Columns};
use crate::feed::undo::{self, Plan, UndoNeed};
use crate::feed::{Activity, WriteError};
use crate::storage_error::StorageError;

/// How long an undo waits for capture.
const PATIENCE: CaptureWait = CaptureWait { most: Duration::from_secs(5), between: Duration::from_millis(5) };
/// The number of temporary integers that a row may have until it gets its own value.
const PARKED_NUMBERS: i32 = 1 << 24;
/// How often the rows to undo may grow while they are being locked.
const ROUNDS_MAX: usize = 16;

/// Undoes `target`, and with `cascade` whatever depends on it.
pub(in super::super) async fn undo(
    context: &WriteContext<'_>,
    transaction: &mut PgConnection,
    target: &TransactionId,
    cascade: bool,
) -> Result<MutationResult, WriteError> {
    let mut held = BTreeSet::new();
    let mut along = BTreeSet::new();
    let mut rounds = 0;
    let plan = loop {
        let storage = context.storage;
        let db = &storage.inner.db;
        if rounds == ROUNDS_MAX
            || !caught_up(db, transaction, PATIENCE).await.map_err(|e| error::write(&e))?
        {
            return Err(WriteError::Storage(StorageError::Slow));
        }
        rounds += 1;
        let plan = plan(context, transaction, target, cascade, &along).await?;
        let new: Vec<_> = plan.rows().into_iter().filter(|row| !held.contains(row)).collect();
        if new.is_empty() {
            let found = along_with(context, transaction, &plan).await?;
            if found.is_subset(&along) {
                plan.check_along(found.iter())?;
                break plan;
            }
            along.extend(found);
        }
        for (name, key) in new {
            if let Some(table) =
                storage.inner.catalog.by_name(&name).and_then(|entity| storage.table(entity).ok())
            {
                locked(transaction, &table, &key, "true").await?;
            }
            held.insert((name, key));
        }
    };
    let undo = plan.finish(&context.storage.inner.catalog)?;
    take_all_back(context, transaction, &undo.firsts).await?;
    Ok(MutationResult { undone: undo.undone, ..MutationResult::default() })
}

/// The rows that would be deleted with those whose creation is undone. The latter are locked, so that no further row
/// can refer to them.
async fn along_with(
    context: &WriteContext<'_>,
    transaction: &mut PgConnection,
    plan: &Plan,
) -> Result<BTreeSet<(String, String)>, WriteError> {
    let storage = context.storage;
    let mut found = BTreeSet::new();
    for (name, key) in plan.removed() {
        let table = storage.inner.catalog.by_name(&name).and_then(|entity| storage.table(entity).ok());
        // Where deletion is soft nothing is deleted along.
        let Some(table) = table.filter(|table| table.checked.kept.deleted_at.is_none()) else { continue };
        let along = cascade::deleted_along(storage, transaction, &table, &key).await;
        found.extend(along.map_err(|e| error::write(&e))?);
    }
    Ok(found)
}

/// Reverts all; rows that wait for another row to give up a unique value come after it.
async fn take_all_back(
    context: &WriteContext<'_>,
    transaction: &mut PgConnection,
    firsts: &[Activity],
) -> Result<(), WriteError> {
    let failed = |e: sqlx::Error| error::write(&e);
    let mut left: Vec<&Activity> = firsts.iter().collect();
    let mut parked = BTreeSet::new();
    while !left.is_empty() {
        let mut refused = Vec::new();
        for first in &left {
            cascade::mark(transaction, "SAVEPOINT bourn_undo").await.map_err(failed)?;
            match take_back(context, transaction, first).await {
                Err(WriteError::NotUnique) => {
                    cascade::mark(transaction, "ROLLBACK TO SAVEPOINT bourn_undo").await.map_err(failed)?;
                    refused.push(*first);
                }
                done => done?,
            }
            cascade::mark(transaction, "RELEASE SAVEPOINT bourn_undo").await.map_err(failed)?;
        }
        if refused.len() == left.len() {
            // The rows have each other's values, or another row has one.
            let mut candidates = refused.iter().filter(|first| parked.insert(first.seq));
            let first = candidates.next().ok_or(WriteError::NotUnique)?;
            park(context, transaction, first).await?;
        }
        left = refused;
    }
    Ok(())
}

/// Replaces the unique values of a row that is about to get its earlier ones.
async fn park(
    context: &WriteContext<'_>,
    transaction: &mut PgConnection,
    activity: &Activity,
) -> Result<(), WriteError> {
    let storage = context.storage;
    let Some(entity) = storage.inner.catalog.by_name(&activity.entity_type) else { return Ok(()) };
    let table = storage.table(entity)?;
    let Some(row) = locked(transaction, &table, &activity.entity_id, "true").await? else { return Ok(()) };
    let fixed: Vec<&str> = [entity.key.as_str()].into_iter().chain(entity.scope.as_deref()).collect();
    let movable = cascade::movable(transaction, &table, &fixed).await.map_err(|e| error::write(&e))?;
    let mut values = Columns::default();
    for (name, nullable) in movable {
        let number = table.checked.column(&name).is_some_and(|column| column.kind == ColumnKind::Integer);
        match (nullable, number) {
            (true, _) => values.set_text(&name, None),
            (false, true) => {
                values.set(
                    &name,
                    json_value(rand::random_range(i32::MIN..i32::MIN + PARKED_NUMBERS).to_string())?,
                );
            }
            (false, false) => {
                let hex = format!("{:032x}", rand::random::<u128>());
                values.set_text(&name, Some(&hex));
            }
        }
    }
    let stamps = stamps_of(&table, &row);
    let sets = Sets { values, now: Vec::new() };
    match context.set(transaction, &table, &activity.entity_id, sets, &stamps, Action::Update).await {
        // If such a value breaks a rule, the first refusal stands.
        Err(WriteError::Constraint(_)) => Err(WriteError::NotUnique),
        done => done.map(|_| ()),
    }
}

async fn plan(
    context: &WriteContext<'_>,
    connection: &mut PgConnection,
    target: &TransactionId,
    cascade: bool,
    along: &BTreeSet<(String, String)>,
) -> Result<Plan, WriteError> {
    let mut plan =
        Plan::begin(target, of_transaction(connection, target.as_str()).await?, cascade, context.permit)?;
    plan.take_along(along);
    while let Some(need) = plan.need()? {
        plan.give(match &need {
            UndoNeed::Later { entity_type, entity_id, after } => {
                let walk = Walk::of_row("a", "$1", "$2");
                let sql = select(&walk.between("$3", END), &walk.oldest_first());
                let query = statement(AssertSqlSafe(sql));
                read(connection, query.bind(entity_type).bind(entity_id).bind(after.as_i64())).await?
            }
            UndoNeed::Transaction(txid) => of_transaction(connection, txid).await?,
        });
    }
    Ok(plan)
}

fn select(condition: &str, order: &str) -> String {
    let limit = ROLLBACK_MAX + 1;
    format!("SELECT {COLUMNS} FROM bourn.activities a WHERE {condition} {order} LIMIT {limit}")
}

async fn read(
    connection: &mut PgConnection,
    query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
) -> Result<Vec<Activity>, WriteError> {
    let rows = query.fetch_all(connection).await.map_err(|e| error::write(&e))?;
    rows.iter().map(|row| read_activity(row).map_err(|e| error::write(&e))).collect()
}

/// The activities of a transaction, by the id it gave or, if it gave none, by the number that streams show for it.
async fn of_transaction(connection: &mut PgConnection, txid: &str) -> Result<Vec<Activity>, WriteError> {
    // Ordered by an expression that no index has: the planner must not search the whole log.
    let order = "ORDER BY seq + 0";
    let by_id = select("transaction_id = $1", order);
    let named = read(connection, statement(AssertSqlSafe(by_id)).bind(txid)).await?;
    match txid.parse::<i64>() {
        Ok(commit) if named.is_empty() => {
            let by_number = select("commit_id = $1 AND transaction_id IS NULL", order);
            read(connection, statement(AssertSqlSafe(by_number)).bind(commit)).await
        }
        _ => Ok(named),
    }
}

async fn take_back(
    context: &WriteContext<'_>,
    transaction: &mut PgConnection,
    activity: &Activity,
) -> Result<(), WriteError> {
    let storage = context.storage;
    let entity = storage
        .inner
        .catalog
        .by_name(&activity.entity_type)
        .ok_or_else(|| undo::not_reversible(activity, "its type is not served any more"))?;
    let table = storage.table(entity)?;
    let key = &activity.entity_id;
    let row = locked(transaction, &table, key, "true").await?;
    let stamps = row.as_ref().map(|row| stamps_of(&table, row)).unwrap_or_default();
    if activity.action == Action::Create {
        return match row {
            Some(_) => context.remove(transaction, &table, key, &stamps).await.map(|_| ()),
            None => Ok(()),
        };
    }
    let previous = undo::previous(activity, &table.checked, row.is_some())?;
    let columns = undo::previous_columns(entity, &table.checked, &previous, context.transaction.as_str());
    let mut values = Columns::default();
    for (column, value) in columns {
        values.set(&column.name, value);
    }
    if let Some(row) = row {
        // Sets only what differs.
        let now = Columns::parse(rows::json(&table, &row).as_bytes()).unwrap_or_default();
        values.retain(|name, _| {
            now.get(name) != previous.get(name) || table.checked.kept.transactions.as_deref() == Some(name)
        });
        let sets = Sets { values, now: Vec::new() };
        let row = context.set(transaction, &table, key, sets, &stamps, Action::Update).await?;
        return context.may_have(entity, &table, &row);
    }
    values.set_text(&entity.key, Some(key));
    let sets = Sets { values, now: Vec::new() };
    let row = context.insert(transaction, &table, &sets).await?;
    context.may_have(entity, &table, &row)
}
