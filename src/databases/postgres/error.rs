//! What PostgreSQL's SQLSTATE codes mean to the rest of the server. Its error texts are logged here and go no further.

use crate::feed::WriteError;
use crate::storage_error::StorageError;

/// The SQLSTATE of a failed statement.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(Into::into)
}

/// Whether a statement failed because the database can be read but not written.
pub(super) fn read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
}

/// Whether the same may succeed a moment later: the database is away, or another session held a lock or came first.
pub(super) fn may_pass(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut)
        || matches!(
            code(error).as_deref(),
            Some("57P01" | "57P02" | "57P03" | "53300" | "55P03" | "57014" | "40001" | "40P01")
        )
}

/// The storage error of a failed statement.
pub(super) fn storage(error: &sqlx::Error) -> StorageError {
    match (code(error).as_deref(), error) {
        (Some("53100" | "53400"), _) => StorageError::Full,
        (Some("25006"), _) => StorageError::ReadOnly,
        // Deadlocks, serialization, too many connections.
        (Some("40001" | "40P01" | "53300"), _) => StorageError::Busy,
        (Some("55P03"), _) => StorageError::Locked,
        // A statement, or all connections, took too long.
        (Some("57014"), _) | (None, sqlx::Error::PoolTimedOut) => StorageError::Slow,
        (None, sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => StorageError::Slow,
        (None, sqlx::Error::PoolClosed) => StorageError::Closed,
        (None, sqlx::Error::AnyDriverError(error)) if error.is::<Unsettled>() => StorageError::Unsettled,
        (None, sqlx::Error::AnyDriverError(error)) if error.is::<NotFollowable>() => {
            StorageError::Entity(error.to_string())
        }
        // The table has changed since it was looked at; the next look will say how.
        _ if table_changed(error) => {
            tracing::warn!(%error, "a table has changed");
            StorageError::Entity("the table has changed just now; try again".into())
        }
        (Some("42501"), _) => {
            tracing::error!(%error, "the database refuses the server");
            StorageError::Entity("the server's database role may not do this; see the server's log".into())
        }
        _ => {
            tracing::error!(%error, "the database failed");
            StorageError::Unavailable
        }
    }
}

/// The write error of a failed statement: blamed on the row where a constraint refused it.
pub(super) fn write(error: &sqlx::Error) -> WriteError {
    let code = code(error);
    let class = code.as_deref().and_then(|code| code.get(..2));
    WriteError::Constraint(match (code.as_deref(), class) {
        (Some("23505"), _) => return WriteError::NotUnique,
        (Some("23503"), _) => "the row refers to a row that does not exist, or another row refers to it",
        (Some("23502"), _) => "a column that must have a value has none",
        (Some("23514" | "23P01" | "44000"), _) => "a check of the database refuses the row",
        // Types of extensions report a value that they cannot read as a syntax error.
        (Some("42601"), _) | (_, Some("22")) => "a value does not fit its column's type",
        (Some("P0001"), _) => "a trigger of the database refuses the row",
        (Some("54000"), _) => "the database refuses the row: a value is too large",
        (_, Some("23")) => "a rule of the database refuses the row",
        _ => return WriteError::Storage(storage(error)),
    })
}

/// The failure as text for the operator's terminal, with a remedy where one is known.
pub(super) fn advice(failure: &sqlx::Error) -> String {
    let code = code(failure);
    let words = match code.as_deref() {
        Some("28P01" | "28000") => {
            "it refuses the user or the password; see the user and the password in the database's URL, and pg_hba.conf"
        }
        Some("3D000") => "there is no such database; make it, or name another in the database's URL",
        Some("42501") => {
            "the role may not do this; the role must own the schema `bourn` (CREATE SCHEMA bourn AUTHORIZATION role) or may make it, \
             and may read the streamed tables"
        }
        Some("25006") => "it can be read but not written; is it a standby?",
        Some("53300") => "it has no more connections; raise max_connections, or lower `database_connections`",
        Some("57P03") => "it is starting up or shutting down; try again",
        Some("57014") => "a statement took longer than `statement_timeout` or `capture_timeout`",
        Some("55P03") => {
            "another session holds a lock on a table for longer than `lock_timeout` or `capture_timeout`"
        }
        Some("53100") => "its disk is full",
        Some("42P07" | "42710") => {
            "it has a table, publication or schema of this name that is not as the server needs it"
        }
        _ if matches!(failure, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut) => {
            return format!("{failure}; is it running, and is the address right?");
        }
        _ => "",
    };
    match (words, code) {
        ("", None) => failure.to_string(),
        ("", Some(code)) => {
            tracing::error!(%failure, "the database failed");
            format!("it refuses a statement (SQLSTATE {code}); see the database's own log")
        }
        (words, _) => words.to_owned(),
    }
}

/// The log may not be used before a server has settled the database's history.
#[derive(Debug, thiserror::Error)]
#[error(
    "the database went back in time, or is another one; the log cannot be used before its history is settled"
)]
pub(super) struct Unsettled;

impl From<Unsettled> for sqlx::Error {
    fn from(unsettled: Unsettled) -> sqlx::Error {
        sqlx::Error::AnyDriverError(Box::new(unsettled))
    }
}

/// The list has rows whose deletion the stream may not report, so that its reader would keep them for ever.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFollowable {
    #[error(
        "no server captures changes of the database yet, so that a list could not be followed; `/ready` says why"
    )]
    NotCaptured,
    #[error(
        "the table is compared with the log for the first time or after changes were lost, and its replica identity does not \
         have its scope; try again later, or list without a scope; ALTER TABLE {0} REPLICA IDENTITY FULL lets such lists be served meanwhile"
    )]
    Comparing(String),
    #[error(
        "a row of the list is not in the log yet, and the replica identity of its table does not have its scope; try again later, \
         or list without a scope; ALTER TABLE {0} REPLICA IDENTITY FULL lets such lists be served at once"
    )]
    NotLogged(String),
}

impl From<NotFollowable> for sqlx::Error {
    fn from(reason: NotFollowable) -> sqlx::Error {
        sqlx::Error::AnyDriverError(Box::new(reason))
    }
}

/// Whether a list failed because the log does not have one of its rows yet.
pub(super) fn not_logged(failure: &sqlx::Error) -> bool {
    matches!(failure, sqlx::Error::AnyDriverError(reason) if matches!(reason.downcast_ref(), Some(NotFollowable::NotLogged(_))))
}

/// Whether a statement failed because a text is no value of the type it is compared with, breaks a rule of its domain,
/// or has characters that the database's encoding lacks: then no row can have it.
pub(super) fn names_nothing(failure: &sqlx::Error) -> bool {
    code(failure).is_some_and(|code| code.starts_with("22") || code == "23514")
}

/// A row does not have the columns that its table had at the last look.
#[derive(Debug, thiserror::Error)]
#[error("the table has changed since it was looked at")]
pub(super) struct TableChanged;

/// Whether a statement failed because the table has changed since the last look.
pub(super) fn table_changed(failure: &sqlx::Error) -> bool {
    match failure {
        sqlx::Error::Decode(reason) => reason.is::<TableChanged>(),
        failure => {
            matches!(code(failure).as_deref(), Some("42P01" | "42703" | "42704" | "42804" | "0A000"))
        }
    }
}
