//! `stored`: stored streams. Durable appends to one stream and to many, from an append to its delivery, and catching up
//! with a long history; beside other servers of the protocol, which are started by the commands they are given by.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::time::Instant;

use crate::load;
use crate::measure::{Latencies, now_nanos};
use crate::process::{Bench, Server};
use crate::publish::{Publisher, stamped};
use crate::readers::Readers;
use crate::report::{self, Table, number, time};
use crate::wire::{self, Connection, LARGE, SMALL};

/// Before a figure is taken, the server writes for this long.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long a waiter is given to be waiting.
const SETTLE: Duration = Duration::from_millis(3);
/// Bytes of one append while the long history is made.
const PIECE: usize = 100_000;

#[derive(Args)]
pub(crate) struct Options {
    /// Numbers of clients, one after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    clients: Vec<usize>,
    /// Numbers of streams that they append to.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000])]
    streams: Vec<usize>,
    /// Seconds of each run.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Bytes of an append.
    #[arg(long, default_value_t = 200)]
    content: usize,
    /// Megabytes of the long history.
    #[arg(long, default_value_t = 100)]
    history: usize,
    /// Another server, `NAME=COMMAND`; the command is run by a shell, with {port} and {dir} filled in.
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            clients: vec![1, 16, 64],
            streams: vec![1, 1_000],
            seconds: 3.0,
            content: 200,
            history: 100,
            peers: Vec::new(),
        }
    }
}

/// A server of the protocol, and where its database may be.
struct Subject {
    server: Server,
    _scratch: tempfile::TempDir,
}

async fn start(bench: &Bench, command: Option<&str>) -> Result<Subject> {
    let scratch = bench.scratch()?;
    let server = match command {
        None => bench.bourn(scratch.path(), &[]).await?,
        Some(command) => bench.foreign(command, scratch.path()).await?,
    };
    Ok(Subject { server, _scratch: scratch })
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let mut subjects = vec![("Bourn", None)];
    for peer in &options.peers {
        let (name, command) = peer.split_once('=').context("a peer is NAME=COMMAND")?;
        subjects.push((name, Some(command)));
    }
    appends(bench, options, &subjects).await?;
    let mut table = Table::new(
        "Stored streams: append to delivery, and catching up",
        &[
            "server",
            "SSE p50",
            "SSE p99",
            "long-poll p50",
            "long-poll p99",
            "catch-up MB/s",
            "CPU ms per 100 MB",
            "a quarter of it, read again: MB/s",
            "CPU ms per 100 MB",
        ],
    );
    for (name, command) in &subjects {
        report::progress(&format!("{name}: delivery and catch-up"));
        let subject = start(bench, *command).await?;
        let address = subject.server.address;
        create(address, 1).await?;
        let events = events(address, options).await?;
        let polls = polls(address, options).await?;
        let whole = make_history(&subject.server, "whole", options.history).await?;
        let first = catch_up(&subject.server, &whole, 1).await?;
        let part = make_history(&subject.server, "part", options.history / 4).await?;
        catch_up(&subject.server, &part, 1).await?;
        let again = catch_up(&subject.server, &part, 8).await?;
        table.row([
            (*name).to_owned(),
            time(events.p50()),
            time(events.p99()),
            time(polls.p50()),
            time(polls.p99()),
            number(first.0),
            number(first.1),
            number(again.0),
            number(again.1),
        ]);
        subject.server.end().await?;
    }
    table.print();
    Ok(())
}

async fn appends(bench: &Bench, options: &Options, subjects: &[(&str, Option<&str>)]) -> Result<()> {
    let title = format!("Stored streams: durable appends of {} bytes", options.content);
    let columns = ["server, streams", "clients", "appends/s", "p50", "p99", "CPU µs/append", "refused"];
    let mut table = Table::new(&title, &columns);
    let duration = Duration::from_secs_f64(options.seconds);
    for &streams in &options.streams {
        for (name, command) in subjects {
            for &clients in &options.clients {
                report::progress(&format!("{name}: {clients} clients append to {streams} streams"));
                let subject = start(bench, *command).await?;
                create(subject.server.address, streams).await?;
                let publisher = Publisher::stored(subject.server.address, options.content, streams);
                let publisher = Arc::new(publisher);
                load::closed_loop(&publisher, clients, WARM_UP, None).await?;
                let cpu = subject.server.cpu_seconds()?;
                let done = load::closed_loop(&publisher, clients, duration, None).await?;
                let cpu = (subject.server.cpu_seconds()? - cpu) * 1e6 / (done.sent as f64).max(1.0);
                subject.server.end().await?;
                table.row([
                    format!("{name}, {streams}"),
                    number(clients as f64),
                    number(done.per_second()),
                    time(done.latencies.p50()),
                    time(done.latencies.p99()),
                    number(cpu),
                    done.failed.to_string(),
                ]);
            }
        }
    }
    table.print();
    Ok(())
}

