//! `catch-up`: chunks of the log over keep-alive connections: one hot chunk, the whole log past the cache, and
//! chunks that the client has already.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load;
use crate::measure::{Latencies, now_nanos};
use crate::process::{Bench, Server};
use crate::publish::Publisher;
use crate::report::{self, Table, number, ratio, time};
use crate::wire::{self, Connection, LARGE, SMALL};

/// Clients that fill the log.
const FILLERS: usize = 64;
/// How long filling may take.
const FILL: Duration = Duration::from_secs(180);
/// Chunks that a walk over the log may have.
const MOST_CHUNKS: usize = 100_000;
/// The path of the stream.
const STREAM: &str = "/v1/entities/pages?offset=";

#[derive(Args)]
pub(crate) struct Options {
    /// Rows of the log.
    #[arg(long, default_value_t = 20_000)]
    rows: u64,
    /// Bytes of a row's content.
    #[arg(long, default_value_t = 500)]
    content: usize,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Maximum size in bytes of a chunk, as Bourn takes it.
    #[arg(long, default_value = "64KiB")]
    chunk: String,
    /// Seconds of each run.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options { rows: 20_000, content: 500, connections: 64, chunk: "64KiB".into(), seconds: 3.0 }
    }
}

/// A chunk as its first reader saw it.
struct Chunk {
    path: String,
    etag: String,
    bytes: usize,
    sealed: bool,
}

struct Figures {
    requests: f64,
    megabytes: f64,
    latencies: Latencies,
    /// CPU microseconds of the server per request.
    cpu: f64,
}

pub(crate) async fn run(bench: &Bench, options: &Options) -> Result<()> {
    let scratch = bench.scratch()?;
    let settings = [("BOURN_CHUNK_BYTES", options.chunk.as_str())];
    let server = bench.bourn(scratch.path(), &settings).await?;
    report::progress(&format!("filling the log with {} rows", options.rows));
    let publisher = Arc::new(Publisher::pages(server.address, options.content));
    let filled = load::closed_loop(&publisher, FILLERS, FILL, Some(options.rows)).await?;
    let chunks = walk(server.address).await?;
    let sealed: Vec<&Chunk> = chunks.iter().skip(1).filter(|chunk| chunk.sealed).collect();
    ensure!(!sealed.is_empty(), "the log has no sealed chunk; use more rows");
    let mut sizes: Vec<usize> = sealed.iter().map(|chunk| chunk.bytes).collect();
    sizes.sort_unstable();
    let median = sizes.get(sizes.len() / 2).copied().unwrap_or_default();
    let typical = sealed.iter().min_by_key(|chunk| chunk.bytes.abs_diff(median)).context("no chunk")?;

    let duration = Duration::from_secs_f64(options.seconds);
    let one = |address, tag| -> Arc<Vec<Vec<u8>>> { vec![wire::get(address, &typical.path, tag)].into() };
    report::progress("one hot chunk");
    let hot = measure(&server, options, one(server.address, None), 200, duration).await?;
    report::progress("not modified");
    let unmodified =
        measure(&server, options, one(server.address, Some(&typical.etag)), 304, duration).await?;
    server.end().await?;

    report::progress("cold chunks");
    let server = bench.bourn(scratch.path(), &[settings[0], ("BOURN_CHUNK_CACHE", "0B")]).await?;
    let all: Vec<Vec<u8>> = sealed.iter().map(|chunk| wire::get(server.address, &chunk.path, None)).collect();
    let cold = measure(&server, options, all.into(), 200, duration).await?;
    server.end().await?;

    report::progress("the baseline");
    let server = bench.baseline(&["baseline-static", "--bytes", &typical.bytes.to_string()]).await?;
    let bare = measure(&server, options, one(server.address, None), 200, duration).await?;
    let bare_unmodified =
        measure(&server, options, one(server.address, Some("\"x\"")), 304, duration).await?;
    server.end().await?;

    let title = format!("Catch-up over {} keep-alive connections", options.connections);
    let mut table = Table::new(
        &title,
        &["", "requests/s", "MB/s", "p50", "p99", "CPU µs/request", "requests / bare", "CPU / bare"],
    );
    for (name, figures, base) in [
        ("Bourn, one hot chunk", &hot, &bare),
        ("Bourn, cold chunks", &cold, &bare),
        ("bare hyper, the same body", &bare, &bare),
        ("Bourn, 304", &unmodified, &bare_unmodified),
        ("bare hyper, 304", &bare_unmodified, &bare_unmodified),
    ] {
        table.row([
            name.to_owned(),
            number(figures.requests),
            number(figures.megabytes),
            time(figures.latencies.p50()),
            time(figures.latencies.p99()),
            number(figures.cpu),
            ratio(figures.requests, base.requests),
            ratio(figures.cpu, base.cpu),
        ]);
    }
    table.note(format!(
        "The log: {} rows in {} chunks; a sealed chunk has {} to {} bytes, the hot one {}. It was filled at {} rows/s.",
        filled.sent,
        chunks.len(),
        sizes.first().copied().unwrap_or_default(),
        sizes.last().copied().unwrap_or_default(),
        typical.bytes,
        number(filled.per_second()),
    ));
    table.print();
    Ok(())
}

