//! Reading a table, and the log's state of it, in steps: each in a snapshot of its own, with a mark in the replication
//! stream behind it. Once the leader has come past the mark, the log has all that the snapshot saw, and the two can be
//! compared.

use std::collections::HashSet;
use std::sync::Arc;

use bourn_protocol::Seq;
use pgwire_replication::Lsn;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::failure::{self, Remedy};
use crate::capture::compare::Position;
use crate::databases::postgres::connections::{Db, scalar, statement};
use crate::databases::postgres::error;
use crate::databases::postgres::log::stops;
use crate::databases::postgres::log::walk::{END, Walk};
use crate::databases::postgres::names::field;
use crate::databases::postgres::tables::catalog::Table;
use crate::databases::postgres::tables::rows;
use crate::databases::postgres::tables::sql::{text_of, texts, typed, visible};

/// Rows read in one step.
const STEP_ROWS: usize = 2_000;
/// Activities looked through in one step.
const STEP_ACTIVITIES: i64 = 20_000;

/// How far the comparing of a table has come; by the keys' text.
pub(super) type ScanPosition = Position<String>;

/// The transactions that a snapshot sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    xmin: i64,
    xmax: i64,
    running: HashSet<i64>,
}

impl Snapshot {
    /// Reads PostgreSQL's text form, `xmin:xmax:running,…`.
    pub(super) fn read(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let mut number = || parts.next()?.parse().ok();
        let (xmin, xmax) = (number()?, number()?);
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        let running = running.map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        Some(Snapshot { xmin, xmax, running })
    }

    /// Whether the snapshot sees the changes of a transaction that has committed by now.
    pub(super) fn sees(&self, transaction: i64) -> bool {
        transaction < self.xmin || (transaction < self.xmax && !self.running.contains(&transaction))
    }
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) key: String,
    pub(super) scope: Option<String>,
    pub(super) value: Arc<str>,
}

/// One step.
#[derive(Debug)]
pub(super) struct ScanStep {
    pub(super) snapshot: Snapshot,
    /// The log must have come past this.
    pub(super) mark: Lsn,
    /// Rows that exist.
    pub(super) rows: Vec<Scanned>,
    /// Keys that the log had alive whose rows do not exist, or cannot be read and are to be passed over.
    pub(super) missing: Vec<String>,
    /// How many keys were looked at.
    pub(super) looked_at: usize,
    /// Where the next step begins.
    pub(super) next: ScanPosition,
}

/// Why a step was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The database cannot give a row; its key, and the SQLSTATE.
    Row(String, String),
    /// The statement failed.
    Failed(sqlx::Error),
}

impl From<sqlx::Error> for Unread {
    fn from(failure: sqlx::Error) -> Unread {
        Unread::Failed(failure)
    }
}

/// Reads one step.
pub(super) async fn step(
    db: &Db,
    name: &Arc<str>,
    table: &Table,
    place: &ScanPosition,
    from_empty: bool,
) -> Result<ScanStep, Unread> {
    // Locked before the snapshot is taken: a rewrite of the table does not respect snapshots.
    let mut transaction = db.snapshot_of(&[&table.sql]).await?;
    let mut snapshot = taken(&mut transaction).await?;
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    let (looked_at, next) = match place {
        ScanPosition::Rows(after) => {
            let range = (after.as_deref(), None);
            let last = match scan_rows(&mut transaction, table, range).await {
                Err(failure) if failure::of_statement(&failure) == Remedy::Row => {
                    drop(transaction);
                    transaction = db.snapshot_of(&[&table.sql]).await?;
                    snapshot = taken(&mut transaction).await?;
                    let keys = scan_row_keys(&mut transaction, table, after.as_deref()).await?;
                    (rows, missing) =
                        sift_rows(&mut transaction, name, table, (after.as_deref(), &keys)).await?;
                    keys.last().cloned()
                }
                read => {
                    rows = read?;
                    rows.last().map(|row| row.key.clone())
                }
            };
            let count = rows.len() + missing.len();
            (count, ScanPosition::after_rows(last.filter(|_| count == STEP_ROWS), from_empty))
        }
        ScanPosition::Activities(after) => {
            let by_index = scan_keys(&mut transaction, name, table, *after, KeysBy::Index).await;
            let (keys, looked_at, last) = match by_index {
                // The log has keys that the column's type does not accept: the type was changed, or one of its labels.
                Err(failure) if error::names_nothing(&failure) => {
                    drop(transaction);
                    transaction = db.snapshot_of(&[&table.sql]).await?;
                    snapshot = taken(&mut transaction).await?;
                    scan_keys(&mut transaction, name, table, *after, KeysBy::Text).await?
                }
                found => found?,
            };
            missing = keys;
            (looked_at, ScanPosition::after_activities(last))
        }
        ScanPosition::Done => (0, ScanPosition::Done),
    };
    transaction.commit().await?;
    let mark = db.mark().await?;
    Ok(ScanStep { snapshot, mark, rows, missing, looked_at, next })
}

