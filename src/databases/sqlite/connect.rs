//! Opening the file: pragmas, and the migrations that make the log's own tables.

use std::path::Path;
use std::time::Duration;

use bourn_protocol::Epoch;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::payload;
use crate::databases::OpenError;

const MIGRATIONS: [(i64, &str); 8] = [
    (1, include_str!("../../../migrations/sqlite/0001_log.sql")),
    (2, include_str!("../../../migrations/sqlite/0002_streams.sql")),
    (3, include_str!("../../../migrations/sqlite/0003_retention.sql")),
    (4, include_str!("../../../migrations/sqlite/0004_triggers.sql")),
    (5, include_str!("../../../migrations/sqlite/0005_clashes.sql")),
    (6, include_str!("../../../migrations/sqlite/0006_scale.sql")),
    (7, include_str!("../../../migrations/sqlite/0007_entries.sql")),
    (8, include_str!("../../../migrations/sqlite/0008_subjects.sql")),
];
pub(super) const DEMO: &str = include_str!("../../../migrations/sqlite/demo.sql");
/// Pages after which the write-ahead log is folded into the file: 32 MiB. A page that many commits touch is then written
/// to the file once for all of them, and a commit seldom waits for it.
const CHECKPOINT_PAGES: i64 = 8_192;
/// Prepared statements kept per connection.
const STATEMENT_CACHE: usize = 128;

/// The error of a statement that failed; with a remedy, where one is known.
pub(super) fn open_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
            "; the file and its directory must be there and must be writable"
        }
        Some(ErrorCode::DatabaseBusy) => "; another process holds it",
        _ => "",
    };
    // Without the statement itself, which may be a whole migration.
    let words = match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    };
    OpenError::new(&path.display(), &format_args!("{words}{advice}"))
}

/// The connection that writes, to a file that may have to be made.
pub(super) fn new_writer(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    open_writer(path, busy, OpenFlags::SQLITE_OPEN_CREATE)
}

/// The connection that writes. There is one in a process.
pub(super) fn writer(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    open_writer(path, busy, OpenFlags::empty())
}

fn open_writer(path: &Path, busy: Duration, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // FULL: under NORMAL a power cut can take back commits that were already served and give their offsets
    // to other bytes.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn reader(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    // Opened read-write all the same: a read-only connection cannot make the -shm file that it may need.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).or_else(|_| {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
    })?;
    connection.busy_timeout(busy)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(connection)
}

/// Whether the file holds no table yet, neither ours nor another's.
pub(super) fn is_new(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table')", [], |row| {
        row.get(0)
    })
}

/// Whether the log's own tables are there.
pub(super) fn has_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'bourn_log')", [], |row| {
        row.get(0)
    })
}

const MIGRATIONS_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS bourn_migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL);\n";

/// The statements of the migrations after a version, for a log of this epoch.
fn statements(done: i64, epoch: Epoch) -> String {
    let pending = MIGRATIONS.into_iter().filter(|(version, _)| *version > done);
    pending
        .map(|(version, sql)| {
            let noted = format!(
                "INSERT INTO bourn_migrations VALUES ({version}, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));"
            );
            format!("{}\n{noted}\n", sql.replace("{epoch}", epoch.as_str()))
        })
        .collect()
}

/// The last migration that this program knows.
const NEWEST: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// The last migration that was applied; zero when none was.
fn applied(connection: &Connection) -> rusqlite::Result<i64> {
    let there = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'bourn_migrations')";
    if !connection.query_row(there, [], |row| row.get(0))? {
        return Ok(0);
    }
    connection.query_row("SELECT coalesce(max(version), 0) FROM bourn_migrations", [], |row| row.get(0))
}

/// Why the log's own tables cannot be used or made, as text.
pub(super) fn unfit(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let done = applied(connection)?;
    if done > NEWEST {
        return Ok(Some(format!(
            "its log was made by a newer version of bourn (layout {done}; this version knows {NEWEST}); update bourn"
        )));
    }
    let taken = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'activities' COLLATE NOCASE)";
    if done == 0 && connection.query_row(taken, [], |row| row.get(0))? {
        return Ok(Some(
            "it has a table (or a view) `activities` of its own, and the log of changes needs that name; rename it".into(),
        ));
    }
    Ok(None)
}

/// Makes the log's own tables, as far as they are missing; returns whether all of them were.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<bool> {
    // Takes no lock where nothing is to be done: other processes may be writing.
    if applied(connection)? == NEWEST {
        payload::mend_scale(connection)?;
        return Ok(false);
    }
    // Another server on the same file may be migrating it, too: the write lock decides.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(MIGRATIONS_TABLE)?;
    let done = applied(&transaction)?;
    transaction.execute_batch(&statements(done, Epoch::draw()))?;
    payload::mend_scale(&transaction)?;
    transaction.commit()?;
    Ok(done == 0)
}

/// The SQL of the log's own tables, for an operator who runs it by hand; with the demo's tables, if they are to be
/// made.
pub(super) fn preparation(demo: bool) -> String {
    format!("{}{MIGRATIONS_TABLE}{}", if demo { DEMO } else { "" }, statements(0, Epoch::draw()))
}

/// Makes the demo's tables.
pub(super) fn make_demo(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_new(&transaction)? {
        transaction.execute_batch(DEMO)?;
    }
    transaction.commit()
}

/// A number that changes with the database's schema.
pub(super) fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))
}
