//! Reaching the database: the pools of connections, the settings of their sessions, and the settings of the replication
//! client. Serving, capturing and watching have pools of their own, so that none can take the others' last connection;
//! every statement, lock and connection has a timeout.

use std::future::Future;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgwire_replication::{Lsn, ReplicationConfig, SslMode, TlsConfig};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow, PgSslMode};
use sqlx::query::{Query, QueryScalar};
use sqlx::{ConnectOptions, Connection, FromRow, PgConnection, Postgres, SqlSafeStr};

use super::session::{self, Connector, Pool, PoolTimeouts, Session, timed_out};
use crate::config::Limits;

/// The name by which the server's connections are known to the database.
pub(in super::super) const APPLICATION: &str = "bourn";
/// Prepared statements kept per connection.
const STATEMENT_CACHE: usize = 128;
/// Connections for capturing: appending, comparing, retention, and a look at the catalogue.
const CAPTURE_CONNECTIONS: usize = 4;
/// Connections for watching the log and the tables, and for marks in the replication stream.
const WATCH_CONNECTIONS: usize = 2;
/// How much longer than the database itself the server waits for the end of a statement.
const GRACE: Duration = Duration::from_secs(1);
/// Maximum size of one message of the replication stream, in bytes: a row's largest value, as PostgreSQL bounds it.
const MESSAGE_MAX: usize = 1 << 30;
/// Events of the replication stream that the client holds before the queue that is bounded in bytes.
const EVENTS_MAX: usize = 8;
/// The settings of every session, whatever role and database have: how values are written as text, what a transaction
/// sees, and that a query fails where a policy would hide rows. Whether it may write is left as it is set: operators of
/// databases forbid that while a disk is nearly full.
const SESSION: [(&str, &str); 11] = [
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("idle_session_timeout", "0"),
];
/// The further settings of the server's own connections. They let the database find out by itself that the other end of
/// a connection is gone.
const CONNECTION: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
];
/// PostgreSQL 17 and later can end transactions by their age.
const OPENING: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'transaction_timeout' AND setting <> '0'";

/// The database, by way of one of the pools.
#[derive(Debug, Clone)]
pub(in super::super) struct Db {
    lane: Arc<PoolLane>,
    all: Arc<All>,
}

/// A pool, and how its transactions begin.
#[derive(Debug)]
struct PoolLane {
    pool: Pool,
    /// The statement that begins a transaction: behind a pooler in transaction mode no setting outlives a transaction,
    /// so it contains the settings.
    begin: String,
    begin_snapshot: String,
    /// A pooler in transaction mode stands before the database: every statement needs a transaction.
    pooled: bool,
    /// How long a piece of work may take in all.
    work_timeout: Duration,
}

#[derive(Debug)]
struct All {
    serving: Arc<PoolLane>,
    capturing: Arc<PoolLane>,
    watching: Arc<PoolLane>,
    direct: PgConnectOptions,
    connect_timeout: Duration,
    /// The files that the URL names for TLS: authorities, certificate, key.
    files: [Option<PathBuf>; 3],
}

/// How long the statements of a lane may take, and how long they may wait for a lock.
#[derive(Debug, Clone, Copy)]
struct StatementLimits {
    statement: Duration,
    lock: Duration,
}

