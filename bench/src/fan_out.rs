//! `fan-out`: events to many readers, at rising rates and in a closed loop that saturates the machine; and what
//! an idle connection costs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::time::Instant;

use crate::load::{self, Done};
use crate::measure::Latencies;
use crate::process::{Bench, Server};
use crate::publish::Publisher;
use crate::readers::{Readers, Tally};
use crate::report::{self, Table, kib, number, ratio, time};

/// Readers whose latency is looked at.
const SAMPLED: usize = 100;
/// How long connections are left alone before memory is read.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How long to wait for what is still on its way once nothing more arrives.
const QUIET: Duration = Duration::from_millis(500);
/// How long to wait for it at most.
const DRAIN: Duration = Duration::from_secs(15);
/// A step that delivers less than this share of what was asked for is the last one before saturation.
const KEEPS_UP: f64 = 0.95;
/// Bytes that the baseline's frame adds to its body.
const BARE_FRAME: usize = 7;
/// Bytes that chunked encoding adds to an event of common size.
const CHUNKED: usize = 7;
/// Settings under which connections outlive the measurement and none is refused.
const SETTINGS: [(&str, &str); 2] = [("BOURN_SSE_LIFETIME", "600s"), ("BOURN_CONNECTIONS", "30000")];
/// Where Bourn's readers read.
const FOLLOW: &str = "/v1/entities/pages?offset=now&live=sse";

#[derive(Args)]
pub(crate) struct Options {
    /// Numbers of readers, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000, 10_000])]
    readers: Vec<usize>,
    /// Events a second, rising; steps after the first that cannot be kept up with are left out.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 10.0, 50.0, 100.0, 500.0])]
    rates: Vec<f64>,
    /// Seconds of each step.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Clients of the saturating step; 0 leaves it out.
    #[arg(long, default_value_t = 32)]
    writers: usize,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
}

impl Options {
    /// What `all` does.
    pub(crate) fn modest() -> Options {
        Options {
            readers: vec![1_000, 10_000],
            rates: vec![10.0, 100.0],
            seconds: 3.0,
            writers: 32,
            content: 200,
        }
    }
}

/// One step on one server.
struct Step {
    /// Events a second that were asked for; none in the saturating step.
    rate: Option<f64>,
    done: Done,
    /// Messages that arrived, all readers together.
    delivered: u64,
    /// Until the last of them.
    elapsed: f64,
    cpu: f64,
    latencies: Latencies,
    /// The share of sent events that arrived.
    complete: f64,
    keeps_up: bool,
}

impl Step {
    fn deliveries(&self) -> f64 {
        self.delivered as f64 / self.elapsed.max(1e-9)
    }

    /// CPU microseconds of the server per delivery, which are CPU seconds per million.
    fn cpu_per_delivery(&self) -> f64 {
        self.cpu * 1e6 / (self.delivered as f64).max(1.0)
    }
}

/// All steps on one server.
struct Series {
    idle: f64,
    steps: Vec<Step>,
    ended: u64,
    frame: usize,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let mut idle = Table::new(
        "Resident memory per idle SSE connection",
        &["readers", "Bourn", "bare hyper", "Bourn / bare"],
    );
    let mut rates = Table::new(
        "Fan-out over SSE: rates",
        &[
            "readers × events/s",
            "Bourn events/s",
            "Bourn deliveries/s",
            "bare deliveries/s",
            "Bourn / bare",
            "Bourn arrived",
            "bare arrived",
        ],
    );
    let mut costs = Table::new(
        "Fan-out over SSE: latency from sending the write, and the server's CPU per delivery",
        &[
            "readers × events/s",
            "Bourn p50",
            "Bourn p99",
            "bare p50",
            "bare p99",
            "Bourn CPU µs",
            "bare CPU µs",
            "Bourn / bare CPU",
        ],
    );
    for &count in &options.readers {
        let scratch = bench.scratch()?;
        let server = bench.bourn(scratch.path(), &SETTINGS).await?;
        let publisher = Publisher::pages(server.address, options.content);
        let bourn = series(options, count, &server, FOLLOW, publisher).await?;
        server.end().await?;
        let server = bench.baseline(&["baseline-sse"]).await?;
        let size = bourn.frame.saturating_sub(BARE_FRAME + CHUNKED);
        let publisher = Publisher::bare(server.address, size);
        let bare = series(options, count, &server, "/events", publisher).await?;
        server.end().await?;
        idle.row([number(count as f64), kib(bourn.idle), kib(bare.idle), ratio(bourn.idle, bare.idle)]);
        compare(&mut rates, &mut costs, count, &bourn, &bare);
        rates.note(format!(
            "{count} readers: an event takes {} bytes on the wire from Bourn, {} from bare hyper{}.",
            bourn.frame,
            bare.frame,
            match bourn.ended + bare.ended {
                0 => String::new(),
                _ => format!(
                    "; connections that ended early: Bourn {}, bare hyper {}",
                    bourn.ended, bare.ended
                ),
            }
        ));
    }
    idle.print();
    rates.print();
    costs.print();
    Ok(())
}

