//! What SQLite's result codes mean to the rest of the server. Its words are logged here and go no further.

use rusqlite::ErrorCode;
use rusqlite::ffi;

use crate::storage::{StorageError, WriteError};

/// The storage error of a failed statement.
pub(super) fn storage(error: &rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StorageError::Busy,
        Some(ErrorCode::DiskFull) => StorageError::Full,
        Some(ErrorCode::ReadOnly) => StorageError::ReadOnly,
        _ => {
            tracing::error!(%error, "the database failed");
            StorageError::Unavailable
        }
    }
}

/// The write error of a failed statement: the row's fault where a constraint refused it.
pub(super) fn write(error: &rusqlite::Error) -> WriteError {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return WriteError::Storage(storage(error));
    };
    if failure.code != ErrorCode::ConstraintViolation {
        let refused = matches!(failure.code, ErrorCode::TooBig | ErrorCode::TypeMismatch);
        return match refused {
            true => WriteError::Constraint(
                "the database refuses the row: a value is too large or of the wrong type",
            ),
            false => WriteError::Storage(storage(error)),
        };
    }
    match failure.extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            WriteError::NotUnique
        }
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => {
            WriteError::Constraint("the row refers to a row that does not exist, or another row refers to it")
        }
        ffi::SQLITE_CONSTRAINT_NOTNULL => WriteError::Constraint("a column that must have a value has none"),
        ffi::SQLITE_CONSTRAINT_DATATYPE => WriteError::Constraint("a value does not fit its column's type"),
        ffi::SQLITE_CONSTRAINT_TRIGGER => WriteError::Constraint("a trigger of the database refuses the row"),
        _ => WriteError::Constraint("a check of the database refuses the row"),
    }
}
