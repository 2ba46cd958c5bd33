//! The log's own tables: which migrations are done, doing the others, and whether the database can be served at all.

use bourn_protocol::Epoch;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::connections::{Db, scalar, statement};

const MIGRATIONS: [(i64, &str); 8] = [
    (1, include_str!("../../../migrations/postgres/0001_log.sql")),
    (2, include_str!("../../../migrations/postgres/0002_streams.sql")),
    (3, include_str!("../../../migrations/postgres/0003_retention.sql")),
    (4, include_str!("../../../migrations/postgres/0004_hashes.sql")),
    (5, include_str!("../../../migrations/postgres/0005_history.sql")),
    (6, include_str!("../../../migrations/postgres/0006_stops.sql")),
    (7, include_str!("../../../migrations/postgres/0007_whole.sql")),
    (8, include_str!("../../../migrations/postgres/0008_subjects.sql")),
];
const DEMO: &str = include_str!("../../../migrations/postgres/demo.sql");
/// The advisory lock under which servers that start at once migrate one after the other.
pub(super) const MIGRATION_LOCK: i64 = 0x626f_7572_6e00;
/// The oldest PostgreSQL that is served.
const OLDEST: i32 = 150_000;

/// Encodings whose text cannot be turned into UTF-8.
const UNREADABLE_ENCODINGS: [&str; 2] = ["SQL_ASCII", "MULE_INTERNAL"];

/// Why a database cannot be served, as text; `None` if it can.
pub(super) async fn unfit(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let row = statement(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_database()::text",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (version, encoding): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
    if version < OLDEST {
        return Ok(Some(format!(
            "it is PostgreSQL {}; logical replication as it is needed here begins with PostgreSQL 15",
            version / 10_000
        )));
    }
    if UNREADABLE_ENCODINGS.contains(&encoding.as_str()) {
        return Ok(Some(format!(
            "its encoding is {encoding}, which does not say what its bytes mean; dump it and restore it into a database that was created \
             with ENCODING 'UTF8' or another encoding that names its characters"
        )));
    }
    let known = MIGRATIONS.iter().map(|(version, _)| *version).max().unwrap_or(0);
    let done = migrated(connection).await?;
    Ok((done > known).then(|| {
        format!(
            "the log's tables have version {done}, and this server knows versions up to {known}; use a server that is as new as the one that made them"
        )
    }))
}

/// Makes the log's own tables, as far as they are missing.
pub(super) async fn migrate(db: &Db, demo: bool) -> Result<(), sqlx::Error> {
    let mut transaction = db.capturing().begin().await?;
    // Several servers may start at once.
    statement("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    if demo && is_new(&mut transaction).await? {
        sqlx::raw_sql(AssertSqlSafe(demo_sql())).execute(&mut *transaction).await?;
    }
    let done = migrated(&mut transaction).await?;
    if done < MIGRATIONS.iter().map(|(version, _)| *version).max().unwrap_or(0) {
        sqlx::raw_sql(AssertSqlSafe(preparation(done, Epoch::draw()))).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// The statements that make the demo's tables, with a search path that keeps them out of the server's own schema.
pub(super) fn demo_sql() -> String {
    format!("SET LOCAL search_path TO public;\n{DEMO}SET LOCAL search_path TO DEFAULT;\n")
}

/// The last migration that was done; zero where the log's tables are missing.
pub(super) async fn migrated(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let there: bool =
        scalar("SELECT to_regclass('bourn.migrations') IS NOT NULL").fetch_one(&mut *connection).await?;
    match there {
        true => scalar("SELECT coalesce(max(version), 0) FROM bourn.migrations").fetch_one(connection).await,
        false => Ok(0),
    }
}

/// The statements of the migrations after a version, for a log of this epoch.
pub(super) fn preparation(done: i64, epoch: Epoch) -> String {
    // Not `IF NOT EXISTS`, which needs the right to make schemas even where the schema exists.
    let schema = "DO $$ BEGIN IF to_regnamespace('bourn') IS NULL THEN CREATE SCHEMA bourn; END IF; END $$;\nCREATE TABLE bourn.migrations (version bigint PRIMARY KEY, \
                  applied_at timestamptz NOT NULL DEFAULT now());\n";
    let pending = MIGRATIONS.into_iter().filter(|(version, _)| *version > done).map(|(version, sql)| {
        format!(
            "{}\nINSERT INTO bourn.migrations VALUES ({version});\n",
            sql.replace("{epoch}", epoch.as_str())
        )
    });
    let pending: String = pending.collect();
    format!("{}{pending}", if done == 0 { schema } else { "" })
}

/// Whether the database holds no table yet, neither ours nor another's.
pub(super) async fn is_new(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    scalar(
        "SELECT NOT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema')",
    )
    .fetch_one(connection)
    .await
}