impl StatementLimits {
    fn settings(self) -> [(&'static str, String); 3] {
        let millis = |time: Duration| time.as_millis().to_string();
        [
            ("statement_timeout", millis(self.statement)),
            ("lock_timeout", millis(self.lock)),
            ("idle_in_transaction_session_timeout", millis(self.statement)),
        ]
    }
}

impl Db {
    /// Pools on the database; nothing is connected yet.
    pub(in super::super) fn new(url: &str, limits: &Limits) -> Result<Db, sqlx::Error> {
        let pooled = !limits.direct_database.is_empty();
        if pooled {
            NAMELESS.store(true, Ordering::Relaxed);
        }
        let direct_url = if pooled { &limits.direct_database } else { url };
        let plain = |url: &str| -> Result<PgConnectOptions, sqlx::Error> {
            Ok(PgConnectOptions::from_str(url)?.application_name(APPLICATION).disable_statement_logging())
        };
        let quick =
            StatementLimits { statement: limits.statement_timeout.get(), lock: limits.lock_timeout.get() };
        let slow =
            StatementLimits { statement: limits.capture_timeout.get(), lock: limits.capture_timeout.get() };
        let options = |url: &str, patience: StatementLimits| -> Result<PgConnectOptions, sqlx::Error> {
            Ok(plain(url)?.options(SESSION).options(CONNECTION).options(patience.settings()))
        };
        let timeouts =
            PoolTimeouts { acquire: limits.acquire_timeout.get(), connect: limits.connect_timeout.get() };
        let lane = |url: &str, pooled: bool, connections: usize, patience: StatementLimits| {
            let (options, opening) = match pooled {
                // A pooler knows few of the parameters that a connection may begin with; transactions bring them.
                true => (plain(url)?.statement_cache_capacity(0).extra_float_digits(None), None),
                false => (options(url, patience)?.statement_cache_capacity(STATEMENT_CACHE), Some(OPENING)),
            };
            let set: String = match pooled {
                true => local_settings(patience),
                false => String::new(),
            };
            Ok::<_, sqlx::Error>(Arc::new(PoolLane {
                pool: session::pool(Connector::new(options, opening), connections, timeouts)?,
                begin: format!("BEGIN ISOLATION LEVEL READ COMMITTED{set}"),
                begin_snapshot: format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{set}"),
                pooled,
                work_timeout: timeouts.acquire + timeouts.connect + patience.statement + GRACE,
            }))
        };
        let serving = lane(url, pooled, limits.database_connections, quick)?;
        let all = All {
            capturing: lane(url, pooled, CAPTURE_CONNECTIONS, slow)?,
            watching: lane(direct_url, false, WATCH_CONNECTIONS, quick)?,
            serving: serving.clone(),
            direct: options(direct_url, slow)?,
            connect_timeout: timeouts.connect,
            files: [
                ["sslrootcert", "ssl-root-cert", "ssl-ca"],
                ["sslcert", "ssl-cert", ""],
                ["sslkey", "ssl-key", ""],
            ]
            .map(|names| parameter(direct_url, &names)),
        };
        Ok(Db { lane: serving, all: Arc::new(all) })
    }

    fn by(&self, lane: &Arc<PoolLane>) -> Db {
        Db { lane: lane.clone(), all: self.all.clone() }
    }

    /// The same database by way of the connections for capturing, whose statements may take long.
    pub(in super::super) fn capturing(&self) -> Db {
        self.by(&self.all.capturing)
    }

    /// The same database by way of the connections for watching: past any pooler, for short statements only. A task
    /// that has one never waits for another.
    pub(in super::super) fn watching(&self) -> Db {
        self.by(&self.all.watching)
    }

    /// A connection for independent statements, which may see different snapshots.
    pub(in super::super) async fn single(&self) -> Result<Session, sqlx::Error> {
        match self.lane.pooled {
            true => self.begin().await,
            false => Session::plain(&self.lane.pool).await,
        }
    }

    /// A transaction. Each of its statements sees what is committed when it begins.
    pub(in super::super) async fn begin(&self) -> Result<Session, sqlx::Error> {
        Session::begin(&self.lane.pool, &self.lane.begin).await
    }

    /// A transaction that reads one snapshot, which is taken by the first statement after these locks.
    pub(in super::super) async fn snapshot_of(&self, tables: &[&str]) -> Result<Session, sqlx::Error> {
        let begin = &self.lane.begin_snapshot;
        match tables {
            [] => Session::begin(&self.lane.pool, begin).await,
            tables => {
                let lock = format!("{begin}; LOCK TABLE {} IN ACCESS SHARE MODE", tables.join(", "));
                Session::begin(&self.lane.pool, &lock).await
            }
        }
    }

    /// A transaction that reads one snapshot.
    pub(in super::super) async fn snapshot(&self) -> Result<Session, sqlx::Error> {
        self.snapshot_of(&[]).await
    }

    /// Does a piece of work that gets its own connection, within the time that a request may take. Work that does not
    /// end in time is dropped, and its connection closed if the database does not answer.
    pub(in super::super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        self.in_time(work).await?
    }