/// The snapshot of a transaction.
async fn taken(connection: &mut PgConnection) -> Result<Snapshot, sqlx::Error> {
    let snapshot: String = scalar("SELECT pg_current_snapshot()::text").fetch_one(connection).await?;
    Snapshot::read(&snapshot).ok_or_else(|| sqlx::Error::Decode("a snapshot of an unknown form".into()))
}

/// How the log's keys are looked for in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeysBy {
    /// As values of the column's type, by its index.
    Index,
    /// As text, which any key of the log is; by reading the whole table.
    Text,
}

/// The rows behind a key, up to another one.
async fn scan_rows(
    connection: &mut PgConnection,
    table: &Table,
    (after, until): (Option<&str>, Option<&str>),
) -> Result<Vec<Scanned>, sqlx::Error> {
    let (selected, range) = (texts(table), range(table, after.is_some(), until.is_some()));
    let sql = format!("SELECT {selected} {range}");
    let found = statement(AssertSqlSafe(sql)).bind(after).bind(until).fetch_all(connection).await?;
    let text = |row: &sqlx::postgres::PgRow, at: usize| row.try_get::<Option<String>, _>(at);
    let scanned = found.iter().map(|row| {
        let scope = table.layout.scope.map(|at| text(row, at)).transpose()?.flatten();
        let key = text(row, table.layout.key)?.unwrap_or_default();
        Ok(Scanned { key, scope, value: rows::json(table, row).into() })
    });
    scanned.collect()
}

/// The keys of the rows behind a key.
async fn scan_row_keys(
    connection: &mut PgConnection,
    table: &Table,
    after: Option<&str>,
) -> Result<Vec<String>, sqlx::Error> {
    let sql = format!("SELECT {} {}", text_of(table.key()), range(table, after.is_some(), false));
    scalar(AssertSqlSafe(sql)).bind(after).bind(None::<&str>).fetch_all(connection).await
}

/// The range and number of rows that a step reads: behind `$1` and up to `$2`, where they are given.
fn range(table: &Table, after: bool, until: bool) -> String {
    let key = field(&table.key().name);
    let bound = |given: bool, place: usize, compared: &str| match given {
        true => format!("{key} {compared} {}", typed(place, table.key())),
        false => format!("${place}::text IS NULL"),
    };
    format!(
        "FROM {} t WHERE {} AND {} AND {key} IS NOT NULL AND {} ORDER BY {key} LIMIT {STEP_ROWS}",
        table.sql,
        bound(after, 1, ">"),
        bound(until, 2, "<="),
        visible(table)
    )
}

/// Reads the rows of these keys, which follow each other, in pieces that can be read. Returns the rows, and the keys of
/// those that cannot be read and are to be passed over.
async fn sift_rows(
    transaction: &mut PgConnection,
    name: &Arc<str>,
    table: &Table,
    (after, keys): (Option<&str>, &[String]),
) -> Result<(Vec<Scanned>, Vec<String>), Unread> {
    let skipped = stops::skipped(transaction).await?;
    let (mut rows, mut passed_over) = (Vec::new(), Vec::new());
    // The next piece is the last of these.
    let mut pieces = Vec::new();
    pieces.push(0..keys.len());
    while let Some(piece) = pieces.pop().filter(|piece| !piece.is_empty()) {
        let behind = piece.start.checked_sub(1).map_or(after, |before| Some(keys[before].as_str()));
        statement("SAVEPOINT piece").execute(&mut *transaction).await?;
        let read = scan_rows(transaction, table, (behind, Some(&keys[piece.end - 1]))).await;
        let failure = match read {
            Ok(read) => {
                rows.extend(read);
                statement("RELEASE SAVEPOINT piece").execute(&mut *transaction).await?;
                continue;
            }
            Err(failure) => failure,
        };
        if failure::of_statement(&failure) != Remedy::Row {
            return Err(failure.into());
        }
        statement("ROLLBACK TO SAVEPOINT piece").execute(&mut *transaction).await?;
        let key = &keys[piece.start];
        if piece.len() > 1 {
            let middle = piece.start + piece.len() / 2;
            pieces.extend([middle..piece.end, piece.start..middle]);
        } else if skipped.contains(&(name.clone(), key.clone())) {
            tracing::warn!(entity = &**name, key, "a skipped row is passed over");
            passed_over.push(key.clone());
        } else {
            return Err(Unread::Row(key.clone(), error::code(&failure).unwrap_or_default()));
        }
    }
    Ok((rows, passed_over))
}

