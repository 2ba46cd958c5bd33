//! Errors as they cross the wire: `{"error":"bad_request","code":"INVALID_OFFSET","message":"…"}`. The code is
//! for programs, the message for people; it says what was wrong and what would be right. The conflict of an
//! optimistic lock has a body of its own, fixed by the contract.

use serde::Serialize;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal;)*) => {
        /// Every code an answer may carry.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// All of them, in the order of their statuses.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $code,)* }
            }

            /// The HTTP status it comes with.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// The offset is none of the server's tokens.
    InvalidOffset = "INVALID_OFFSET", 400;
    /// `live` is neither `long-poll` nor `sse`, or is there twice.
    InvalidLive = "INVALID_LIVE", 400;
    /// A query parameter is unknown, repeated, malformed or out of range.
    InvalidParameter = "INVALID_PARAMETER", 400;
    /// A header's value breaks its rule.
    InvalidHeader = "INVALID_HEADER", 400;
    /// The path is malformed.
    InvalidPath = "INVALID_PATH", 400;
    /// The row id breaks its rule.
    InvalidId = "INVALID_ID", 400;
    /// The body is not JSON, or not a JSON object.
    InvalidJson = "INVALID_JSON", 400;
    /// The body names a column that the table lacks.
    UnknownColumn = "UNKNOWN_COLUMN", 400;
    /// A value does not fit its column.
    WrongType = "WRONG_TYPE", 400;
    /// A column that must have a value has none.
    MissingColumn = "MISSING_COLUMN", 400;
    /// The body sets a column that the server keeps.
    ReadOnlyColumn = "READ_ONLY_COLUMN", 400;
    /// The request could not be read: TLS on the plain port, broken HTTP, or a control request that breaks a rule.
    InvalidRequest = "INVALID_REQUEST", 400;
    /// A producer's new epoch must begin with sequence 0.
    InvalidProducerSeq = "INVALID_PRODUCER_SEQ", 400;
    /// The fork's offset, or the part past it, is not in the source.
    InvalidForkOffset = "INVALID_FORK_OFFSET", 400;
    /// On a listener for caches: the address could be spelled shorter, or in another way.
    UrlNotCanonical = "URL_NOT_CANONICAL", 400;
    /// Nothing was sent to append.
    EmptyBody = "EMPTY_BODY", 400;
    /// The webhook's URL leads to an address that the server does not send to.
    WebhookUrlRejected = "WEBHOOK_URL_REJECTED", 400;
    /// The request shows no token, and there is nothing here for requests without one.
    TokenMissing = "TOKEN_MISSING", 401;
    /// The token is not accepted; under `__ds`: it is none of this subscription's.
    TokenInvalid = "TOKEN_INVALID", 401;
    /// The token has expired.
    TokenExpired = "TOKEN_EXPIRED", 401;
    /// A newer epoch of the producer has appended.
    StaleProducer = "STALE_PRODUCER", 403;
    /// The token is for some scopes, and the request names none.
    ScopeRequired = "SCOPE_REQUIRED", 403;
    /// The token is not for this scope.
    ScopeForbidden = "SCOPE_FORBIDDEN", 403;
    /// The token does not give the right to do this.
    RightMissing = "RIGHT_MISSING", 403;
    /// A cache asks about an address under which there is nothing to read.
    NothingToRead = "NOTHING_TO_READ", 403;
    /// The token does not give the right to set this column.
    ColumnForbidden = "COLUMN_FORBIDDEN", 403;
    /// The token is bound to another client id.
    ClientForbidden = "CLIENT_FORBIDDEN", 403;
    /// The request's host is not a name of this server.
    HostNotAllowed = "HOST_NOT_ALLOWED", 403;
    /// Pages of this origin may not use the server.
    OriginNotAllowed = "ORIGIN_NOT_ALLOWED", 403;
    /// No row has this id.
    NotFound = "NOT_FOUND", 404;
    /// No entity type has this table.
    UnknownTable = "UNKNOWN_TABLE", 404;
    /// No endpoint has this path.
    UnknownPath = "UNKNOWN_PATH", 404;
    /// The log has no such transaction.
    UnknownTransaction = "UNKNOWN_TRANSACTION", 404;
    /// No stored stream has this path.
    StreamNotFound = "STREAM_NOT_FOUND", 404;
    /// The stream to fork does not exist.
    SourceNotFound = "SOURCE_NOT_FOUND", 404;
    /// No subscription has this id.
    SubscriptionNotFound = "SUBSCRIPTION_NOT_FOUND", 404;
    /// The endpoint has no such method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405;
    /// The request took longer to arrive than the server waits.
    RequestTimeout = "REQUEST_TIMEOUT", 408;
    /// Another transaction made a row of this id.
    AlreadyExists = "ALREADY_EXISTS", 409;
    /// The row's transaction is not the expected one.
    TransactionConflict = "TRANSACTION_CONFLICT", 409;
    /// Another row has the value of a column that must be unique.
    NotUnique = "NOT_UNIQUE", 409;
    /// Later transactions touched the rows to be rolled back.
    RollbackBlocked = "ROLLBACK_BLOCKED", 409;
    /// The stream exists and is not what was asked for.
    StreamExists = "STREAM_EXISTS", 409;
    /// The stream is closed: nothing more can be appended.
    StreamClosed = "STREAM_CLOSED", 409;
    /// The stream's content type is another one.
    ContentTypeMismatch = "CONTENT_TYPE_MISMATCH", 409;
    /// `Stream-Seq` is not above the last one.
    SequenceConflict = "SEQUENCE_CONFLICT", 409;
    /// Appends of this producer are missing before this one.
    ProducerGap = "PRODUCER_GAP", 409;
    /// The stream to fork was deleted and is kept for its other forks alone.
    SourceDeleted = "SOURCE_DELETED", 409;
    /// The path is that of a deleted stream that forks still need.
    PathBlocked = "PATH_BLOCKED", 409;
    /// The fork would be further from its root than the server follows.
    ForkTooDeep = "FORK_TOO_DEEP", 409;
    /// The subscription exists with another configuration.
    SubscriptionExists = "SUBSCRIPTION_ALREADY_EXISTS", 409;
    /// The wake is not the current one.
    Fenced = "FENCED", 409;
    /// Another worker holds the subscription.
    AlreadyClaimed = "ALREADY_CLAIMED", 409;
    /// Nothing waits to be worked on.
    NoPendingWork = "NO_PENDING_WORK", 409;
    /// No subscription could have acknowledged this offset.
    InvalidAck = "INVALID_OFFSET", 409;
    /// The stream was deleted and is kept for its forks alone.
    StreamGone = "STREAM_GONE", 410;
    /// The offset belongs to another log, lies past the tail, or behind what is kept.
    OffsetGone = "OFFSET_GONE", 410;
    /// The body is larger than the server takes.
    BodyTooLarge = "BODY_TOO_LARGE", 413;
    /// The stream would be larger than the server lets one be.
    StreamTooLarge = "STREAM_TOO_LARGE", 413;
    /// The query string is longer than the server takes.
    UriTooLong = "URI_TOO_LONG", 414;
    /// The body is not `application/json`.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415;
    /// The transaction id had been used for another mutation.
    TransactionReused = "TRANSACTION_REUSED", 422;
    /// The database's own rules refuse the row.
    ConstraintViolated = "CONSTRAINT_VIOLATED", 422;
    /// The entity type keeps no previous values.
    NotReversible = "NOT_REVERSIBLE", 422;
    /// The rollback would undo more than the server takes at once.
    RollbackTooLarge = "ROLLBACK_TOO_LARGE", 422;
    /// The entity type wants the expected transaction id.
    ExpectationRequired = "EXPECTATION_REQUIRED", 428;
    /// The server has as many streams, producers or subscriptions as it takes.
    TooMany = "TOO_MANY", 429;
    /// The caller, or its address, has asked for more than it may in this time.
    TooManyRequests = "TOO_MANY_REQUESTS", 429;
    /// The caller, or its address, has as many live reads as it may have at once.
    TooManyStreams = "TOO_MANY_STREAMS", 429;
    /// More is being uploaded than the server holds at once.
    TooManyUploads = "TOO_MANY_UPLOADS", 429;
    /// A fault of the server's own.
    Internal = "INTERNAL", 500;
    /// Another process holds the database; a retry may help.
    DatabaseBusy = "DATABASE_BUSY", 503;
    /// Another session of the database holds a lock on the row or the table.
    DatabaseLocked = "DATABASE_LOCKED", 503;
    /// The database did not answer in time; a write may have been done, and a retry with the same transaction id says.
    DatabaseTimeout = "DATABASE_TIMEOUT", 503;
    /// The database's disk is full; nothing was written.
    DatabaseFull = "DATABASE_FULL", 503;
    /// The database can be read but not written.
    DatabaseReadOnly = "DATABASE_READ_ONLY", 503;
    /// The database is damaged or out of reach.
    DatabaseUnavailable = "DATABASE_UNAVAILABLE", 503;
    /// The entity type's table is missing or does not fit.
    EntityUnavailable = "ENTITY_UNAVAILABLE", 503;
    /// More work is waiting than the server queues.
    Overloaded = "OVERLOADED", 503;
    /// The keys of the token's issuer cannot be read.
    KeysUnavailable = "KEYS_UNAVAILABLE", 503;
    /// The server is about to stop.
    ShuttingDown = "SHUTTING_DOWN", 503;
}