    /// The same, for work with another type of error.
    pub(in super::super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, sqlx::Error> {
        let done = tokio::time::timeout(self.lane.work_timeout, work).await;
        done.map_err(|_| timed_out("the database does not answer in time"))
    }

    /// Puts a mark into the replication stream behind everything that is committed now; returns its place.
    pub(in super::super) async fn mark(&self) -> Result<Lsn, sqlx::Error> {
        // A transaction of its own, so that the stream sends the mark.
        let mut transaction = self.watching().begin().await?;
        let mark: String = scalar("SELECT pg_logical_emit_message(true, 'bourn.mark', '')::text")
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Lsn::parse(&mark).map_err(|error| sqlx::Error::Decode(error.to_string().into()))
    }

    /// A connection past any pooler, outside the pools.
    pub(in super::super) async fn connect_directly(&self) -> Result<PgConnection, sqlx::Error> {
        let connecting = Box::pin(PgConnection::connect_with(&self.all.direct));
        match tokio::time::timeout(self.all.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(timed_out("the database does not accept a connection in time")),
        }
    }

    /// Options of connections past any pooler.
    pub(in super::super) fn direct(&self) -> &PgConnectOptions {
        &self.all.direct
    }

    /// Refuses new work. Work that is under way keeps its connection to its end.
    pub(in super::super) fn close(&self) {
        for lane in [&self.all.serving, &self.all.capturing, &self.all.watching] {
            lane.pool.close();
        }
    }

    /// What the replication client connects with.
    pub(in super::super) fn replication(&self, limits: &Limits) -> ReplicationConfig {
        let url = self.all.direct.to_url_lossy();
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let [authorities, certificate, key] = self.all.files.clone();
        let host = match self.all.direct.get_socket() {
            Some(directory) => directory.to_string_lossy().into_owned(),
            None => self.all.direct.get_host().to_owned(),
        };
        let user = self.all.direct.get_username().to_owned();
        let settings: String = SESSION
            .iter()
            .chain(&[("statement_timeout", "0"), ("lock_timeout", "0")])
            .map(|(name, value)| format!("-c {name}={} ", value.replace(' ', "\\ ")))
            .collect();
        let patience = limits.leader_timeout.get();
        let address = host.parse::<std::net::IpAddr>().is_ok().then(|| host.clone());
        let mut config = ReplicationConfig::new(
            host,
            &user,
            url.password().map(decode).unwrap_or_default(),
            self.all.direct.get_database().unwrap_or(&user),
            &limits.slot,
            limits.publication.as_str(),
        )
        .with_port(self.all.direct.get_port())
        .with_tls(TlsConfig {
            mode: match self.all.direct.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow => SslMode::Disable,
                PgSslMode::Prefer => SslMode::Prefer,
                PgSslMode::Require => SslMode::Require,
                PgSslMode::VerifyCa => SslMode::VerifyCa,
                PgSslMode::VerifyFull => SslMode::VerifyFull,
            },
            ca_pem_path: authorities,
            // An address is checked against the certificate, too, but the client has to be asked for that explicitly.
            sni_hostname: address,
            client_cert_pem_path: certificate,
            client_key_pem_path: key,
        })
        // The database ends the connection of a server that hangs, and with it its hold on the slot.
        .with_options(format!("{settings}-c wal_sender_timeout={}", patience.as_millis()))
        // Longer than half the database's patience, after which it asks for a sign of life: by that request the server
        // knows that the database is alive.
        .with_status_interval(patience * 5 / 8)
        .with_wakeup_interval(patience * 5 / 8)
        .with_buffer_size(EVENTS_MAX)
        .with_max_message_size(MESSAGE_MAX);
        config.application_name = Some(APPLICATION.into());
        if self.all.direct.get_socket().is_some() {
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
/// transaction, and name another statement on the next connection. A process serves one database.
static NAMELESS: AtomicBool = AtomicBool::new(false);

/// A query; prepared once for each connection, where it may be.
pub(in super::super) fn statement<'q>(sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(!NAMELESS.load(Ordering::Relaxed))
}

/// A query for single values; prepared once for each connection, where it may be.
pub(in super::super) fn scalar<'q, O>(sql: impl SqlSafeStr) -> QueryScalar<'q, Postgres, O, PgArguments>
where
    (O,): for<'r> FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(!NAMELESS.load(Ordering::Relaxed))
}

/// The settings of a session as statements for the transaction that has begun.
fn local_settings(patience: StatementLimits) -> String {
    let fixed = SESSION.iter().map(|(name, value)| format!("; SET LOCAL {name} = '{value}'"));
    let timeouts = patience.settings();
    let timeouts = timeouts.iter().map(|(name, value)| format!("; SET LOCAL {name} = '{value}'"));
    // An earlier session may have left another one behind.
    fixed.chain(timeouts).chain(["; SET LOCAL search_path TO DEFAULT".to_owned()]).collect()
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
            // Within one transaction `now()` does not advance.
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
