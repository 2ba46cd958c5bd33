//! The server's own figures and log lines.

mod log_text;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::feed::CaptureStatus;
use crate::feed::tail::Tail;
use crate::head::Head;

/// Bounds of the latency histograms, in seconds.
const LATENCY: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Bounds of the batch size histogram.
const BATCH: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Starts the log lines.
///
/// # Errors
/// When the filter cannot be read.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("`log`: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // A log line that cannot be written is no reason to say so, which would panic for the same reason.
        .log_internal_errors(false)
        .with_writer(log_text::stderr);
    let started = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// The ways to read a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// What is there now.
    CatchUp,
    /// One answer with what comes next.
    LongPoll,
    /// Server-sent events.
    Sse,
}

/// Figures of one read mode.
#[derive(Clone)]
pub struct ModeFigures {
    readers: Gauge,
    messages: Counter,
    deliveries: Counter,
    bytes: Counter,
}

impl ModeFigures {
    fn new(mode: ReadMode) -> ModeFigures {
        let mode = match mode {
            ReadMode::CatchUp => "catch-up",
            ReadMode::LongPoll => "long-poll",
            ReadMode::Sse => "sse",
        };
        ModeFigures {
            readers: metrics::gauge!("bourn_live_readers", "mode" => mode),
            messages: metrics::counter!("bourn_messages_delivered_total", "mode" => mode),
            deliveries: metrics::counter!("bourn_deliveries_total", "mode" => mode),
            bytes: metrics::counter!("bourn_bytes_delivered_total", "mode" => mode),
        }
    }

    /// Something was delivered to one reader.
    pub fn count(&self, messages: usize, bytes: usize) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.deliveries.increment(1);
        self.messages.increment(count(messages));
        self.bytes.increment(count(bytes));
    }
}

/// The server's figures. What is on a hot path is looked up once, here.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    catch_up: ModeFigures,
    long_poll: ModeFigures,
    sse: ModeFigures,
    requests: HashMap<&'static str, EndpointFigures>,
    connections: Gauge,
    accepted: Counter,
}

/// Figures of one endpoint.
#[derive(Clone)]
struct EndpointFigures {
    latency: Histogram,
    /// Requests by status, for those statuses that are on a hot path: looked up once, and not before there is one.
    usual: Arc<[(StatusCode, OnceLock<Counter>); 4]>,
}

impl EndpointFigures {
    fn new(endpoint: &'static str) -> EndpointFigures {
        let usual = [StatusCode::OK, StatusCode::NOT_MODIFIED, StatusCode::NO_CONTENT, StatusCode::CREATED];
        EndpointFigures {
            latency: metrics::histogram!("bourn_request_seconds", "endpoint" => endpoint),
            usual: Arc::new(usual.map(|status| (status, OnceLock::new()))),
        }
    }
}

fn requests_counter(endpoint: &'static str, status: StatusCode) -> Counter {
    metrics::counter!("bourn_requests_total", "endpoint" => endpoint, "status" => status.as_str().to_owned())
}

