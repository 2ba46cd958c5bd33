//! The names of the headers of the wire contract, lower case as HTTP libraries keep them.

/// The place to read from next.
pub const STREAM_NEXT_OFFSET: &str = "stream-next-offset";
/// The cursor to send with the next live read.
pub const STREAM_CURSOR: &str = "stream-cursor";
/// Present, as `true`, when nothing more is in the stream now.
pub const STREAM_UP_TO_DATE: &str = "stream-up-to-date";
/// Present, as `true`, when the stream ends here for good; on a write, to end it.
pub const STREAM_CLOSED: &str = "stream-closed";
/// The writer's own sequence, compared byte by byte.
pub const STREAM_SEQ: &str = "stream-seq";
/// Seconds without reads or writes after which a stream expires.
pub const STREAM_TTL: &str = "stream-ttl";
/// When a stream expires.
pub const STREAM_EXPIRES_AT: &str = "stream-expires-at";
/// The path of the stream that a new one is forked from.
pub const STREAM_FORKED_FROM: &str = "stream-forked-from";
/// The place where the new stream leaves it.
pub const STREAM_FORK_OFFSET: &str = "stream-fork-offset";
/// How many messages or bytes past that place.
pub const STREAM_FORK_SUB_OFFSET: &str = "stream-fork-sub-offset";
/// How event streams carry data that is not text.
pub const STREAM_SSE_DATA_ENCODING: &str = "stream-sse-data-encoding";
/// The name of the producer, for retries.
pub const PRODUCER_ID: &str = "producer-id";
/// The epoch of the producer.
pub const PRODUCER_EPOCH: &str = "producer-epoch";
/// The number of an append within that epoch.
pub const PRODUCER_SEQ: &str = "producer-seq";
/// The number of the append that the server expects.
pub const PRODUCER_EXPECTED_SEQ: &str = "producer-expected-seq";
/// The number of the append that it received instead.
pub const PRODUCER_RECEIVED_SEQ: &str = "producer-received-seq";
/// The signature of a webhook.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// The mutation's id.
pub const TRANSACTION_ID: &str = "x-transaction-id";
/// The device a mutation comes from.
pub const CLIENT_ID: &str = "x-client-id";
/// The transaction id that the row must have for the write to be done.
pub const EXPECTED_TRANSACTION_ID: &str = "x-expected-transaction-id";
/// Present, as `true`, when the transaction had been applied before.
pub const IDEMPOTENT_HIT: &str = "x-idempotent-hit";
/// The place where a reconnecting `EventSource` left off.
pub const LAST_EVENT_ID: &str = "last-event-id";

/// What `Access-Control-Expose-Headers` lists.
pub const EXPOSED: &str = "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-TTL, \
     Stream-Expires-At, Stream-SSE-Data-Encoding, Producer-Epoch, Producer-Seq, Producer-Expected-Seq, \
     Producer-Received-Seq, X-Transaction-Id, X-Idempotent-Hit, ETag, Link, Location, Retry-After";
/// What `Access-Control-Allow-Headers` lists.
pub const ALLOWED: &str = "Content-Type, X-Transaction-Id, X-Client-Id, X-Expected-Transaction-Id, If-None-Match, \
     Last-Event-ID, Authorization, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, Stream-Forked-From, \
     Stream-Fork-Offset, Stream-Fork-Sub-Offset, Producer-Id, Producer-Epoch, Producer-Seq";