fn compare(rates: &mut Table, costs: &mut Table, count: usize, bourn: &Series, bare: &Series) {
    for step in &bourn.steps {
        let name = step.rate.map_or("saturated".to_owned(), number);
        let name = format!("{} × {name}", number(count as f64));
        // A server that could not keep up earlier has no figures for the rates above.
        let other = bare.steps.iter().find(|other| other.rate == step.rate);
        let of = |f: &dyn Fn(&Step) -> String| other.map_or_else(|| "–".to_owned(), f);
        let percent = |step: &Step| format!("{:.1} %", step.complete * 100.0);
        rates.row([
            name.clone(),
            number(step.done.per_second()),
            number(step.deliveries()),
            of(&|other| number(other.deliveries())),
            of(&|other| ratio(step.deliveries(), other.deliveries())),
            percent(step),
            of(&percent),
        ]);
        costs.row([
            name,
            time(step.latencies.p50()),
            time(step.latencies.p99()),
            of(&|other| time(other.latencies.p50())),
            of(&|other| time(other.latencies.p99())),
            number(step.cpu_per_delivery()),
            of(&|other| number(other.cpu_per_delivery())),
            of(&|other| ratio(step.cpu_per_delivery(), other.cpu_per_delivery())),
        ]);
    }
}

async fn series(
    options: &Options,
    count: usize,
    server: &Server,
    path: &str,
    publisher: Publisher,
) -> Result<Series> {
    let publisher = Arc::new(publisher);
    let frame = warm_up(server, path, &publisher).await?;
    let before = server.resident_bytes()?;
    report::progress(&format!("{count} readers of {}{path}", server.address));
    let readers = Readers::open(server.address, path, count, SAMPLED).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = server.resident_bytes()?.saturating_sub(before) as f64 / count as f64;
    let mut series = Series { idle, steps: Vec::new(), ended: 0, frame };
    let duration = Duration::from_secs_f64(options.seconds);
    for &rate in &options.rates {
        report::progress(&format!("{rate} events a second"));
        let step = step(&readers.tally, count, server, &publisher, Some(rate), duration, 0).await?;
        let keeps_up = step.keeps_up;
        series.steps.push(step);
        if !keeps_up {
            break;
        }
    }
    if options.writers > 0 {
        report::progress(&format!("{} writers in a closed loop", options.writers));
        let step = step(&readers.tally, count, server, &publisher, None, duration, options.writers).await?;
        series.steps.push(step);
    }
    series.ended = readers.tally.ended();
    Ok(series)
}

/// Brings the server to where its memory no longer grows by itself, and finds the size of an event on the wire.
async fn warm_up(server: &Server, path: &str, publisher: &Arc<Publisher>) -> Result<usize> {
    let readers = Readers::open(server.address, path, 1, 1).await?;
    load::paced(publisher, 50.0, Duration::from_secs(1)).await?;
    tokio::time::sleep(QUIET).await;
    let before = readers.tally.bytes();
    load::closed_loop(publisher, 1, Duration::from_secs(5), Some(1)).await?;
    tokio::time::sleep(QUIET).await;
    Ok(usize::try_from(readers.tally.bytes() - before)?)
}

async fn step(
    tally: &Arc<Tally>,
    count: usize,
    server: &Server,
    publisher: &Arc<Publisher>,
    rate: Option<f64>,
    duration: Duration,
    writers: usize,
) -> Result<Step> {
    let _ = tally.take_latencies();
    let (messages, cpu, begun) = (tally.messages(), server.cpu_seconds()?, Instant::now());
    let done = match rate {
        Some(rate) => load::paced(publisher, rate, duration).await?,
        None => load::closed_loop(publisher, writers, duration, None).await?,
    };
    let expected = done.sent * u64::try_from(count)?;
    let last = drained(tally, messages + expected).await;
    let delivered = tally.messages() - messages;
    let elapsed = match last > begun {
        true => (last - begun).max(done.elapsed).as_secs_f64(),
        false => done.elapsed.as_secs_f64(),
    };
    let complete = delivered as f64 / (expected as f64).max(1.0);
    // Late counts as little as lost: what a server delivers long after the step it has not kept up with.
    let keeps_up = rate.is_none_or(|rate| {
        delivered as f64 / elapsed.max(1e-9) >= KEEPS_UP * rate * count as f64 || done.sent < 10
    });
    let cpu = server.cpu_seconds()? - cpu;
    let latencies = tally.take_latencies();
    Ok(Step { rate, done, delivered, elapsed, cpu, latencies, complete, keeps_up })
}

/// Waits until so many messages have arrived, or no more do; gives the time of the last.
async fn drained(tally: &Tally, expected: u64) -> Instant {
    let begun = Instant::now();
    let (mut last, mut seen) = (begun, tally.messages());
    while seen < expected && last.elapsed() < QUIET.max(DRAIN / 5) && begun.elapsed() < DRAIN {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = tally.messages();
        if now != seen {
            (last, seen) = (Instant::now(), now);
        }
    }
    last
}