/// Reads the whole log once.
async fn walk(address: SocketAddr) -> Result<Vec<Chunk>> {
    let mut connection = Connection::open(address, LARGE).await?;
    let mut chunks = Vec::new();
    let mut offset = "-1".to_owned();
    while chunks.len() < MOST_CHUNKS {
        let path = format!("{STREAM}{offset}");
        let answer = connection.expect(&wire::get(address, &path, None)).await?;
        let sealed = connection.header("stream-up-to-date").is_none();
        let etag = connection.header("etag").unwrap_or_default().to_owned();
        offset = connection.header("stream-next-offset").context("no offset")?.to_owned();
        chunks.push(Chunk { path, etag, bytes: answer.body_bytes, sealed });
        if !sealed {
            break;
        }
    }
    Ok(chunks)
}

/// Each connection goes round the requests from a place of its own, until the time is over.
async fn measure(
    server: &Server,
    options: &Options,
    requests: Arc<Vec<Vec<u8>>>,
    status: u16,
    duration: Duration,
) -> Result<Figures> {
    let mut clients = JoinSet::new();
    let room = if status == 304 { SMALL } else { LARGE };
    let mut opened = Vec::with_capacity(options.connections);
    for _ in 0..options.connections {
        opened.push(Connection::open(server.address, room).await?);
    }
    let (cpu, begun) = (server.cpu_seconds()?, Instant::now());
    for (i, mut connection) in opened.into_iter().enumerate() {
        let requests = requests.clone();
        let start = i * requests.len() / options.connections;
        clients.spawn(async move {
            let (mut done, mut bytes, mut latencies) = (0_u64, 0_usize, Latencies::new()?);
            for request in requests.iter().cycle().skip(start) {
                if begun.elapsed() >= duration {
                    break;
                }
                let sent = now_nanos();
                let answer = connection.exchange(request).await?;
                ensure!(answer.status == status, "the server answered {}", answer.status);
                latencies.record(now_nanos().saturating_sub(sent));
                done += 1;
                bytes += answer.body_bytes;
            }
            Ok((done, bytes, latencies))
        });
    }
    let (mut requests, mut bytes, mut latencies) = (0_u64, 0_usize, Latencies::new()?);
    while let Some(client) = clients.join_next().await {
        let client = client??;
        requests += client.0;
        bytes += client.1;
        latencies.add(&client.2)?;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = (server.cpu_seconds()? - cpu) * 1e6 / (requests as f64).max(1.0);
    let megabytes = bytes as f64 / 1e6 / elapsed;
    Ok(Figures { requests: requests as f64 / elapsed, megabytes, latencies, cpu })
}