/// Makes the streams that [`Publisher::stored`] appends to.
async fn create(address: SocketAddr, streams: usize) -> Result<()> {
    let mut connection = Connection::open(address, SMALL).await?;
    for i in 0..streams {
        connection.expect(&put(address, &format!("/v1/stream/bench-{i}"))).await?;
    }
    Ok(())
}

fn put(address: SocketAddr, path: &str) -> Vec<u8> {
    format!("PUT {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n")
        .into_bytes()
}

/// One reader of an event stream, and two hundred appends a second.
async fn events(address: SocketAddr, options: &Options) -> Result<Latencies> {
    let readers = Readers::open(address, "/v1/stream/bench-0?offset=now&live=sse", 1, 1).await?;
    let publisher = Arc::new(Publisher::stored(address, options.content, 1));
    load::paced(&publisher, 200.0, WARM_UP).await?;
    let _ = readers.tally.take_latencies();
    load::paced(&publisher, 200.0, Duration::from_secs_f64(options.seconds)).await?;
    Ok(readers.tally.take_latencies())
}

/// One reader that waits for each append.
async fn polls(address: SocketAddr, options: &Options) -> Result<Latencies> {
    let mut writer = Connection::open(address, SMALL).await?;
    let mut reader = Connection::open(address, SMALL).await?;
    let publisher = Publisher::stored(address, options.content, 1);
    writer.expect(&wire::get(address, "/v1/stream/bench-0?offset=now", None)).await?;
    let mut offset = writer.header("stream-next-offset").context("no offset")?.to_owned();
    let mut latencies = Latencies::new()?;
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    while Instant::now() < until {
        let request = wire::get(address, &format!("/v1/stream/bench-0?offset={offset}&live=long-poll"), None);
        let append = async {
            tokio::time::sleep(SETTLE).await;
            let begun = now_nanos();
            writer.expect(&publisher.request()).await.map(|_| begun)
        };
        let answer = async { reader.expect(&request).await.map(|_| now_nanos()) };
        let (begun, answered) = tokio::try_join!(append, answer)?;
        latencies.record(answered.saturating_sub(begun));
        offset = reader.header("stream-next-offset").context("no offset")?.to_owned();
    }
    Ok(latencies)
}

/// Makes a stream of so many megabytes; gives where it is.
async fn make_history(server: &Server, name: &str, megabytes: usize) -> Result<String> {
    let (address, path) = (server.address, format!("/v1/stream/{name}"));
    let mut connection = Connection::open(address, LARGE).await?;
    connection.expect(&put(address, &path)).await?;
    for _ in 0..megabytes * 1_000_000 / PIECE {
        let append = wire::post(address, &path, "Content-Type: text/plain\r\n", &stamped(PIECE));
        connection.expect(&append).await?;
    }
    Ok(path)
}

/// Reads a stream to its end, so many times; gives megabytes a second and CPU milliseconds for a hundred of them.
async fn catch_up(server: &Server, path: &str, times: usize) -> Result<(f64, f64)> {
    let address = server.address;
    let mut connection = Connection::open(address, LARGE).await?;
    let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
    let mut bytes = 0;
    for _ in 0..times {
        let mut offset = "-1".to_owned();
        while connection.header("stream-up-to-date").is_none() || offset == "-1" {
            let request = wire::get(address, &format!("{path}?offset={offset}"), None);
            bytes += connection.expect(&request).await?.body_bytes;
            offset = connection.header("stream-next-offset").context("no offset")?.to_owned();
        }
    }
    let megabytes = bytes as f64 / 1e6;
    let cpu = (server.cpu_seconds()? - cpu) * 1e3 * 100.0 / megabytes.max(1e-9);
    Ok((megabytes / begun.elapsed().as_secs_f64().max(1e-9), cpu))
}
