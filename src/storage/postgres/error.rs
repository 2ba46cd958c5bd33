//! What PostgreSQL's SQLSTATE codes mean to the rest of the server. Its words are logged here and go no further.

use crate::storage::{StorageError, WriteError};

/// The SQLSTATE of a failed statement.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(Into::into)
}

/// Whether a statement failed because the database can be read but not written.
pub(super) fn read_only(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("25006")
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
        (None, sqlx::Error::AnyDriverError(error)) if error.is::<super::history::Unsettled>() => {
            StorageError::Unsettled
        }
        (None, sqlx::Error::AnyDriverError(error)) if error.is::<super::rows::NotFollowable>() => {
            StorageError::Entity(error.to_string())
        }
        // The table is not what it was when it was looked at; the next look will say so.
        _ if super::rows::table_changed(error) => {
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

/// The write error of a failed statement: the row's fault where a constraint refused it.
pub(super) fn write(error: &sqlx::Error) -> WriteError {
    let code = code(error);
    let class = code.as_deref().and_then(|code| code.get(..2));
    WriteError::Constraint(match (code.as_deref(), class) {
        (Some("23505"), _) => return WriteError::NotUnique,
        (Some("23503"), _) => "the row refers to a row that does not exist, or another row refers to it",
        (Some("23502"), _) => "a column that must have a value has none",
        (Some("23514" | "23P01" | "44000"), _) => "a check of the database refuses the row",
        // Types of extensions call what they cannot read a syntax error.
        (Some("42601"), _) | (_, Some("22")) => "a value does not fit its column's type",
        (Some("P0001"), _) => "a trigger of the database refuses the row",
        (Some("54000"), _) => "the database refuses the row: a value is too large",
        (_, Some("23")) => "a rule of the database refuses the row",
        _ => return WriteError::Storage(storage(error)),
    })
}
