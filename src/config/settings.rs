//! Every setting once: its name, its default and its meaning. Flags, environment variables, the file's keys
//! and what `bourn config` prints all come from this one table.

use std::time::Duration;

use super::ConfigError;
use super::values::{DatabaseUrl, ListenAddress, LogFormat, Size, Span};

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident ($env:literal): $kind:ty = $default:expr;)*) => {
        /// One layer of settings: what a source said, and nothing where it was silent.
        #[derive(Debug, Clone, Default, clap::Args, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct SettingsLayer {
            $($(#[doc = $doc])+
            #[arg(long, env = $env, hide_env_values = true,
                  help = concat!($($doc,)+ " [default: ", $default, "]").trim_start())]
            pub $name: Option<$kind>,)*
        }

        /// The settings in force.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits { $($(#[doc = $doc])+ pub $name: $kind,)* }

        impl Limits {
            /// The names of the environment variables.
            pub const ENVIRONMENT: &'static [&'static str] = &[$($env),*];

            pub(super) fn from_layers(above: SettingsLayer, below: SettingsLayer) -> Limits {
                Limits { $($name: above.$name.or(below.$name).unwrap_or_else(|| default($default)),)* }
            }

            pub(super) fn to_toml(&self) -> String {
                let mut text = String::new();
                $({
                    $(text.push_str(concat!("#", $doc, "\n"));)+
                    let value = self.$name.to_string();
                    let bare = value.parse::<usize>().is_ok() || value.parse::<bool>().is_ok();
                    let value = if bare { value } else { toml::Value::String(value).to_string() };
                    text.push_str(&format!("{} = {value}\n", stringify!($name)));
                })*
                text
            }
        }

        #[cfg(test)]
        const DEFAULTS_PARSE: &[fn() -> bool] = &[$(|| $default.parse::<$kind>().is_ok()),*];
    };
}

/// Reads a default from the table. Each is read by a test, so the process cannot meet a bad one.
fn default<T: std::str::FromStr>(text: &str) -> T {
    match text.parse() {
        Ok(value) => value,
        Err(_) => unreachable!("the default `{text}` is checked by a test"),
    }
}

