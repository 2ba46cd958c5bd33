//! Reconciling a table with the log: wherever the log's last state of a row differs from the row, the
//! difference is appended as an ordinary activity. Against an empty log this is the first backfill; after
//! triggers were missing for a while it is the repair. It goes in small steps, so that other writers get their
//! turns, and each step compares within one transaction, so that nothing is done twice.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bourn_protocol::{Action, Seq};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, params};

use crate::capture::compare::{Difference, Position, RowVersion, difference};
use crate::databases::sqlite::payload;
use crate::databases::sqlite::sql::{
    by_key, bytes, field, ident, key_text, literal, lossy, scope_text, visible,
};
use crate::feed::entity::{EntityType, TableSchema};

/// Keys compared in one step, at most.
const STEP_KEYS: usize = 500;
/// How long a step may take, its commit aside: other processes cannot write meanwhile.
const STEP_TIME: Duration = Duration::from_millis(10);

/// How far the reconciling of one table has come.
#[derive(Debug)]
pub(in super::super) struct Reconcile {
    pub(in super::super) entity: Arc<EntityType>,
    pub(in super::super) schema: Arc<TableSchema>,
    /// Keys looked at so far.
    pub(in super::super) looked_at: u64,
    position: Position<Sql>,
}

/// The last state of a key as the log has it.
struct LoggedRow {
    seq: i64,
    alive: bool,
    value: Option<Vec<u8>>,
    scope: Option<String>,
}

impl Reconcile {
    pub(in super::super) fn new(entity: Arc<EntityType>, schema: Arc<TableSchema>) -> Reconcile {
        Reconcile { entity, schema, looked_at: 0, position: Position::Rows(None) }
    }

    /// Does one step inside the caller's write transaction; returns whether that was the last one.
    pub(in super::super) fn step(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        self.position = match self.position.clone() {
            Position::Rows(after) => Position::after_rows(self.step_rows(connection, after)?, false),
            Position::Activities(after) => Position::after_activities(self.step_keys(connection, after)?),
            Position::Done => Position::Done,
        };
        Ok(self.position == Position::Done)
    }

    fn step_rows(&mut self, connection: &Connection, after: Option<Sql>) -> rusqlite::Result<Option<Sql>> {
        let (entity, schema) = (&self.entity, &self.schema);
        let key = field("t", &entity.key);
        // Two statements: one with `?1 IS NULL OR …` would start from the first key every time.
        let from = if after.is_some() { format!("{key} > ?1") } else { "?1 IS NULL".into() };
        let sql = format!(
            "SELECT {key}, {}, {}, {} FROM {} t WHERE {from} AND {} ORDER BY {key} LIMIT {STEP_KEYS}",
            key_text(entity, schema, "t"),
            scope_text(entity, schema, "t"),
            payload::row(schema, "t"),
            ident(&entity.table),
            visible(entity, schema, "t")
        );
        let started = Instant::now();
        let mut rows: Vec<(Sql, String, Option<String>, Vec<u8>)> = connection
            .prepare_cached(&sql)?
            .query_map([after], |row| {
                let text = |i| Ok::<_, rusqlite::Error>(lossy(row, i)?.unwrap_or_default());
                Ok((row.get(0)?, text(1)?, lossy(row, 2)?, bytes(row, 3)?.unwrap_or_default().to_vec()))
            })?
            .scan(false, |late, row| {
                // The first row is taken however long it took.
                let taken = (!*late).then_some(row);
                *late = started.elapsed() >= STEP_TIME / 2;
                taken
            })
            .collect::<Result<_, _>>()?;
        let mut compared = 0;
        for (_, key, scope, value) in &rows {
            // At least one row, or the comparison would never end.
            if compared > 0 && started.elapsed() >= STEP_TIME {
                break;
            }
            compared += 1;
            let logged = self.logged(connection, key)?;
            let scope = scope.as_deref();
            self.settle(connection, key, logged.as_ref(), Some((scope, value)))?;
        }
        self.looked_at += u64::try_from(compared).unwrap_or(0);
        let full = compared == STEP_KEYS || started.elapsed() >= STEP_TIME / 2;
        rows.truncate(compared);
        Ok(rows.into_iter().next_back().map(|(key, ..)| key).filter(|_| full))
    }

