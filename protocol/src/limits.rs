//! The limits of the wire contract that no configuration changes. Limits that an operator may set have their
//! names and defaults in the server's configuration.

/// Rows in a list when `limit` is absent.
pub const LIST_DEFAULT: usize = 1_000;
/// Most rows in one list.
pub const LIST_MAX: usize = 10_000;
/// Activities in a query when `limit` is absent.
pub const ACTIVITIES_DEFAULT: usize = 100;
/// Most activities in one query.
pub const ACTIVITIES_MAX: usize = 1_000;
/// Bytes after which a list or a query ends early: a list with a link to the rest, a query with its newest.
pub const ANSWER_MAX_BYTES: usize = 16 << 20;
/// Longest `wait` of `GET /v1/transactions/{id}`, in seconds.
pub const TRANSACTION_WAIT_MAX_SECS: u64 = 60;
/// Most activities one rollback may undo, cascade included.
pub const ROLLBACK_MAX: usize = 10_000;
/// Most bytes of a query string.
pub const QUERY_MAX_BYTES: usize = 4_096;
