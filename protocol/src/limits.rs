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
/// Maximum size in bytes of a query string.
pub const QUERY_MAX_BYTES: usize = 28 << 10;
/// Maximum size in bytes of a stored stream's path, decoded.
pub const STREAM_PATH_MAX_BYTES: usize = 1_024;
/// Maximum size in bytes of a content type, a `Stream-Seq` and a producer's id.
pub const STREAM_HEADER_MAX_BYTES: usize = 256;
/// The largest epoch and sequence of a producer: what a JavaScript number holds exactly.
pub const PRODUCER_NUMBER_MAX: u64 = (1 << 53) - 1;
/// Longest `Stream-TTL`, in seconds: a hundred years.
pub const STREAM_TTL_MAX_SECS: u64 = 3_155_760_000;
/// Most streams between a fork and the stream at its root.
pub const FORK_DEPTH_MAX: usize = 64;
/// Most producers that one stream remembers.
pub const PRODUCERS_MAX: u32 = 10_000;
/// Most appends in one chunk of a stored stream.
pub const CHUNK_APPENDS_MAX: usize = 16_384;
/// Maximum size in bytes of a subscription's id, pattern, description and worker name, and of a webhook's URL.
pub const SUBSCRIPTION_TEXT_MAX_BYTES: usize = 2_048;
/// Most segments of a subscription's pattern.
pub const PATTERN_SEGMENTS_MAX: usize = 64;
/// Shortest lease, in milliseconds.
pub const LEASE_MIN_MILLIS: u64 = 1_000;
/// Longest lease.
pub const LEASE_MAX_MILLIS: u64 = 600_000;
/// The lease when none is asked for.
pub const LEASE_DEFAULT_MILLIS: u64 = 30_000;

/// Maximum length of a row's key and of a scope: more than an index of PostgreSQL can hold.
pub const KEY_MAX_BYTES: usize = 4_096;
