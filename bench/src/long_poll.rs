//! `long-poll`: many waiters at the tail, then one write; how long until each has its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::task::JoinSet;

use crate::measure::{Latencies, now_nanos};
use crate::process::{Bench, Server};
use crate::publish::Publisher;
use crate::report::{self, Table, number, ratio, time};
use crate::wire::{self, Connection, SMALL};

/// How long the waiters are given to be waiting.
const SETTLE: Duration = Duration::from_millis(400);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Connections that are being opened at once.
const OPENING: usize = 128;

#[derive(Args)]
pub(crate) struct Options {
    /// Readers that wait.
    #[arg(long, default_value_t = 1_000)]
    waiters: usize,
    /// How often.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 200)]
    content: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { waiters: 1_000, rounds: 20, content: 200 }
    }
}

struct Figures {
    latencies: Latencies,
    /// The last answer of each round.
    last: Latencies,
    /// CPU microseconds of the server per answer, from the write on.
    wake: f64,
    /// The same with the requests that wait.
    whole: f64,
    /// Bytes of an answer's body.
    body: usize,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    report::progress(&format!("{} waiters, {} rounds", options.waiters, options.rounds));
    let scratch = bench.scratch()?;
    let server = bench.bourn(scratch.path(), &[]).await?;
    let publisher = Publisher::pages(server.address, options.content);
    let bourn = measure(options, &server, &publisher, true).await?;
    server.end().await?;
    let server = bench.baseline(&["baseline-sse"]).await?;
    let publisher = Publisher::bare(server.address, bourn.body);
    let bare = measure(options, &server, &publisher, false).await?;
    server.end().await?;

    let title = format!("Long-poll: {} waiters, one write, {} rounds", options.waiters, options.rounds);
    let mut table = Table::new(&title, &["write to answer", "Bourn", "bare hyper", "Bourn / bare"]);
    let mut latency = |name: &str, a: Duration, b: Duration| {
        table.row([name.into(), time(a), time(b), ratio(a.as_secs_f64(), b.as_secs_f64())]);
    };
    latency("p50", bourn.latencies.p50(), bare.latencies.p50());
    latency("p99", bourn.latencies.p99(), bare.latencies.p99());
    latency("last of a round, p50", bourn.last.p50(), bare.last.p50());
    let mut cpu = |name: &str, a: f64, b: f64| {
        table.row([name.into(), number(a), number(b), ratio(a, b)]);
    };
    cpu("CPU µs per wake", bourn.wake, bare.wake);
    cpu("CPU µs per request and wake", bourn.whole, bare.whole);
    table.print();
    Ok(())
}

async fn measure(options: &Options, server: &Server, publisher: &Publisher, bourn: bool) -> Result<Figures> {
    let address = server.address;
    let mut writer = Connection::open(address, SMALL).await?;
    writer.expect(&publisher.request()).await?;
    let mut offset = match bourn {
        true => {
            writer.expect(&wire::get(address, "/v1/entities/pages?offset=now", None)).await?;
            writer.header("stream-next-offset").context("no offset")?.to_owned()
        }
        false => String::new(),
    };
    let mut waiting = connect(address, options.waiters).await?;
    let mut figures =
        Figures { latencies: Latencies::new()?, last: Latencies::new()?, wake: 0.0, whole: 0.0, body: 0 };
    // The first round warms up.
    for round in 0..=options.rounds {
        let path = match bourn {
            true => format!("/v1/entities/pages?offset={offset}&live=long-poll"),
            false => "/wait".to_owned(),
        };
        let request: Arc<[u8]> = wire::get(address, &path, None).into();
        let before_requests = server.cpu_seconds()?;
        let mut answers = JoinSet::new();
        for mut connection in waiting.drain(..) {
            let request = request.clone();
            answers.spawn(async move {
                let answer = tokio::time::timeout(ANSWER, connection.expect(&request)).await;
                let received = now_nanos();
                answer.context("a long-poll was not answered")?.map(|answer| (connection, answer, received))
            });
        }
        tokio::time::sleep(SETTLE).await;
        let before_write = server.cpu_seconds()?;
        let sent = now_nanos();
        writer.expect(&publisher.request()).await?;
        let mut slowest = 0;
        while let Some(answered) = answers.join_next().await {
            let (connection, answer, received) = answered??;
            let latency = received.saturating_sub(sent);
            slowest = slowest.max(latency);
            figures.body = answer.body_bytes;
            if round > 0 {
                figures.latencies.record(latency);
            }
            waiting.push(connection);
        }
        if bourn {
            let connection = waiting.first().context("nobody waits")?;
            offset = connection.header("stream-next-offset").context("no offset")?.to_owned();
        }
        if round > 0 {
            let after = server.cpu_seconds()?;
            figures.last.record(slowest);
            figures.wake += after - before_write;
            figures.whole += after - before_requests;
        }
    }
    let answers = f64::from(options.rounds) * waiting.len() as f64;
    figures.wake *= 1e6 / answers;
    figures.whole *= 1e6 / answers;
    Ok(figures)
}

async fn connect(address: SocketAddr, count: usize) -> Result<Vec<Connection>> {
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(count);
    for _ in 0..count {
        if opening.len() >= OPENING
            && let Some(connection) = opening.join_next().await
        {
            opened.push(connection??);
        }
        opening.spawn(Connection::open(address, SMALL));
    }
    while let Some(connection) = opening.join_next().await {
        opened.push(connection??);
    }
    Ok(opened)
}