impl ErrorCode {
    /// The word in `error`: the kind of failure, one per status.
    #[must_use]
    pub const fn error(self) -> &'static str {
        match self.status() {
            400 => "bad_request",
            401 => "unauthorized",
            403 => "forbidden",
            404 => "not_found",
            405 => "method_not_allowed",
            408 => "timeout",
            409 => "conflict",
            410 => "gone",
            413 => "payload_too_large",
            414 => "uri_too_long",
            415 => "unsupported_media_type",
            422 => "unprocessable",
            428 => "precondition_required",
            429 => "too_many_requests",
            503 => "unavailable",
            _ => "internal",
        }
    }
}

/// The body of every error but the two with bodies of their own.
#[derive(Debug, Clone, Serialize)]
pub struct ErrorBody<'a> {
    /// The kind of failure.
    pub error: &'static str,
    /// The code for programs.
    pub code: &'static str,
    /// What was wrong and what would be right.
    pub message: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// The body for a code.
    #[must_use]
    pub fn new(code: ErrorCode, message: &'a str) -> Self {
        ErrorBody { error: code.error(), code: code.as_str(), message }
    }

    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The body of an error under `__ds`, which the Durable Streams protocol words in its own way.
#[derive(Debug, Clone, Serialize)]
pub struct ControlErrorBody<'a> {
    /// Everything about it.
    pub error: ControlError<'a>,
}