/// One more in a gauge, for as long as it is kept.
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Metrics {
    /// Installs the recorder for this process, or takes the one that is there.
    ///
    /// # Errors
    /// When the histograms cannot be set up.
    pub fn install() -> Result<Metrics, String> {
        static HANDLE: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
        let handle = HANDLE.get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY)
                .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_size".into()), &BATCH))
                .map_err(|error| error.to_string())?;
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            // In another application its own recorder may be there already: then that one gets the figures.
            let _ = metrics::set_global_recorder(recorder);
            Ok(handle)
        });
        let handle = handle.clone()?;
        describe();
        let endpoints = [
            "refused",
            "entities",
            "row",
            "activities",
            "transaction",
            "rollback",
            "stream",
            "health",
            "ready",
            "metrics",
            "unknown",
        ];
        let requests = endpoints.map(|name| (name, EndpointFigures::new(name))).into();
        let connections = metrics::gauge!("bourn_open_connections");
        let accepted = metrics::counter!("bourn_connections_total", "outcome" => "accepted");
        Ok(Metrics {
            handle,
            catch_up: ModeFigures::new(ReadMode::CatchUp),
            long_poll: ModeFigures::new(ReadMode::LongPoll),
            sse: ModeFigures::new(ReadMode::Sse),
            requests,
            connections,
            accepted,
        })
    }

    /// The figures of a read mode.
    #[must_use]
    pub fn mode(&self, mode: ReadMode) -> &ModeFigures {
        match mode {
            ReadMode::CatchUp => &self.catch_up,
            ReadMode::LongPoll => &self.long_poll,
            ReadMode::Sse => &self.sse,
        }
    }

    /// A live reader has come; it has gone when the value is dropped.
    #[must_use]
    pub fn reader(&self, mode: ReadMode) -> GaugeGuard {
        let gauge = self.mode(mode).readers.clone();
        gauge.increment(1.0);
        GaugeGuard(gauge)
    }

    /// A connection was opened; it is closed when the value is dropped.
    #[must_use]
    pub fn connection(&self) -> GaugeGuard {
        self.accepted.increment(1);
        self.connections.increment(1.0);
        GaugeGuard(self.connections.clone())
    }

    /// A mutation was answered.
    pub fn wrote(&self, operation: &'static str, outcome: &'static str) {
        metrics::counter!("bourn_writes_total", "operation" => operation, "outcome" => outcome).increment(1);
    }

    /// A request was answered.
    pub fn answered(&self, endpoint: &'static str, status: StatusCode, elapsed: Duration) {
        if let Some(figures) = self.requests.get(endpoint) {
            figures.latency.record(elapsed.as_secs_f64());
            match figures.usual.iter().find(|(usual, _)| *usual == status) {
                Some((_, count)) => count.get_or_init(|| requests_counter(endpoint, status)).increment(1),
                None => requests_counter(endpoint, status).increment(1),
            }
        }
        if status.is_client_error() || status.is_server_error() {
            let status = status.as_str().to_owned();
            metrics::counter!("bourn_errors_total", "endpoint" => endpoint, "status" => status).increment(1);
        }
    }

    /// Takes the figures that are read on demand, when metrics are scraped.
    #[allow(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub fn gauges(&self, head: Head, tail: &Tail, capture: &CaptureStatus) {
        let set = |name: &'static str, value: Option<f64>| {
            if let Some(value) = value {
                metrics::gauge!(name).set(value);
            }
        };
        let flag = |holds: bool| f64::from(u8::from(holds));
        set("bourn_log_head", Some(head.seq.get() as f64));
        set("bourn_tail_head", Some(tail.head().get() as f64));
        set("bourn_tail_bytes", Some(tail.memory_used() as f64));
        set("bourn_capture_up", Some(flag(capture.stalled.is_none())));
        set("bourn_log_lag", capture.lag.map(|changes| changes as f64));
        set("bourn_log_lag_bytes", capture.lag_bytes.map(|bytes| bytes as f64));
        set("bourn_log_lag_seconds", capture.lag_seconds);
        set("bourn_entities_comparing", Some(capture.reconciling.len() as f64));
        let stopped = capture.conditions.iter().filter(|condition| condition.stopped);
        set("bourn_entities_stopped", Some(stopped.count() as f64));
        if let Some(slot) = &capture.slot {
            set("bourn_leader", Some(flag(slot.leader)));
            set("bourn_slot_retained_bytes", slot.retained_bytes.map(|bytes| bytes as f64));
            set("bourn_slot_lost", slot.wal_status.as_ref().map(|status| flag(status == "lost")));
            metrics::counter!("bourn_replication_connects_total").absolute(slot.connects);
        }
    }

    /// The figures in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what histograms have gathered; to be called now and then, so that memory stays bounded where
    /// nothing scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn describe() {
    let counters = [
        ("bourn_messages_delivered_total", "Messages delivered to readers, by mode"),
        ("bourn_deliveries_total", "Batches delivered to readers, by mode"),
        ("bourn_bytes_delivered_total", "Bytes of batches delivered to readers, by mode"),
        ("bourn_chunk_cache_total", "Look-ups in the chunk cache, by outcome"),
        ("bourn_writes_total", "Mutations, by operation and outcome"),
        ("bourn_webhooks_total", "Webhooks, by outcome"),
        ("bourn_requests_total", "Requests answered, by endpoint and status"),
        ("bourn_errors_total", "Answers with an error status, by endpoint and status"),
        ("bourn_connections_total", "Connections, by outcome"),
        (
            "bourn_replication_connects_total",
            "Connections to the replication stream that this server has made",
        ),
    ];
    for (name, text) in counters {
        metrics::describe_counter!(name, text);
    }
    let gauges = [
        ("bourn_live_readers", "Readers that follow a stream now, by mode"),
        ("bourn_log_head", "Place of the last activity in the log"),
        ("bourn_tail_head", "Place up to which the live tail has come"),
        ("bourn_log_lag", "Committed changes that are not in the log yet, where they can be counted"),
        ("bourn_log_lag_bytes", "Bytes of the database's own log that are not in ours yet"),
        ("bourn_log_lag_seconds", "Age of the oldest change that is not in the log yet"),
        ("bourn_capture_up", "Whether changes are being captured: 1 or 0"),
        ("bourn_entities_comparing", "Entity types whose tables are being compared with the log"),
        ("bourn_entities_stopped", "Entity types that are stopped until an operator acts"),
        ("bourn_leader", "Whether this server captures from PostgreSQL: 1 or 0"),
        ("bourn_slot_retained_bytes", "Bytes of write-ahead log that PostgreSQL keeps for the slot"),
        ("bourn_slot_lost", "Whether PostgreSQL has given up the slot's write-ahead log: 1 or 0"),
        ("bourn_tail_bytes", "Bytes held by the live tail"),
        ("bourn_open_connections", "Connections open now"),
        ("bourn_webhooks_pending", "Subscriptions whose webhook waits to be sent or answered"),
    ];
    for (name, text) in gauges {
        metrics::describe_gauge!(name, text);
    }
    metrics::describe_histogram!(
        "bourn_request_seconds",
        Unit::Seconds,
        "Time to the head of the answer, by endpoint"
    );
    metrics::describe_histogram!("bourn_commit_seconds", Unit::Seconds, "Time of one shared commit");
    metrics::describe_histogram!("bourn_write_batch_size", "Mutations that shared a commit");
}
