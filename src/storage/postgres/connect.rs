//! Reaching the database: the pool of ordinary connections, what the replication client needs to know, and the
//! migrations that make the log's own tables.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bourn_protocol::Epoch;
use pgwire_replication::{Lsn, ReplicationConfig, SslMode, TlsConfig};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions, PgRow, PgSslMode};
use sqlx::query::{Query, QueryScalar};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, FromRow, PgConnection, PgTransaction, Postgres, SqlSafeStr,
};

use crate::config::Limits;

const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("../../../migrations/postgres/0001_log.sql")),
    (2, include_str!("../../../migrations/postgres/0002_streams.sql")),
    (3, include_str!("../../../migrations/postgres/0003_retention.sql")),
];
pub(super) const DEMO: &str = include_str!("../../../migrations/postgres/demo.sql");
/// The advisory lock under which servers that start at once migrate one after the other.
pub(super) const MIGRATION_LOCK: i64 = 0x626f_7572_6e00;
/// The name by which the server's connections are known to the database.
pub(super) const APPLICATION: &str = "bourn";
/// The oldest PostgreSQL that is served.
const OLDEST: i32 = 150_000;
/// Prepared statements kept per connection.
const STATEMENT_CACHE: usize = 128;
/// How long a request waits for a connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of one message of the replication stream: a row's largest value, as PostgreSQL bounds it.
const MESSAGE_MAX: usize = 1 << 30;
/// Events of the replication stream that wait to be looked at.
const EVENTS_MAX: usize = 4_096;
/// How values are written as text, whatever role and database are set to.
const FORMS: [(&str, &str); 5] = [
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];

/// The database, by way of a pool of connections.
#[derive(Debug, Clone)]
pub(super) struct Db {
    pool: PgPool,
    /// How a transaction begins: behind a pooler in transaction mode nothing outlives one, so it brings its
    /// settings.
    begin: String,
    begin_snapshot: String,
    /// A pooler in transaction mode stands before the database: every statement needs a transaction.
    pooled: bool,
    direct: PgConnectOptions,
    /// The files that the URL names for TLS: authorities, certificate, key.
    files: [Option<PathBuf>; 3],
}

/// A connection for single statements.
pub(super) enum Single {
    Plain(sqlx::pool::PoolConnection<sqlx::Postgres>),
    InTransaction(PgTransaction<'static>),
}

impl Single {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        match self {
            Single::Plain(connection) => connection,
            Single::InTransaction(transaction) => transaction,
        }
    }

    /// Ends it so that what was done on it stays.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Single::Plain(_) => Ok(()),
            Single::InTransaction(transaction) => transaction.commit().await,
        }
    }
}

impl Db {
    /// A pool on the database; nothing is connected yet.
    pub(super) fn new(url: &str, limits: &Limits) -> Result<Db, sqlx::Error> {
        let pooled = !limits.direct_database.is_empty();
        if pooled {
            NAMELESS.store(true, Ordering::Relaxed);
        }
        let options =
            PgConnectOptions::from_str(url)?.application_name(APPLICATION).disable_statement_logging();
        let direct_url = if pooled { &limits.direct_database } else { url };
        let direct = PgConnectOptions::from_str(direct_url)?.application_name(APPLICATION).options(FORMS);
        let options = match pooled {
            // A pooler knows few of the parameters that a connection may begin with; transactions bring them.
            true => options.statement_cache_capacity(0).extra_float_digits(None),
            false => options.options(FORMS).statement_cache_capacity(STATEMENT_CACHE),
        };
        let connections = u32::try_from(limits.database_connections).unwrap_or(u32::MAX);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let set: String = match pooled {
            true => FORMS.iter().map(|(name, value)| format!("; SET LOCAL {name} = '{value}'")).collect(),
            false => String::new(),
        };
        Ok(Db {
            pool,
            begin: format!("BEGIN{set}"),
            begin_snapshot: format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{set}"),
            pooled,
            direct: direct.disable_statement_logging(),
            files: [
                ["sslrootcert", "ssl-root-cert", "ssl-ca"],
                ["sslcert", "ssl-cert", ""],
                ["sslkey", "ssl-key", ""],
            ]
            .map(|names| parameter(direct_url, &names)),
        })
    }

    /// A connection for statements of which each stands for itself; they may see different snapshots.
    pub(super) async fn single(&self) -> Result<Single, sqlx::Error> {
        Ok(match self.pooled {
            true => Single::InTransaction(self.begin().await?),
            false => Single::Plain(self.pool.acquire().await?),
        })
    }