/// What a [`ControlErrorBody`] says.
#[derive(Debug, Clone, Serialize)]
pub struct ControlError<'a> {
    /// The code for programs.
    pub code: &'static str,
    /// What was wrong and what would be right.
    pub message: &'a str,
    /// The worker that holds the subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_holder: Option<&'a str>,
    /// The wake it holds it for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// The body of a `TRANSACTION_CONFLICT`: exactly these five fields.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConflictBody<'a> {
    error: &'static str,
    code: &'static str,
    server_version: &'a serde_json::value::RawValue,
    expected_transaction: &'a str,
    actual_transaction: Option<&'a str>,
}

impl<'a> ConflictBody<'a> {
    /// `row` is the row's JSON as the server has it; `actual` its current transaction id.
    #[must_use]
    pub fn new(row: &'a serde_json::value::RawValue, expected: &'a str, actual: Option<&'a str>) -> Self {
        let code = ErrorCode::TransactionConflict;
        ConflictBody {
            error: code.error(),
            code: code.as_str(),
            server_version: row,
            expected_transaction: expected,
            actual_transaction: actual,
        }
    }

    /// The body as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_its_kind_its_code_and_what_would_be_right() {
        let body = ErrorBody::new(ErrorCode::InvalidOffset, "say -1");
        assert_eq!(
            String::from_utf8(body.to_json()).unwrap(),
            r#"{"error":"bad_request","code":"INVALID_OFFSET","message":"say -1"}"#
        );
    }

    #[test]
    fn a_conflict_has_exactly_the_five_fields_of_the_contract() {
        let row = serde_json::value::RawValue::from_string(r#"{"id":"p1"}"#.into()).unwrap();
        assert_eq!(
            String::from_utf8(ConflictBody::new(&row, "a", Some("b")).to_json()).unwrap(),
            r#"{"error":"conflict","code":"TRANSACTION_CONFLICT","serverVersion":{"id":"p1"},"expectedTransaction":"a","actualTransaction":"b"}"#
        );
    }

    #[test]
    fn every_code_is_documented() {
        let prose = include_str!("../PROTOCOL.md");
        for code in ErrorCode::ALL {
            let row = prose.lines().find(|line| line.starts_with(&format!("| {} |", code.status())));
            assert!(
                row.is_some_and(|row| row.contains(&format!("`{}`", code.as_str()))),
                "{}",
                code.as_str()
            );
        }
    }

    #[test]
    fn codes_are_listed_in_the_order_of_their_statuses() {
        assert!(ErrorCode::ALL.is_sorted_by_key(|code| code.status()));
    }
}
