//! The databases that Bourn works on: picks one by its URL, opens it, and runs an operator's commands that check and
//! prepare it before serving. An open database is handed out as the narrow traits that [`crate::feed`] and
//! [`crate::streams`] define.

mod error;
pub mod postgres;
pub mod sqlite;

use std::sync::Arc;

use self::postgres::PostgresStorage;
use self::sqlite::SqliteStorage;
use crate::config::{Config, DatabaseUrl, Limits};
use crate::feed::entity::Catalog;
use crate::feed::{Capture, Log, Tables, Writer};
use crate::streams::{Streams, SubscriptionStore};
use crate::tasks::supervisor::Supervisor;
pub use error::{Finding, OpenError};

/// A database that has all of a server's data.
pub trait Storage: Log + Tables + Writer + Capture + Streams + SubscriptionStore {}
impl<T: Log + Tables + Writer + Capture + Streams + SubscriptionStore> Storage for T {}

/// An open database, by what its parts are used for.
#[derive(Clone)]
pub struct Database {
    /// The log of changes.
    pub log: Arc<dyn Log>,
    /// The rows of the streamed tables.
    pub tables: Arc<dyn Tables>,
    /// Changes them.
    pub writer: Arc<dyn Writer>,
    /// Fills the log.
    pub capture: Arc<dyn Capture>,
    /// Stored streams.
    pub streams: Arc<dyn Streams>,
    /// Subscriptions to stored streams.
    pub subscriptions: Arc<dyn SubscriptionStore>,
}

impl Database {
    fn of(storage: Arc<impl Storage + 'static>) -> Database {
        Database {
            log: storage.clone(),
            tables: storage.clone(),
            writer: storage.clone(),
            capture: storage.clone(),
            streams: storage.clone(),
            subscriptions: storage,
        }
    }
}

/// Opens the database and starts capture; `demo` when the demo's tables may be made.
///
/// # Errors
/// When it cannot be reached, is not fit, or cannot be prepared.
pub async fn open(
    limits: &Limits,
    catalog: Arc<Catalog>,
    demo: bool,
    supervisor: &Supervisor,
) -> Result<Database, OpenError> {
    Ok(match &limits.database {
        DatabaseUrl::Sqlite(path) => {
            Database::of(Arc::new(SqliteStorage::open(path, limits, catalog, demo, supervisor)?))
        }
        DatabaseUrl::Postgres(url) => {
            Database::of(Arc::new(PostgresStorage::open(url, limits, catalog, demo, supervisor).await?))
        }
    })
}

/// Looks at the database without changing it.
///
/// # Errors
/// When it cannot be opened or read.
pub async fn check(config: &Config) -> Result<Vec<Finding>, OpenError> {
    match &config.limits.database {
        DatabaseUrl::Sqlite(path) => sqlite::check(path, config),
        DatabaseUrl::Postgres(url) => postgres::check(url, config).await,
    }
}

/// The SQL that prepares the database.
///
/// # Errors
/// When it cannot be opened or read.
pub async fn prepare_sql(config: &Config) -> Result<String, OpenError> {
    match &config.limits.database {
        DatabaseUrl::Sqlite(path) => sqlite::prepare_sql(path, config),
        DatabaseUrl::Postgres(url) => postgres::prepare_sql(url, config).await,
    }
}

/// Does what [`prepare_sql`] prints; returns what was done, line by line.
///
/// # Errors
/// When it cannot be opened or written.
pub async fn prepare(config: &Config) -> Result<Vec<String>, OpenError> {
    match &config.limits.database {
        DatabaseUrl::Sqlite(path) => sqlite::prepare(path, config).map(|()| Vec::new()),
        DatabaseUrl::Postgres(url) => postgres::prepare(url, config).await,
    }
}

/// Ends the stop of an entity type whose row the log refuses; returns the row's key.
///
/// # Errors
/// When the database cannot be opened or written, or the entity type has not stopped.
pub async fn skip(limits: &Limits, entity_type: &str) -> Result<String, OpenError> {
    match &limits.database {
        DatabaseUrl::Sqlite(path) => Err(OpenError::new(
            &path.display(),
            &"triggers write the log of a SQLite database with the rows themselves: no entity type stops there",
        )),
        DatabaseUrl::Postgres(url) => postgres::skip(url, limits, entity_type).await,
    }
}

/// Gives the log a new epoch: every client starts again. For an operator who knows that the database was changed in a
/// way that the server cannot notice.
///
/// # Errors
/// When it cannot be opened or written.
pub async fn renew_log(limits: &Limits) -> Result<(), OpenError> {
    match &limits.database {
        DatabaseUrl::Sqlite(path) => sqlite::renew_log(path, limits),
        DatabaseUrl::Postgres(url) => postgres::renew_log(url, limits).await,
    }
}
