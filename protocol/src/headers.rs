//! The names of the headers of the wire contract, lower case as HTTP libraries keep them.

/// The place to read from next.
pub const STREAM_NEXT_OFFSET: &str = "stream-next-offset";
/// The cursor to send with the next live read.
pub const STREAM_CURSOR: &str = "stream-cursor";
/// Present, as `true`, when nothing more is in the stream now.
pub const STREAM_UP_TO_DATE: &str = "stream-up-to-date";
/// The mutation's id.
pub const TRANSACTION_ID: &str = "x-transaction-id";
/// The device a mutation comes from.
pub const CLIENT_ID: &str = "x-client-id";
/// The transaction id that the row must have for the write to be done.
pub const EXPECTED_TRANSACTION_ID: &str = "x-expected-transaction-id";
/// Present, as `true`, when the transaction had been applied before.
pub const IDEMPOTENT_HIT: &str = "x-idempotent-hit";
/// Where a reconnecting `EventSource` left off.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// What `Access-Control-Expose-Headers` lists.
pub const EXPOSED: &str = "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, X-Transaction-Id, \
     X-Idempotent-Hit, ETag, Link, Location, Retry-After";
/// What `Access-Control-Allow-Headers` lists.
pub const ALLOWED: &str = "Content-Type, X-Transaction-Id, X-Client-Id, X-Expected-Transaction-Id, If-None-Match, \
     Last-Event-ID, Authorization, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, Stream-Forked-From, \
     Stream-Fork-Offset, Stream-Fork-Sub-Offset, Producer-Id, Producer-Epoch, Producer-Seq";
