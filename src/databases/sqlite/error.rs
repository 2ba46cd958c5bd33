//! What SQLite's result codes mean to the rest of the server. Its error texts are logged here and go no further.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{ErrorCode, ffi};

use crate::feed::WriteError;
use crate::storage_error::StorageError;

/// How often the same failure is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Our own result code for a log that is not the one that was served; SQLite's are positive.
const NOT_THE_LOG_SERVED: i32 = -1;

/// The log is not the one that was served; see [`history`](crate::databases::sqlite::file::history).
pub(super) fn not_the_log_served() -> rusqlite::Error {
    let failure = ffi::Error { code: ErrorCode::Unknown, extended_code: NOT_THE_LOG_SERVED };
    rusqlite::Error::SqliteFailure(failure, Some("the log is not the one that was served".into()))
}

fn is_not_the_log_served(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if failure.extended_code == NOT_THE_LOG_SERVED)
}

/// The file is not at its path any more.
pub(super) fn gone() -> rusqlite::Error {
    of_io(&io::ErrorKind::NotFound.into())
}

/// A failure of the file beside the database, with the code that SQLite would give it.
pub(super) fn of_io(error: &io::Error) -> rusqlite::Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ffi::SQLITE_FULL,
        io::ErrorKind::WouldBlock => ffi::SQLITE_BUSY,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ffi::SQLITE_READONLY,
        io::ErrorKind::NotFound => ffi::SQLITE_CANTOPEN,
        _ if error.raw_os_error() == Some(nix::errno::Errno::EBADF as i32) => ffi::SQLITE_READONLY,
        _ => ffi::SQLITE_IOERR,
    };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(error.to_string()))
}

/// Logs a failure, the same one not too often: a damaged file fails at every look.
fn log(error: &rusqlite::Error) {
    static LAST: Mutex<Option<(String, Instant)>> = Mutex::new(None);
    let text = error.to_string();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.as_ref().is_none_or(|(known, at)| *known != text || at.elapsed() >= LOG_EVERY) {
        tracing::error!(%error, "the database failed");
        *last = Some((text, Instant::now()));
    }
}

/// The storage error of a failed statement.
pub(super) fn storage(error: &rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StorageError::Busy,
        Some(ErrorCode::DiskFull) => StorageError::Full,
        Some(ErrorCode::ReadOnly) => StorageError::ReadOnly,
        _ => {
            // That one is reported by the code that settles it.
            if !is_not_the_log_served(error) {
                log(error);
            }
            StorageError::Unavailable
        }
    }
}

/// The write error of a failed statement: blamed on the row where a constraint refused it.
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