    /// A transaction.
    pub(super) async fn begin(&self) -> Result<PgTransaction<'static>, sqlx::Error> {
        self.begin_with(&self.begin).await
    }

    /// Puts a mark into the replication stream behind everything that is committed now; gives its place.
    pub(super) async fn mark(&self) -> Result<Lsn, sqlx::Error> {
        // A transaction of its own, so that the stream has something to tell of.
        let mut transaction = self.begin().await?;
        let mark: String = scalar("SELECT pg_logical_emit_message(true, 'bourn.mark', '')::text")
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Lsn::parse(&mark).map_err(|error| sqlx::Error::Decode(error.to_string().into()))
    }

    /// A transaction that reads one snapshot.
    pub(super) async fn snapshot(&self) -> Result<PgTransaction<'static>, sqlx::Error> {
        self.begin_with(&self.begin_snapshot).await
    }

    /// Begins a transaction in a task of its own. Whoever waits for it may be dropped; the library would then give the
    /// connection back with the transaction begun and nobody to end it, and what is said on it next would be lost.
    async fn begin_with(&self, sql: &str) -> Result<PgTransaction<'static>, sqlx::Error> {
        let (pool, sql) = (self.pool.clone(), sql.to_owned());
        let begun = tokio::spawn(async move { pool.begin_with(AssertSqlSafe(sql)).await });
        begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// A connection past any pooler, outside the pool.
    pub(super) async fn connect_directly(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.direct).await
    }

    /// Options of connections past any pooler.
    pub(super) fn direct(&self) -> &PgConnectOptions {
        &self.direct
    }

    /// Lets no new work in and waits until what is under way has ended.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// What the replication client connects with.
    pub(super) fn replication(&self, limits: &Limits) -> ReplicationConfig {
        let url = self.direct.to_url_lossy();
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let [authorities, certificate, key] = self.files.clone();
        let host = match self.direct.get_socket() {
            Some(directory) => directory.to_string_lossy().into_owned(),
            None => self.direct.get_host().to_owned(),
        };
        let user = self.direct.get_username().to_owned();
        let forms: String = FORMS.iter().map(|(name, value)| format!("-c {name}={value} ")).collect();
        let patience = limits.leader_timeout.get();
        let address = host.parse::<std::net::IpAddr>().is_ok().then(|| host.clone());
        let mut config = ReplicationConfig::new(
            host,
            &user,
            url.password().map(decode).unwrap_or_default(),
            self.direct.get_database().unwrap_or(&user),
            &limits.slot,
            limits.publication.as_str(),
        )
        .with_port(self.direct.get_port())
        .with_tls(TlsConfig {
            mode: match self.direct.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => SslMode::Disable,
                PgSslMode::Prefer => SslMode::Prefer,
                PgSslMode::Require => SslMode::Require,
                PgSslMode::VerifyCa => SslMode::VerifyCa,
                PgSslMode::VerifyFull => SslMode::VerifyFull,
            },
            ca_pem_path: authorities,
            // An address is checked as what the certificate names, too; the client asks for it in so many words.
            sni_hostname: address,
            client_cert_pem_path: certificate,
            client_key_pem_path: key,
        })
        // The database ends the connection of a server that hangs, and with it its hold on the slot.
        .with_options(format!("{forms}-c wal_sender_timeout={}", patience.as_millis()))
        .with_status_interval(patience / 4)
        .with_wakeup_interval(patience / 4)
        .with_buffer_size(EVENTS_MAX)
        .with_max_message_size(MESSAGE_MAX);
        config.application_name = Some(APPLICATION.into());
        if self.direct.get_socket().is_some() {
            config.tls = TlsConfig::disabled();
        }
        config
    }
}

/// The value of the first of these parameters that a URL has.
fn parameter(url: &str, names: &[&str]) -> Option<PathBuf> {
    let (_, query) = url.split_once('?')?;
    let value =
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| names.contains(name))?.1;
    Some(percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned().into())
}

/// Set when the database is reached by way of a pooler in transaction mode: a statement's name would outlive its
/// transaction, and be another's on the next connection. A process serves one database.
static NAMELESS: AtomicBool = AtomicBool::new(false);

/// A query; prepared once for each connection, where it may be.
pub(super) fn statement<'q>(sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(!NAMELESS.load(Ordering::Relaxed))
}

/// A query for single values; prepared once for each connection, where it may be.
pub(super) fn scalar<'q, O>(sql: impl SqlSafeStr) -> QueryScalar<'q, Postgres, O, PgArguments>
where
    (O,): for<'r> FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(!NAMELESS.load(Ordering::Relaxed))
}

/// Why a database cannot be served, in words, if it cannot.
pub(super) async fn unfit(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let version: i32 =
        scalar("SELECT current_setting('server_version_num')::int").fetch_one(connection).await?;
    Ok((version < OLDEST).then(|| {
        format!(
            "it is PostgreSQL {}; logical replication as it is needed here begins with PostgreSQL 15",
            version / 10_000
        )
    }))
}

/// Makes the log's own tables, as far as they are missing.
pub(super) async fn migrate(db: &Db, demo: bool) -> Result<(), sqlx::Error> {
    let mut transaction = db.begin().await?;
    // Several servers may start at once.
    statement("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
    if demo && is_new(&mut transaction).await? {
        sqlx::raw_sql(DEMO).execute(&mut *transaction).await?;
    }
    let done = migrated(&mut transaction).await?;
    if done < MIGRATIONS.iter().map(|(version, _)| *version).max().unwrap_or(0) {
        sqlx::raw_sql(AssertSqlSafe(preparation(done, Epoch::draw()))).execute(&mut *transaction).await?;
    }
    transaction.commit().await
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
    // Not `IF NOT EXISTS`, which asks for the right to make schemas even where there is nothing to make.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bourn_testkit::Cluster;

    use super::*;
    use crate::config::{Config, SettingsLayer};

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_gives_up_while_a_transaction_begins_leaves_none_behind() {
        let database = Cluster::shared().database();
        let mut limits = Config::load(SettingsLayer::default(), None).unwrap().limits;
        limits.database_connections = 1;
        let db = Db::new(&database.url(), &limits).unwrap();
        for micros in (0..400).map(|i| i * 2) {
            let begun = tokio::time::timeout(Duration::from_micros(micros), db.snapshot()).await;
            drop(begun);
            // Within one transaction the time stands still.
            let mut single = db.single().await.unwrap();
            let mut times = Vec::new();
            for _ in 0..2 {
                let time: String = scalar("SELECT now()::text").fetch_one(single.connection()).await.unwrap();
                times.push(time);
            }
            assert_ne!(times[0], times[1], "a transaction is open, given up after {micros} us");
        }
    }
}