    fn step_keys(&mut self, connection: &Connection, after: Seq) -> rusqlite::Result<Option<Seq>> {
        let (entity, schema) = (&self.entity, &self.schema);
        let activities: Vec<(i64, String)> = connection
            .prepare_cached(&format!(
                "SELECT seq, entity_id FROM activities WHERE entity_type = ?1 AND seq > ?2 ORDER BY seq LIMIT {STEP_KEYS}"
            ))?
            .query_map(params![&*entity.name, after.as_i64()], |row| Ok((row.get(0)?, lossy(row, 1)?.unwrap_or_default())))?
            .collect::<Result<_, _>>()?;
        let there = format!(
            "SELECT 1 FROM {} t WHERE {} AND {}",
            ident(&entity.table),
            by_key(entity, schema, "?1"),
            visible(entity, schema, "t")
        );
        let started = Instant::now();
        let mut compared = 0;
        for (seq, key) in &activities {
            if compared > 0 && started.elapsed() >= STEP_TIME {
                break;
            }
            compared += 1;
            // A row can be missing only if the key's last activity leaves it alive.
            let Some(logged) =
                self.logged(connection, key)?.filter(|logged| logged.alive && logged.seq == *seq)
            else {
                continue;
            };
            if !connection.prepare_cached(&there)?.exists([key])? {
                self.settle(connection, key, Some(&logged), None)?;
            }
        }
        self.looked_at += u64::try_from(compared).unwrap_or(0);
        let full = compared == STEP_KEYS || compared < activities.len();
        Ok(activities[..compared].last().and_then(|(seq, _)| Seq::from_i64(*seq)).filter(|_| full))
    }

    fn logged(&self, connection: &Connection, key: &str) -> rusqlite::Result<Option<LoggedRow>> {
        connection
            .prepare_cached(
                "SELECT seq, action <> 'delete', value, organization_id FROM activities \
                 WHERE entity_id = ?1 AND entity_type = ?2 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row([key, &self.entity.name], |row| {
                Ok(LoggedRow {
                    seq: row.get(0)?,
                    alive: row.get(1)?,
                    value: bytes(row, 2)?.map(<[u8]>::to_vec),
                    scope: lossy(row, 3)?,
                })
            })
            .optional()
    }

    /// Appends what the log lacks of a row: `row` is its scope and its payload, if the table has it.
    fn settle(
        &self,
        connection: &Connection,
        key: &str,
        logged: Option<&LoggedRow>,
        row: Option<(Option<&str>, &[u8])>,
    ) -> rusqlite::Result<()> {
        let logged = logged.filter(|logged| logged.alive);
        let value = row.map(|(_, value)| value);
        let previous = logged.and_then(|logged| logged.value.as_deref());
        let (logged_scope, scope) =
            (logged.and_then(|logged| logged.scope.as_deref()), row.and_then(|(scope, _)| scope));
        let (logged_json, json) = match previous == value {
            // Equal as bytes, so that neither needs its JSON.
            true => (Cow::Borrowed(""), Cow::Borrowed("")),
            false => (
                previous.map(payload::json).unwrap_or_default(),
                value.map(payload::json).unwrap_or_default(),
            ),
        };
        let difference = difference(
            key,
            logged.map(|_| RowVersion { scope: logged_scope, json: &logged_json }),
            row.map(|_| RowVersion { scope, json: &json }),
        );
        let append =
            |action, scope, value, previous| self.append(connection, action, key, scope, value, previous);
        match difference {
            Difference::Nothing => Ok(()),
            Difference::Create => append(Action::Create, scope, value, None),
            Difference::Update => append(Action::Update, scope, value, previous),
            Difference::Delete => append(Action::Delete, logged_scope, None, previous),
            Difference::Move => {
                append(Action::Delete, logged_scope, None, previous)?;
                append(Action::Create, scope, value, None)
            }
        }
    }

    fn append(
        &self,
        connection: &Connection,
        action: Action,
        key: &str,
        scope: Option<&str>,
        value: Option<&[u8]>,
        previous: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        let name = literal(&self.entity.name);
        connection
            .prepare_cached(&format!(
                "INSERT INTO bourn_feeds (entity_type, scope) SELECT {name}, coalesce(?1, '') \
                 WHERE NOT EXISTS (SELECT 1 FROM bourn_feeds WHERE entity_type = {name} AND scope = coalesce(?1, ''))"
            ))?
            .execute([scope])?;
        connection
            .prepare_cached(&format!(
                "INSERT INTO activities (action, entity_type, entity_id, feed_id, organization_id, value, previous_values, created_at) \
                 SELECT ?1, {name}, ?2, id, ?3, CAST(?4 AS TEXT), CAST(?5 AS TEXT), strftime('%Y-%m-%dT%H:%M:%fZ', 'now') \
                 FROM bourn_feeds WHERE entity_type = {name} AND scope = coalesce(?3, '')"
            ))?
            .execute(params![action.as_str(), key, scope, value, previous.filter(|_| self.entity.previous_values)])?;
        Ok(())
    }
}