/// The keys that the log has alive and the table does not have, among the next activities; with the number of these,
/// and the last of them if there may be more.
async fn scan_keys(
    connection: &mut PgConnection,
    name: &str,
    table: &Table,
    after: Seq,
    how: KeysBy,
) -> Result<(Vec<String>, usize, Option<Seq>), sqlx::Error> {
    let key = text_of(table.key());
    let same = match how {
        KeysBy::Index => format!(
            "{} = p.entity_id::{} AND {key} = p.entity_id",
            field(&table.key().name),
            table.key().type_name
        ),
        KeysBy::Text => format!("{key} = p.entity_id"),
    };
    let there = format!("EXISTS (SELECT 1 FROM {} t WHERE {same} AND {})", table.sql, visible(table));
    let (of_type, of_row) = (Walk::of_type("a", "$1"), Walk::of_row("b", "$1", "p.entity_id"));
    // The page has a key's last activity, or none that counts.
    let sql = format!(
        "WITH page AS MATERIALIZED (SELECT a.seq, a.entity_id, a.action FROM bourn.activities a WHERE {} {} LIMIT {STEP_ACTIVITIES}), \
         keys AS MATERIALIZED (SELECT DISTINCT ON (entity_id) entity_id, seq, action FROM page ORDER BY entity_id, seq DESC) \
         SELECT NULL AS entity_id, count(*), max(seq) FROM page \
         UNION ALL SELECT p.entity_id, 0, 0 FROM keys p WHERE p.action <> 'delete' \
           AND p.seq = ({}) AND NOT {there}",
        of_type.between("$2", END),
        of_type.oldest_first(),
        of_row.newest("b.seq", END),
    );
    let found = statement(AssertSqlSafe(sql)).bind(name).bind(after.as_i64()).fetch_all(connection).await?;
    let (mut missing, mut count, mut last) = (Vec::new(), 0, None);
    for row in found {
        match row.try_get::<Option<String>, _>(0)? {
            Some(key) => missing.push(key),
            None => {
                count = row.try_get::<i64, _>(1)?;
                last = row.try_get::<Option<i64>, _>(2)?.and_then(Seq::from_i64);
            }
        }
    }
    let last = last.filter(|_| count == STEP_ACTIVITIES);
    Ok((missing, usize::try_from(count).unwrap_or_default(), last))
}

/// Why a table cannot be read, as text for its operator; the database's own words are logged alone.
pub(super) fn in_words(code: &str) -> String {
    let why = match code.get(..2) {
        Some("42") => "the database refuses the server, or the table has changed",
        Some("53") => "the database is short of memory, disk or connections",
        Some("57") => "the reading is cancelled, or takes longer than `capture_timeout`",
        Some("55" | "40") => "other transactions hold it",
        _ => "the database failed",
    };
    let code = if code.is_empty() { String::new() } else { format!(" (SQLSTATE {code})") };
    format!("the table cannot be read to be compared with the log: {why}{code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended_when_it_was_taken() {
        let snapshot = Snapshot::read("10:20:12,15").unwrap();
        assert!(snapshot.sees(9) && snapshot.sees(11) && snapshot.sees(19));
        assert!(!snapshot.sees(12) && !snapshot.sees(15) && !snapshot.sees(20) && !snapshot.sees(99));
        assert!(Snapshot::read("10:10:").unwrap().sees(9));
        assert_eq!(Snapshot::read("10"), None);
    }
}