settings! {
    /// Address and port to serve on; a port alone means this machine only.
    listen("BOURN_LISTEN"): ListenAddress = "127.0.0.1:4437";
    /// The database: `sqlite:PATH` or `postgres://USER@HOST/DATABASE`.
    database("BOURN_DATABASE"): DatabaseUrl = "sqlite:bourn.db";
    /// PostgreSQL past a pooler in transaction mode, for replication and LISTEN; empty where there is no pooler.
    direct_database("BOURN_DIRECT_DATABASE"): String = "";
    /// The replication slot in PostgreSQL; empty: `bourn_` and the database's name. Every server of one database must have
    /// the same.
    slot("BOURN_SLOT"): String = "";
    /// The publication in PostgreSQL that names the streamed tables.
    publication("BOURN_PUBLICATION"): String = "bourn";
    /// Names under which a server on loopback is reached beside `localhost` and `public_url`, separated by commas. A
    /// request for another name is refused, so that no web page can reach the server by a name of its own.
    allowed_hosts("BOURN_ALLOWED_HOSTS"): String = "";
    /// Origins whose pages may use a server on loopback beside those on loopback, separated by commas:
    /// `https://app.example.com`; `*` for any.
    allowed_origins("BOURN_ALLOWED_ORIGINS"): String = "";
    /// Whether a server beyond loopback may be open to whoever reaches it, without access control: `true` or `false`.
    insecure_open("BOURN_INSECURE_OPEN"): bool = "false";
    /// What to log: a level, or `target=level` pairs.
    log("BOURN_LOG"): String = "info";
    /// Form of the log lines: `text` or `json`.
    log_format("BOURN_LOG_FORMAT"): LogFormat = "text";

    /// How long a long-poll waits before it answers with nothing.
    long_poll_timeout("BOURN_LONG_POLL_TIMEOUT"): Span = "20s";
    /// How long caches may keep an empty long-poll; above zero only where a cache in front must collapse them.
    long_poll_empty_max_age("BOURN_LONG_POLL_EMPTY_MAX_AGE"): Span = "0s";
    /// How often an idle SSE connection gets a comment line.
    sse_heartbeat("BOURN_SSE_HEARTBEAT"): Span = "15s";
    /// How long an SSE connection lives before the server ends it.
    sse_lifetime("BOURN_SSE_LIFETIME"): Span = "60s";
    /// How far a connection's lifetime may differ, either way, so that reconnects spread.
    sse_lifetime_jitter("BOURN_SSE_LIFETIME_JITTER"): Span = "10s";
    /// The least time after which a browser reconnects; up to as much again is added at random.
    sse_retry("BOURN_SSE_RETRY"): Span = "1s";
    /// How long caches may keep a sealed chunk.
    sealed_max_age("BOURN_SEALED_MAX_AGE"): Span = "365d";

    /// Maximum number of connections at once; one more is answered with 503.
    connections("BOURN_CONNECTIONS"): usize = "20000";
    /// Maximum size in bytes of a request's body.
    body_limit("BOURN_BODY_LIMIT"): Size = "1MiB";
    /// Maximum size of all bodies of rows and subscriptions that are being received or written at once; one more is answered
    /// with 429.
    body_memory("BOURN_BODY_MEMORY"): Size = "64MiB";
    /// Maximum size in bytes of a request's line and headers.
    header_limit("BOURN_HEADER_LIMIT"): Size = "32KiB";
    /// How long a request's headers may take to arrive, and how long a connection may idle between requests.
    header_timeout("BOURN_HEADER_TIMEOUT"): Span = "30s";
    /// How long a request's body may take to arrive.
    body_timeout("BOURN_BODY_TIMEOUT"): Span = "10s";
    /// How long a reader may take nothing of what is ready for it before it is cut off.
    write_timeout("BOURN_WRITE_TIMEOUT"): Span = "10s";
    /// Minimum rate in bytes a second, on average over `write_timeout`, that a reader must take of what is ready for it; `0B` for any.
    write_rate("BOURN_WRITE_RATE"): Size = "4KiB";
    /// How long a stop may take before what is left is cut off.
    shutdown_timeout("BOURN_SHUTDOWN_TIMEOUT"): Span = "10s";

    /// Maximum number of bytes that are appended to a stored stream at once.
    append_limit("BOURN_APPEND_LIMIT"): Size = "8MiB";
    /// Maximum size in bytes of all appends that are being received at once; one more is answered with 429.
    append_memory("BOURN_APPEND_MEMORY"): Size = "256MiB";
    /// Maximum size in bytes of one stored stream.
    stream_limit("BOURN_STREAM_LIMIT"): Size = "64GiB";
    /// Maximum number of stored streams; one more is answered with 429.
    streams("BOURN_STREAMS"): usize = "1000000";
    /// Maximum number of subscriptions to stored streams; one more is answered with 429.
    subscriptions("BOURN_SUBSCRIPTIONS"): usize = "1000";
    /// Maximum number of streams that one subscription follows.
    subscription_streams("BOURN_SUBSCRIPTION_STREAMS"): usize = "1000";
    /// Where clients and webhooks reach this server, as `https://streams.example.com`; empty: its own address.
    public_url("BOURN_PUBLIC_URL"): String = "";
    /// Whether webhooks may go to private and loopback addresses: `true` or `false`.
    webhook_allow_private("BOURN_WEBHOOK_ALLOW_PRIVATE"): bool = "false";
    /// How long a webhook may take to be answered.
    webhook_timeout("BOURN_WEBHOOK_TIMEOUT"): Span = "10s";
    /// Maximum number of webhooks on their way at once.
    webhooks("BOURN_WEBHOOKS"): usize = "64";

    /// Maximum number of messages in a chunk. Every server of one database must have the same.
    chunk_messages("BOURN_CHUNK_MESSAGES"): usize = "1000";
    /// Maximum size of a chunk, in bytes. Every server of one database must have the same.
    chunk_bytes("BOURN_CHUNK_BYTES"): Size = "1MiB";
    /// Maximum size in bytes of one transaction before it is split. Every server of one database must have the same.
    transaction_bytes("BOURN_TRANSACTION_BYTES"): Size = "8MiB";
    /// Memory for history that is read often: half for chunks, half for whole answers.
    chunk_cache("BOURN_CHUNK_CACHE"): Size = "64MiB";
    /// Memory for the live tail, all streams together.
    tail_memory("BOURN_TAIL_MEMORY"): Size = "32MiB";
    /// Minimum time between two deliveries of a stream; changes that arrive faster are sent in one batch.
    tail_sweep("BOURN_TAIL_SWEEP"): Span = "2ms";

    /// Maximum number of writes that wait; one more is answered with 503.
    write_queue("BOURN_WRITE_QUEUE"): usize = "4096";
    /// Maximum number of writes that share one commit.
    write_batch("BOURN_WRITE_BATCH"): usize = "256";
    /// How long a write waits for another process that holds the database.
    busy_timeout("BOURN_BUSY_TIMEOUT"): Span = "5s";
    /// Connections for reading.
    read_connections("BOURN_READ_CONNECTIONS"): usize = "4";
    /// How often a SQLite file is looked at for other processes' commits, should a file event have been lost.
    poll_interval("BOURN_POLL_INTERVAL"): Span = "1s";
    /// Connections to PostgreSQL for reads and writes.
    database_connections("BOURN_DATABASE_CONNECTIONS"): usize = "16";
    /// How long a request waits for one of these connections.
    acquire_timeout("BOURN_ACQUIRE_TIMEOUT"): Span = "5s";
    /// How long opening a connection to PostgreSQL may take.
    connect_timeout("BOURN_CONNECT_TIMEOUT"): Span = "3s";
    /// How long one statement of a request may take in PostgreSQL.
    statement_timeout("BOURN_STATEMENT_TIMEOUT"): Span = "10s";
    /// How long a request waits for a lock that another session of PostgreSQL holds on a row or a table.
    lock_timeout("BOURN_LOCK_TIMEOUT"): Span = "2s";
    /// How long one statement of capturing, comparing and retention may take in PostgreSQL, its locks included.
    capture_timeout("BOURN_CAPTURE_TIMEOUT"): Span = "10m";
    /// How long a start waits for PostgreSQL to accept connections, and for locks on the tables of the log.
    startup_timeout("BOURN_STARTUP_TIMEOUT"): Span = "30s";
    /// How often PostgreSQL is asked how far the log reaches, should a notification have been lost.
    follow_interval("BOURN_FOLLOW_INTERVAL"): Span = "1s";
    /// How long changes captured from PostgreSQL may wait for one another while many come.
    capture_gather("BOURN_CAPTURE_GATHER"): Span = "10ms";
    /// Memory for changes from PostgreSQL that wait to be appended to the log; what is beyond it waits in the database.
    capture_memory("BOURN_CAPTURE_MEMORY"): Size = "64MiB";
    /// How long the server that captures from PostgreSQL may be silent before another takes over.
    leader_timeout("BOURN_LEADER_TIMEOUT"): Span = "3s";
    /// How long superseded versions and deletions stay in the streams; `0s` keeps all of them.
    retention_history("BOURN_RETENTION_HISTORY"): Span = "0s";
    /// How long what has left the streams stays in the audit trail, without its payload; `0s` keeps all of it.
    retention_audit("BOURN_RETENTION_AUDIT"): Span = "0s";
    /// How often retention is looked at.
    retention_interval("BOURN_RETENTION_INTERVAL"): Span = "1m";
    /// How long a transaction id is remembered for retries.
    ledger_retention("BOURN_LEDGER_RETENTION"): Span = "7d";
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("connections", self.connections),
            ("chunk_messages", self.chunk_messages),
            ("write_queue", self.write_queue),
            ("write_batch", self.write_batch),
            ("read_connections", self.read_connections),
            ("database_connections", self.database_connections),
            ("webhooks", self.webhooks),
            ("append_limit", self.append_limit.bytes()),
            ("body_limit", self.body_limit.bytes()),
            ("chunk_bytes", self.chunk_bytes.bytes()),
        ];
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return invalid(format!("`{name}` must be above zero"));
        }
        if self.transaction_bytes.get() < self.chunk_bytes.get() {
            return invalid("`transaction_bytes` must be at least `chunk_bytes`".into());
        }
        if self.append_memory.get() < self.append_limit.get() {
            return invalid("`append_memory` must be at least `append_limit`".into());
        }
        if self.body_memory.get() < self.body_limit.get() {
            return invalid("`body_memory` must be at least `body_limit`".into());
        }
        if !(8 << 10..=1 << 20).contains(&self.header_limit.get()) {
            return invalid("`header_limit` must be from 8KiB to 1MiB".into());
        }
        if self.sse_lifetime_jitter.get() > self.sse_lifetime.get() {
            return invalid("`sse_lifetime_jitter` must not exceed `sse_lifetime`".into());
        }
        if self.poll_interval.get().is_zero() || self.follow_interval.get().is_zero() {
            return invalid("`poll_interval` and `follow_interval` must be above zero".into());
        }
        let timeouts = [
            ("acquire_timeout", self.acquire_timeout),
            ("connect_timeout", self.connect_timeout),
            ("statement_timeout", self.statement_timeout),
            ("lock_timeout", self.lock_timeout),
            ("capture_timeout", self.capture_timeout),
        ];
        let too_short = |timeout: &(&str, Span)| timeout.1.get() < Duration::from_millis(1);
        if let Some((name, _)) = timeouts.into_iter().find(too_short) {
            return invalid(format!("`{name}` must be at least 1ms"));
        }
        if self.retention_interval.get().is_zero() {
            return invalid("`retention_interval` must be above zero".into());
        }
        let (history, audit) = (self.retention_history.get(), self.retention_audit.get());
        if !audit.is_zero() && audit < history {
            return invalid("`retention_audit` must not be shorter than `retention_history`".into());
        }
        if self.leader_timeout.get() < Duration::from_secs(1) {
            return invalid("`leader_timeout` must be at least 1s".into());
        }
        let slot_fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if self.slot.len() > 63 || !self.slot.bytes().all(slot_fits) {
            return invalid("`slot` must be made of lower-case letters, digits and `_`, 63 at most".into());
        }
        if self.publication.is_empty()
            || self.publication.len() > 63
            || self.publication.contains([',', '"', '\0'])
        {
            return invalid(
                "`publication` must be a name of 63 bytes at most, without commas and quotes".into(),
            );
        }
        if !self.direct_database.is_empty() {
            match self.direct_database.parse::<DatabaseUrl>() {
                Ok(DatabaseUrl::Postgres(_)) => {}
                _ => return invalid("`direct_database` must be a PostgreSQL URL, or empty".into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        assert!(DEFAULTS_PARSE.iter().all(|parses| parses()));
    }

    #[test]
    fn every_variable_is_named_after_its_key() {
        let text = Limits::from_layers(SettingsLayer::default(), SettingsLayer::default()).to_toml();
        let keys: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| format!("BOURN_{}", key.to_uppercase()))
            .collect();
        assert_eq!(keys, Limits::ENVIRONMENT);
    }
}
