//! Failures become statuses here, and nowhere else. The bodies are the protocol's; a database's own words never
//! come this far.

use bourn_protocol::cache::Freshness;
use bourn_protocol::error::ConflictBody;
use bourn_protocol::ids::InvalidId;
use bourn_protocol::query::InvalidQuery;
use bourn_protocol::{ErrorBody, ErrorCode};
use bytes::Bytes;
use http::header::{ALLOW, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::value::RawValue;

use super::Reply;
use super::respond::Build;
use crate::entity::ColumnError;
use crate::read::{Gone, ReadError};
use crate::storage::{Dependent, StorageError, WriteError};

/// Seconds after which a client may try again what a 503 refused.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

/// A request that cannot be answered with what it asked for.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    /// The whole body.
    body: Vec<u8>,
    cache: Freshness,
    allow: Option<&'static str>,
}

impl ApiError {
    /// An error with the ordinary body.
    #[must_use]
    pub fn new(code: ErrorCode, message: &str) -> ApiError {
        ApiError { code, body: ErrorBody::new(code, message).to_json(), cache: Freshness::Never, allow: None }
    }

    /// The method does not apply; `allow` lists those that do.
    #[must_use]
    pub fn method(allow: &'static str) -> ApiError {
        let message = format!("this path takes {allow}");
        ApiError { allow: Some(allow), ..ApiError::new(ErrorCode::MethodNotAllowed, &message) }
    }

    /// The code it will be answered with.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    pub(super) fn into_reply(self) -> Reply {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut build = Build::new(status).cache(&self.cache.cache_control(std::time::Duration::ZERO));
        if let Some(allow) = self.allow {
            build = build.header(ALLOW, HeaderValue::from_static(allow));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            build = build.header(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        build.json(self.body)
    }
}

impl From<InvalidQuery> for ApiError {
    fn from(error: InvalidQuery) -> Self {
        ApiError::new(error.code, &error.message)
    }
}

impl From<InvalidId> for ApiError {
    fn from(error: InvalidId) -> Self {
        ApiError::new(ErrorCode::InvalidParameter, &error.to_string())
    }
}

impl From<ColumnError> for ApiError {
    fn from(error: ColumnError) -> Self {
        let code = match &error {
            ColumnError::Unknown(..) => ErrorCode::UnknownColumn,
            ColumnError::ReadOnly(_) => ErrorCode::ReadOnlyColumn,
            ColumnError::WrongType(..) => ErrorCode::WrongType,
            ColumnError::Missing(_) => ErrorCode::MissingColumn,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        let code = match &error {
            StorageError::Busy => ErrorCode::DatabaseBusy,
            StorageError::Full => ErrorCode::DatabaseFull,
            StorageError::ReadOnly => ErrorCode::DatabaseReadOnly,
            StorageError::Unavailable => ErrorCode::DatabaseUnavailable,
            StorageError::Entity(_) => ErrorCode::EntityUnavailable,
            StorageError::Overloaded => ErrorCode::Overloaded,
            StorageError::Closed => ErrorCode::ShuttingDown,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Storage(error) => error.into(),
            ReadError::Gone(gone) => {
                // What lies past the tail today may be there tomorrow; the rest will not come back.
                let cache = if gone == Gone::PastTail { Freshness::Never } else { Freshness::Gone };
                ApiError { cache, ..ApiError::new(ErrorCode::OffsetGone, &error.to_string()) }
            }
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let code = match error {
            WriteError::Storage(error) => return error.into(),
            WriteError::Conflict { row, expected, actual } => {
                return conflict(&row, &expected, actual.as_deref());
            }
            WriteError::Blocked(ref dependents) => return blocked(&error, dependents),
            WriteError::NotFound(_) => ErrorCode::NotFound,
            WriteError::AlreadyExists(_) => ErrorCode::AlreadyExists,
            WriteError::ExpectationRequired => ErrorCode::ExpectationRequired,
            WriteError::NoExpectations => ErrorCode::InvalidHeader,
            WriteError::Reused => ErrorCode::TransactionReused,
            WriteError::NotUnique => ErrorCode::NotUnique,
            WriteError::Constraint(_) => ErrorCode::ConstraintViolated,
            WriteError::UnknownTransaction(_) => ErrorCode::UnknownTransaction,
            WriteError::NotReversible(_) => ErrorCode::NotReversible,
            WriteError::TooLarge(_) => ErrorCode::RollbackTooLarge,
        };
        ApiError::new(code, &error.to_string())
    }
}

fn conflict(row: &Bytes, expected: &str, actual: Option<&str>) -> ApiError {
    let text = String::from_utf8_lossy(row).into_owned();
    match RawValue::from_string(text) {
        Ok(row) => {
            let body = ConflictBody::new(&row, expected, actual).to_json();
            ApiError { code: ErrorCode::TransactionConflict, body, cache: Freshness::Never, allow: None }
        }
        Err(_) => ApiError::new(ErrorCode::Internal, "the row cannot be shown as JSON"),
    }
}

/// A rollback that is blocked says by what, so that a client can show it or undo it first.
fn blocked(error: &WriteError, dependents: &[Dependent]) -> ApiError {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        #[serde(flatten)]
        error: ErrorBody<'a>,
        dependents: &'a [Dependent],
    }
    let message = error.to_string();
    let code = ErrorCode::RollbackBlocked;
    let body =
        serde_json::to_vec(&Body { error: ErrorBody::new(code, &message), dependents }).unwrap_or_default();
    ApiError { code, body, cache: Freshness::Never, allow: None }
}
