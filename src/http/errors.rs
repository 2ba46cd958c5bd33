//! Failures become statuses here, and nowhere else. The bodies are the protocol's; a database's own words never
//! come this far.

use bourn_protocol::cache::Freshness;
use bourn_protocol::error::{ConflictBody, ControlError, ControlErrorBody};
use bourn_protocol::ids::InvalidId;
use bourn_protocol::query::InvalidQuery;
use bourn_protocol::stored::{NotJson, Refused};
use bourn_protocol::{ErrorBody, ErrorCode, headers};
use bytes::Bytes;
use http::header::{ALLOW, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::value::RawValue;

use super::Reply;
use super::respond::Build;
use crate::access::{Denied, TokenError};
use crate::feed::entity::ColumnError;
use crate::feed::session::{self as log_session, Gone};
use crate::feed::{Dependent, WriteError};
use crate::storage_error::StorageError;
use crate::streams::subscriptions::Refusal;
use crate::streams::{AppendError, CreateError, FindError, session as stream_session};

/// Seconds after which a client may try again what a 503 or a 429 refused.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");
/// How a request says who makes it (RFC 6750).
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

/// A request that cannot be answered with what it asked for.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    /// The whole body.
    body: Vec<u8>,
    cache: Freshness,
    /// What the answer says beside the body.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// An error with the ordinary body.
    #[must_use]
    pub fn new(code: ErrorCode, message: &str) -> ApiError {
        ApiError {
            code,
            body: ErrorBody::new(code, message).to_json(),
            cache: Freshness::Never,
            headers: Vec::new(),
        }
    }

    /// The method does not apply; `allow` lists those that do.
    #[must_use]
    pub fn method(allow: &'static str) -> ApiError {
        let message = format!("this path takes {allow}");
        ApiError::new(ErrorCode::MethodNotAllowed, &message).with(ALLOW, allow)
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &str) -> ApiError {
        self.headers.extend(HeaderValue::from_str(value).map(|value| (name, value)));
        self
    }

    /// Worded as the Durable Streams protocol words errors of its control endpoints.
    #[must_use]
    pub fn control(code: ErrorCode, message: &str, holder: Option<(&str, u64)>) -> ApiError {
        let (current_holder, generation) = holder.unzip();
        let body = ControlErrorBody {
            error: ControlError { code: code.as_str(), message, current_holder, generation },
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        ApiError { body, ..ApiError::new(code, message) }
    }

    /// An offset that cannot be read from. What lies past the tail today may be there tomorrow and is not to be cached; the
    /// rest will not come back.
    fn gone(cache: Freshness, why: &dyn std::fmt::Display) -> ApiError {
        ApiError { cache, ..ApiError::new(ErrorCode::OffsetGone, &why.to_string()) }
    }

    /// The code it will be answered with.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    pub(super) fn into_reply(self) -> Reply {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut build = Build::new(status).cache(&self.cache.cache_control(std::time::Duration::ZERO));
        for (name, value) in self.headers {
            build = build.header(name, value);
        }
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            build = build.header(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        if status == StatusCode::UNAUTHORIZED {
            build = build.header(WWW_AUTHENTICATE, BEARER);
        }
        build.json(self.body)
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Missing => ErrorCode::TokenMissing,
            TokenError::Invalid(_) => ErrorCode::TokenInvalid,
            TokenError::Expired => ErrorCode::TokenExpired,
            TokenError::KeysUnavailable => ErrorCode::KeysUnavailable,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let code = match denied {
            Denied::ScopeRequired => ErrorCode::ScopeRequired,
            Denied::ScopeForbidden => ErrorCode::ScopeForbidden,
            Denied::RightMissing(_) => ErrorCode::RightMissing,
            Denied::ColumnForbidden(_) => ErrorCode::ColumnForbidden,
            Denied::ClientMismatch => ErrorCode::ClientForbidden,
        };
        ApiError::new(code, &denied.to_string())
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
            StorageError::Locked => ErrorCode::DatabaseLocked,
            StorageError::Slow => ErrorCode::DatabaseTimeout,
            StorageError::Full => ErrorCode::DatabaseFull,
            StorageError::ReadOnly => ErrorCode::DatabaseReadOnly,
            StorageError::Unsettled | StorageError::Unavailable => ErrorCode::DatabaseUnavailable,
            StorageError::Entity(_) => ErrorCode::EntityUnavailable,
            StorageError::Overloaded => ErrorCode::Overloaded,
            StorageError::Closed => ErrorCode::ShuttingDown,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<log_session::FeedReadError> for ApiError {
    fn from(error: log_session::FeedReadError) -> Self {
        match &error {
            log_session::FeedReadError::Storage(error) => error.clone().into(),
            log_session::FeedReadError::Gone(Gone::PastTail) => ApiError::gone(Freshness::Never, &error),
            log_session::FeedReadError::Gone(_) => ApiError::gone(Freshness::Gone, &error),
        }
    }
}

impl From<stream_session::StreamReadError> for ApiError {
    fn from(error: stream_session::StreamReadError) -> Self {
        match error {
            stream_session::StreamReadError::Storage(error) => error.into(),
            stream_session::StreamReadError::Find(error) => error.into(),
            stream_session::StreamReadError::Misplaced => {
                ApiError::new(ErrorCode::InvalidOffset, &error.to_string())
            }
            stream_session::StreamReadError::PastTail => ApiError::gone(Freshness::Never, &error),
            stream_session::StreamReadError::OtherStream => ApiError::gone(Freshness::Gone, &error),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(error: Refused) -> Self {
        ApiError::new(ErrorCode::InvalidHeader, error.0)
    }
}

impl From<NotJson> for ApiError {
    fn from(error: NotJson) -> Self {
        ApiError::new(ErrorCode::InvalidJson, &error.to_string())
    }
}

impl From<FindError> for ApiError {
    fn from(error: FindError) -> Self {
        let code = match error {
            FindError::Storage(error) => return error.into(),
            FindError::Missing => ErrorCode::StreamNotFound,
            FindError::Gone => ErrorCode::StreamGone,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let code = match error {
            CreateError::Storage(error) => return error.into(),
            CreateError::NotJson(error) => return error.into(),
            CreateError::Exists(_) => ErrorCode::StreamExists,
            CreateError::Blocked => ErrorCode::PathBlocked,
            CreateError::SourceMissing => ErrorCode::SourceNotFound,
            CreateError::SourceGone => ErrorCode::SourceDeleted,
            CreateError::ContentType(_) => ErrorCode::ContentTypeMismatch,
            CreateError::ForkOffset(_) => ErrorCode::InvalidForkOffset,
            CreateError::TooDeep => ErrorCode::ForkTooDeep,
            CreateError::TooLarge(_) => ErrorCode::StreamTooLarge,
            CreateError::TooMany => ErrorCode::TooMany,
        };
        ApiError::new(code, &error.to_string())
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        let named = |code| ApiError::new(code, &error.to_string());
        let header = HeaderName::from_static;
        match error {
            AppendError::Storage(error) => error.into(),
            AppendError::Missing => named(ErrorCode::StreamNotFound),
            AppendError::Gone => named(ErrorCode::StreamGone),
            AppendError::Closed(tail) => named(ErrorCode::StreamClosed)
                .with(header(headers::STREAM_CLOSED), "true")
                .with(header(headers::STREAM_NEXT_OFFSET), &tail.to_string()),
            AppendError::ContentType(_) => named(ErrorCode::ContentTypeMismatch),
            AppendError::Sequence => named(ErrorCode::SequenceConflict),
            AppendError::StaleEpoch(epoch) => {
                named(ErrorCode::StaleProducer).with(header(headers::PRODUCER_EPOCH), &epoch.to_string())
            }
            AppendError::EpochSeq => named(ErrorCode::InvalidProducerSeq),
            AppendError::Gap { expected, received } => named(ErrorCode::ProducerGap)
                .with(header(headers::PRODUCER_EXPECTED_SEQ), &expected.to_string())
                .with(header(headers::PRODUCER_RECEIVED_SEQ), &received.to_string()),
            AppendError::TooLarge(_) => named(ErrorCode::StreamTooLarge),
            AppendError::TooManyProducers => named(ErrorCode::TooMany),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(error: Refusal) -> Self {
        let code = match &error {
            Refusal::Storage(error) => return error.clone().into(),
            Refusal::Claimed { holder, generation } => {
                let holder = Some((holder.as_str(), *generation));
                return ApiError::control(ErrorCode::AlreadyClaimed, &error.to_string(), holder);
            }
            Refusal::NotFound => ErrorCode::SubscriptionNotFound,
            Refusal::Exists => ErrorCode::SubscriptionExists,
            Refusal::Invalid(_) => ErrorCode::InvalidRequest,
            Refusal::UrlRejected(_) => ErrorCode::WebhookUrlRejected,
            Refusal::TokenInvalid => ErrorCode::TokenInvalid,
            Refusal::TokenExpired => ErrorCode::TokenExpired,
            Refusal::Fenced => ErrorCode::Fenced,
            Refusal::NoWork => ErrorCode::NoPendingWork,
            Refusal::Ack(_) => ErrorCode::InvalidAck,
            Refusal::TooMany(_) => ErrorCode::TooMany,
        };
        ApiError::control(code, &error.to_string(), None)
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let code = match error {
            WriteError::Storage(error) => return error.into(),
            WriteError::Denied(denied) => return denied.into(),
            WriteError::Conflict { row, expected, actual } => {
                return conflict(&row, &expected, actual.as_deref());
            }
            WriteError::Blocked(ref dependents) => return blocked(&error, dependents),
            WriteError::NotFound(_) => ErrorCode::NotFound,
            WriteError::AlreadyExists(_) => ErrorCode::AlreadyExists,
            WriteError::ExpectationRequired => ErrorCode::ExpectationRequired,
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
            ApiError {
                code: ErrorCode::TransactionConflict,
                body,
                cache: Freshness::Never,
                headers: Vec::new(),
            }
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
    ApiError { code, body, cache: Freshness::Never, headers: Vec::new() }
}
