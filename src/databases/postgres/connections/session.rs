//! Connections lent from a pool: how they are opened, tested and given back. A connection goes back only when it is
//! known to be usable; one on which a statement was cut off is tested first, and one that does not answer is closed.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{
    self, Manager, Metrics, Object, PoolConfig, PoolError, QueueMode, RecycleError, RecycleResult,
    TimeoutType, Timeouts,
};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::databases::postgres::error;

/// How long a connection that was given back may be trusted without a test.
const TRUSTED: Duration = Duration::from_millis(100);
/// How long the test of a connection, or taking back its transaction, may last.
const TEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection lives: the database's process behind it grows with every table it has seen.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// A pool of connections.
pub(in super::super) type Pool = managed::Pool<Connector>;

/// The timeouts of a pool.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct PoolTimeouts {
    /// Waiting for a connection that another task holds.
    pub(in super::super) acquire: Duration,
    /// Opening one.
    pub(in super::super) connect: Duration,
}

/// Opens connections and tests them before they are lent again.
#[derive(Debug)]
pub(in super::super) struct Connector {
    options: PgConnectOptions,
    /// A statement for every new connection.
    opening: Option<&'static str>,
    /// Connections that last answered before this moment are closed, because one of the same age did not answer.
    suspect: Mutex<Option<Instant>>,
}

/// A connection of a pool.
#[derive(Debug)]
pub(in super::super) struct Pooled {
    connection: PgConnection,
    opened: Instant,
    /// When it last answered; `None` if a statement on it may have been cut off.
    answered: Option<Instant>,
}

impl Connector {
    pub(in super::super) fn new(options: PgConnectOptions, opening: Option<&'static str>) -> Connector {
        Connector { options, opening, suspect: Mutex::default() }
    }

    /// Notes that a connection did not answer: others that have been idle for longer may not answer either.
    fn distrust(&self) {
        *self.suspect.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn distrusts(&self, answered: Instant) -> bool {
        let suspect = *self.suspect.lock().unwrap_or_else(PoisonError::into_inner);
        suspect.is_some_and(|since| answered < since)
    }
}

impl Manager for Connector {
    type Type = Pooled;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Pooled, sqlx::Error> {
        // Boxed, so that a future that waits for a connection is not as large as one that opens it.
        let mut connection = Box::pin(PgConnection::connect_with(&self.options)).await?;
        if let Some(opening) = self.opening {
            sqlx::raw_sql(opening).execute(&mut connection).await?;
        }
        let opened = Instant::now();
        Ok(Pooled { connection, opened, answered: Some(opened) })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<sqlx::Error> {
        if pooled.opened.elapsed() > LIFETIME {
            return Err(RecycleError::message("it is old"));
        }
        match pooled.answered {
            Some(answered) if self.distrusts(answered) => {
                return Err(RecycleError::message("another one of its age did not answer"));
            }
            Some(answered) if answered.elapsed() < TRUSTED => return Ok(()),
            _ => {}
        }
        match tokio::time::timeout(TEST_TIMEOUT, pooled.connection.ping()).await {
            Ok(Ok(())) => {
                pooled.answered = Some(Instant::now());
                Ok(())
            }
            Ok(Err(error)) => {
                self.distrust();
                Err(RecycleError::Backend(error))
            }
            Err(_) => {
                self.distrust();
                Err(RecycleError::message("it does not answer"))
            }
        }
    }
}

/// Makes a pool; nothing is connected yet.
pub(in super::super) fn pool(
    connector: Connector,
    connections: usize,
    timeouts: PoolTimeouts,
) -> Result<Pool, sqlx::Error> {
    let mut config = PoolConfig::new(connections.max(1));
    // The connection that was used last is used next: it needs no test.
    config.queue_mode = QueueMode::Lifo;
    config.timeouts = Timeouts {
        wait: Some(timeouts.acquire),
        create: Some(timeouts.connect),
        recycle: Some(timeouts.connect),
    };
    let built = managed::Pool::builder(connector).config(config).runtime(Runtime::Tokio1).build();
    built.map_err(|error| sqlx::Error::Configuration(error.to_string().into()))
}

/// A failure that says that the database did not answer in time.
pub(in super::super) fn timed_out(what: &'static str) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
}

/// Whether a statement failed because its connection is no more: on another one it may succeed.
pub(in super::super) fn broken(failure: &sqlx::Error) -> bool {
    match failure {
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::TimedOut,
        failure => matches!(error::code(failure).as_deref(), Some("57P01" | "57P02" | "25P03" | "57P05")),
    }
}

/// A connection that is lent from a pool, with or without a transaction. If it is dropped, what was not committed is
/// rolled back.
pub(in super::super) struct Session {
    lent: Option<Object<Connector>>,
    begun: bool,
}

impl Session {
    /// A connection for statements of which each is a transaction.
    pub(in super::super) async fn plain(pool: &Pool) -> Result<Session, sqlx::Error> {
        let lent = pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => sqlx::Error::PoolClosed,
            PoolError::Timeout(TimeoutType::Wait) => sqlx::Error::PoolTimedOut,
            _ => timed_out("the database does not accept a connection in time"),
        })?;
        Ok(Session { lent: Some(lent), begun: false })
    }

    /// A connection with a transaction.
    pub(in super::super) async fn begin(pool: &Pool, sql: &str) -> Result<Session, sqlx::Error> {
        let mut session = Session::plain(pool).await?;
        match session.begin_with(sql).await {
            Err(error) if broken(&error) => {
                // It was closed while it was idle, and others may have been, too: take one that is tested, or new.
                pool.manager().distrust();
                session = Session::plain(pool).await?;
                session.begin_with(sql).await?;
            }
            begun => begun?,
        }
        Ok(session)
    }

    async fn begin_with(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        // Before the statement is sent: the database may run it even if the future is dropped.
        self.begun = true;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.connection()).await.map(|_| ())
    }

    pub(in super::super) fn connection(&mut self) -> &mut PgConnection {
        self
    }

    /// Commits the transaction.
    pub(in super::super) async fn commit(self) -> Result<(), sqlx::Error> {
        self.end("COMMIT").await
    }

    /// Rolls the transaction back.
    pub(in super::super) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        if self.begun {
            sqlx::raw_sql(sql).execute(self.connection()).await?;
            self.begun = false;
        }
        if let Some(mut lent) = self.lent.take() {
            lent.answered = Some(Instant::now());
        }
        Ok(())
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.lent {
            Some(lent) => &lent.connection,
            None => unreachable!("only the end of a session takes its connection"),
        }
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.lent {
            Some(lent) => &mut lent.connection,
            None => unreachable!("only the end of a session takes its connection"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut lent) = self.lent.take() else { return };
        lent.answered = None;
        if !self.begun {
            return;
        }
        // Its locks must not be held until the connection is borrowed again.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(take_back(lent))),
            Err(_) => drop(Object::take(lent)),
        }
    }
}

/// Rolls back a connection that was given back with a transaction, or closes the connection.
async fn take_back(mut lent: Object<Connector>) {
    let ended = sqlx::raw_sql("ROLLBACK").execute(&mut lent.connection);
    match tokio::time::timeout(TEST_TIMEOUT, ended).await {
        Ok(Ok(_)) => lent.answered = Some(Instant::now()),
        Ok(Err(_)) => drop(Object::take(lent)),
        Err(_) => {
            if let Some(pool) = Object::pool(&lent) {
                pool.manager().distrust();
            }
            drop(Object::take(lent));
        }
    }
}
